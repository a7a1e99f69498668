from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest

from sipha.admin.views import PeerStatus
from sipha.events.feed import READERS
from sipha.state.entries import Barrier, Member, PutAccount, PutMembers, PutSetting, RemoveBindings
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator

ALICE = "sip:alice@sipha.test"


def happen(node: FakeNode) -> None:
    node.register(ALICE, user_agent="phone\x1b[2J")
    node.register(ALICE, received="sip:192.0.2.1:5", cseq=8)
    node.apply(RemoveBindings(ALICE))
    node.apply(PutSetting("pings", "off"))
    node.apply(PutMembers((Member("a", "h:1", "voter"),)))
    node.apply(Barrier(7, "b"))
    node.feed.compare_alarms(["the disk hangs"])


def test_operator_reads_the_history_of_an_aor(node: FakeNode, operator: Operator, tmp_path: Path) -> None:
    node.keep_history(tmp_path / "history")
    node.apply(PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32}))
    happen(node)
    shown = operator.types("history", "alice@sipha.test")
    assert shown.exit_code == 0, shown.output
    lines = [line.split(maxsplit=3) for line in shown.stdout.splitlines()]
    assert [line[1] for line in lines] == ["1.0", "2.0", "3.0", "4.0"]
    assert lines[0][3] == "account-created alice@sipha.test"
    assert lines[1][3] == (
        "binding-added sip:alice@sipha.test sip:phone@127.0.0.1:5070 for 600 s from sip:127.0.0.1:5070 "
        r"(phone\x1b[2J), Call-ID call-sip:phone@127.0.0.1:5070"
    )
    assert "before sip:phone@127.0.0.1:5070 from sip:127.0.0.1:5070" in lines[2][3]
    assert lines[3][3] == "binding-removed sip:alice@sipha.test sip:phone@127.0.0.1:5070: admin"


def test_operator_reads_the_latest_of_a_history(node: FakeNode, operator: Operator, tmp_path: Path) -> None:
    node.keep_history(tmp_path / "history")
    for number in range(5):
        node.register(ALICE, f"sip:{number}@127.0.0.1")
    found = operator.reads("history", "alice@sipha.test", "-n", "2")
    assert [event["id"] for event in found["events"]] == ["4.0", "5.0"]
    nothing = operator.types("history", "bob@sipha.test")
    assert nothing.exit_code == 1
    assert nothing.stderr.startswith("siphactl: nothing is known of bob@sipha.test; the history begins at 20")


def test_operator_hears_that_there_is_no_history(operator: Operator) -> None:
    refused = operator.types("history", "alice@sipha.test")
    assert (refused.exit_code, refused.stderr) == (
        1, "siphactl: this node keeps no history; write history.keep in its configuration\n",
    )  # fmt: skip


def follow(operator: Operator, node: FakeNode, *words: str) -> tuple[list[str], list[str]]:
    """Let an operator follow while something happens at a node, and then press Ctrl-C."""
    turns = count()

    def meanwhile() -> None:
        turn = next(turns)
        if turn == 50:
            happen(node)
        elif turn == 100:
            raise KeyboardInterrupt
        node.clock.advance(0)

    operator.meanwhile = meanwhile
    shown = operator.types("events", *words)
    return shown.stdout.splitlines(), [line for line in shown.stderr.splitlines() if line.startswith("#")]


def test_operator_follows_what_happens(node: FakeNode, operator: Operator) -> None:
    lines, notes = follow(operator, node)
    assert notes[0] == f"# a of cluster {'0123456789abcdef' * 2} tells, from entry 0 on"
    assert [line.split()[3] for line in lines] == [
        "binding-added", "binding-changed", "binding-removed", "setting-changed", "members-changed", "leader-elected",
        "alarm-raised",
    ]  # fmt: skip
    ends = ["pings = 'off'", "a (voter)", "term 7", "the disk hangs"]
    assert [line.endswith(end) for line, end in zip(lines[-4:], ends, strict=True)] == [True] * 4


def test_operator_chooses_what_to_follow(node: FakeNode, operator: Operator) -> None:
    lines, _ = follow(
        operator, node, "--kind", "binding-removed", "--since", "0", "--aor", "alice@sipha.test", "--json"
    )
    start, removed = map(json.loads, lines)
    assert (start["kind"], removed["kind"], removed["id"]) == ("start", "binding-removed", "3.0")


@pytest.mark.parametrize(
    ("words", "problem"), [(("--kind", "x"), "'x' is not one of"), (("--since", "x"), "'x' is not the id of an event")]
)
def test_mistake_is_told_at_once(operator: Operator, words: tuple[str, ...], problem: str) -> None:
    refused = operator.types("events", *words)
    assert refused.exit_code in {1, 2}
    assert problem in refused.stderr


def test_another_node_goes_on_where_one_can_not(node: FakeNode) -> None:
    other = FakeNode("b")
    other.register(ALICE)
    node.peers = (PeerStatus("b", "http://127.0.0.12:8080", "h:1", "voter", True, 0.0, 0),)
    for _ in range(READERS):
        node.feed.follow(lambda: None, None, ())
    operator = Operator({"127.0.0.1:8080": node, "127.0.0.12:8080": other})
    lines, notes = follow(operator, other, "--since", "0", "--kind", "binding-removed", "--kind", "binding-added")
    assert notes == [
        f"# {READERS} follow the events of this node already; going on elsewhere",
        f"# b of cluster {'0123456789abcdef' * 2} tells, from entry 1 on",
    ]
    assert [line.split()[3] for line in lines] == ["binding-added", "binding-removed"]
