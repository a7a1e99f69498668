from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from sipha.cluster import authority, founding
from sipha.cluster.handover import UNWELL
from sipha.errors import ConfigError
from sipha.service import node as node_module
from sipha.service.health import STALL
from sipha.service.life import Life
from sipha.service.node import LINGER, Node
from tests.cluster.world import World
from tests.service.alone import Alone, configuration, found


def life(world: World, directory: Path, cluster: str = "plaintext = true") -> Life:
    configuration(directory, cluster)
    return Life(world.reactor, directory / "sipha.toml")


def test_node_that_starts_blank_says_what_to_do(world: World, tmp_path: Path) -> None:
    alone = Alone(world, configuration(tmp_path))
    world.turn(1.0)
    status = alone.node.view.status()
    alone.end()
    assert (status.memory, status.leading) == ("blank", False)
    assert "siphactl cluster init" in status.alarms[0]


def test_two_nodes_dont_share_a_directory(alone: Alone) -> None:
    with pytest.raises(ConfigError, match="another process uses the data directory"):
        Node(alone.world.reactor, alone.life)


def test_node_leaves_its_directory_to_others_when_it_is_stopped(world: World, tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    found(settings)
    Alone(world, settings).end()
    with founding.taken(settings.node.data_dir.path) as disk:
        assert founding.status(disk, "n1").last_index > 1


def test_node_with_members_elsewhere_wants_certificates(world: World, tmp_path: Path) -> None:
    found(configuration(tmp_path), n2="127.0.0.52:7000")
    with pytest.raises(ConfigError, match=r"cluster\.ca: is missing, and n2 are members of the cluster too"):
        Node(world.reactor, life(world, tmp_path, ""))


def test_node_without_members_elsewhere_needs_no_certificates(world: World, tmp_path: Path) -> None:
    settings = configuration(tmp_path, "")
    found(settings)
    alone = Alone(world, settings)
    world.until(lambda: alone.node.view.status().leading)
    alone.end()


def test_directory_that_cant_be_used_is_a_configuration_error(world: World, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="can't use the data directory"):
        Node(world.reactor, life(world, tmp_path))


def test_address_that_is_taken_ends_the_start_with_a_message(alone: Alone, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"admin\.listen: can't listen on 127\.0\.0\.51 port 8080"):
        Alone(alone.world, configuration(other))


@pytest.mark.parametrize(("days", "alarms"), [(29, 1), (31, 0)])
def test_node_says_that_its_certificate_ends_soon(world: World, tmp_path: Path, days: int, alarms: int) -> None:
    now = datetime.now(UTC)
    own = authority.found("sipha", now)
    issued = authority.issue(own, "n1", now, days)
    for name, content in (("ca", own.certificate), ("certificate", issued.certificate), ("key", issued.key)):
        (tmp_path / name).write_bytes(content)
    settings = configuration(
        tmp_path, "\n".join(f'{name} = "{tmp_path}/{name}"' for name in ("ca", "certificate", "key"))
    )
    found(settings)
    alone = Alone(world, settings)
    shown = alone.node.view.status().alarms
    alone.end()
    assert len(shown) == alarms
    assert all("the certificate of this node expires at" in alarm for alarm in shown)


@pytest.mark.interpreted
def test_leader_that_is_stopped_asks_another_to_lead_but_not_for_long(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "PARTING", 0.5)
    settings = configuration(tmp_path)
    found(settings)
    alone = Alone(world, settings)
    world.until(lambda: alone.node.view.status().leading)
    asked: list[tuple[object, ...]] = []

    replica = alone.node.replication.replica

    def transfer(*how: object) -> Deferred[str]:
        asked.append((*how, replica.leading(), replica.candidacy.own_wish))
        return Deferred()

    monkeypatch.setattr(replica, "transfer", transfer)
    began = world.reactor.seconds()
    alone.end()
    assert world.reactor.seconds() - began > 0.4
    assert asked == [(None, "it is being stopped", True, UNWELL)], "even one that is unwell is to lead then"


@pytest.mark.parametrize(("election_min", "well"), [(0.4, False), (10.0, True)])
def test_node_goes_by_its_own_lease_in_whether_it_was_held_up_for_too_long(
    world: World, tmp_path: Path, election_min: float, *, well: bool
) -> None:
    cluster = f"plaintext = true\nelection_min = {election_min}\nelection_max = {2 * election_min}"
    settings = configuration(tmp_path, cluster)
    found(settings)
    alone = Alone(world, settings)
    world.turn(0.5)  # it is started, and looks
    time.sleep(STALL + 0.5)
    world.turn(0.1)
    was_well = alone.node.health.well()
    alone.end()
    assert was_well == well


def test_threads_of_the_disk_get_the_interpreter_soon(alone: Alone) -> None:
    assert sys.getswitchinterval() < 0.001


class TestFailure:
    @pytest.fixture
    def ends(self, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the node does to end its process."""
        ends: list[str] = []
        monkeypatch.setattr(alone.world.reactor, "stop", lambda: ends.append("stop"))

        def register(function: Callable[[], None]) -> None:
            assert function is node_module._fail
            ends.append("exit status 1")

        monkeypatch.setattr(atexit, "register", register)
        return ends

    def test_failed_replica_can_still_be_asked_why(
        self, alone: Alone, ends: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []
        call_later = alone.world.reactor.callLater

        def call_earlier(seconds: float, *call: object) -> object:
            waits.append(seconds)
            return call_later(0.3 if seconds == LINGER else seconds, *call)

        monkeypatch.setattr(alone.world.reactor, "callLater", call_earlier)
        alone.node.replication.replica._driver.give_up(OSError(28, "No space left on device"))
        status = alone.node.view.status()
        assert (status.role, status.leading) == ("failed", False)
        assert "No space left on device" in status.alarms[0]
        assert ends == ["exit status 1"]
        assert LINGER in waits
        alone.world.until(lambda: "stop" in ends)
        assert not alone.node.view.status().holds_virtual_addresses

    def test_addresses_that_cant_be_served_end_it_at_once(self, alone: Alone, ends: list[str]) -> None:
        alone.node.sip._failed("can't listen on the virtual addresses")
        alone.node.sip._failed("can't listen on the virtual addresses")
        alone.world.until(lambda: "stop" in ends)
        alone.world.turn(0.1)
        assert ends == ["exit status 1", "stop"]
