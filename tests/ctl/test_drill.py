from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest

from sipha.admin.views import NodeView
from sipha.ctl.drill import BEFORE
from sipha.errors import SiphaError
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator

VIP = ("127.0.0.10", 5060)


@pytest.fixture
def cluster(node: FakeNode) -> FakeNode:
    """The leader of three nodes."""
    node.members = {
        "a": NodeView("a", "a.test:7000", "voter", True, True, 0, obstacle=""),
        "b": NodeView("b", "b.test:7000", "voter", False, True, 7, obstacle=""),
        "w": NodeView("w", "w.test:7000", "witness", False, True, 0, obstacle="is a witness"),
    }
    node.next_leader, node.yields = "b", True
    return node


def outage(operator: Operator, node: FakeNode, looks: int) -> Callable[[], None]:
    """Nobody answers for `looks` tenths of a second once leadership is handed on."""
    left = looks

    def meanwhile() -> None:
        nonlocal left
        if not node.leads:
            operator.answers = set() if left > 0 else {VIP}
            left -= 1

    return meanwhile


def test_drill_hands_leadership_on_and_measures_the_gap(cluster: FakeNode, operator: Operator) -> None:
    operator.meanwhile = outage(operator, cluster, 5)
    done = operator.types("drill")
    assert done.exit_code == 0, done.stderr
    head, row, last = done.stdout.splitlines()
    assert head.split() == ["address", "requests", "lost", "longest", "gap"]
    assert row.split()[0] == "127.0.0.10"
    assert int(row.split()[1]) > BEFORE / 0.02 + 200
    assert 20 <= int(row.split()[2]) <= 30
    assert 0.45 <= float(row.split()[3]) <= 0.6
    assert last == "a led, z leads"
    assert not any(socket.open for socket in operator.sockets)


def test_program_gets_what_was_measured(cluster: FakeNode, operator: Operator) -> None:
    shown = operator.reads("drill", "--to", "b", "--limit", "0.5")
    (seen,) = shown.pop("addresses")
    assert shown == {"led": "a", "leads": "b", "moved": True, "limit": 0.5}
    assert (seen["address"], seen["lost"]) == ("127.0.0.10", 0)
    assert 0 < seen["gap"] < 0.1
    assert not cluster.leads


def test_gap_beyond_the_limit_is_status_1(cluster: FakeNode, operator: Operator) -> None:
    operator.meanwhile = outage(operator, cluster, 5)
    done = operator.types("drill", "--limit", "0.3")
    assert (done.exit_code, done.stderr) == (1, "siphactl: the gap of 127.0.0.10 exceeds 0.3 s\n")
    assert "longest gap" in done.stdout


def test_gap_that_doesnt_end_counts(cluster: FakeNode, operator: Operator) -> None:
    operator.meanwhile = outage(operator, cluster, 1000)
    done = operator.types("drill", "--json")
    assert done.exit_code == 1
    (gap,) = re.findall(r'"gap": (\d\.\d+)', done.stdout)
    assert 4.9 <= float(gap) <= 5.2


def test_leadership_that_has_not_moved_is_status_1(cluster: FakeNode, operator: Operator) -> None:
    def take_back() -> None:
        cluster.leads = True

    operator.meanwhile = take_back
    done = operator.types("drill")
    assert (done.exit_code, done.stderr) == (1, "siphactl: leadership has not moved\n")


def test_refused_drill_is_status_1(cluster: FakeNode, operator: Operator) -> None:
    cluster.refusal = SiphaError("b is in standby")
    done = operator.types("drill", "--to", "b")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "siphactl: b is in standby\n")
    assert not any(socket.open for socket in operator.sockets)


@pytest.mark.parametrize(("answers", "port"), [(set[tuple[str, int]](), "5060"), ({VIP}, "5070")])
def test_address_that_cant_be_reached_is_not_moved(
    cluster: FakeNode, operator: Operator, answers: set[tuple[str, int]], port: str
) -> None:
    operator.answers = answers
    done = operator.types("drill", "--port", port)
    assert done.exit_code == 1
    assert done.stderr == f"siphactl: 127.0.0.10 can't be reached from here over UDP, port {port}: nothing was done\n"
    assert cluster.leads


def test_dry_run_says_what_would_be_lost(cluster: FakeNode, operator: Operator) -> None:
    done = operator.types("drill", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [
        "leads: a",
        "would lead: b",
        "connections of phones that would be closed: 12",
        "calls being set up over them, which would fail: 1",
        "behind: b, by 7 entries",
    ]
    assert cluster.leads
    assert operator.reads("drill", "--dry-run", "--to", "b") == {
        "leads": "a",
        "would_lead": "b",
        "obstacle": "",
        "connections": 12,
        "stream_calls": 1,
        "behind": {"b": 7},
        "unreachable": [],
    }


@pytest.mark.parametrize(
    ("to", "problem"), [("w", "w is a witness"), ("a", "a leads already"), ("x", "x is no member")]
)
def test_dry_run_says_why_a_node_would_not_lead(cluster: FakeNode, operator: Operator, to: str, problem: str) -> None:
    assert cluster.leads
    done = operator.types("drill", "--dry-run", "--to", to)
    assert (done.exit_code, done.stderr) == (1, f"siphactl: {problem}\n")


def test_dry_run_says_that_no_node_would_lead(cluster: FakeNode, operator: Operator) -> None:
    cluster.next_leader = None
    cluster.members["b"] = msgspec.structs.replace(cluster.members["b"], obstacle="isn't up to date")
    done = operator.types("drill", "--dry-run")
    assert done.exit_code == 1
    assert done.stderr == "siphactl: no other node could lead: b isn't up to date; w is a witness\n"


def test_dry_run_says_that_an_address_cant_be_reached(cluster: FakeNode, operator: Operator) -> None:
    operator.answers = set()
    done = operator.types("drill", "--dry-run")
    assert done.exit_code == 1
    assert cluster.leads
    assert "not reachable from here: 127.0.0.10" in done.stdout
