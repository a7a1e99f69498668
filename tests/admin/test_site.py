from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

from sipha.admin.access import Access
from sipha.admin.site import MAX_BODY, MAX_CONNECTIONS, PATIENCE, AdminSite
from tests.admin.fakes import Console, FakeNode, routes

ALICE = {"username": "alice", "domain": "sipha.test", "password": "alice-secret"}


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


class TestHost:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:8080", "127.0.0.11", "localhost:8080", "LOCALHOST", "[::1]:8080", "::1"]
    )
    def test_own_address_is_served(self, console: Console, host: str) -> None:
        assert console.ask("GET", "/v1/status", host=host).status == (403 if host == "::1" else 200)

    @pytest.mark.parametrize(
        "host",
        [
            "evil.test",
            "evil.test:8080",
            "127.0.0.1.evil.test",
            "localhost.evil.test",
            "192.0.2.1",
            "[2001:db8::1]",
            "",
            "127.0.0.1:x",
            "127.0.0.1@evil.test",
            "xn--\udcff",
        ],
    )
    def test_name_that_a_page_rebinds_is_refused(self, host: str) -> None:
        answer = talk(b"GET /v1/status HTTP/1.1\r\nHost: " + host.encode("utf-8", "surrogateescape") + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b'{"error":{"status":403,"detail":"the Host must be' in answer

    def test_two_hosts_are_refused(self) -> None:
        assert talk(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n").startswith(b"HTTP/1.1 4")


def test_headers_that_are_not_utf8_are_answered() -> None:
    for name in (b"Content-Type", b"Origin", b"Sipha-Forwarded-By", b"Cookie", b"Authorization"):
        answer = talk(
            HEAD.replace(b"Content-Type: application/json", name + b": \xff") + b"Content-Length: 2\r\n\r\n{}"
        )
        assert answer.startswith(b"HTTP/1.1 4")


class TestOrigin:
    @pytest.mark.parametrize(
        "origin", ["http://evil.test", "null", "http://127.0.0.1:9090", "https://[", "http://localhost:8080"]
    )
    def test_write_of_another_origin_is_refused(self, console: Console, origin: str) -> None:
        for method, path, body in (("POST", "/v1/accounts", ALICE), ("DELETE", "/v1/bindings/alice@sipha.test", None)):
            reply = console.ask(method, path, body, origin=origin)
            assert (reply.status, reply.fault) == (403, "writes from pages of another origin are refused")
        assert console.node.records == []

    def test_write_of_the_same_origin_is_done(self, console: Console) -> None:
        assert console.ask("POST", "/v1/accounts", ALICE, origin="http://127.0.0.1:8080").status == 201

    @pytest.mark.parametrize(
        "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "text/plain; application/json"]
    )
    def test_body_that_a_form_can_send_is_refused(self, console: Console, content_type: str) -> None:
        reply = console.ask("POST", "/v1/accounts", ALICE, content_type=content_type)
        assert reply.status == 415
        assert console.node.records == []

    def test_content_type_may_have_parameters(self, console: Console) -> None:
        assert console.ask("POST", "/v1/accounts", ALICE, content_type="Application/JSON; charset=utf-8").status == 201


def talk(request: bytes, *more: bytes, resource: IResource | None = None) -> bytes:
    """Send bytes to the admin's server and return what came back."""
    site = AdminSite(Clock(), resource or routes(FakeNode()), "127.0.0.11")
    protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.callLater = lambda *_: None
    for data in (request, *more):
        if not transport.disconnecting:
            protocol.dataReceived(data)
    answer: bytes = transport.value()
    if transport.disconnecting:
        answer += b"<closed>"
    return answer


HEAD = b"POST /v1/accounts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class TestBounds:
    def test_body_of_the_largest_size_is_read(self) -> None:
        body = b'"%b"' % (b"x" * (MAX_BODY - 2))
        answer = talk(HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body)
        assert answer.startswith(b"HTTP/1.1 422 ")

    def test_larger_body_is_refused(self) -> None:
        answer = talk(HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), b"x" * (MAX_BODY + 1))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"detail":"the body may have 1048576 bytes"' in answer

    def test_larger_chunked_body_is_refused(self) -> None:
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        answer = talk(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 17, b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_body_without_end_is_hung_up_on(self) -> None:
        chunk = b"100000\r\n" + b"x" * 1048576 + b"\r\n"
        assert talk(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 20) == b"<closed>"

    @pytest.mark.parametrize(
        "path",
        [b"/%ff", b"/\xff", b"/v1/bindings/%c3", b"/v1/bindings/%C3%28@sipha.test", b"/v1/accounts/\xe9@sipha.test"],
    )
    def test_path_that_is_not_utf8_is_refused(self, path: bytes) -> None:
        answer = talk(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize(
        "request_line",
        [
            b"GET http://evil.test/v1/status HTTP/1.1",
            b"GET * HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"\xff /v1/status HTTP/1.1",
            b"GET //evil.test HTTP/1.1",
        ],
    )
    def test_odd_request_is_answered(self, request_line: bytes) -> None:
        answer = talk(request_line + b"\r\nHost: localhost\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200 "))


class _Transport(StringTransport):
    """A connection that is gone as soon as it is ended."""

    protocol: Any

    def __init__(self, host: str) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, 40000))
        self.closed = False

    def loseConnection(self) -> None:
        super().loseConnection()
        self.end()

    def abortConnection(self) -> None:
        super().abortConnection()
        self.end()

    def end(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connectionLost(Failure(ConnectionAborted()))


class _Waiting(Resource):
    """A resource that doesn't answer yet."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def render(self, request: Request) -> int:
        self.requests.append(request)
        return NOT_DONE_YET


class Server:
    """An admin's server, and who connects to it."""

    def __init__(self, resource: IResource | None = None, rate: float = 1000.0) -> None:
        self.clock = Clock()
        self.access = Access()
        self.site = AdminSite(self.clock, resource or routes(FakeNode()), "127.0.0.11", self.access, rate)

    def connect(self, host: str = "192.0.2.1") -> _Transport:
        protocol = self.site.buildProtocol(IPv4Address("TCP", host, 40000))
        transport = _Transport(host)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    @property
    def refused(self) -> dict[str, int]:
        """How much was refused, for the reasons that there were."""
        return dict(+self.access.refused)


GET = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"


class TestRate:
    def test_who_asks_too_often_is_told_when_to_ask_again(self) -> None:
        server = Server(rate=2.0)
        client = server.connect()
        client.protocol.dataReceived(GET * 4)
        assert client.value().count(b"HTTP/1.1 200 ") == 4
        client.clear()
        client.protocol.dataReceived(GET)
        assert client.value().startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: 1\r\n" in client.value()
        assert b'"detail":"you ask too often"' in client.value()
        assert server.refused == {"too_often": 1}
        client.clear()
        other = server.connect("192.0.2.2")
        other.protocol.dataReceived(GET)
        assert other.value().startswith(b"HTTP/1.1 200 ")
        server.clock.advance(1.0)
        client.protocol.dataReceived(GET)
        assert client.value().startswith(b"HTTP/1.1 200 ")

    def test_who_connects_too_often_is_hung_up_on(self) -> None:
        server = Server(rate=2.0)
        assert [server.connect().closed for _ in range(9)] == [False] * 8 + [True]
        assert server.refused == {"connection": 1}
        assert not server.connect("192.0.2.2").closed
        server.clock.advance(1.0)
        assert not server.connect().closed


class TestRefused:
    def test_what_is_refused_is_counted_by_its_reason(self) -> None:
        server = Server()
        client = server.connect()
        for request in (
            GET,
            GET.replace(b"localhost", b"evil.test"),
            GET.replace(b"status", b"nowhere"),
            HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1) + bytes(MAX_BODY + 1),
        ):
            client.protocol.dataReceived(request)
        assert re.findall(rb"HTTP/1.1 (\d+)", client.value()) == [b"200", b"403", b"404", b"413"]
        assert server.refused == {"forbidden": 1, "too_large": 1}

    def test_who_never_ends_is_counted(self) -> None:
        server = Server()
        client = server.connect()
        client.protocol.dataReceived(HEAD + b"Content-Length: %d\r\n\r\n" % (100 * MAX_BODY))
        while not client.disconnecting:
            client.protocol.dataReceived(bytes(MAX_BODY))
        assert server.refused == {"too_large": 1}


class TestConnections:
    def test_oldest_on_which_nothing_is_answered_makes_place(self) -> None:
        waiting = _Waiting()
        server = Server(waiting)
        clients = [server.connect() for _ in range(MAX_CONNECTIONS)]
        clients[0].protocol.dataReceived(GET)
        clients[2].protocol.dataReceived(GET[:-2])
        late = [server.connect(), server.connect()]
        assert [number for number, client in enumerate(clients) if client.closed] == [1, 2]
        late[1].protocol.dataReceived(GET)
        assert len(waiting.requests) == 2
        assert not any(client.closed for client in late)

    def test_nobody_is_let_in_while_all_are_answered(self) -> None:
        waiting = _Waiting()
        server = Server(waiting)
        clients = [server.connect() for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            client.protocol.dataReceived(GET)
        assert server.connect().closed
        assert server.refused == {"connection": 1}
        assert not any(client.closed for client in clients)
        waiting.requests[7].finish()
        assert not server.connect().closed
        assert clients[7].closed

    def test_closed_ones_leave_their_place(self) -> None:
        server = Server()
        clients = [server.connect() for _ in range(MAX_CONNECTIONS)]
        for client in clients[:10]:
            client.end()
        for _ in range(10):
            assert not server.connect().closed
        assert not any(client.closed for client in clients[10:])


class TestPatience:
    @pytest.mark.parametrize("said", [b"", b"GET /v1/status HTTP/1.1\r\n", HEAD + b"Content-Length: 10\r\n\r\n{"])
    def test_who_says_nothing_more_is_hung_up_on(self, said: bytes) -> None:
        server = Server()
        client = server.connect()
        client.protocol.dataReceived(said)
        server.clock.advance(PATIENCE - 1)
        assert not client.closed
        server.clock.advance(2)
        assert client.closed

    @pytest.mark.parametrize("piece", [b"X: y\r\n", b"x"])
    def test_request_that_dribbles_in_is_given_no_more_time(self, piece: bytes) -> None:
        server = Server()
        client = server.connect()
        client.protocol.dataReceived(HEAD + (b"Content-Length: 1000\r\n\r\n" if piece == b"x" else b""))
        for _ in range(int(PATIENCE) + 1):
            if not client.closed:
                client.protocol.dataReceived(piece)
            server.clock.advance(1)
        assert client.closed

    def test_time_begins_afresh_after_each_answer(self) -> None:
        server = Server()
        client = server.connect()
        for _ in range(5):
            server.clock.advance(PATIENCE - 1)
            client.protocol.dataReceived(GET)
        assert client.value().count(b"HTTP/1.1 200 ") == 5
        server.clock.advance(PATIENCE + 1)
        assert client.closed

    def test_answer_may_take_its_time(self) -> None:
        waiting = _Waiting()
        server = Server(waiting)
        client = server.connect()
        client.protocol.dataReceived(GET)
        server.clock.advance(PATIENCE * 2)
        assert not client.closed
        waiting.requests[0].finish()
        assert client.value().startswith(b"HTTP/1.1 200 ")
