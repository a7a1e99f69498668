"""sipsak asks and registers with three real nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sipha.sandbox import Sandbox
from tests.system.conftest import bindings
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

OPTIONS = """\
OPTIONS sip:bob@sipha.test SIP/2.0
From: <sip:alice@sipha.test>;tag=sipsak
To: <sip:bob@sipha.test>
Call-ID: sipsak-options
CSeq: 1 OPTIONS
Max-Forwards: 70
Content-Length: 0

"""
# The user name is told apart: sipsak 0.9.8 would take "alice@" from the URI.
ALICE = ("-u", "alice", "-a", "alice-secret")


def sipsak(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sipsak", "-vvv", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_proxy_answers_options(sandbox: Sandbox, transport: str) -> None:
    status, output = outcome(sipsak("-E", transport, "-s", f"sip:{sandbox.virtual_address}"))
    assert status == 0, output
    assert "SIP/2.0 200 OK" in output


def test_options_for_a_user_reach_the_phone(sandbox: Sandbox, agents: Callable[..., UserAgent], tmp_path: Path) -> None:
    bob = agents("bob").register()
    message = tmp_path / "options"
    message.write_text(OPTIONS)
    asked = sipsak("-f", str(message), *ALICE, "-p", sandbox.virtual_address, "-s", "sip:bob@sipha.test")
    bob.answer(bob.expect("OPTIONS"), 200, ("X-Answered-By", "bob"))
    status, output = outcome(asked)
    assert status == 0, output
    assert "X-Answered-By: bob" in output


def test_options_for_a_user_by_a_stranger_are_refused(sandbox: Sandbox, agents: Callable[..., UserAgent]) -> None:
    bob = agents("bob").register()
    status, output = outcome(sipsak("-s", f"sip:bob@{sandbox.virtual_address}"))
    assert status == 1
    assert "SIP/2.0 403 Forbidden" in output
    assert bob.silent


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("domain", ["sipha.test", ""], ids=["domain", "virtual address"])
def test_user_registers_and_unregisters(sandbox: Sandbox, transport: str, domain: str) -> None:
    address, contact = sandbox.virtual_address, "sip:alice@127.0.21.70:5070"
    options = ("-U", "-E", transport, "-C", contact, *ALICE, "-p", address, "-s", f"sip:alice@{domain or address}")
    status, output = outcome(sipsak("-x", "90", *options))
    assert status == 0, output
    leader = sandbox.wait_for_leader()
    assert [binding["contact"] for binding in bindings(sandbox, leader, "alice")] == [contact]
    status, output = outcome(sipsak("-x", "0", *options))
    assert status == 0, output
    assert bindings(sandbox, leader, "alice") == []


def test_wrong_password_registers_nobody(sandbox: Sandbox) -> None:
    status, output = outcome(
        sipsak(
            "-U",
            "-u",
            "alice",
            "-a",
            "guessed",
            "-C",
            "sip:alice@127.0.21.70",
            "-s",
            f"sip:alice@{sandbox.virtual_address}",
        )
    )
    assert status == 2
    assert "authorization failed" in output
    assert bindings(sandbox, sandbox.wait_for_leader(), "alice") == []
