from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from sipha.service.supervision import Supervision
from tests.cluster.world import World
from tests.service.alone import configuration, found
from tests.service.test_daemon import Alone

PATIENCE = 9.0


class Systemd:
    """What the service manager has heard."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        said = []
        while True:
            try:
                said.append(self.socket.recv(1000).decode())
            except BlockingIOError:
                return said


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(PATIENCE * 1e6)))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    yield made
    made.socket.close()


def test_systemd_hears_of_a_reactor_while_it_turns(systemd: Systemd) -> None:
    clock = Clock()
    supervision = Supervision(clock, lambda: "n1: follower, term 3")
    supervision.startService()
    assert systemd.heard() == ["READY=1", "WATCHDOG=1", "STATUS=n1: follower, term 3"]
    clock.pump([1.0] * int(PATIENCE))
    assert systemd.heard().count("WATCHDOG=1") == 3
    supervision.stopService()
    clock.advance(PATIENCE)
    assert systemd.heard() == ["STOPPING=1"]


def test_node_that_cant_be_described_lives_all_the_same(systemd: Systemd) -> None:
    clock, broken = Clock(), False

    def summary() -> str:
        if broken:
            raise RuntimeError("a bug")
        return "n1"

    supervision = Supervision(clock, summary)
    supervision.startService()
    systemd.heard()
    broken = True
    for _ in range(3):
        with pytest.raises(RuntimeError):  # a reactor logs it, and goes on
            clock.advance(PATIENCE / 3)
    assert systemd.heard() == ["WATCHDOG=1"] * 3


def test_nobody_is_told_of_life_who_doesnt_wait_for_it(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    clock = Clock()
    Supervision(clock, lambda: "n1").startService()
    assert systemd.heard() == ["READY=1"]
    assert not clock.getDelayedCalls()


def test_process_tells_systemd_when_it_has_started_what_it_is_and_when_it_stops(
    systemd: Systemd, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    found(configuration(tmp_path))
    alone = Alone(world, tmp_path)
    said = systemd.heard()
    assert said[0] == "READY=1"
    world.until(alone.leads)
    systemd.heard()
    world.turn(0.3)
    said = systemd.heard()
    alone.end()
    assert "STATUS=n1: serves phones, term 2" in said
    assert systemd.heard()[-1] == "STOPPING=1"


def test_process_with_alarms_says_so_to_systemd(systemd: Systemd, world: World, tmp_path: Path) -> None:
    configuration(tmp_path)
    alone = Alone(world, tmp_path)
    assert systemd.heard()[-1] == "STATUS=n1: learner, term 0; alarms: 1, see siphactl status"
    alone.end()


def test_reload_is_seen_by_systemd(systemd: Systemd, world: World, tmp_path: Path) -> None:
    found(configuration(tmp_path))
    alone = Alone(world, tmp_path)
    world.until(alone.leads)
    systemd.heard()
    os.kill(os.getpid(), signal.SIGHUP)
    world.turn(0.2)
    said = [line for line in systemd.heard() if not line.startswith(("STATUS", "WATCHDOG"))]
    alone.end()
    assert said[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert said[1] == "READY=1"
