from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.transport.endpoint import Endpoint
from sipha.transport.listeners import ATTEMPTS_IN_USE, RETRY_IN_USE, Listeners
from sipha.transport.sockets import Listener
from sipha.transport.stream import StreamLimits
from tests.transport.node import HOST, Node, User, request, statuses


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is logged at level warn."""
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.warn:
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_start_gives_up_at_another_error() -> None:
    reactor = MemoryReactorClock()
    listeners = Listeners(reactor, [Listener("UDP", HOST, 0), Listener("TCP", "192.0.2.1", 5060)])
    endpoint = Endpoint(reactor, TransactionLayer(), listeners)
    failures: list[object] = []
    endpoint.start(User(TransactionLayer())).addErrback(failures.append)
    assert len(failures) == 1
    assert listeners.addresses == ()


def test_start_waits_until_all_addresses_are_free() -> None:
    reactor = MemoryReactorClock()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, 0))
        listeners = Listeners(reactor, [Listener("UDP", HOST, 0), Listener("UDP", *other.getsockname())])
        endpoint = Endpoint(reactor, TransactionLayer(), listeners)
        started = endpoint.start(User(TransactionLayer()))
        reactor.advance(RETRY_IN_USE)
        assert not started.called
        assert listeners.addresses == ()
    reactor.advance(RETRY_IN_USE)
    assert started.called
    assert len(listeners.addresses) == 2
    endpoint.stop()


def test_log_says_that_an_address_stays_in_use_but_not_that_it_is_for_a_moment(warnings: list[str]) -> None:
    reactor = MemoryReactorClock()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, 0))
        listeners = Listeners(reactor, [Listener("UDP", *other.getsockname())])
        endpoint = Endpoint(reactor, TransactionLayer(), listeners)
        endpoint.start(User(TransactionLayer()))
        reactor.pump([RETRY_IN_USE] * (ATTEMPTS_IN_USE - 2))
        assert warnings == []
        reactor.pump([RETRY_IN_USE] * ATTEMPTS_IN_USE)
        assert len(warnings) == 1
        assert "is still in use; trying again" in warnings[0]
    endpoint.stop()


def test_stop_ends_the_wait_for_an_address() -> None:
    reactor = MemoryReactorClock()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, 0))
        listeners = Listeners(reactor, [Listener("UDP", *other.getsockname())])
        endpoint = Endpoint(reactor, TransactionLayer(), listeners)
        results: list[bool] = []
        endpoint.start(User(TransactionLayer())).addCallback(results.append)
        endpoint.stop()
    reactor.advance(1)
    assert results == [False]
    assert listeners.addresses == ()
    assert reactor.getDelayedCalls() == []


def test_listeners_know_their_addresses(stream_node: Node) -> None:
    udp, tcp = stream_node.listeners.addresses
    assert stream_node.listeners.is_local(HOST, udp.port, "UDP")
    assert not stream_node.listeners.is_local(HOST, udp.port, "TLS")
    assert stream_node.listeners.is_local(HOST, tcp.port)
    assert not stream_node.listeners.is_local("127.0.0.2", tcp.port)
    assert stream_node.listeners.flow("TLS", ("192.0.2.1", 5061)) is None
    assert stream_node.listeners.flow("UDP", ("2001:db8::1", 5060)) is None
    flow = stream_node.listeners.flow("TCP", ("192.0.2.1", 5060))
    assert flow == Flow("TCP", (HOST, tcp.port), ("192.0.2.1", 5060))
    assert stream_node.listeners.sent_by(flow) == f"{HOST}:{tcp.port}"


def free_port() -> int:
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken, socket.socket() as stream:
            taken.bind((HOST, 0))
            with suppress(OSError):  # a connection of somebody's may come from there
                stream.bind((HOST, taken.getsockname()[1]))
                return int(taken.getsockname()[1])


def test_listeners_are_opened_before_others_are_retired(node: Node) -> None:
    (before,) = node.listeners.addresses
    after = Listener("UDP", HOST, free_port())
    node.listeners.listen([after])
    assert list(node.listeners.addresses) == [before, after]
    node.listeners.retire([after])
    assert list(node.listeners.addresses) == [after]
    assert node.flow.local == (HOST, after.port)


def test_listener_that_was_retired_over_udp_is_read_and_answered_from_for_a_while(node: Node) -> None:
    (before,) = node.listeners.addresses
    after = Listener("UDP", HOST, free_port())
    node.listeners.listen([after])
    node.listeners.retire([after])
    [old] = [reader for reader in node.reactor.readers if reader.address == (HOST, before.port)]
    node.phone.sendto(request(), (HOST, before.port))
    old.doRead()
    assert statuses(node.answers()) == [200]
    node.reactor.advance(300)
    assert old not in node.reactor.readers
    assert node.listeners.is_local(HOST, before.port, "UDP"), "phones still have it in their Routes"
    node.listeners.listen([before])
    assert node.listeners.addresses == (after, before)


def test_listener_that_was_retired_can_be_listened_at_again(node: Node) -> None:
    (before,) = node.listeners.addresses
    after = Listener("UDP", HOST, free_port())
    node.listeners.listen([after])
    node.listeners.retire([after])
    node.listeners.listen([before])
    node.listeners.retire([before])
    node.reactor.advance(299)
    assert node.listeners.addresses == (before,)
    assert {reader.address[1] for reader in node.reactor.readers} == {before.port, after.port}
    node.reactor.advance(2)
    assert [reader.address[1] for reader in node.reactor.readers] == [before.port]
    assert not node.reactor.getDelayedCalls()


def test_listener_that_was_retired_stays_ours_if_it_cant_be_listened_at_again(node: Node) -> None:
    (before,) = node.listeners.addresses
    after = Listener("UDP", HOST, free_port())
    node.listeners.listen([after])
    node.listeners.retire([after])
    node.reactor.advance(301)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, before.port))
        with pytest.raises(OSError, match="in use"):
            node.listeners.listen([before])
    assert node.listeners.is_local(HOST, before.port, "UDP")
    node.listeners.listen([before])
    node.listeners.retire([before])
    assert node.listeners.addresses == (before,)


def test_listeners_are_opened_all_or_none(node: Node) -> None:
    before = node.listeners.addresses
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, 0))
        taken = Listener("UDP", HOST, other.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            node.listeners.listen([*before, Listener("UDP", HOST, free_port()), taken])
    assert node.listeners.addresses == before


def test_connections_outlive_their_listener_and_keep_to_new_limits(stream_node: Node) -> None:
    udp, tcp = stream_node.listeners.addresses
    connection, wire = stream_node.accept()
    connection.dataReceived(request(transport="TCP"))
    stream_node.listeners.retire([udp])
    stream_node.listeners.limit(4 << 20, StreamLimits(idle=60.0))
    assert stream_node.listeners.addresses == (udp,)
    connection.dataReceived(request(transport="TCP", branch="z9hG4bKb"))
    assert wire.value().count(b"SIP/2.0 200") == 2
    assert stream_node.listeners.is_local(HOST, tcp.port, "TCP")
    stream_node.reactor.pump([1.0] * 62)
    assert wire.aborted


def test_ipv6_addresses_are_compared_by_value() -> None:
    node = Node(Listener("UDP", "::1", 0))
    [own] = node.listeners.addresses
    assert node.listeners.is_local("[0:0::1]", own.port, "UDP")
    flow = node.listeners.flow("UDP", ("::1", 5060))
    assert flow is not None
    assert node.listeners.sent_by(flow) == f"[::1]:{own.port}"
    node.endpoint.stop()
