from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sipha import systemd


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "notify"))
        ours.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield ours


def test_systemd_hears_what_it_is_told(listener: socket.socket) -> None:
    systemd.notify("READY=1", "STATUS=n1: follower")
    assert listener.recv(1000) == b"READY=1\nSTATUS=n1: follower"


def test_systemd_hears_at_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sipha-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify("READY=1")
        assert ours.recv(1000) == b"READY=1"


def test_nobody_is_told_who_hasnt_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")


def test_systemd_that_takes_nothing_isnt_waited_for(listener: socket.socket) -> None:
    for _ in range(5000):
        systemd.notify("WATCHDOG=1")
    assert listener.recv(1000) == b"WATCHDOG=1"


def test_reload_begins_and_ends_even_when_it_fails(listener: socket.socket) -> None:
    with pytest.raises(OSError, match="unreadable"), systemd.reloading():
        raise OSError("unreadable")
    reloading, _, monotonic = listener.recv(1000).partition(b"\n")
    assert reloading == b"RELOADING=1"
    assert monotonic.removeprefix(b"MONOTONIC_USEC=").isdigit()
    assert listener.recv(1000) == b"READY=1"


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, float("inf")),
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "often"}, float("inf")),
    ],
)
def test_patience_is_that_of_the_unit_for_its_own_process(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert systemd.patience() == seconds


@pytest.mark.parametrize(("stream", "line"), [("8:1", "<4>guard: late\n"), (None, "guard: late\n")])
def test_lines_of_logging_have_their_priority_for_the_journal(stream: str | None, line: str) -> None:
    program = (
        "import logging; from sipha import systemd; systemd.mark_priorities(); "
        "logging.basicConfig(format='%(levelname)s%(name)s: %(message)s'); logging.getLogger('guard').warning('late')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    environment |= {"JOURNAL_STREAM": stream} if stream else {}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == line


def test_guard_gets_along_without_twisted() -> None:
    program = "import sys, sipha.vip.guard; sys.exit('twisted' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
