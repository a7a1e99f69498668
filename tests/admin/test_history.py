from __future__ import annotations

from pathlib import Path

import pytest

from sipha.state.entries import PutAccount, RemoveBindings
from tests.admin.fakes import Console, FakeNode

ALICE = "sip:alice@sipha.test"


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    node = FakeNode()
    node.keep_history(tmp_path / "history")
    return node


def test_history_of_an_aor_is_shown(node: FakeNode) -> None:
    node.apply(PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32}))
    node.register(ALICE)
    node.register("sip:bob@sipha.test")
    node.apply(RemoveBindings(ALICE))
    answer = Console(node).ask("GET", "/v1/history/alice@alias.test").json
    assert [(event["id"], event["kind"]) for event in answer["events"]] == [
        ("4.0", "binding-removed"), ("2.0", "binding-added"), ("1.0", "account-created"),
    ]  # fmt: skip
    assert answer["events"][0] | {"at": "", "time": 0} == {
        "kind": "binding-removed",
        "id": "4.0",
        "index": 4,
        "time": 0,
        "at": "",
        "node": "a",
        "aor": ALICE,
        "contact": "sip:phone@127.0.0.1:5070",
        "received": "sip:127.0.0.1:5070",
        "user_agent": "phone/1",
        "call_id": "call-sip:phone@127.0.0.1:5070",
        "cseq": 7,
        "behind_nat": False,
        "expires": 600.0,
        "contact_id": "0000000000200000",
        "reason": "admin",
        "by": None,
    }
    assert answer["cursor"] is None
    assert answer["begins"] == answer["events"][-1]["at"]


def test_history_comes_in_pages(node: FakeNode) -> None:
    for number in range(5):
        node.register(ALICE, f"sip:{number}@127.0.0.1")
    console, found, cursor = Console(node), [], ""
    while cursor is not None:
        page = console.ask("GET", f"/v1/history/alice@sipha.test?limit=2&cursor={cursor}").json
        found += [event["id"] for event in page["events"]]
        cursor = page["cursor"]
    assert found == ["5.0", "4.0", "3.0", "2.0", "1.0"]


def test_aor_of_which_nothing_is_known_has_an_empty_history(node: FakeNode) -> None:
    assert Console(node).ask("GET", "/v1/history/bob@sipha.test").json == {
        "events": [], "cursor": None, "begins": None,
    }  # fmt: skip


@pytest.mark.parametrize("query", ["cursor=x", "limit=0", "since=1"])
def test_question_that_makes_no_sense_is_refused(node: FakeNode, query: str) -> None:
    assert Console(node).ask("GET", f"/v1/history/alice@sipha.test?{query}").status == 400


def test_node_that_keeps_none_says_so() -> None:
    reply = Console(FakeNode()).ask("GET", "/v1/history/alice@sipha.test")
    assert reply.status == 404
    assert reply.fault == "this node keeps no history; write history.keep in its configuration"


def test_history_that_cant_be_read_says_why(tmp_path: Path) -> None:
    node = FakeNode()
    node.keep_history(tmp_path / "absent" / "history")
    reply = Console(node).ask("GET", "/v1/history/alice@sipha.test")
    assert reply.status == 503
    assert reply.fault.startswith("the history can't be read: ")
    assert reply.headers.getRawHeaders("Retry-After") == ["5"]
