"""Whoever follows the log from outside, and who asks afterwards: three real nodes, of which one dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import agree, wait_until
from tests.system.nodes import restore, siphactl, started
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

PREFIX = "127.0.34"
USERS = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    cluster = Sandbox(
        tmp_path_factory.mktemp("events"),
        prefix=PREFIX,
        cluster="heartbeat = 0.1\nelection_min = 2.0\nelection_max = 4.0",
        extra='[nat]\nping_scope = "none"',
    )
    with started(cluster, *USERS):
        yield cluster


@pytest.fixture
def agents(cluster: Sandbox) -> Iterator[list[UserAgent]]:
    """A phone of each user."""
    server = (cluster.virtual_address, 5060)
    made = [UserAgent(user, server, host=f"{PREFIX}.{150 + number}") for number, user in enumerate(USERS)]
    yield made
    for agent in made:
        agent.close()


def history(cluster: Sandbox, node: SandboxNode, user: str) -> list[dict[str, Any]]:
    """What a node knows of a user, but for when its own clock says that it was."""
    answer = cluster.request(node, "GET", f"/v1/history/{user}@{cluster.domain}")
    return [{name: value for name, value in event.items() if name != "at"} for event in answer["events"]]


def follow(cluster: Sandbox, output: Path, *words: str) -> subprocess.Popen[bytes]:
    """Have an operator follow all nodes' events."""
    # Whatever runs the tests may ignore SIGINT, which its children inherit.
    command = [
        "env",
        "--default-signal=INT",
        str(Path(sys.executable).with_name("siphactl")),
        "events",
        "--json",
        *words,
    ]
    urls = ["--url", ",".join(node.admin for node in cluster.nodes)]
    with output.open("wb") as file:
        return subprocess.Popen([*command, *urls], stdout=file, stderr=subprocess.DEVNULL)


def told(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_events_go_on_and_history_is_whole_when_a_node_dies(
    cluster: Sandbox, agents: list[UserAgent], tmp_path: Path
) -> None:
    restore(cluster)
    alice, bob, carol = agents
    leader = cluster.wait_for_leader()
    # The first node, whom siphactl asks, dies; what it told is gone on with by another.
    dies = cluster.nodes[0]
    if leader is dies:
        siphactl(dies, "transfer")
        wait_until(lambda: (found := cluster.leader()) is not None and found is not dies, "another node to lead")
    output = tmp_path / "told"
    operator = follow(cluster, output, "--since", "0", "--aor", f"alice@{cluster.domain}")
    try:
        alice.register()
        wait_until(lambda: any(event["kind"] == "binding-added" for event in told(output)), "the event of alice")
        cluster.kill(dies)
        bob.register()
        alice.register(expires=0)
        wait_until(lambda: any(event["kind"] == "binding-removed" for event in told(output)), "the end of alice", 30)
    finally:
        operator.send_signal(signal.SIGINT)
        assert operator.wait(10) == 130
    events = told(output)
    ids = [event["id"] for event in events if "id" in event and event["id"].count(".") == 1]
    assert len(set(ids)) == len(ids), "nothing is told twice"
    assert {event["node"] for event in events if event["kind"] == "start"} >= {dies.name}
    assert len([event for event in events if event["kind"] == "start"]) >= 2
    mine = [event["kind"] for event in events if event.get("aor") == f"sip:alice@{cluster.domain}"]
    assert mine == ["account-created", "binding-added", "binding-removed"]
    removed = next(event for event in events if event["kind"] == "binding-removed")
    assert (removed["reason"], removed["by"]["received"]) == ("unregistered", removed["received"])

    cluster.start_node(dies)
    restore(cluster)
    carol.register()
    wait_until(lambda: agree(cluster), "the nodes to agree")
    for user, kinds in (
        ("alice", ["binding-removed", "binding-added", "account-created"]),
        ("bob", ["binding-added", "account-created"]),
        ("carol", ["binding-added", "account-created"]),
    ):
        known = [history(cluster, node, user) for node in cluster.nodes]
        assert [event["kind"] for event in known[1]] == kinds
        assert known[0] == known[1] == known[2], "the one that died has learnt the rest from the log"
    shown = siphactl(dies, "history", f"alice@{cluster.domain}").splitlines()
    assert len(shown) == 3
    assert "unregistered, by REGISTER from sip:" in shown[-1]
