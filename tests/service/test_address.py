from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from sipha.cluster.replica import Replica
from sipha.config.texts import VirtualIp
from sipha.errors import ConfigError, NotClaimed
from sipha.service.address import RENEWAL, AddressHolder, AddressService, Tickling, stream
from sipha.service.health import RECOVERY, TICK, Health
from sipha.sip.flow import Address, Flow
from sipha.state.binding import Binding
from sipha.vip.address import IVirtualAddress
from tests.service.alone import Alone

BINDING = Binding(
    "sip:alice@sipha.test",
    "sip:alice@10.0.0.1",
    1,
    1,
    1000,
    "call",
    1,
    None,
    "",
    0,
    "",
    "sip:192.0.2.7:40000;transport=tcp",
    "tcp:192.0.2.10:5060",
    "3",
    (),
    "",
    "",
    0,
    0,
    "",
    0,
)


@implementer(IVirtualAddress)
class Addresses:
    """What is asked of the addresses, in order, and answered when the test says."""

    def __init__(self) -> None:
        self.held = False
        self.asked: list[Any] = []
        self.claimed: Deferred[None] = Deferred()
        self.released: Deferred[None] = Deferred()
        self.tickled: list[Flow] = []

    def start(self) -> None:
        self.asked.append("start")

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def claim(self, last_word: bytes, peers: Sequence[Address], deadline: float) -> Deferred[None]:
        self.asked.append(("claim", last_word, tuple(peers), deadline))
        return self.claimed

    def renew(self, deadline: float) -> None:
        self.asked.append(deadline)

    def release(self) -> Deferred[None]:
        self.asked.append("release")
        return self.released

    def tickle(self, flows: Iterable[Flow]) -> None:
        self.tickled += flows

    def alarms(self) -> Iterator[str]:
        return iter(())


class Leader:
    """A replica that leads."""

    def __init__(self) -> None:
        self.last_word = b"last"
        self.peers = [("192.0.2.2", 7000)]
        self.lease_until = 10.0
        self.leads = True
        self.ended = 0

    def leading(self) -> bool:
        return self.leads

    def claim_ended(self) -> None:
        self.ended += 1


class Child(Service):
    """Keeps in the diary when it runs."""

    def __init__(self, diary: list[Any]) -> None:
        self.diary = diary

    def startService(self) -> None:
        super().startService()
        self.diary.append("child starts")

    def stopService(self) -> None:
        super().stopService()
        self.diary.append("child stops")


class Held:
    def __init__(self) -> None:
        self.clock, self.addresses, self.leader = Clock(), Addresses(), Leader()
        self.faults: list[str] = []
        self.health = Health(self.clock, self.clock.seconds, self.faults.append, lease=0.0)
        self.holder = AddressHolder(self.clock, self.addresses, cast("Replica", self.leader), self.health)
        Child(self.addresses.asked).setServiceParent(self.holder)
        self.holder.startService()

    def stop(self) -> list[str]:
        ended: list[str] = []
        self.holder.stopService().addCallback(lambda _: ended.append("ended"))
        return ended


@pytest.fixture
def held() -> Held:
    return Held()


def test_children_run_while_the_addresses_are_here(held: Held) -> None:
    claim = ("claim", b"last", (("192.0.2.2", 7000),), 10.0)
    assert held.addresses.asked == [claim]
    held.addresses.claimed.callback(None)
    ended = held.stop()
    assert held.addresses.asked == [claim, "child starts", "child stops", "release"]
    assert not ended
    held.addresses.released.callback(None)
    assert ended == ["ended"]


def test_claim_is_renewed_until_the_lease_ends(held: Held) -> None:
    held.leader.lease_until = 11.0
    held.clock.advance(RENEWAL)
    held.leader.leads = False
    held.clock.advance(RENEWAL)
    held.leader.leads = True
    held.leader.lease_until = 12.0
    held.clock.advance(RENEWAL)
    held.stop()
    held.clock.advance(RENEWAL)
    assert held.addresses.asked[1:] == [11.0, 12.0, "release"]


def test_children_dont_run_when_the_addresses_come_too_late(held: Held) -> None:
    held.stop()
    held.addresses.claimed.callback(None)
    assert "child starts" not in held.addresses.asked


def test_claim_that_cant_be_had_is_ended(held: Held) -> None:
    held.addresses.claimed.errback(NotClaimed("another host has it"))
    assert held.leader.ended == 1
    assert held.faults == ["the virtual addresses can't be claimed: another host has it"]
    assert "child starts" not in held.addresses.asked


def test_node_that_can_never_claim_tries_ever_more_rarely(held: Held) -> None:
    rests = []
    held.health.startService()
    held.addresses.claimed.errback(NotClaimed("another host has it"))
    for _ in range(3):
        began = held.clock.seconds()
        while not held.health.well():
            held.clock.advance(TICK)
        rests.append(round(held.clock.seconds() - began))
        held.stop()
        held.addresses.claimed = Deferred()
        held.holder.startService()
        held.addresses.claimed.errback(NotClaimed("another host has it"))
    assert rests == [RECOVERY, 2 * RECOVERY, 4 * RECOVERY]


def test_claim_that_was_released_meanwhile_is_no_failure(held: Held) -> None:
    held.stop()
    held.addresses.claimed.errback(NotClaimed("it was released"))
    assert held.leader.ended == 0


def test_children_that_cant_start_end_the_claim(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: Child) -> None:
        raise OSError("no descriptors are left")

    monkeypatch.setattr(Child, "startService", start)
    held.addresses.claimed.callback(None)
    assert held.leader.ended == 1
    assert held.faults == ["the virtual addresses can't be served: no descriptors are left"]


def test_claim_that_comes_to_be_ends_the_fault_of_the_one_before(held: Held) -> None:
    held.addresses.claimed.errback(NotClaimed("another host has it"))
    held.stop()
    held.addresses.claimed = Deferred()
    held.holder.startService()
    held.addresses.claimed.callback(None)
    held.health.startService()
    held.clock.pump([TICK] * round((RECOVERY + 1) / TICK))
    assert held.health.well()


def test_claim_that_fails_at_once_can_be_made_again(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.addresses.released.callback(None)
    held.stop()
    monkeypatch.setattr(held.leader, "claim_ended", held.stop)  # what follows from the end of leadership
    held.addresses.claimed = Deferred()
    held.addresses.claimed.errback(NotClaimed("an earlier claim has not ended yet"))
    held.holder.startService()
    del held.addresses.asked[:]
    held.clock.advance(1)
    assert not held.addresses.asked, "nothing is renewed"
    held.addresses.claimed = Deferred()
    held.holder.startService()
    assert len(held.addresses.asked) == 1


def test_addresses_that_are_lost_end_the_claim(alone: Alone) -> None:
    replica = alone.node.replication.replica
    secret = replica.last_word
    alone.node.address._lost("the guard is gone")
    assert not replica.leading()
    assert not alone.node.health.well(), "another node, if there is one, may be able to keep them"
    alone.world.until(lambda: alone.node.view.status().leading)
    assert replica.last_word != secret


def test_nonce_counts_stay_used_up_when_the_addresses_come_back_in_the_same_term(alone: Alone) -> None:
    replica, sip = alone.node.replication.replica, alone.node.sip
    alone.world.until(lambda: sip.listening)
    term, now = replica.term, replica.cluster_time()
    nonce = "0" * 32  # the daemon's
    assert sip.nonces.accept(nonce, "alice", 1, int(now), now)
    alone.node.address._lost("the guard is gone")
    alone.world.until(lambda: not sip.listening)
    alone.world.until(lambda: sip.listening)
    assert replica.term == term
    assert not sip.nonces.accept(nonce, "alice", 1, int(now), now)


def test_addresses_that_another_tool_takes_away_count_until_they_are_back(alone: Alone) -> None:
    hosts = msgspec.structs.replace(
        alone.config.virtual_address, mode="external", addresses=(VirtualIp.parse("192.0.2.10"),)
    )
    settings = msgspec.structs.replace(alone.config, virtual_address=hosts)
    replica, health = alone.node.replication.replica, alone.node.health
    service = AddressService(alone.world.reactor, settings, Path("sipha.toml"), replica, health)
    secret = replica.last_word
    service._lost("192.0.2.10 was taken away")
    service._moved("192.0.2.10")
    assert service.elsewhere
    assert not health.well()
    alone.world.until(lambda: alone.node.view.status().leading)
    assert replica.last_word != secret
    service._moved("")
    assert not service.elsewhere
    assert health.well(), "it may lead at once"


def test_node_needn_t_serve_while_another_tool_has_the_addresses(alone: Alone) -> None:
    assert alone.node.must_serve()
    alone.node.address._moved("192.0.2.10")
    assert not alone.node.must_serve()
    alone.node.address._moved("")
    assert alone.node.must_serve()


def test_node_without_a_guard_is_unwell_and_for_a_while_after(alone: Alone) -> None:
    alone.node.address._guarded("the guard is gone")
    assert alone.node.view.status().alarms == (
        "this node is unwell, and leads only if no other can: the guard is gone",
    )
    alone.node.address._guarded("")
    assert not alone.node.health.well()


def test_sockets_stand_whether_the_node_has_the_addresses_or_not(alone: Alone) -> None:
    hosts = msgspec.structs.replace(
        alone.config.virtual_address, mode="external", addresses=(VirtualIp.parse("192.0.2.10"),)
    )
    settings = msgspec.structs.replace(alone.config, virtual_address=hosts)
    replica = alone.node.replication.replica
    clock = MemoryReactorClock()
    service = AddressService(clock, settings, Path("sipha.toml"), replica, alone.node.health)
    service.startService()
    other = AddressService(alone.world.reactor, settings, Path("sipha.toml"), replica, alone.node.health)
    with pytest.raises(ConfigError, match=r"sip\.port: can't bind it on the virtual addresses: Address already in use"):
        other.startService()
    with service.bind(socket.SOCK_DGRAM, ("192.0.2.10", 5060))[0] as taken:
        assert taken.getsockname() == ("192.0.2.10", 5060)
    moved = msgspec.structs.replace(settings, sip=msgspec.structs.replace(settings.sip, port=5070))
    service.listen(moved)
    with pytest.raises(ConfigError, match="Address already in use"):
        other.startService()
    service.adopt(moved)
    service.settle()
    service.bind(socket.SOCK_DGRAM, ("192.0.2.10", 5070))[0].close()
    clock.advance(settings.sip.timer_c)
    with service.bind(socket.SOCK_DGRAM, ("192.0.2.10", 5060))[0]:  # as a listener has it that is being closed
        service.listen(settings)
        service.listen(moved)
    service.settle()
    clock.advance(settings.sip.timer_c)
    with pytest.raises(ConfigError, match="Address already in use"):
        other.startService()
    clock.advance(64 * settings.sip.t1)
    other.startService()
    with pytest.raises(ConfigError, match="Address already in use"):
        service.listen(settings)
    other.stopService()
    assert alone.node.view.status().alarms == (
        "this node is unwell, and leads only if no other can: 192.0.2.10 isn't here",
    )
    service._moved("")
    assert not alone.node.view.status().alarms
    service.stopService()


@pytest.mark.parametrize(
    ("changes", "flow"),
    [
        ({}, Flow("TCP", ("192.0.2.10", 5060), ("192.0.2.7", 40000))),
        (
            {"socket": "tcp:[2001:db8::10]:5060", "received": "sip:[2001:db8::7]:40000;transport=tcp"},
            Flow("TCP", ("2001:db8::10", 5060), ("2001:db8::7", 40000)),
        ),
        ({"flow": "", "socket": "udp:192.0.2.10:5060"}, None),
        ({"socket": ""}, None),
        ({"received": "tel:112"}, None),
        ({"received": "sip:phone.example.com;transport=tcp"}, None),
        ({"received": "nonsense"}, None),
    ],
)
def test_stream_of_a_binding_is_known_by_its_ends(changes: dict[str, Any], flow: Flow | None) -> None:
    assert stream(msgspec.structs.replace(BINDING, **changes)) == flow


def test_streams_of_an_earlier_leader_are_tickled() -> None:
    class Table(Leader):
        def __init__(self) -> None:
            super().__init__()
            self.machine = self.location = self
            self.table = {f"sip:{number:03}@sipha.test": number % 2 == 0 for number in range(250)}

        def aors(self, after: str, limit: int) -> list[str]:
            return [aor for aor in self.table if aor > after][:limit]

        def bindings(self, aor: str) -> list[Binding]:
            return [msgspec.structs.replace(BINDING, aor=aor, flow="1" if self.table[aor] else "")]

    clock, addresses = Clock(), Addresses()
    tickling = Tickling(clock, addresses, cast("Replica", Table()))
    tickling.startService()
    clock.pump([0.01] * 2)
    some = len(addresses.tickled)
    clock.pump([0.01] * 10)
    assert 0 < some < len(addresses.tickled) == 125
    tickling.stopService()
    tickling.startService()
    clock.pump([0.01])
    tickling.stopService()
    clock.pump([0.01] * 10)
    assert len(addresses.tickled) < 250
