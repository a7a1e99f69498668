from __future__ import annotations

import pytest

from sipha.admin.reads import PATIENCE
from tests.admin.fakes import NOW, Console, FakeNode, Reply, serve

FRESH = "/v1/accounts?consistency=linearizable"


@pytest.fixture
def leader() -> FakeNode:
    return FakeNode("b")


@pytest.fixture
def follower(leader: FakeNode) -> Console:
    node = FakeNode("a")
    node.leads = False
    node.leader, node.leader_url = leader, "http://127.0.0.12:8080"
    return Console(node, serve(leader))


def said(reply: Reply) -> dict[str, str]:
    """The headers that say how fresh an answer is."""
    return {
        name.decode().removeprefix("Sipha-"): values[0].decode()
        for name, values in reply.headers.getAllRawHeaders()
        if name.startswith(b"Sipha-")
    }


def test_leader_reads_all_that_was_acknowledged(leader: FakeNode) -> None:
    leader.register("sip:alice@sipha.test")
    for path in ("/v1/accounts", FRESH):
        assert said(Console(leader).ask("GET", path)) == {
            "Node": "b", "Index": "1", "Time": f"{NOW:.3f}", "Consistency": "linearizable",
        }  # fmt: skip


def test_follower_says_how_far_it_may_be_behind(follower: Console, leader: FakeNode) -> None:
    leader.register("sip:alice@sipha.test")
    assert said(follower.ask("GET", "/v1/bindings")) == {
        "Node": "a", "Index": "0", "Time": f"{NOW:.3f}", "Consistency": "local", "Leader-Heard": "0.020",
    }  # fmt: skip
    assert said(follower.ask("GET", "/v1/bindings/bob@sipha.test"))["Consistency"] == "local"  # a 404 too


def test_follower_waits_until_it_has_what_the_leader_had(follower: Console, leader: FakeNode) -> None:
    leader.register("sip:alice@sipha.test")
    replies: list[Reply] = []
    follower.start("GET", "/v1/bindings?consistency=linearizable").addCallback(replies.append)
    for _ in range(10):
        follower.flush()
        follower.clock.advance(0.01)
    assert replies == []
    leader.register("sip:later@sipha.test")  # which needn't be in the answer
    follower.node.register("sip:alice@sipha.test")
    follower.clock.advance(0.01)
    follower.flush()
    (reply,) = replies
    assert [binding["aor"] for binding in reply.json["bindings"]] == ["sip:alice@sipha.test"]
    assert said(reply) == {"Node": "a", "Index": "1", "Time": f"{NOW:.3f}", "Consistency": "linearizable"}


def test_follower_that_has_it_answers_at_once(follower: Console) -> None:
    assert said(follower.ask("GET", FRESH))["Consistency"] == "linearizable"


def test_follower_that_stays_behind_says_so(follower: Console, leader: FakeNode) -> None:
    leader.register("sip:alice@sipha.test")
    replies: list[Reply] = []
    follower.start("GET", FRESH).addCallback(replies.append)
    follower.flush()
    follower.clock.advance(PATIENCE)
    follower.flush()
    (reply,) = replies
    assert reply.status == 503
    assert "this node has the log up to entry 0, and the leader up to 1" in reply.fault
    assert reply.headers.getRawHeaders("Retry-After") == ["1"]


@pytest.mark.parametrize("path", [FRESH, "/v1/bindings.jsonl?consistency=linearizable"])
def test_leader_that_has_lost_its_lease_vouches_for_nothing(follower: Console, leader: FakeNode, path: str) -> None:
    leader.leads = False
    reply = follower.ask("GET", path)
    assert reply.status == 503
    assert reply.headers.getRawHeaders("Retry-After") == ["1"]
    assert follower.node.freed == 0


def test_follower_that_knows_no_leader_reads_nothing_fresh(follower: Console) -> None:
    follower.node.leader = None
    assert follower.ask("GET", FRESH).status == 503


def test_follower_that_cant_ask_the_leader_says_so(follower: Console) -> None:
    follower.node.leader_url = None
    reply = follower.ask("GET", FRESH)
    assert reply.status == 409
    assert "where it takes what is handed on" in reply.fault
