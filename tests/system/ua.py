"""A user agent on a real socket that does what a test tells it, step by step, and nothing by itself."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Self, overload

from sipha.sip import digest
from sipha.sip.flow import Address
from sipha.sip.headers import parse_auth_params
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import Keepalive, StreamParser, parse

PATIENCE = 5.0
"""How long an answer may take, in seconds."""

_serial = count(1)


class UserAgent:
    """One phone: a UDP socket, or a TCP connection to the server.

    `contact` is what it says of itself, right or wrong; `via` the sent-by of its Via. An `asymmetric` one sends from
    another UDP port than it listens at, and doesn't know rport (RFC 3581).
    """

    def __init__(
        self,
        user: str,
        server: Address,
        transport: str = "UDP",
        *,
        host: str = "127.0.0.1",
        domain: str = "sipha.test",
        contact: str = "",
        asymmetric: bool = False,
    ) -> None:
        self.user = user
        self.domain = domain
        self.server = server
        self.transport = transport
        self.host = "::1" if ":" in server[0] else host
        self.aor = f"sip:{user}@{domain}"
        self.tag = f"tag-{user}-{next(_serial)}"
        self.last: Request | None = None
        self.challenge: Response | None = None
        self._inbox: deque[Request | Response | Keepalive] = deque()
        self._seen: set[bytes] = set()
        self._socket = socket.socket()
        self._asymmetric = asymmetric
        self.connect()
        self.contact = contact or self.uri
        self.via = authority(self.address)

    def connect(self) -> None:
        """Open the socket; a new one with an address of its own if there was one before."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        kind = socket.SOCK_DGRAM if self.transport == "UDP" else socket.SOCK_STREAM
        self._socket.close()
        self._socket = socket.socket(family, kind)
        self._socket.bind((self.host, 0))
        if kind == socket.SOCK_STREAM:
            self._socket.settimeout(PATIENCE)
            self._socket.connect(self.server)
        self._parser = StreamParser()
        self._sender = self._socket
        if self._asymmetric:
            self._sender = socket.socket(family, kind)
            self._sender.bind((self.host, 0))

    def close(self) -> None:
        self._socket.close()
        self._sender.close()

    def end(self) -> None:
        """Send no more, but go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    @property
    def address(self) -> Address:
        name = self._socket.getsockname()
        return name[0], name[1]

    @property
    def uri(self) -> str:
        """Where the socket is."""
        return f"sip:{self.user}@{authority(self.address)}" + ("" if self.transport == "UDP" else ";transport=tcp")

    # -- what it sends ----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if self.transport == "UDP":
            self._sender.sendto(data, self.server)
        else:
            self._socket.sendall(data)

    def request(
        self,
        method: str,
        uri: str,
        *,
        to: str = "",
        from_: str = "",
        call_id: str = "",
        cseq: int = 1,
        routes: Sequence[str] = (),
        headers: Sequence[str] = (),
        via: str = "",
        branch: str = "",
        contact: str | None = None,
        max_forwards: int = 70,
        body: str = "",
    ) -> Request:
        """Make a request and send it."""
        branch = branch or f"z9hG4bK-{next(_serial)}"
        contact = f"<{self.contact}>" if contact is None else contact
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{self.transport} {via or self.via};branch={branch}" + ("" if self._asymmetric else ";rport"),
            *(f"Route: {route}" for route in routes),
            f"Max-Forwards: {max_forwards}",
            f"From: {from_ or f'<{self.aor}>;tag={self.tag}'}",
            f"To: {to or f'<{uri}>'}",
            f"Call-ID: {call_id or f'{self.tag}-{next(_serial)}'}",
            f"CSeq: {cseq} {method}",
            *([f"Contact: {contact}"] if contact else []),
            *headers,
            f"Content-Length: {len(body.encode())}",
        ]
        request = parse(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        assert isinstance(request, Request)
        return self.send_request(request)

    def send_request(self, request: Request) -> Request:
        if request.method not in {"ACK", "CANCEL"}:
            self.last = request
        self.send(request.copy().render())
        return request

    def authorize(self, *, user: str = "", password: str = "") -> Request:
        """Send the last request again, with credentials for the challenge that came."""
        assert self.last is not None
        assert self.challenge is not None
        retry = self.last.copy()
        is_proxy = self.challenge.status == 407
        name = "Proxy-Authorization" if is_proxy else "Authorization"
        retry.headers.remove(name)
        retry.headers.add(name, self.credentials(retry, user or self.user, password))
        retry.headers.set("CSeq", f"{retry.cseq.number + 1} {retry.method}")
        retry.headers.replace_value("Via", str(retry.via.with_params(("branch", f"z9hG4bK-{next(_serial)}"))))
        return self.send_request(retry)

    def credentials(self, request: Request, user: str, password: str = "") -> str:
        """Make digest credentials for the challenge that came."""
        assert self.challenge is not None
        name = "Proxy-Authenticate" if self.challenge.status == 407 else "WWW-Authenticate"
        _, params = parse_auth_params(self.challenge.headers.get(name) or "")
        realm, nonce = params["realm"], params["nonce"]
        answer = digest.response(
            "MD5",
            digest.ha1("MD5", user, realm, password or f"{user}-secret"),
            digest.ha2("MD5", request.method, request.uri),
            nonce,
            nc="00000001",
            cnonce="c",
            qop="auth",
        )
        return (
            f'Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{request.uri}", response="{answer}", '
            f'algorithm=MD5, qop=auth, cnonce="c", nc=00000001'
        )

    def register(self, *, q: str = "", expires: int = 600) -> Self:
        """Register the contact."""
        contact = f"<{self.contact}>" + (f";q={q}" if q else "")
        self.request(
            "REGISTER", f"sip:{self.domain}", to=f"<{self.aor}>", contact=contact, headers=[f"Expires: {expires}"]
        )
        self.expect(401)
        self.authorize()
        self.expect(200)
        return self

    def invite(self, uri: str, *, headers: Sequence[str] = (), routes: Sequence[str] = ()) -> Request:
        """Call, and authenticate when asked to; the INVITE that is returned has been taken with a 100."""
        self.request("INVITE", uri, headers=headers, routes=routes)
        self.expect(407)
        invite = self.authorize()
        self.expect(100)
        return invite

    def ack(self, invite: Request, response: Response) -> None:
        """Acknowledge a final response but a 2xx (RFC 3261 §17.1.1.3)."""
        ack = Request("ACK", invite.uri, [("Via", str(invite.via)), ("Max-Forwards", "70")])
        for name in ("Route", "From", "Call-ID"):
            for value in invite.headers.all(name):
                ack.headers.add(name, value)
        ack.headers.add("To", response.headers.get("To") or "")
        ack.headers.add("CSeq", f"{invite.cseq.number} ACK")
        self.send_request(ack)

    def cancel(self, invite: Request, *headers: tuple[str, str]) -> None:
        """Cancel an INVITE (§9.1)."""
        fields = [(name, invite.headers.get(name) or "") for name in ("From", "To", "Call-ID")]
        cancel = Request("CANCEL", invite.uri, [("Via", str(invite.via)), ("Max-Forwards", "70"), *fields, *headers])
        cancel.headers.add("CSeq", f"{invite.cseq.number} CANCEL")
        self.send_request(cancel)

    def answer(self, request: Request, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        """Send a response to a request that came."""
        fields = list(headers)
        if 100 < status < 300:
            fields += [("Record-Route", value) for value in request.headers.all("Record-Route")]
            fields.append(("Contact", f"<{self.contact}>"))
        self.send(response_to(request, status, to_tag=self.tag, headers=fields, body=body).render())

    # -- what comes -------------------------------------------------------------------------------------------------

    @overload
    def expect(self, what: str, *, within: float = PATIENCE) -> Request: ...

    @overload
    def expect(self, what: int, *, within: float = PATIENCE) -> Response: ...

    def expect(self, what: str | int, *, within: float = PATIENCE) -> Request | Response:
        """The next message that comes must be a request of this method, or a response of this status.

        Retransmissions are passed over. A final response to an INVITE but a 2xx is acknowledged at once, and a
        challenge remembered.
        """
        message = self.take(within=within)
        found: str | int = message.method if isinstance(message, Request) else message.status
        assert found == what, f"{self.user} waits for {what} and gets {message!r}"
        return message

    def take(self, *, within: float = PATIENCE) -> Request | Response:
        """The next message that comes, whatever it is; taken as `expect` does."""
        message = self._next(within)
        assert isinstance(message, Request | Response), f"{self.user} gets {message!r}"
        if isinstance(message, Response):
            if message.status >= 300 and message.cseq.method == "INVITE":
                assert self.last is not None
                self.ack(self.last, message)
            if message.status in {401, 407}:
                self.challenge = message
        return message

    def expect_pong(self) -> None:
        """The next that comes must be the answer to a keepalive (RFC 5626 §4.4.1)."""
        message = self._next(PATIENCE)
        assert isinstance(message, Keepalive), message
        assert not message.ping

    def expect_end(self) -> None:
        """The server closes the connection."""
        self._socket.settimeout(PATIENCE)
        assert self._socket.recv(1) == b""

    def settle(self) -> None:
        """Wait until the server has acted on all that was sent: an OPTIONS after it is answered."""
        server = authority(self.server)
        self.request("OPTIONS", f"sip:{server}")
        self.expect(200)

    @property
    def silent(self) -> bool:
        """True if nothing has come that wasn't looked at."""
        self._receive(0)
        return not self._inbox

    def hears(self, *, within: float) -> bool:
        """Wait until something has come that wasn't looked at; False if nothing does."""
        if not self._inbox:
            self._receive(within)
        return bool(self._inbox)

    def _next(self, within: float) -> Request | Response | Keepalive:
        deadline = time.monotonic() + within
        while not self._inbox:
            left = deadline - time.monotonic()
            assert left > 0, f"{self.user} waits in vain"
            self._receive(left)
        return self._inbox.popleft()

    def _receive(self, within: float) -> None:
        """Take what has come; wait so long for the first of it."""
        while select.select([self._socket], [], [], within)[0]:
            within = 0
            try:
                data = self._socket.recv(65535)
            except ConnectionRefusedError:
                continue
            if self.transport == "UDP":
                if data not in self._seen:
                    self._seen.add(data)
                    self._inbox.append(parse(data))
                continue
            assert data, f"the connection of {self.user} was closed"
            self._parser.feed(data)
            while (message := self._parser.next()) is not None:
                self._inbox.append(message)


class Call:
    """A dialog as its two sides know it (RFC 3261 §12)."""

    def __init__(self, caller: UserAgent, callee: UserAgent, invite: Request, response: Response) -> None:
        self.caller = caller
        self.callee = callee
        self.invite = invite
        self.response = response
        self.route_of_caller = [str(route) for route in reversed(response.record_routes)]
        self.route_of_callee = [str(route) for route in invite.record_routes]
        self._cseq = count(20)

    def by_caller(self, method: str, *, uri: str = "", to: str = "", cseq: int = 0, **options: object) -> Request:
        options.setdefault("routes", self.route_of_caller)
        return self.caller.request(
            method,
            uri or self.response.contacts[0].uri,
            from_=self.response.headers.get("From") or "",
            to=to or self.response.headers.get("To") or "",
            call_id=self.invite.call_id,
            cseq=cseq or next(self._cseq),
            **options,  # type: ignore[arg-type]
        )

    def by_callee(self, method: str, *, uri: str = "", cseq: int = 0, **options: object) -> Request:
        options.setdefault("routes", self.route_of_callee)
        return self.callee.request(
            method,
            uri or self.invite.contacts[0].uri,
            from_=self.response.headers.get("To") or "",
            to=self.response.headers.get("From") or "",
            call_id=self.invite.call_id,
            cseq=cseq or next(self._cseq),
            **options,  # type: ignore[arg-type]
        )

    def acknowledge(self) -> Self:
        """The caller's ACK for the 2xx reaches the callee."""
        self.by_caller("ACK", cseq=self.response.cseq.number)
        self.callee.expect("ACK")
        return self

    def exchange(self, method: str, *, by_callee: bool = False) -> Request:
        """A request by one side reaches the other, and its 200 comes back; returns the request as it arrived."""
        sender, receiver = (self.callee, self.caller) if by_callee else (self.caller, self.callee)
        (self.by_callee if by_callee else self.by_caller)(method)
        if method == "INVITE":
            sender.expect(100)
        request = receiver.expect(method)
        receiver.answer(request, 200)
        response = sender.expect(200)
        if method == "INVITE":
            (self.by_callee if by_callee else self.by_caller)("ACK", cseq=response.cseq.number)
            receiver.expect("ACK")
        return request


def call(caller: UserAgent, callee: UserAgent) -> Call:
    """Set up a call the usual way."""
    caller.invite(callee.aor)
    invite = callee.expect("INVITE")
    callee.answer(invite, 180)
    caller.expect(180)
    callee.answer(invite, 200)
    return Call(caller, callee, invite, caller.expect(200)).acknowledge()


def authority(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
