from __future__ import annotations

import gc
import socket
from collections import Counter
from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection

from sipha.errors import MalformedMessage
from sipha.sip.flow import Address, Flow
from sipha.sip.message import Request, Response
from sipha.transport.connection import Connection, Received
from sipha.transport.stream import TURN, StreamLimits, Streams

PHONE = ("192.0.2.1", 40000)
OPTIONS = (
    b"OPTIONS sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bKa\r\nMax-Forwards: 70\r\n"
    b"From: <sip:a@sipha.test>;tag=1\r\nTo: <sip:sipha.test>\r\nCall-ID: a\r\nCSeq: 1 OPTIONS\r\n"
    b"Content-Length: 4\r\n\r\nbody"
)
LIMITS = StreamLimits(connections=3, write_buffer=1000)


class Wire(StringTransportWithDisconnection):
    """A connection in memory whose peer may stop to read."""

    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.loseConnection()


class Net:
    """Streams on a reactor in memory, and what they reported."""

    def __init__(self, limits: StreamLimits = LIMITS) -> None:
        self.reactor = MemoryReactorClock()
        self.received: list[tuple[list[Received], Flow]] = []
        self.failed: list[Flow] = []
        self.counters: Counter[str] = Counter()
        self.streams = Streams(
            self.reactor,
            "TCP",
            self.take,
            self.failed.extend,
            counters=self.counters,
            limits=limits,
        )
        self.keeps = True
        self.cost = 0.0  # seconds that each read's messages take
        self.local = self.streams.listen(("127.0.0.1", 0))
        self.factory: Any = self.reactor.adoptedPorts[0][2]

    def take(self, received: list[Received], flow: Flow) -> None:
        if self.keeps:
            self.received.append((received, flow))
        self.reactor.rightNow += self.cost

    def wait(self, seconds: float) -> None:
        self.reactor.pump([1.0] * round(seconds))

    def accept(self, port: int = PHONE[1]) -> tuple[Connection, Wire]:
        connection = self.factory.buildProtocol(IPv4Address("TCP", PHONE[0], port))
        wire = Wire()
        wire.protocol = connection
        connection.makeConnection(wire)
        return connection, wire

    def connect(self) -> tuple[Connection, Wire]:
        factory: Any = self.reactor.tcpClients[-1][2]
        connection = factory.buildProtocol(None)
        wire = Wire()
        wire.protocol = connection
        connection.makeConnection(wire)
        return connection, wire

    def refuse(self) -> None:
        factory: Any = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, None)

    @property
    def messages(self) -> list[Received]:
        return [message for received, _ in self.received for message in received]


@pytest.fixture
def net() -> Net:
    return Net()


def test_connection_hands_over_a_message_with_its_flow(net: Net) -> None:
    connection, _ = net.accept()
    connection.dataReceived(OPTIONS)
    [([message], flow)] = net.received
    assert isinstance(message, Request)
    assert message.body == b"body"
    assert flow == Flow("TCP", net.local, PHONE, connection.flow.connection)
    assert flow.connection > 0


def test_connections_have_different_numbers(net: Net) -> None:
    assert net.accept()[0].flow.connection != net.accept(40001)[0].flow.connection


def test_connection_hands_over_what_one_read_completes_at_once(net: Net) -> None:
    connection, _ = net.accept()
    connection.dataReceived(OPTIONS * 3 + OPTIONS[:20])
    connection.dataReceived(OPTIONS[20:])
    assert [len(received) for received, _ in net.received] == [3, 1]


def test_connection_takes_a_message_byte_by_byte(net: Net) -> None:
    connection, _ = net.accept()
    for byte in OPTIONS * 2:
        connection.dataReceived(bytes((byte,)))
    assert [message.method for message in net.messages if isinstance(message, Request)] == ["OPTIONS"] * 2


def test_connection_takes_a_large_message_in_thousands_of_segments(net: Net) -> None:
    connection, _ = net.accept()
    message = OPTIONS.replace(b"Content-Length: 4\r\n\r\nbody", b"Content-Length: 60000\r\n\r\n" + b"x" * 60000)
    for at in range(0, len(message), 7):
        connection.dataReceived(message[at : at + 7])
    [received] = net.messages
    assert isinstance(received, Request)
    assert len(received.body) == 60000


def test_connection_answers_a_ping_with_a_pong(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(b"\r\n\r\n")
    assert wire.value() == b"\r\n"
    connection.dataReceived(OPTIONS + b"\r\n\r\n" + OPTIONS)
    assert wire.value() == b"\r\n\r\n"
    assert len(net.messages) == 2


def test_connection_does_not_answer_a_pong(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(b"\r\n" + OPTIONS)
    assert wire.value() == b""
    assert len(net.messages) == 1


def test_send_reuses_the_connection_from_an_address(net: Net) -> None:
    connection, wire = net.accept()
    assert net.streams.flow(PHONE) == connection.flow
    assert net.streams.send(b"by number", connection.flow)
    assert net.streams.send(b" by address", Flow("TCP", net.local, PHONE))
    assert wire.value() == b"by number by address"
    assert not net.reactor.tcpClients


def test_flow_to_an_unknown_address_is_yet_to_be_opened(net: Net) -> None:
    assert net.streams.flow(PHONE) == Flow("TCP", net.local, PHONE)


def test_there_is_no_flow_to_another_address_family(net: Net) -> None:
    assert net.streams.flow(("2001:db8::1", 5060)) is None


def test_send_fails_on_a_connection_that_is_gone(net: Net) -> None:
    connection, wire = net.accept()
    wire.loseConnection()
    assert net.failed == [connection.flow]
    assert not net.streams.send(b"x", connection.flow)
    assert net.streams.connections == 0
    assert not net.reactor.tcpClients


def test_send_opens_a_connection_from_the_listeners_address_and_queues(net: Net) -> None:
    flow = Flow("TCP", net.local, PHONE)
    assert net.streams.send(b"one ", flow)
    assert net.streams.send(b"two", flow)
    [asked] = cast(list[Any], net.reactor.tcpClients)
    host, port, _, timeout, bind_address = asked
    assert (host, port, timeout, bind_address) == (*PHONE, LIMITS.connect, (net.local[0], 0))
    connection, wire = net.connect()
    assert wire.value() == b"one two"
    assert net.streams.flow(PHONE) == connection.flow
    assert connection.flow.local == net.local
    connection.dataReceived(OPTIONS)
    assert len(net.messages) == 1


def test_failed_connect_fails_the_flow(net: Net) -> None:
    assert net.streams.send(b"x", Flow("TCP", net.local, PHONE))
    net.refuse()
    [failed] = net.failed
    assert failed.remote == PHONE
    assert net.streams.connections == 0
    assert net.counters["tcp-connect"] == 1


@pytest.mark.parametrize(
    "remote", [("phone.example.com", 5060), ("2001:db8::1", 5060), ("192.0.2.1", 0), ("192.0.2.1", 65536)]
)
def test_send_opens_no_connection_to_what_is_no_address(net: Net, remote: Address) -> None:
    assert not net.streams.send(b"x", Flow("TCP", net.local, remote))
    assert not net.reactor.tcpClients


def test_queue_of_an_unopened_connection_is_bounded(net: Net) -> None:
    flow = Flow("TCP", net.local, PHONE)
    assert net.streams.send(bytes(LIMITS.write_buffer), flow)
    assert not net.streams.send(b"x", flow)


def test_too_many_connections_are_refused(net: Net) -> None:
    for port in range(LIMITS.connections):
        net.accept(port)
    assert net.factory.buildProtocol(IPv4Address("TCP", *PHONE)) is None
    assert not net.streams.send(b"x", Flow("TCP", net.local, ("192.0.2.9", 5060)))
    assert net.counters["tcp-refused"] == 2


def test_silent_connection_is_dropped(net: Net) -> None:
    connection, wire = net.accept()
    net.wait(LIMITS.first_message - 1)
    connection.dataReceived(b"\r\n\r\n")
    assert not wire.aborted
    net.wait(2)
    assert wire.aborted
    assert net.counters["tcp-silent"] == 1


def test_idle_connection_is_dropped_and_a_keepalive_saves_it(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS)
    net.reactor.advance(LIMITS.idle - 1)
    connection.dataReceived(b"\r\n\r\n")
    net.reactor.advance(LIMITS.idle - 1)
    assert not wire.aborted
    net.wait(2)
    assert wire.aborted
    assert net.failed == [connection.flow]


def test_slow_message_is_dropped_however_it_trickles(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS)
    for byte in OPTIONS:
        connection.dataReceived(bytes((byte,)))
        net.wait(1)
        if wire.aborted:
            break
    assert wire.aborted
    assert net.counters["tcp-unfinished"] == 1
    assert len(net.messages) == 1


def test_message_limit_begins_anew_with_each_message(net: Net) -> None:
    connection, wire = net.accept()
    for _ in range(5):
        connection.dataReceived(OPTIONS[:50])
        net.wait(LIMITS.message - 2)
        connection.dataReceived(OPTIONS[50:])
    assert not wire.aborted
    assert len(net.messages) == 5


def test_endless_header_fields_lose_the_connection(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS.partition(b"Content-Length")[0])
    sent = 0
    while wire.connected and sent < 10 * LIMITS.max_message:
        connection.dataReceived(b"X-Endless: " + b"x" * 1000 + b"\r\n")
        sent += 1000
    assert not wire.connected
    assert sent < 2 * LIMITS.max_message
    [error] = net.messages
    assert isinstance(error, MalformedMessage)


def test_huge_content_length_loses_the_connection(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS.replace(b"Content-Length: 4", b"Content-Length: 99999999999"))
    assert not wire.connected
    [error] = net.messages
    assert isinstance(error, MalformedMessage)


def test_garbage_loses_no_more_than_its_connection(net: Net) -> None:
    other, other_wire = net.accept(40001)
    connection, _ = net.accept()
    connection.dataReceived(bytes(range(256)) * 300 + b"\r\n\r\n" + bytes(range(256)) * 300)
    other.dataReceived(OPTIONS)
    assert other_wire.connected
    assert isinstance(net.messages[-1], Request)


def test_malformed_message_is_passed_over(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS.replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE") + OPTIONS)
    error, message = net.messages
    assert isinstance(error, MalformedMessage)
    assert isinstance(message, Request)
    assert wire.connected


def test_malformed_message_leaves_nothing_to_the_garbage_collector(net: Net) -> None:
    connection, _ = net.accept()
    net.keeps = False
    gc.collect()
    gc.disable()
    try:
        connection.dataReceived(b"A\r\nl:0\r\n\r\n" * 2)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_response_is_handed_over(net: Net) -> None:
    connection, _ = net.accept()
    connection.dataReceived(OPTIONS.replace(b"OPTIONS sip:sipha.test SIP/2.0", b"SIP/2.0 200 OK"))
    [message] = net.messages
    assert isinstance(message, Response)


def test_peer_that_does_not_read_is_not_read_either(net: Net) -> None:
    connection, wire = net.accept()
    connection.pauseProducing()
    assert wire.producerState == "paused"
    connection.resumeProducing()
    assert wire.producerState == "producing"
    net.wait(LIMITS.stalled + 1)
    assert not wire.aborted


def test_peer_that_does_not_read_is_dropped_after_a_while(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS)
    connection.pauseProducing()
    net.wait(LIMITS.stalled + 1)
    assert wire.aborted
    assert net.counters["tcp-stalled"] == 1


def test_peer_that_does_not_read_is_dropped_when_too_much_waits(net: Net) -> None:
    connection, wire = net.accept()
    connection.pauseProducing()
    assert connection.write(bytes(LIMITS.write_buffer))
    assert not connection.write(b"x")
    assert wire.aborted
    assert net.counters["tcp-unread"] == 1


def test_connections_wait_when_a_turn_of_the_reactor_has_taken_long_enough(net: Net) -> None:
    net.cost = TURN * 0.6
    pairs = [net.accept(port) for port in (1, 2, 3)]
    for connection, _ in pairs:
        connection.dataReceived(OPTIONS)
    assert [flow.remote[1] for _, flow in net.received] == [1, 2]
    assert [wire.producerState for _, wire in pairs] == ["producing", "producing", "paused"]
    net.reactor.advance(0)
    assert [flow.remote[1] for _, flow in net.received] == [1, 2, 3]
    assert pairs[2][1].producerState == "producing"


def test_connections_that_wait_take_turns(net: Net) -> None:
    net.cost = TURN
    pairs = [net.accept(port) for port in (1, 2, 3)]
    for _ in range(2):
        for connection, _ in pairs:
            connection.dataReceived(OPTIONS)
    net.wait(1)
    assert [(flow.remote[1], len(received)) for received, flow in net.received] == [(1, 1), (2, 2), (3, 2), (1, 1)]


def test_connection_that_waits_is_not_read_because_its_peer_reads_again(net: Net) -> None:
    net.cost = TURN
    net.accept(1)[0].dataReceived(OPTIONS)
    connection, wire = net.accept(2)
    connection.dataReceived(OPTIONS)
    connection.pauseProducing()
    connection.resumeProducing()
    assert wire.producerState == "paused"
    connection.pauseProducing()
    net.reactor.advance(0)
    assert len(net.messages) == 2
    assert wire.producerState == "paused"
    connection.resumeProducing()
    assert wire.producerState == "producing"


def test_connection_that_is_lost_does_not_wait(net: Net) -> None:
    net.cost = TURN
    net.accept(1)[0].dataReceived(OPTIONS)
    connection, wire = net.accept(2)
    connection.dataReceived(OPTIONS)
    wire.loseConnection()
    net.wait(1)
    assert len(net.messages) == 1


def test_half_closed_connection_still_gets_its_response(net: Net) -> None:
    connection, wire = net.accept()
    connection.dataReceived(OPTIONS)
    connection.readConnectionLost()
    assert net.failed == [connection.flow]
    assert net.streams.send(b"response", connection.flow)
    assert wire.value() == b"response"
    assert net.streams.flow(PHONE) == Flow("TCP", net.local, PHONE)
    net.wait(LIMITS.linger + 1)
    assert wire.aborted
    assert net.streams.connections == 0
    assert net.failed == [connection.flow]


def test_stop_closes_everything_and_reports_no_flow(net: Net) -> None:
    _, wire = net.accept()
    net.streams.send(b"x", Flow("TCP", net.local, ("192.0.2.9", 5060)))
    net.reactor.connectors[-1].stopConnecting = net.refuse
    stopped = net.streams.stop()
    net.wait(1)
    assert stopped.called
    assert wire.aborted
    assert net.failed == []
    assert net.streams.connections == 0
    assert net.factory.buildProtocol(IPv4Address("TCP", *PHONE)) is None
    assert [call for call in net.reactor.getDelayedCalls() if call.active()] == []


def test_listening_on_an_address_in_use_is_an_os_error(net: Net) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            net.streams.listen(("127.0.0.1", other.getsockname()[1]))
