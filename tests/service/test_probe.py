from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.service.health import RECOVERY, Health
from sipha.service.probe import INTERVAL, MISSES, REST, SelfProbe
from sipha.service.sip import SipService
from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import parse
from sipha.transport.sockets import Listener
from tests.service.alone import Alone
from tests.system.wire import options


def alarms(alone: Alone) -> tuple[str, ...]:
    return alone.node.view.status().alarms


def test_leader_answers_itself(alone: Alone) -> None:
    counters = alone.node.sip.counters
    before = counters()["transaction_requests_received"]
    alone.world.until(lambda: counters()["transaction_requests_received"] > before + MISSES + 1)
    alone.world.turn(INTERVAL)
    assert alone.node.health.well()
    assert not counters()["proxy_dropped"]
    assert not counters()["proxy_refused"]


def test_leader_whose_listener_is_deaf_is_unwell_until_it_answers_for_some_time(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipha.service.health.RECOVERY", 1.0)
    listeners = alone.node.sip._listeners
    assert listeners is not None
    (udp,) = listeners.udp
    alone.world.turn(INTERVAL)
    alone.world.reactor.removeReader(udp)
    now = alone.world.reactor.seconds
    began = now()
    alone.world.until(lambda: not alone.node.health.well())
    assert now() - began > (MISSES - 1) * INTERVAL
    assert alarms(alone) == (
        "this node is unwell, and leads only if no other can: the SIP listener on 127.0.0.50:5060 doesn't answer",
    )
    assert alone.node.view.status().leading  # there is no other
    alone.world.reactor.addReader(udp)
    alone.world.until(alone.node.health.well)
    assert now() - began > 1.0
    assert not alarms(alone)


def test_first_request_of_another_is_told_and_not_the_leaders_own(alone: Alone) -> None:
    told: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        told.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    alone.world.turn(2 * INTERVAL)
    assert not any("first request served" in line for line in told)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        for _ in range(2):
            phone.sendto(options("127.0.0.50"), ("127.0.0.50", 5060))
        alone.world.until(lambda: any("first request served, OPTIONS" in line for line in told))
    alone.world.turn(INTERVAL)
    globalLogPublisher.removeObserver(observe)
    assert sum("first request served" in line for line in told) == 1


def test_answers_to_others_are_left_to_them(alone: Alone) -> None:
    offered: list[Callable[[Response, Flow], bool]] = alone.node.sip.askers
    response = parse(
        b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 127.0.0.50:5060;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n"
        b"To: <sip:a@b>\r\nCall-ID: another\r\nCSeq: 1 OPTIONS\r\n\r\n"
    )
    assert isinstance(response, Response)
    flow = Flow("UDP", ("127.0.0.50", 5060), ("127.0.0.50", 5060))
    assert not any(asker(response, flow) for asker in offered)


class Deaf:
    """SIP listeners on two virtual addresses that answer when they are told to."""

    def __init__(self) -> None:
        self.askers: list[Callable[[Response, Flow], bool]] = []
        self.addresses = [Listener(transport, host, 5060) for host in HOSTS for transport in ("UDP", "TCP")]
        self.answering: set[str] = set()
        self.overloaded = False
        self.asked: list[Flow] = []

    def send(self, data: bytes, flow: Flow) -> bool:
        self.asked.append(flow)
        request = parse(data)
        assert isinstance(request, Request)
        if flow.local[0] in self.answering:
            (asker,) = self.askers
            assert asker(response_to(request, 200, to_tag="b"), flow)
        return True


HOSTS = ("192.0.2.10", "2001:db8::10")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sip() -> Deaf:
    return Deaf()


@pytest.fixture
def health(clock: Clock) -> Health:
    health = Health(clock, clock.seconds, lambda _: None, lease=0.0)
    health.startService()
    return health


@pytest.fixture
def probe(clock: Clock, sip: Deaf, health: Health) -> SelfProbe:
    return SelfProbe(clock, cast("SipService", sip), health)


def run(clock: Clock, seconds: float) -> None:
    clock.pump([0.1] * round(10 * seconds))


def test_each_address_is_asked_over_udp(clock: Clock, sip: Deaf, probe: SelfProbe) -> None:
    sip.answering = set(HOSTS)
    probe.startService()
    run(clock, INTERVAL / 2)
    assert sip.asked == [Flow("UDP", (host, 5060), (host, 5060)) for host in HOSTS]
    probe.stopService()
    run(clock, 10)
    assert len(sip.asked) == 2


@pytest.mark.parametrize("host", HOSTS)
def test_one_deaf_listener_is_enough(clock: Clock, sip: Deaf, probe: SelfProbe, health: Health, host: str) -> None:
    sip.answering = {*HOSTS} - {host}
    probe.startService()
    run(clock, (MISSES - 1) * INTERVAL)
    assert health.well()
    run(clock, 0.5)
    assert not health.well()
    run(clock, 3 * REST)
    assert not health.well()
    sip.answering = set(HOSTS)
    run(clock, RECOVERY + 1)
    assert health.well()


def test_silence_of_a_node_that_is_flooded_is_not_held_against_it(
    clock: Clock, sip: Deaf, probe: SelfProbe, health: Health
) -> None:
    sip.overloaded = True
    probe.startService()
    run(clock, (MISSES + 3) * INTERVAL)
    assert health.well()
    sip.overloaded = False
    run(clock, INTERVAL)
    assert not health.well()


def test_silence_of_a_listener_that_is_spared_is_seen_but_not_held_against_the_node(
    clock: Clock, sip: Deaf, probe: SelfProbe, health: Health
) -> None:
    sip.answering = {HOSTS[0]}
    probe.spared = {(HOSTS[1], 5060)}
    probe.startService()
    run(clock, (MISSES + 3) * INTERVAL)
    assert health.well()
    assert probe.deaf(0) == [(HOSTS[1], 5060)]
    assert len(probe.deaf(probe.number)) == 2, "nobody has answered a question yet that has not been asked"
    sip.answering = set(HOSTS)
    run(clock, INTERVAL)
    assert not probe.deaf(0)


def test_listener_that_is_deaf_each_time_makes_its_node_unwell_for_ever_longer(
    clock: Clock, sip: Deaf, probe: SelfProbe, health: Health
) -> None:
    rests = []
    for answering in ((), (), (), HOSTS, (), ()):
        probe.startService()
        run(clock, 2)
        sip.answering = set(answering)
        run(clock, 1)
        probe.stopService()
        sip.answering = set()
        began = clock.seconds()
        while not health.well():
            run(clock, 1)
        rests.append(round((clock.seconds() - began) / REST))
    assert rests == [1, 2, 4, 0, 1, 2]
