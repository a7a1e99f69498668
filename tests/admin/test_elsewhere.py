from __future__ import annotations

import pytest

from sipha.admin.access import Access, Role
from sipha.admin.views import PeerStatus
from tests.admin.fakes import Console, FakeNode, serve
from tests.admin.test_access import token

AOR = "sip:alice@sipha.test"


@pytest.fixture
def leader() -> FakeNode:
    return FakeNode("b")


@pytest.fixture
def follower(leader: FakeNode) -> Console:
    """A node that knows who leads, and another of which it isn't told where that would be asked."""
    node = FakeNode("a")
    node.leads = False
    node.leader, node.leader_url = leader, "https://192.0.2.12:7001"
    node.peers = tuple(PeerStatus(name, "", "192.0.2.12:7000", "voter", True, 0.1, 0) for name in ("b", "c"))
    return Console(node, serve(leader))


@pytest.mark.parametrize("name", ["b", "leader"])
def test_follower_lets_the_leader_tell_its_status(follower: Console, name: str) -> None:
    told = follower.ask("GET", f"/v1/status?node={name}")
    assert told.status == 200
    assert (told.json["node"], told.json["leading"]) == ("b", True)
    assert follower.ask("GET", "/v1/status").json["node"] == "a"


@pytest.mark.parametrize("name", ["b", "leader"])
def test_leader_answers_itself_where_it_is_meant(leader: FakeNode, name: str) -> None:
    assert Console(leader).ask("GET", f"/v1/status?node={name}").json["node"] == "b"


def test_follower_answers_itself_where_it_is_meant(follower: Console) -> None:
    assert follower.ask("GET", "/v1/status?node=a").json["node"] == "a"


def test_follower_lets_the_leader_tell_when_a_phone_has_answered(follower: Console, leader: FakeNode) -> None:
    for node in (follower.node, leader):
        node.register(AOR)
    leader.answered[AOR] = 990_000
    (binding,) = follower.ask("GET", f"/v1/bindings/{AOR}").json["bindings"]
    assert binding["answered"] is None
    reply = follower.ask("GET", f"/v1/bindings/{AOR}?node=leader&consistency=linearizable")
    (binding,) = reply.json["bindings"]
    assert binding["answered"] == 10
    assert reply.headers.getRawHeaders("Sipha-Node") == ["b"]
    assert reply.headers.getRawHeaders("Sipha-Consistency") == ["linearizable"]
    assert follower.ask("GET", "/v1/bindings/bob@sipha.test?node=leader").status == 404


def test_follower_hands_on_what_is_looked_for(follower: Console, leader: FakeNode) -> None:
    for user in ("alice", "anna", "bob"):
        leader.register(f"sip:{user}@sipha.test")
    page = follower.ask("GET", "/v1/bindings?node=leader&prefix=sip:a&limit=1&behind_nat=false").json
    assert [binding["aor"] for binding in page["bindings"]] == [AOR]
    assert follower.ask("GET", f"/v1/bindings?node=leader&limit=5&cursor={page['cursor']}").json["bindings"][-1][
        "aor"
    ] == "sip:bob@sipha.test"  # fmt: skip


def test_follower_says_which_node_it_cant_ask(follower: Console) -> None:
    unknown = follower.ask("GET", "/v1/status?node=z")
    assert (unknown.status, unknown.fault) == (404, "this node knows no node z")
    untold = follower.ask("GET", "/v1/status?node=c")
    assert untold.status == 409
    assert untold.fault.startswith("c is to answer, and neither cluster.admin_port nor")
    follower.node.leader = None
    assert follower.ask("GET", "/v1/status?node=leader").status == 503


def test_export_is_made_by_the_node_that_is_asked(follower: Console) -> None:
    assert follower.ask("GET", "/v1/bindings.jsonl?node=leader").status == 400


def test_stranger_is_refused_before_anybody_is_asked(leader: FakeNode) -> None:
    access = Access([token("reader", Role.READ)])
    node = FakeNode("a")
    node.leads, node.leader, node.leader_url = False, leader, "https://192.0.2.12:7001"
    follower = Console(node, access=access)
    assert follower.ask("GET", "/v1/status?node=leader").status == 401
