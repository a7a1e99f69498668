from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.service.probe import INTERVAL, MISSES
from sipha.sip.flow import Flow
from sipha.sip.message import Response
from sipha.sip.parser import parse
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
    endpoint = alone.node.sip._endpoint
    assert endpoint is not None
    (udp,) = endpoint._udp.values()
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
