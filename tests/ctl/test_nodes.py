from __future__ import annotations

import msgspec
import pytest

from sipha.admin.views import NodeView, PeerStatus
from sipha.errors import SiphaError
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator


def test_operator_waits_until_an_added_node_votes(node: FakeNode, operator: Operator) -> None:
    looks: list[str] = []

    def catch_up() -> None:
        looks.append(node.members["n4"].role)
        if len(looks) == 20:
            node.members["n4"] = msgspec.structs.replace(node.members["n4"], role="witness", connected=True)

    operator.meanwhile = catch_up
    added = operator.types("node", "add", "n4", "192.0.2.4:7000")
    assert (added.exit_code, added.stdout) == (0, "n4 is a witness\n")
    assert looks.count("learner") == 20


def test_operator_need_not_wait(node: FakeNode, operator: Operator) -> None:
    added = operator.types("node", "add", "n4", "192.0.2.4:7000", "--no-wait")
    assert added.stdout == "n4 is a member, and will vote when it has caught up\n"
    assert node.members["n4"].role == "learner"
    assert operator.reads("node", "add", "n5", "192.0.2.5:7000", "--no-wait") == {
        "name": "n5",
        "address": "192.0.2.5:7000",
    }


def test_operator_hears_that_an_added_node_was_removed(node: FakeNode, operator: Operator) -> None:
    operator.meanwhile = node.members.clear
    added = operator.types("node", "add", "n4", "192.0.2.4:7000")
    assert added.exit_code == 1
    assert added.stderr.endswith("siphactl: n4 has been removed meanwhile\n")


def test_operator_asks_the_leader_where_it_is_known() -> None:
    follower, leader = FakeNode("a"), FakeNode("b")
    follower.leads = False
    follower.leader = leader
    follower.peers = (PeerStatus("b", "http://127.0.0.2:8080", "", "voter", True, 0.01, 0),)
    operator = Operator({"127.0.0.1:8080": follower, "127.0.0.2:8080": leader})
    assert operator.types("node", "add", "n4", "192.0.2.4:7000", "--no-wait").exit_code == 0
    assert set(leader.members) == {"b", "n4"}


def test_operator_lists_members(node: FakeNode, operator: Operator) -> None:
    node.members["n4"] = NodeView("n4", "192.0.2.4:7000", "learner", True, False, None)
    lines = operator.types("node", "list").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["node", "address", "role", "leads", "connected", "behind", "standby", "preferred"],
        ["a", "a.test:7000", "voter", "yes", "0"],
        ["n4", "192.0.2.4:7000", "learner", "yes", "no"],
    ]
    assert [one["behind"] for one in operator.reads("node", "list")["nodes"]] == [0, None]


def test_operator_removes_a_node(node: FakeNode, operator: Operator) -> None:
    node.members["n4"] = NodeView("n4", "192.0.2.4:7000", "voter", False, True, 0)
    removed = operator.types("node", "rm", "n4")
    assert removed.stdout == "n4 is no member any more; stop it, and empty its data directory\n"
    assert set(node.members) == {"a"}


def test_operator_hands_leadership_on(operator: Operator) -> None:
    assert operator.types("transfer", "b").stdout == "b leads\n"
    assert operator.reads("transfer") == {"leader": "z"}


def test_operator_turns_pings_off_and_on(node: FakeNode, operator: Operator) -> None:
    assert operator.types("pings", "off").stdout == "pings are off\n"
    assert node.machine.settings.items() == [("pings", "off")]
    assert "off" in operator.types("status").stdout
    assert operator.reads("pings", "on") == {"on": True}
    assert node.machine.settings.items() == []


def test_operator_puts_a_node_in_standby_and_brings_it_back(node: FakeNode, operator: Operator) -> None:
    node.next_leader = "b"
    assert operator.types("standby", "a").stdout == "a is in standby; b leads\n"
    assert operator.types("node", "list").stdout.splitlines()[1].split()[-1] == "yes"
    assert " leader, standby " in operator.types("status").stdout
    assert operator.types("online", "a").stdout == "a is online\n"
    assert operator.reads("standby", "a") == {"name": "a", "standby": True, "leader": "b"}


@pytest.mark.parametrize(("leader", "says"), [("a", "nobody takes over from it now"), (None, "no node leads")])
def test_operator_hears_that_nobody_takes_over(
    node: FakeNode, operator: Operator, leader: str | None, says: str
) -> None:
    node.refusal, node.next_leader = SiphaError("no node could lead"), leader
    assert operator.types("standby", "a").exit_code == 1
    assert operator.types("standby", "a", "--force").stdout == f"a is in standby; {says}\n"


def test_operator_prefers_a_node_or_none(node: FakeNode, operator: Operator) -> None:
    assert operator.types("prefer", "a").stdout == "a is preferred\n"
    assert node.members["a"].preferred
    assert operator.types("prefer", "--nobody").stdout == "no node is preferred\n"
    assert not node.members["a"].preferred


@pytest.mark.parametrize(
    "words",
    [
        ("node", "add", "n4", "192.0.2.4:7000"),
        ("node", "rm", "a"),
        ("transfer",),
        ("transfer", "b"),
        ("standby", "a"),
        ("online", "a"),
        ("prefer", "a"),
    ],
)
def test_refusal_is_status_1(node: FakeNode, operator: Operator, words: tuple[str, ...]) -> None:
    node.refusal = SiphaError("the others could not go on without it")
    refused = operator.types(*words)
    assert refused.exit_code == 1
    assert refused.stderr == "siphactl: the others could not go on without it\n"


@pytest.mark.parametrize(
    "words",
    [
        ("node",),
        ("node", "add", "n4"),
        ("node", "rm"),
        ("node", "add", "n4", "x", "y"),
        ("standby",),
        ("online",),
        ("prefer",),
        ("prefer", "a", "--nobody"),
    ],
)
def test_wrong_command_line_is_status_2(operator: Operator, words: tuple[str, ...]) -> None:
    assert operator.types(*words).exit_code == 2
