"""Real softphones register with three real nodes and call each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sipha.sandbox import Sandbox
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
    siphactl = Path(sys.executable).with_name("siphactl")
    shown = {
        subprocess.run(
            [siphactl, "--url", node.admin, "--json", "show"], check=True, capture_output=True, text=True
        ).stdout
        for node in sandbox.nodes
    }
    assert len(shown) == 1
    assert f"alice@{sandbox.domain}" in next(iter(shown))
    assert f"bob@{sandbox.domain}" in next(iter(shown))


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
