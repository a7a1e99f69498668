from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sipha.config import lastgood
from sipha.errors import ConfigError
from sipha.service import probation
from sipha.service.daemon import Daemon
from tests.cluster.world import World
from tests.service.alone import configuration, found


class Alone:
    """The process of a node that is alone in its cluster."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.path = directory / "sipha.toml"
        self.daemon = Daemon(world.reactor, self.path)
        self.daemon.startService()

    def write(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))

    def leads(self) -> bool:
        return self.daemon.node.view.status().leading

    def alarms(self) -> str:
        return "\n".join(self.daemon.node.view.status().alarms)

    def end(self) -> None:
        ended: list[object] = []
        self.daemon.stopService().addBoth(ended.append)
        self.world.until(lambda: ended)


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Callable[[], Alone]]:
    """Start the process of a node; the one before is ended."""
    found(configuration(tmp_path))
    running: list[Alone] = []

    def end() -> None:
        while running:
            running.pop().end()

    def make() -> Alone:
        end()
        running.append(Alone(world, tmp_path))
        return running[-1]

    yield make
    end()


@pytest.fixture
def good(start: Callable[[], Alone]) -> Alone:
    """A node that leads and whose configuration has been proven."""
    alone = start()
    alone.world.until(lambda: (alone.daemon.life.proven, alone.leads()) == (True, True))
    alone.world.until(lambda: lastgood.find(alone.path))
    return alone


def test_leader_that_answers_itself_keeps_a_copy_for_its_own_eyes(good: Alone, tmp_path: Path) -> None:
    copy = tmp_path / "data" / lastgood.NAME
    assert copy.stat().st_mode & 0o777 == 0o600
    assert good.path.read_text() in copy.read_text()


def test_signal_has_the_file_loaded_again(good: Alone) -> None:
    good.write("[admin]", '[nat]\nping_scope = "none"\n[admin]')
    os.kill(os.getpid(), signal.SIGHUP)
    good.world.until(lambda: not good.daemon.node.keepalive.enabled)
    good.world.until(lambda: good.daemon.life.proven)
    good.write("[nat]", "[nat")
    os.kill(os.getpid(), signal.SIGHUP)
    good.world.until(lambda: "not TOML" in good.alarms())
    assert good.daemon.life.status().generation == 2


def test_signal_lets_new_certificates_be_read(good: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr("sipha.cluster.peers.Peers.reload", lambda peers: read.append(peers))  # noqa: PLW0108  a method
    os.kill(os.getpid(), signal.SIGHUP)
    good.world.until(lambda: read)


def test_node_starts_on_the_copy_of_a_broken_file(good: Alone, start: Callable[[], Alone]) -> None:
    good.write("[cluster]", "[cluster")
    again = start()
    again.world.until(again.leads)
    assert "not TOML" in again.alarms()
    assert "the node runs on the last good copy" in again.alarms()
    again.write("[cluster", "[cluster]")
    os.kill(os.getpid(), signal.SIGHUP)
    again.world.until(lambda: not again.alarms())


def test_broken_file_without_a_copy_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "sipha.toml").write_text("[node\n")
    with pytest.raises(ConfigError, match="line 1"):
        Daemon(world.reactor, tmp_path / "sipha.toml")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("127.0.0.51:8080", "127.0.0.51:5999", r"admin.listen: can't listen on 127.0.0.51 port 5999"),
        ('["127.0.0.50"]', '["127.0.0.50"]\nmode = "external"\n[sip]\nport = 5999', "sip.port: can't bind it"),
    ],
)
def test_node_whose_new_addresses_are_taken_starts_on_the_copy(
    good: Alone, start: Callable[[], Alone], old: str, new: str, why: str
) -> None:
    good.write(old, new)
    with socket.socket() as admin, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phones:
        admin.bind(("127.0.0.51", 5999))
        admin.listen()
        phones.bind(("127.0.0.50", 5999))
        again = start()
        again.world.until(lambda: again.daemon.life.proven and again.leads())
    assert why in again.alarms()
    assert "the node runs on the last good copy" in again.alarms()


def test_node_without_a_copy_whose_addresses_are_taken_ends_with_a_message(world: World, tmp_path: Path) -> None:
    found(configuration(tmp_path))
    with socket.socket() as admin:
        admin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        admin.bind(("127.0.0.51", 8080))
        admin.listen()
        daemon = Daemon(world.reactor, tmp_path / "sipha.toml")
        with pytest.raises(SystemExit, match=r"sipha: admin\.listen: can't listen on 127\.0\.0\.51 port 8080"):
            daemon.startService()
    ended: list[object] = []
    daemon.stopService().addBoth(ended.append)
    world.until(lambda: ended)


def test_new_data_directory_that_cant_be_used_is_left_for_the_copy(
    good: Alone, start: Callable[[], Alone], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "data"))
    (tmp_path / "other").write_text("")
    good.write(f"{tmp_path}/data", f"{tmp_path}/other")
    again = start()
    again.world.until(again.leads)
    assert "can't use the data directory" in again.alarms()


def test_deaf_leader_under_a_new_configuration_is_made_anew_of_the_copy(
    good: Alone, start: Callable[[], Alone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probation, "LIMIT", 3.0)
    good.write("[admin]", "[sip]\nt1 = 0.6\n[admin]")
    again = start()
    first = again.daemon.node
    monkeypatch.setattr(first._probe, "response_received", lambda _response, _flow: False)
    first.sip.askers[:] = []
    again.world.until(lambda: again.daemon.node is not first)
    again.world.until(lambda: again.leads() and again.daemon.node.health.well())
    assert again.daemon.life.running.config.sip.t1 == 0.5
    assert "doesn't answer; the node runs on the last good copy" in again.alarms()
