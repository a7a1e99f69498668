"""Configurations that are loaded while phones are served, that are broken, and that don't hold what they promise."""

from __future__ import annotations

import fcntl
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sipha.config import lastgood
from sipha.sandbox import USERS, Sandbox, SandboxNode
from tests.system.conftest import wait_until
from tests.system.network import Network
from tests.system.nodes import run_siphactl, siphactl
from tests.system.ua import Call, UserAgent, call

pytestmark = pytest.mark.system

PREFIX = "127.0.41"
DEAF = 5070
_DROP = f"""
table inet deaf {{
    chain in {{
        type filter hook input priority 0
        udp dport {DEAF} drop
    }}
}}
"""

Agents = Callable[..., UserAgent]


@contextmanager
def started(directory: Path, size: int) -> Iterator[Sandbox]:
    """A cluster with accounts, whose configurations have been proven."""
    cluster = Sandbox(directory, prefix=PREFIX, size=size)
    try:
        cluster.start()
        cluster.add_accounts({user: f"{user}-secret" for user in USERS})
        prove(cluster)
        yield cluster
    finally:
        cluster.stop()


def prove(cluster: Sandbox) -> None:
    """Wait until each node has passed its probation; a follower takes its time."""
    wait_until(lambda: all(state(cluster, node)["proven"] for node in cluster.nodes), "probations to end", 30.0)


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Path(tempfile.gettempdir(), "sipha-configuration-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with started(tmp_path_factory.mktemp("configurations"), 3) as cluster:
            yield cluster


@pytest.fixture
def cluster(running_cluster: Sandbox) -> Sandbox:
    """Three nodes that run under what their files say, as they were written first."""
    cluster = running_cluster
    cluster.extra = ""
    for node in cluster.nodes:
        if node.running:
            cluster.configure(node)
            siphactl(node, "reload")
        else:
            cluster.start_node(node)
    prove(cluster)
    assert not any(state(cluster, node)["alarms"] for node in cluster.nodes)
    return cluster


@pytest.fixture
def agents() -> Iterator[Agents]:
    """Make user agents, each with an address of its own."""
    made: list[UserAgent] = []

    def agent(user: str, transport: str = "UDP") -> UserAgent:
        server = (f"{PREFIX}.10", 5060)
        made.append(UserAgent(user, server, transport, host=f"{PREFIX}.{150 + len(made)}"))
        return made[-1]

    yield agent
    for each in made:
        each.close()


def change(node: SandboxNode, old: str, new: str) -> None:
    text = node.configuration.read_text()
    assert old in text
    node.configuration.write_text(text.replace(old, new))


def state(cluster: Sandbox, node: SandboxNode) -> dict[str, Any]:
    """Return what a node's admin says of its configuration, with its alarms."""
    status = cluster.status(node)
    if status is None:
        return {"generation": 0, "proven": False, "alarms": "no answer", "leading": False}
    return {**status["configuration"], "alarms": "\n".join(status["alarms"]), "leading": status["leading"]}


def end(node: SandboxNode) -> None:
    assert node.process is not None
    node.process.terminate()
    node.process.wait(20)


def hang_up(node: SandboxNode) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)


def refusal(node: SandboxNode) -> str:
    return run_siphactl("--url", node.admin, "reload", status=1).stderr


def test_calls_go_on_while_all_nodes_are_reconfigured(cluster: Sandbox, agents: Agents) -> None:
    alice, bob, carol = agents("alice"), agents("bob", "TCP"), agents("carol")
    bob.register()
    carol.register()
    talking = call(alice, bob)
    alice.invite(f"sip:carol@{cluster.domain}")
    ringing = carol.expect("INVITE")
    carol.answer(ringing, 180)
    alice.expect(180)
    before = cluster.status(cluster.wait_for_leader())
    assert before is not None
    generations = {node.name: state(cluster, node)["generation"] for node in cluster.nodes}

    for node in cluster.nodes:
        change(node, "port = 5060", "port = 5080")
        change(node, '[[domains]]\nname = "sipha.test"', '[[domains]]\nname = "sipha.test"\naliases = ["b.test"]')
        with node.configuration.open("a") as file:
            file.write('[registrar]\nmax_contacts = 3\n[nat]\nping_interval = 20\n[log]\nlevel = "debug"\n')
        hang_up(node)
    wait_until(
        lambda: all(state(cluster, node)["generation"] > generations[node.name] for node in cluster.nodes),
        "all nodes to be reconfigured",
    )
    prove(cluster)
    assert not any(state(cluster, node)["alarms"] for node in cluster.nodes)

    talking.exchange("INFO", by_callee=True)
    carol.answer(ringing, 200)
    late = alice.expect(200)
    Call(alice, carol, ringing, late).acknowledge().exchange("BYE")
    talking.exchange("BYE")
    dave = UserAgent("alice", (f"{PREFIX}.10", 5080), domain="b.test", host=f"{PREFIX}.170")
    try:
        dave.register()
    finally:
        dave.close()
    after = cluster.status(cluster.wait_for_leader())
    assert after is not None
    assert (after["node"], after["term"]) == (before["node"], before["term"])


def test_what_cant_be_applied_is_refused_whole_and_mending_the_file_helps(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    generation = state(cluster, leader)["generation"]
    good = leader.configuration.read_text()
    change(leader, "[sip]\nport = 5060", "[sip]\nport = 5080\nt1 = 0.6")
    assert "sip.t1 can't change while the node runs: restart it" in refusal(leader)
    assert "takes a restart" in state(cluster, leader)["alarms"]
    leader.configuration.write_text(good + "[nat\n")
    lines = good.count("\n") + 1
    assert f"line {lines}, column 5: not TOML" in refusal(leader)
    assert f"line {lines}, column 5: not TOML" in state(cluster, leader)["alarms"]
    checked = run_siphactl("check", str(leader.configuration), status=1)
    assert f"line {lines}, column 5: not TOML" in checked.stderr
    leader.configuration.write_text(good)
    assert siphactl(leader, "reload").endswith("nothing has changed\n")
    assert state(cluster, leader)["generation"] == generation
    assert not state(cluster, leader)["alarms"]
    assert cluster.leader() is leader


def test_broken_file_doesnt_keep_a_node_from_starting_again(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    end(leader)
    cluster.extra = "[nat\n"
    cluster.start_node(leader)
    cluster.wait_for_leader()
    wait_until(lambda: cluster.status(leader), f"{leader.name} to run")
    shown = state(cluster, leader)
    assert shown["source"] == "last good copy"
    assert "not TOML" in shown["alarms"]
    cluster.extra = ""
    cluster.configure(leader)
    siphactl(leader, "reload")
    shown = state(cluster, leader)
    assert (shown["source"], shown["alarms"]) == ("file", "")


def test_broken_file_without_a_copy_ends_the_node_and_others_serve(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    end(leader)
    (leader.data / lastgood.NAME).unlink()
    cluster.extra = "[nat\n"
    cluster.start_node(leader)
    assert leader.process is not None
    assert leader.process.wait(30) == 1
    assert "not TOML" in (leader.directory / "log").read_text().splitlines()[-1]
    wait_until(lambda: cluster.leader() not in (None, leader), "another node to lead")


@pytest.fixture
def firewalled(can_build_networks: None) -> Iterator[Network]:
    """A machine that drops what comes over UDP to one port."""
    with Network(size=1) as network, network.inside("n1"):
        network.run("n1", "ip", "link", "set", "lo", "up")
        network.run("n1", "nft", "--file", "-", text=_DROP)
        yield network


@pytest.mark.long
@pytest.mark.usefixtures("firewalled")
def test_leader_that_doesnt_hear_itself_takes_a_new_configuration_back(tmp_path: Path) -> None:
    with started(tmp_path, 3) as cluster:
        leader = cluster.wait_for_leader()
        change(leader, "port = 5060", f"port = {DEAF}")
        began = time.monotonic()
        assert f"the SIP listener on {PREFIX}.10 port {DEAF} doesn't answer" in refusal(leader)
        assert time.monotonic() - began < 30.0
        assert "what ran before goes on" in state(cluster, leader)["alarms"]
        assert cluster.leader() is leader, "phones are served as before"
        change(leader, f"port = {DEAF}", "port = 5080")
        siphactl(leader, "reload")
        assert not state(cluster, leader)["alarms"]
        assert cluster.leader() is leader


@pytest.mark.long
@pytest.mark.usefixtures("firewalled")
def test_node_that_doesnt_hear_itself_after_a_restart_goes_back_to_the_copy(tmp_path: Path) -> None:
    with started(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        end(node)
        cluster.port = DEAF
        cluster.start_node(node)
        silence = f"the SIP listener on {PREFIX}.10 port {DEAF} doesn't answer; the node runs on the last good copy"
        wait_until(lambda: silence in state(cluster, node)["alarms"], "it to go back", 40.0)
        wait_until(lambda: state(cluster, node)["leading"], "it to lead", 20.0)
