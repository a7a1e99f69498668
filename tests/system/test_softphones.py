"""Real softphones register with three real nodes and call each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import agree, bindings, wait_until
from tests.system.phones import Phone

pytestmark = pytest.mark.system

PAIRS = [
    (("pjsua2", "udp"), ("pjsua2", "udp"), "caller"),
    (("pjsua2", "udp"), ("baresip", "udp"), "callee"),
    (("baresip", "tcp"), ("pjsua2", "tcp"), "caller"),
    (("pjsua2", "tcp"), ("baresip", "udp"), "callee"),
    (("baresip", "udp"), ("pjsua2", "tcp"), "callee"),
    (("baresip", "tcp"), ("baresip", "udp"), "caller"),
]


@pytest.mark.parametrize(("caller", "callee", "who_hangs_up"), PAIRS)
def test_phones_call_each_other(
    sandbox: Sandbox,
    phones: Callable[[str, str, str], Phone],
    caller: tuple[str, str],
    callee: tuple[str, str],
    who_hangs_up: str,
) -> None:
    alice, bob = phones(caller[0], "alice", caller[1]), phones(callee[0], "bob", callee[1])
    alice.dial(f"sip:bob@{sandbox.domain}")
    alice.wait_for("established")
    bob.wait_for("established")
    (alice if who_hangs_up == "caller" else bob).hangup()
    alice.wait_for("closed")
    bob.wait_for("closed")


def test_siphactl_lists_both_phones_on_all_nodes(sandbox: Sandbox, phones: Callable[[str, str, str], Phone]) -> None:
    phones("pjsua2", "alice", "tcp")
    phones("baresip", "bob", "udp")
    wait_until(lambda: agree(sandbox), "the nodes to agree")
    first, *others = [shown(node) for node in sandbox.nodes]
    assert [binding["aor"] for binding in first] == [f"sip:{user}@{sandbox.domain}" for user in ("alice", "bob")]
    assert others == [first, first]


def test_calls_and_registers_go_on_after_the_leader_is_killed(
    sandbox: Sandbox, phones: Callable[[str, str, str], Phone]
) -> None:
    alice, bob = phones("pjsua2", "alice", "udp"), phones("baresip", "bob", "udp")
    before = bindings(sandbox, sandbox.wait_for_leader(), "bob")
    sandbox.kill(sandbox.wait_for_leader())
    leader = sandbox.wait_for_leader()
    assert bindings(sandbox, leader, "bob") == before
    alice.dial(f"sip:bob@{sandbox.domain}")
    alice.wait_for("established")
    bob.hangup()
    alice.wait_for("closed")
    phones("pjsua2", "carol", "tcp")


def shown(node: SandboxNode) -> list[dict[str, Any]]:
    """Return what `siphactl show` lists on a node, without the seconds that pass while it is asked."""
    siphactl = str(Path(sys.executable).with_name("siphactl"))
    command = [siphactl, "--url", node.admin, "--json", "show"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    bindings: list[dict[str, Any]] = answer["bindings"]
    for binding in bindings:
        assert binding.pop("expires") > 0
    return bindings
