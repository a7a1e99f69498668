from __future__ import annotations

from typing import Any

import pytest

from sipha.admin.views import NodeView
from sipha.errors import SiphaError
from tests.admin.fakes import Console, FakeNode


@pytest.fixture
def console() -> Console:
    """The admin of a, which leads; b is connected, c isn't."""
    node = FakeNode()
    node.members |= {
        "b": NodeView("b", "b.test:7000", "voter", False, True, 0),
        "c": NodeView("c", "c.test:7000", "voter", False, False, 0),
    }
    return Console(node)


def ask(console: Console, method: str, *params: object) -> Any:
    """The result, or the error's code and message."""
    answer = console.ask("POST", "/mi", {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).json
    return answer["result"] if "result" in answer else (answer["error"]["code"], answer["error"]["message"])


@pytest.mark.parametrize("method", ["clusterer_list", "clusterer:list"])
def test_script_sees_the_other_nodes(console: Console, method: str) -> None:
    assert ask(console, method) == {
        "Clusters": [
            {
                "cluster_id": 1,
                "Nodes": [
                    {
                        "node_id": 2,
                        "db_id": 2,
                        "url": "tcp:b.test:7000",
                        "link_state": "Up",
                        "state": "Enabled",
                        "next_hop": "2",
                        "description": "b",
                    },
                    {
                        "node_id": 3,
                        "db_id": 3,
                        "url": "tcp:c.test:7000",
                        "link_state": "Down",
                        "state": "Enabled",
                        "next_hop": "none",
                        "description": "c",
                    },
                ],
            }
        ]
    }


def test_script_sees_who_is_connected(console: Console) -> None:
    assert ask(console, "clusterer_list_topology")["Clusters"][0]["Nodes"] == [
        {"node_id": 1, "Neighbours": [2]},
        {"node_id": 2, "Neighbours": [1]},
        {"node_id": 3, "Neighbours": []},
    ]


def test_node_that_is_no_member_lists_the_others(console: Console) -> None:
    del console.node.members["a"]
    console.node.status = lambda: FakeNode().status()  # type: ignore[method-assign]
    assert len(ask(console, "clusterer_list_topology")["Clusters"][0]["Nodes"]) == 2


@pytest.mark.parametrize(("params", "name"), [((), "a"), (("b",), "b"), (("3",), "c"), ((2,), "b")])
def test_script_puts_a_node_in_standby_and_brings_it_back(console: Console, params: tuple[object], name: str) -> None:
    assert ask(console, "clusterer_set_status", 1, 0, *params) == "OK"
    assert [view.name for view in console.node.nodes() if view.standby] == [name]
    if name != "a":
        assert {"state": "Disabled", "description": name}.items() <= next(
            node for node in ask(console, "clusterer_list")["Clusters"][0]["Nodes"] if node["description"] == name
        ).items()
    assert ask(console, "clusterer:set_status", 1, 1, *params) == "OK"
    assert not any(view.standby for view in console.node.nodes())


@pytest.mark.parametrize(("params", "code"), [((2, 0), 404), ((1, 2), -32602), ((1, 0, "z"), 404), ((1, 0, "4"), 404)])
def test_status_that_cant_be_is_refused(console: Console, params: tuple[object, ...], code: int) -> None:
    assert ask(console, "clusterer_set_status", *params)[0] == code
    assert not any(view.standby for view in console.node.nodes())


def test_cluster_may_refuse(console: Console) -> None:
    console.node.refusal = SiphaError("no other node could lead")
    assert ask(console, "clusterer_set_status", 1, 0) == (409, "no other node could lead")


def test_tag_is_active_where_phones_are_served(console: Console) -> None:
    assert ask(console, "clusterer_list_shtags") == [{"Tag": "vip", "Cluster": 1, "State": "active"}]
    console.node.leads = False
    assert ask(console, "clusterer_list_shtags") == [{"Tag": "vip", "Cluster": 1, "State": "backup"}]


def test_leader_goes_on_when_it_is_to_lead(console: Console) -> None:
    console.node.yields = True
    assert ask(console, "clusterer_shtag_set_active", "vip/1") == "OK"
    assert console.node.leads


@pytest.mark.parametrize("tag", ["vip", "vip/", "vip/2", "/1"])
def test_tag_of_no_cluster_isnt_moved(console: Console, tag: str) -> None:
    console.node.leads = False
    assert isinstance(ask(console, "clusterer_shtag_set_active", tag), tuple)


@pytest.fixture
def follower(console: Console) -> Console:
    """The admin of b, which follows a."""
    node = FakeNode("b")
    node.leads, node.leader, node.leader_url = False, console.node, "http://127.0.0.11:8080"
    node.members = console.node.members
    return Console(node, forward_to=console.front)


def test_follower_has_leadership_handed_to_it(console: Console, follower: Console) -> None:
    console.node.yields = True
    assert ask(follower, "clusterer_shtag_set_active", "vip/1") == "OK"
    assert console.node.leader is not None
    assert (console.node.leads, console.node.leader.name) == (False, "b")


def test_follower_lets_the_leader_put_nodes_in_standby(console: Console, follower: Console) -> None:
    assert ask(follower, "clusterer_set_status", 1, 0) == "OK"
    assert [view.name for view in console.node.nodes() if view.standby] == ["b"]
    assert ask(follower, "clusterer_set_status", 1, 1) == "OK"
    assert not any(view.standby for view in console.node.nodes())
    console.node.refusal = SiphaError("no other node could lead")
    assert ask(follower, "clusterer_set_status", 1, 0) == (409, "no other node could lead")


def test_follower_without_a_leader_says_so(follower: Console) -> None:
    follower.node.leader = None
    assert ask(follower, "clusterer_shtag_set_active", "vip/1") == (503, "no node leads at present")


def test_script_turns_pings_off_and_on(console: Console) -> None:
    for status in (0, 1):
        assert ask(console, "nh_enable_ping", status) == "OK"
        assert console.node.pings() == bool(status)
        assert ask(console, "nathelper:enable_ping") == {"Status": status}
