from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from sipha.admin import trace as module
from sipha.admin.api import Api
from sipha.admin.site import AdminSite
from sipha.admin.trace import LONGEST, WAITING, Traced, TraceEnded
from tests.admin.fakes import DOMAINS, Console, FakeNode

ALICE = "sip:alice@sipha.test"
MESSAGE = Traced("2026-01-01T00:00:00.000+00:00", True, "UDP", "192.0.2.1:5060", "192.0.2.2:5060", "OPTIONS\r\n")


class Onlooker:
    """A client that traces alice's messages."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        http: Any = None  # nothing is forwarded here
        site = AdminSite(node.clock, Api(node.clock, node, DOMAINS, http).resource(), "127.0.0.11")
        self._channel = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport: Any = StringTransport()
        self._channel.makeConnection(self.transport)
        self._channel.dataReceived(b"GET /v1/trace/alice@alias.test HTTP/1.0\r\nHost: localhost\r\n\r\n")

    def told(self) -> list[Traced | TraceEnded]:
        lines = filter(None, bytes(self.transport.value()).partition(b"\r\n\r\n")[2].split(b"\n"))
        return [msgspec.json.decode(line, type=Traced | TraceEnded) for line in lines]

    def passes(self) -> None:
        self.node.traces[ALICE](MESSAGE)

    def go(self) -> None:
        self._channel.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def onlooker() -> Onlooker:
    return Onlooker(FakeNode())


def test_onlooker_is_told_of_each_message_at_once(onlooker: Onlooker) -> None:
    onlooker.passes()
    assert onlooker.told() == [MESSAGE]
    onlooker.passes()
    assert onlooker.told() == [MESSAGE] * 2


def test_onlooker_that_has_gone_is_told_no_more(onlooker: Onlooker) -> None:
    onlooker.go()
    assert not onlooker.node.traces
    onlooker.node.clock.advance(LONGEST)


def test_trace_ends_by_itself(onlooker: Onlooker) -> None:
    onlooker.passes()
    onlooker.node.clock.advance(LONGEST)
    assert onlooker.told() == [MESSAGE, TraceEnded("after 600 s; ask again to go on")]
    assert not onlooker.node.traces
    assert onlooker.transport.disconnecting


def test_trace_has_an_end_in_messages_too(onlooker: Onlooker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    onlooker.passes()
    onlooker.passes()
    assert onlooker.told()[2:] == [TraceEnded("after 2 messages; ask again to go on")]
    assert not onlooker.node.traces


def test_onlooker_who_is_slow_gets_what_waited_and_one_who_is_too_slow_is_hung_up_on(onlooker: Onlooker) -> None:
    onlooker.transport.producer.pauseProducing()
    for _ in range(WAITING):
        onlooker.passes()
    assert onlooker.told() == []
    onlooker.transport.producer.resumeProducing()
    assert len(onlooker.told()) == WAITING
    onlooker.transport.producer.pauseProducing()
    for _ in range(WAITING + 1):
        onlooker.passes()
    assert onlooker.transport.disconnected or onlooker.transport.aborting
    assert not onlooker.node.traces


def test_node_that_serves_no_phones_says_who_does() -> None:
    console = Console(FakeNode())
    console.node.leads, console.node.leader = False, FakeNode("b")
    reply = console.ask("GET", "/v1/trace/alice@sipha.test")
    assert (reply.status, reply.fault) == (409, "messages pass b: ask that node itself")
