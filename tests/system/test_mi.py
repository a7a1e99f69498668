"""Scripts made for OpenSIPS, against three live nodes: the bodies are those that opensips-cli sends."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import bindings, wait_until

pytestmark = pytest.mark.system

CONTACT = "sip:alice@127.0.0.1:5099"


def call(node: SandboxNode, method: str, params: object = ()) -> Any:
    """What opensips-cli would print; an error is a RuntimeError."""
    body = json.dumps({"jsonrpc": "2.0", "id": "29051", "method": method, "params": params}).encode()
    request = urllib.request.Request(f"{node.admin}/mi", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        reply = json.load(answer)
    if "error" in reply:
        raise RuntimeError(reply["error"])
    return reply["result"]


def test_script_adds_shows_and_removes_contacts_through_any_node(sandbox: Sandbox) -> None:
    first, second, third = sandbox.nodes
    alice = ["location", f"alice@{sandbox.domain}"]
    assert call(first, "ul_add", [*alice, CONTACT, "120", "1.0", "0", "0", "0", "32767"]) == "OK"
    for node in sandbox.nodes:
        wait_until(lambda node=node: bindings(sandbox, node, "alice"), f"{node.name} to have it")  # type: ignore[misc]
        (contact,) = call(node, "usrloc:show_contact", alice)["Contacts"]
        assert (contact["Contact"], contact["Q"], contact["User-agent"]) == (CONTACT, "1", "sipha MI")
        assert 60 < contact["Expires"] <= 120
        (domain,) = call(node, "ul_dump")["Domains"]
        assert domain["AORs"] == [{"AOR": alice[1], "Contacts": domain["AORs"][0]["Contacts"]}]
        assert call(node, "get_statistics", [["usrloc:registered_users"]]) == {"usrloc:registered_users": 1}
    assert call(second, "ul_rm_contact", {"table_name": "location", "aor": alice[1], "contact": CONTACT}) == "OK"
    for node in sandbox.nodes:
        wait_until(lambda node=node: not bindings(sandbox, node, "alice"), f"{node.name} to have it no more")  # type: ignore[misc]
        with pytest.raises(RuntimeError, match="AOR not found"):
            call(node, "ul_show_contact", alice)
    assert call(third, "ul_rm", alice) == "OK"
    assert call(third, "ul_sync", ["location"]) == "OK"
    assert call(third, "ul_flush") == "OK"


def test_script_moves_the_tag_and_disables_nodes(sandbox: Sandbox) -> None:
    def active() -> list[SandboxNode]:
        return [node for node in sandbox.nodes if call(node, "clusterer_list_shtags")[0]["State"] == "active"]

    wait_until(lambda: len(active()) == 1, "one node to be active")
    (before,) = active()
    after = next(node for node in sandbox.nodes if node is not before)
    assert call(after, "clusterer_shtag_set_active", ["vip/1"]) == "OK"
    wait_until(lambda: active() == [after], f"{after.name} to be active")
    assert call(after, "clusterer_set_status", [1, 0]) == "OK"
    wait_until(lambda: len(active()) == 1 and active() != [after], "another node to be active")
    (now,) = active()
    states = {node["description"]: node["state"] for node in call(now, "clusterer_list")["Clusters"][0]["Nodes"]}
    assert states[after.name] == "Disabled"
    assert call(after, "clusterer_set_status", ["1", "1"]) == "OK"

    def enabled() -> bool:
        nodes = call(now, "clusterer_list")["Clusters"][0]["Nodes"]
        return all(node["state"] == "Enabled" for node in nodes)

    wait_until(enabled, "all nodes to be enabled again")


def test_script_turns_pings_off_and_on_everywhere(sandbox: Sandbox) -> None:
    first, second, third = sandbox.nodes
    for status in (0, 1):
        assert call(first, "nh_enable_ping", [str(status)]) == "OK"
        for node in (second, third):
            wait_until(
                lambda node=node, status=status: call(node, "nh_enable_ping") == {"Status": status},  # type: ignore[misc]
                "pings to be so everywhere",
            )


def test_script_finds_its_way(sandbox: Sandbox) -> None:
    node = sandbox.nodes[0]
    methods = call(node, "which")
    assert {"ul_dump", "usrloc:dump", "clusterer_list", "nathelper:enable_ping"} <= set(methods)
    assert call(node, "which", {"command": "ul_rm"}) == [["table_name", "aor"]]
    assert call(node, "ps")["Processes"][0]["PID"] > 0
    assert call(node, "version")["Server"].startswith("sipha")
    assert len(call(node, "clusterer_list_topology")["Clusters"][0]["Nodes"]) == 3
