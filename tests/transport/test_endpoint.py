from __future__ import annotations

import math
import socket

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from sipha.errors import SipError
from sipha.sip.events import Event, RequestReceived, TimerFired, TransactionFailed
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, response_to
from sipha.sip.overload import ADMITTED, T1
from sipha.transport.endpoint import Endpoint
from sipha.transport.interfaces import ITransactionUser
from sipha.transport.listeners import Listeners
from sipha.transport.sockets import Listener
from tests.transport.node import HOST, Node, User, request, statuses


def test_user_provides_the_interface(node: Node) -> None:
    assert verifyObject(ITransactionUser, node.user)


def test_request_reaches_the_user_and_its_response_the_phone(node: Node) -> None:
    node.receive(request())
    [(event, _)] = node.user.events
    assert isinstance(event, RequestReceived)
    assert event.flow == node.flow
    [answer] = node.answers()
    assert answer.startswith(b"SIP/2.0 200 OK\r\n")
    assert b"received=127.0.0.1" in answer


def test_time_is_read_once_for_all_datagrams_of_a_wake_up(node: Node) -> None:
    node.reactor.advance(12.5)
    node.receive(*(request(branch=f"z9hG4bK{number}") for number in range(5)))
    assert [now for _, now in node.user.events] == [12.5] * 5


def test_events_follow_once_all_datagrams_are_fed(node: Node) -> None:
    fed: list[int] = []
    node.user.act = lambda event, now: fed.append(len(node.layer._received))
    node.receive(request(branch="z9hG4bK1"), request(branch="z9hG4bK2"))
    assert fed == [1, 0]


def test_malformed_request_gets_an_error_with_a_keyed_tag(node: Node) -> None:
    node.receive(request().replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE"))
    [answer] = node.answers()
    assert answer.startswith(b"SIP/2.0 400 ")
    assert b"To: <sip:sipha.test>;tag=keyed\r\n" in answer
    assert f"rport={node.phone.getsockname()[1]}".encode() in answer
    assert node.user.events == []


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\x80\xff" * 700,
        request("ACK").replace(b"CSeq: 1 ACK", b"CSeq: 1 INVITE"),
        request().replace(b"OPTIONS sip:sipha.test SIP/2.0", b"SIP/2.0 200 OK").replace(b"CSeq: 1", b"CSeq: x"),
        b"SIP/2.0 200 OK\r\n\r\n",
    ],
)
def test_what_must_not_be_answered_is_dropped_and_counted(node: Node, data: bytes) -> None:
    node.receive(data, request())
    assert statuses(node.answers()) == [200]
    assert node.endpoint.counters["malformed"] == 1


@pytest.mark.parametrize("data", [b"", b"\0", b"\r\n", bytes(4)])
def test_keepalive_over_udp_is_no_malformed_message(node: Node, data: bytes) -> None:
    node.receive(data)
    assert node.endpoint.counters == {"udp-keepalive": 1}
    assert node.answers() == []


def test_double_crlf_over_udp_is_answered(node: Node) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind((HOST, 0))
        phone.settimeout(5)
        phone.sendto(b"\r\n\r\n", node.flow.local)
        node.receive()
        assert phone.recv(100) == b"\r\n"


def test_datagram_that_is_taken_before_it_is_parsed_goes_no_further(node: Node) -> None:
    node.intercepted = b"\0\1"
    node.receive(b"\0\1other", request())
    assert statuses(node.answers()) == [200]
    assert not node.endpoint.counters["malformed"]


def test_datagram_may_begin_with_empty_lines(node: Node) -> None:
    node.intercepted = b"SIP/2.0 200 "
    node.cut_short = b"REGISTER "
    node.receive(b"\r\nSIP/2.0 200 OK\r\n\r\n", b"\r\n\r\n" + request("REGISTER"), b"\r\n" + request(), b"\r\n" * 8)
    assert len(node.user.events) == 1
    assert (node.layer.counters.requests_received, node.endpoint.counters["malformed"]) == (2, 1)
    assert not node.endpoint.counters["mistake"]


def test_what_can_be_a_request_is_not_offered_to_who_takes_responses(node: Node) -> None:
    node.intercepted = (b"SIP/2.0 ", b"S", b"O")
    node.receive(b"SIP/2.0 200 OK\r\n\r\n", request(), request("SUBSCRIBE", branch="z9hG4bKb"))
    assert statuses(node.answers()) == [200, 200]
    assert not node.endpoint.counters["malformed"]


def test_request_that_has_waited_too_long_is_answered_503_and_goes_no_further(node: Node) -> None:
    register = request("REGISTER")
    first, second, last = node.receive_late(register, register, request("BYE"))
    [(event, _)] = node.user.events
    assert isinstance(event, RequestReceived)
    assert event.request.method == "BYE"
    assert statuses([first, second, last]) == [503, 503, 200]
    assert first == second
    assert b"\r\nRetry-After: " in first
    assert node.layer.responses["REGISTER", 503] == 2


def test_refusal_of_a_request_that_is_written_unusually_goes_where_its_via_says(node: Node) -> None:
    host, port = node.phone.getsockname()
    [answer] = node.receive_late(request("REGISTER").replace(b"192.0.2.1;rport", f"{host}:{port}".encode()))
    assert statuses([answer]) == [503]
    assert b"tag=keyed" in answer
    assert b"\r\nRetry-After: " in answer
    assert node.layer.responses["REGISTER", 503] == 1
    assert not node.user.events


@pytest.mark.parametrize("unusual", [False, True])
def test_peer_is_refused_without_retry_after(node: Node, *, unusual: bool) -> None:
    node.overload.adopt(lambda flow: flow == node.flow, ())
    host, port = node.phone.getsockname()
    register = request("REGISTER")
    if unusual:
        register = register.replace(b"192.0.2.1;rport", f"{host}:{port}".encode())
    [answer] = node.receive_late(register)
    assert statuses([answer]) == [503]
    assert b"Retry-After" not in answer


def test_copy_of_what_is_under_way_is_not_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipha.sip.overload.ADMITTED", 0)

    def ring(event: Event, now: float) -> None:
        assert isinstance(event, RequestReceived)
        server = node.layer.accept(event.request, event.flow, now)
        node.layer.respond(server, response_to(event.request, 180, to_tag="t"), now)

    invite = request("INVITE")
    for data in (invite, invite.replace(b"z9hG4bKa", b"of-rfc-2543")):
        node.user.act = ring
        node.receive(data)
        assert statuses(node.answers()) == [180]
        node.user.act = node.user.answer
        assert statuses(node.receive_late(data, data.replace(b"Via: ", b"v:"))) == [180, 180]
        assert statuses(node.receive_late(data.replace(b"CSeq: 1", b"CSeq: 2").replace(b"9hG", b"8hG"))) == [503]


@pytest.mark.parametrize(("part", "served"), [("_sift", [200, 200]), ("_refusals", [200])])
def test_mistake_in_refusing_keeps_nothing_else_from_being_served(
    node: Node, monkeypatch: pytest.MonkeyPatch, part: str, served: list[int]
) -> None:
    node.receive_late()
    monkeypatch.setattr(f"sipha.sip.overload.{part}", None)
    node.endpoint._datagrams_received(
        [(request("REGISTER"), node.flow), (request("BYE", branch="z9hG4bKb"), node.flow)], T1, 0.0
    )
    assert statuses(node.answers()) == served
    assert node.endpoint.counters["mistake"] == 1


def test_refusal_goes_where_the_request_came_from_if_that_is_to_be_forced(node: Node) -> None:
    node.layer.force_rport = lambda _request, _flow: True
    data = request("REGISTER").replace(b";rport", b"")
    assert statuses(node.receive_late(data)) == [503]
    node.receive(data.replace(b"CSeq: 1 REGISTER", b"CSeq: 1 INVITE"))
    assert statuses(node.answers()) == [400]


def test_nothing_is_refused_before_too_much_waits(node: Node) -> None:
    node.receive_late()
    node.endpoint._datagrams_received([(request("REGISTER"), node.flow)], 0.0, 0.0)
    assert statuses(node.answers()) == [200]


def test_request_that_is_acted_on_before_it_is_parsed_is_one_that_was_received(node: Node) -> None:
    node.cut_short = b"REGISTER "
    node.receive(b"REGISTER as it may be", request())
    assert statuses(node.answers()) == [200]
    assert not node.endpoint.counters["malformed"]
    assert node.layer.counters.requests_received == 2


def test_taps_are_told_what_comes_and_what_goes(node: Node) -> None:
    told: list[tuple[bytes, bool]] = []

    def tap(data: bytes, flow: Flow, *, sent: bool) -> None:
        assert flow == node.flow
        told.append((data, sent))

    node.endpoint.taps.append(tap)
    node.receive(request(), b"\r\n\r\n", b"\x00\x01\x00\x00\x21\x12\xa4\x42transaction!")
    (answer,) = node.answers()[:1]
    assert told == [(request(), False), (answer, True)]


def test_tap_that_fails_stops_nothing(node: Node) -> None:
    def tap(data: bytes, flow: Flow, *, sent: bool) -> None:
        raise ValueError(data, flow, sent)

    node.endpoint.taps.append(tap)
    node.receive(request())
    assert node.answers()
    assert node.endpoint.counters["mistake"] == 2


def test_taps_are_told_of_streams_too(stream_node: Node) -> None:
    told: list[bool] = []
    stream_node.endpoint.taps.append(lambda _data, _flow, *, sent: told.append(sent))
    connection, _ = stream_node.accept()
    connection.dataReceived(request(transport="TCP"))
    assert told == [False, True]


def test_what_is_offered_and_fails_condemns_no_flow(node: Node) -> None:
    assert node.endpoint.offer(b"ping", node.flow)
    assert node.answers() == [b"ping"]
    for remote in (("255.255.255.255", 5060), ("::1", 5060), ("127.0.0.1", 0)):
        assert not node.endpoint.offer(b"ping", node.flow._replace(remote=remote))
    assert not node.endpoint.offer(b"ping", node.flow._replace(local=("192.0.2.1", 5060)))
    node.lease_until = 0.0
    assert not node.endpoint.offer(b"ping", node.flow)
    node.reactor.advance(1.0)
    assert not node.endpoint.counters["flow-failed"]


def test_what_is_offered_together_is_withheld_from_the_end_of_the_lease_on() -> None:
    node = Node()
    node.lease_until = node.clock + 2
    assert node.endpoint.offer_all([(b"in time", node.flow), (b"too late", node.flow)]) == [True, False]
    assert node.answers() == [b"in time"]
    node.lease_until = math.inf
    ours = node.flow
    gone = ours._replace(local=("192.0.2.1", 5060))
    assert node.endpoint.offer_all([(b"from nowhere", gone), (b"from here", ours)]) == [False, True]
    node.endpoint.stop()
    assert node.endpoint.offer_all([(b"stopped", ours)]) == [False]
    node.phone.close()


def test_what_is_offered_goes_by_a_connection_if_there_is_one(stream_node: Node) -> None:
    connection, wire = stream_node.accept()
    assert stream_node.endpoint.offer(b"ping", connection.flow)
    assert wire.value() == b"ping"
    assert not stream_node.endpoint.offer(b"ping", connection.flow._replace(connection=connection.flow.connection + 1))


@pytest.mark.parametrize(
    "extra",
    ["X-Long: " + "x" * 60000 + "\r\n", "v: SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKb\r\n" * 1500],
    ids=["64 kB of header", "1500 Vias"],
)
def test_huge_request_is_taken(node: Node, extra: str) -> None:
    node.receive(request(extra=extra), request(branch="z9hG4bKb"))
    assert len(node.user.events) == 2
    assert 200 in statuses(node.answers())


def test_ten_thousand_vias_are_taken_or_refused_over_tcp(stream_node: Node) -> None:
    connection, wire = stream_node.accept()
    connection.dataReceived(request(transport="TCP", extra="v: SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKb\r\n" * 10000))
    assert wire.value().startswith((b"SIP/2.0 513", b"SIP/2.0 400")) or wire.value() == b""
    assert not wire.connected


def test_sip_error_of_the_user_becomes_the_response(node: Node) -> None:
    def refuse(event: Event, now: float) -> None:
        raise SipError("no", status=603, reason="Not Now", headers=(("Retry-After", "7"),))

    node.user.act = refuse
    node.receive(request())
    [answer] = node.answers()
    assert answer.startswith(b"SIP/2.0 603 Not Now\r\n")
    assert b"Retry-After: 7\r\n" in answer


def test_endpoint_starts_again_after_a_stop(node: Node) -> None:
    node.endpoint.stop()
    node.endpoint.start(node.user)
    node.receive(request())
    assert statuses(node.answers()) == [200]


def test_stop_within_an_event_sends_nothing_more(node: Node) -> None:
    def stop(event: Event, now: float) -> None:
        node.user.answer(event, now)
        node.endpoint.stop()

    node.user.act = stop
    node.receive(request(branch="z9hG4bK1"), request(branch="z9hG4bK2"))
    assert len(node.user.events) == 1
    assert node.answers() == []
    assert node.reactor.readers == set()
    assert node.reactor.getDelayedCalls() == []


def test_timer_is_one_and_fires_when_the_layer_says(node: Node) -> None:
    node.layer.set_timer(5.0, "later")
    node.endpoint.turn(0.0)
    node.layer.set_timer(2.0, "sooner")
    node.endpoint.turn(0.0)
    assert len(node.reactor.getDelayedCalls()) == 1
    node.reactor.advance(2.0)
    node.reactor.advance(3.0)
    assert [(event.subject, now) for event, now in node.user.events if isinstance(event, TimerFired)] == [
        ("sooner", 2.0),
        ("later", 5.0),
    ]
    assert node.reactor.getDelayedCalls() == []


def test_client_transaction_fails_if_nothing_can_be_sent(node: Node) -> None:
    outgoing = Request("OPTIONS", "sip:b@192.0.2.9", _headers("z9hG4bKours"))
    node.layer.start(outgoing, Flow("UDP", node.flow.local, ("phone.example.com", 5060)), 0.0)
    node.endpoint.turn(0.0)
    assert any(isinstance(event, TransactionFailed) for event, _ in node.user.events)


def test_client_transaction_fails_with_its_connection(stream_node: Node) -> None:
    node = stream_node
    connection, wire = node.accept()
    node.layer.start(Request("OPTIONS", "sip:b@192.0.2.1", _headers("z9hG4bKours")), connection.flow, 0.0)
    node.endpoint.turn(0.0)
    assert wire.value().startswith(b"OPTIONS ")
    wire.loseConnection()
    assert any(isinstance(event, TransactionFailed) for event, _ in node.user.events)


def test_malformed_request_on_a_stream_is_answered_and_the_next_one_served(stream_node: Node) -> None:
    connection, wire = stream_node.accept()
    bad = request(transport="TCP").replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE")
    connection.dataReceived(bad + request(transport="TCP"))
    assert wire.value().startswith(b"SIP/2.0 400 ")
    assert b"SIP/2.0 200 OK\r\n" in wire.value()
    assert wire.connected


def test_lost_framing_is_answered_and_then_closed(stream_node: Node) -> None:
    connection, wire = stream_node.accept()
    connection.dataReceived(request(transport="TCP").replace(b"Content-Length: 0", b"Content-Length: -1"))
    assert wire.value().startswith(b"SIP/2.0 400 ")
    assert not wire.connected


def test_endpoint_sends_nothing_once_it_may_not(node: Node) -> None:
    node.lease_until = 0.0
    node.receive(request())
    assert node.endpoint.send(b"stateless", node.flow)
    assert node.receive_late(request("REGISTER")) == []
    assert node.answers() == []
    assert node.endpoint.counters["withheld"] == 2 + ADMITTED


def test_lease_that_ends_between_two_messages_lets_only_the_first_leave(node: Node) -> None:
    node.lease_until = node.clock + 2
    assert node.endpoint.send_all([(b"in time", node.flow), (b"too late", node.flow)]) == []
    assert node.answers() == [b"in time"]
    assert node.endpoint.counters["withheld"] == 1


def test_message_that_cant_be_sent_keeps_no_other_from_leaving(node: Node) -> None:
    unreachable = node.flow._replace(remote=("255.255.255.255", 5060))
    # A URI may have a zone of any bytes: maddr=fe80::1%\xff.
    odd = [node.flow._replace(remote=(host, 5060)) for host in ("nowhere", "fe80::1%\udcff")]
    sent = [(b"%d" % number, node.flow) for number in range(9)]
    messages = [*sent[:4], (b"lost", unreachable), *sent[4:6], *((b"lost", flow) for flow in odd), *sent[6:]]
    assert node.endpoint.send_all(messages) == [unreachable, *odd]
    assert node.answers() == [data for data, _ in sent]
    node.reactor.advance(0)
    assert node.endpoint.counters["flow-failed"] == 3


def test_what_is_due_before_sending_is_done_when_the_events_are_over() -> None:
    node = Node()
    node.receive(request())
    assert node.before[0] == (1, [])
    assert len(node.answers()) == 1
    node.endpoint.stop()
    node.phone.close()


def _headers(branch: str) -> list[tuple[str, str]]:
    return [
        ("Via", f"SIP/2.0/UDP 127.0.0.1;branch={branch}"),
        ("Max-Forwards", "70"),
        ("From", "<sip:a@sipha.test>;tag=1"),
        ("To", "<sip:b@sipha.test>"),
        ("Call-ID", "ours"),
        ("CSeq", "1 OPTIONS"),
    ]


class MistakeTests(TestCase):
    """A mistake of the transaction user is logged once and harms no other message."""

    def test_request_gets_500_and_the_next_one_is_served(self) -> None:
        node = Node()
        self.addCleanup(node.endpoint.stop)
        self.addCleanup(node.phone.close)

        def err(event: Event, now: float) -> None:
            node.user.act = node.user.answer
            raise ZeroDivisionError

        node.user.act = err
        node.receive(request(branch="z9hG4bK1"), request(branch="z9hG4bK2"))
        assert statuses(node.answers()) == [500, 200]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1


class TcpClient(Protocol):
    """What a peer sees of a connection."""

    def __init__(self) -> None:
        self.data: DeferredQueue[bytes] = DeferredQueue()
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data.put(data)

    def connectionLost(self, reason: object = None) -> None:
        self.lost.callback(None)


class LoopbackTests(TestCase):
    """Real sockets, on either family."""

    host = HOST
    timeout = 10

    async def setUp(self) -> None:  # type: ignore[override]
        self.layer = TransactionLayer()
        self.user = User(self.layer)
        listeners = Listeners(reactor, [Listener("UDP", self.host, 0), Listener("TCP", self.host, 0)])
        self.endpoint = Endpoint(reactor, self.layer, listeners)
        assert await self.endpoint.start(self.user)
        self.addCleanup(self.endpoint.stop)
        self.port = listeners.addresses[1].port

    async def connect(self) -> TcpClient:
        client = TcpClient()
        connected: Deferred[None] = Deferred()
        client.connectionMade = lambda: connected.callback(None)  # type: ignore[method-assign]
        factory = ClientFactory()
        factory.buildProtocol = lambda addr: client  # type: ignore[method-assign]
        reactor.connectTCP(self.host, self.port, factory)
        await connected
        return client

    async def hang_up(self, client: TcpClient) -> None:
        assert client.transport is not None
        client.transport.loseConnection()
        await client.lost

    async def test_request_over_tcp_is_answered_on_its_connection(self) -> None:
        client = await self.connect()
        assert client.transport is not None
        client.transport.write(request(transport="TCP"))
        assert (await client.data.get()).startswith(b"SIP/2.0 200 OK")
        client.transport.write(b"\r\n\r\n")
        assert await client.data.get() == b"\r\n"
        await self.hang_up(client)

    async def test_half_closed_client_gets_its_answer(self) -> None:
        client = await self.connect()
        assert client.transport is not None
        client.transport.write(request(transport="TCP"))
        client.transport.loseWriteConnection()  # type: ignore[attr-defined]
        assert (await client.data.get()).startswith(b"SIP/2.0 200 OK")
        await self.hang_up(client)

    async def test_stop_closes_connections(self) -> None:
        client = await self.connect()
        assert client.transport is not None
        client.transport.write(request(transport="TCP"))
        await client.data.get()
        await self.endpoint.stop()
        await client.lost

    async def test_request_is_sent_over_a_new_connection_and_its_response_comes_back_on_it(self) -> None:
        other_layer = TransactionLayer()
        other = Endpoint(reactor, other_layer, Listeners(reactor, [Listener("TCP", self.host, 0)]))
        other_user = User(other_layer)
        ended: Deferred[Event] = Deferred()
        other_user.act = lambda event, now: None if ended.called else ended.callback(event)
        await other.start(other_user)
        flow = other.flow("TCP", (self.host, self.port))
        assert flow is not None
        other_layer.start(Request("OPTIONS", "sip:sipha.test", _headers("z9hG4bKours")), flow, reactor.seconds())
        other.turn(reactor.seconds())
        event = await ended
        assert getattr(event, "response").status == 200  # noqa: B009
        reused = other.flow("TCP", (self.host, self.port))
        assert reused is not None
        assert reused.connection > 0
        await other.stop()

    async def test_refused_connection_fails_the_transaction(self) -> None:
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as gone:
            gone.bind((self.host, 0))
            port = gone.getsockname()[1]
        failed: Deferred[Event] = Deferred()
        self.user.act = lambda event, now: None if failed.called else failed.callback(event)
        flow = self.endpoint.flow("TCP", (self.host, port))
        assert flow is not None
        self.layer.start(Request("OPTIONS", "sip:sipha.test", _headers("z9hG4bKours")), flow, reactor.seconds())
        self.endpoint.turn(reactor.seconds())
        assert isinstance(await failed, TransactionFailed)

    async def test_icmp_error_fails_the_transaction(self) -> None:
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind((self.host, 0))
            port = gone.getsockname()[1]
        failed: Deferred[Event] = Deferred()
        self.user.act = lambda event, now: None if failed.called else failed.callback(event)
        flow = self.endpoint.flow("UDP", (self.host, port))
        assert flow is not None
        self.layer.start(Request("OPTIONS", "sip:sipha.test", _headers("z9hG4bKours")), flow, reactor.seconds())
        self.endpoint.turn(reactor.seconds())
        assert isinstance(await failed, TransactionFailed)


class Ipv6LoopbackTests(LoopbackTests):
    host = "::1"


def test_shortcut_is_offered_nothing_once_the_lease_has_ended(node: Node) -> None:
    node.cut_short = b"REGISTER "
    node.receive(request("REGISTER"))
    assert not node.user.events
    node.lease_until = 0.0
    node.receive(request("REGISTER", branch="z9hG4bKb"))
    [(event, _)] = node.user.events  # which the transaction user leaves alone
    assert isinstance(event, RequestReceived)
    assert event.request.method == "REGISTER"


def test_shortcut_catches_up_with_what_came_before(node: Node) -> None:
    order: list[object] = []

    def shortcut(data: bytes, _flow: Flow, now: float) -> bool:
        if not data.startswith(b"BYE "):
            return False
        node.endpoint.catch_up(now)
        order.append("BYE")
        return True

    def act(event: Event, now: float) -> None:
        node.endpoint.turn(now)  # which has to wait
        order.append(len(node.answers()))
        node.user.answer(event, now)

    node.endpoint._shortcut, node.user.act = shortcut, act
    node.receive(request(branch="z9hG4bK1"), request("BYE", branch="z9hG4bK2"), request(branch="z9hG4bK3"))
    assert order == [0, "BYE", 0]
    assert len(node.answers()) == 2
