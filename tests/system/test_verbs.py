"""Operators move leadership about, stop nodes and drill; three real nodes, and a phone that asks every 20 ms."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import agree, wait_until
from tests.system.nodes import check, clear, freeze, quick, restore, run_siphactl, siphactl, started, thaw
from tests.system.questions import Questions
from tests.system.registrations import Load

pytestmark = pytest.mark.system

PREFIX = "127.0.33"
USERS = tuple(f"user{number}" for number in range(60))
_LEVEL = re.compile(r"\[[^]\s]*#(?:warn|error|critical)\]")
_seeds = count(1)  # each load has Call-IDs and contacts of its own


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    # Leases that outlast whatever else this machine does meanwhile: what moves is what is told to.
    cluster = Sandbox(
        tmp_path_factory.mktemp("verbs"),
        prefix=PREFIX,
        tls=True,
        cluster="heartbeat = 0.1\nelection_min = 2.0\nelection_max = 4.0",
    )
    with started(cluster, *USERS):
        yield cluster


@pytest.fixture
def cluster(running: Sandbox) -> Sandbox:
    """Three nodes that agree, none of which is in standby, unwell or preferred, without bindings."""
    for node in running.nodes:
        thaw(node)
    clear(running)
    for node in running.nodes:
        siphactl(running.nodes[0], "online", node.name)
    siphactl(running.nodes[0], "prefer", "--nobody")
    wait_until(lambda: not any(quick(node)["alarms"] for node in running.nodes), "all to be well", 20)
    wait_until(lambda: agree(running), "the nodes to agree")
    return running


@pytest.fixture
def load(cluster: Sandbox) -> Iterator[Callable[[], Load]]:
    """Start phones; what they saw must be faultless in the end."""
    started: list[Load] = []

    def start() -> Load:
        server = (cluster.virtual_address, 5060)
        started.append(Load(USERS, f"{PREFIX}.200", server, cluster.domain, seed=next(_seeds)))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


def others(cluster: Sandbox, node: SandboxNode) -> list[SandboxNode]:
    return [other for other in cluster.nodes if other is not node]


def leads(node: SandboxNode) -> bool:
    return bool(quick(node)["leading"])


def log(node: SandboxNode) -> str:
    return (node.directory / "log").read_text(errors="replace")


def test_leader_in_standby_hands_on_and_no_request_is_lost(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    first, second = others(cluster, leader)
    with Questions(f"{PREFIX}.201", cluster.virtual_address) as questions:
        time.sleep(0.5)
        said = siphactl(first, "standby", leader.name)
        assert said in {f"{leader.name} is in standby; {other.name} leads\n" for other in (first, second)}
        time.sleep(1.5)
    print(f"standby: longest gap {questions.longest:.3f} s, {questions.repeated} requests repeated")
    assert questions.unanswered() == 0
    assert not leads(leader)
    assert [node["standby"] for node in nodes(cluster)] == [node is leader for node in cluster.nodes]
    assert quick(leader)["standby"]


def test_node_in_standby_stays_so_over_restarts_and_elections(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    idle, other = others(cluster, leader)
    siphactl(leader, "standby", idle.name)
    refused = run_siphactl("--url", other.admin, "transfer", idle.name, status=1).stderr
    assert refused == f"siphactl: {idle.name} is in standby\n"
    for node in cluster.nodes:
        cluster.kill(node)
    restore(cluster)
    assert cluster.wait_for_leader() is not idle
    cluster.kill(cluster.wait_for_leader())
    assert cluster.wait_for_leader() is not idle
    last = cluster.wait_for_leader()
    refused = run_siphactl("--url", last.admin, "standby", last.name, status=1).stderr
    assert f"without {last.name} no node could lead: " in refused
    assert f"{idle.name} is in standby" in refused
    siphactl(idle, "online", idle.name)
    restore(cluster)
    siphactl(idle, "transfer", idle.name)
    wait_until(partial(leads, idle), "the node to lead again")


def test_leader_that_is_stopped_hands_on_and_no_request_is_lost(cluster: Sandbox) -> None:
    for _ in range(3):
        leader = cluster.wait_for_leader()
        with Questions(f"{PREFIX}.201", cluster.virtual_address) as questions:
            time.sleep(0.5)
            assert leader.process is not None
            leader.process.terminate()
            leader.process.wait(10)
            time.sleep(1.5)
        print(f"SIGTERM: longest gap {questions.longest:.3f} s, {questions.repeated} requests repeated")
        assert questions.unanswered() == 0
        successor = cluster.wait_for_leader()
        told = [line for line in log(successor).splitlines() if f"failover to {successor.name}" in line][-5:]
        assert f"{leader.name} led before, and hands leadership on: it is being stopped" in told[0]
        restore(cluster)


def test_death_of_the_leader_is_told_in_five_lines(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    with Questions(f"{PREFIX}.201", cluster.virtual_address):
        cluster.kill(leader)
        successor = cluster.wait_for_leader()
        time.sleep(0.2)
    lines = [line for line in log(successor).splitlines() if f"failover to {successor.name}" in line][-5:]
    stories = [line.partition(f"failover to {successor.name}, ")[2] for line in lines]
    print("\n".join(stories))
    for story, pattern in zip(
        stories,
        (
            rf"\+0\.000 s: {leader.name} led before, and closed its connection",
            r"\+0\.000 s: noticed, \d\.\d{3} s after it was last heard",
            r"\+\d\.\d{3} s: elected in term \d+",
            rf"\+\d\.\d{{3}} s: {re.escape(cluster.virtual_address)} claimed",
            r"\+\d\.\d{3} s: first request served, OPTIONS",
        ),
        strict=True,
    ):
        assert re.fullmatch(pattern, story), story
    assert all("#info]" in line for line in lines)


def test_operator_drills(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    heir, other = others(cluster, leader)
    siphactl(leader, "standby", other.name)
    plan = json.loads(siphactl(heir, "drill", "--dry-run", "--json"))
    assert (plan["leads"], plan["would_lead"], plan["unreachable"]) == (leader.name, heir.name, [])
    refused = run_siphactl("--url", heir.admin, "drill", "--dry-run", "--to", other.name, status=1)
    assert refused.stderr == f"siphactl: {other.name} is in standby\n"
    assert leads(leader)
    drill = json.loads(siphactl(heir, "drill", "--json"))
    print(drill)
    assert (drill["led"], drill["leads"], drill["moved"]) == (leader.name, heir.name, True)
    (seen,) = drill["addresses"]
    assert seen["gap"] < 1.0
    assert seen["sent"] > 100
    assert leads(heir)


def test_node_that_was_frozen_is_unwell_for_a_while(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    frozen, _ = others(cluster, leader)
    freeze(frozen)
    time.sleep(2.0)
    thaw(frozen)
    wait_until(lambda: "the process was held up for" in str(quick(frozen)["alarms"]), "the node to say so")
    wait_until(lambda: leads_elsewhere(leader, frozen), "the leader to hear of it")
    wait_until(lambda: not quick(frozen)["alarms"], "the node to be well again", 20)


def leads_elsewhere(leader: SandboxNode, unwell: SandboxNode) -> bool:
    refused = run_siphactl("--url", leader.admin, "drill", "--dry-run", "--to", unwell.name, status=1).stderr
    return f"{unwell.name} is unwell: the process was held up for" in refused


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.long)])
def test_healthy_day_brings_no_warnings(cluster: Sandbox, load: Callable[[], Load], seconds: float) -> None:
    before = {node.name: len(log(node)) for node in cluster.nodes}
    phones = load()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for node in cluster.nodes:
            siphactl(cluster.nodes[0], "transfer", node.name)
            wait_until(partial(leads, node), f"{node.name} to serve phones")
            phones.wait_for(phones.acknowledged + 50)
    stopped = others(cluster, cluster.wait_for_leader())[0]
    assert stopped.process is not None
    stopped.process.terminate()
    stopped.process.wait(10)
    phones.wait_for(phones.acknowledged + 50)
    phones.stop()
    check(cluster, phones)
    for node in cluster.nodes:
        found = [line for line in log(node)[before[node.name] :].splitlines() if _LEVEL.search(line)]
        assert not found, (node.name, found[:5])


def nodes(cluster: Sandbox) -> list[dict[str, object]]:
    found: list[dict[str, object]] = cluster.request(cluster.nodes[0], "GET", "/v1/nodes")["nodes"]
    return found
