"""A proxy among scripted user agents: bytes and time are passed by hand, the transaction layer is the real one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from ipaddress import ip_network
from itertools import count
from typing import overload

from zope.interface import implementer

from sipha.auth.authenticator import Authenticator
from sipha.auth.domain import Domain, Domains
from sipha.errors import SipError, Unavailable
from sipha.proxy.admission import ProxySettings
from sipha.proxy.interfaces import ITransport
from sipha.proxy.proxy import Proxy
from sipha.proxy.shadow import Shadows
from sipha.proxy.takeover import longest_setup
from sipha.proxy.targets import Targets
from sipha.sip import digest
from sipha.sip.events import Event
from sipha.sip.flow import Address, Flow
from sipha.sip.headers import parse_auth_params
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import parse
from sipha.sip.timers import Timers
from sipha.sip.token import Tokens
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import Record
from sipha.state.interfaces import ICredentials, ILocation, ILog
from sipha.state.outcomes import Outcome

VIP = ("192.0.2.10", 5060)
VIP6 = ("2001:db8::10", 5060)
TERM = 7
PASSWORD = "secret"
_serial = count(1)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@implementer(ITransport)
class Wires:
    """UDP and TCP listeners at both virtual addresses, and the TCP connections that the test has opened."""

    mark = ""

    def __init__(self) -> None:
        self.connections: dict[Address, Flow] = {}
        self.transports = {"UDP", "TCP"}
        self._numbers = count(1)

    def flow(self, transport: str, remote: Address) -> Flow | None:
        if transport not in self.transports:
            return None
        local = VIP6 if ":" in remote[0] else VIP
        if transport == "TCP" and remote in self.connections:
            return self.connections[remote]
        return Flow(transport, local, remote)

    def sent_by(self, flow: Flow) -> str:
        host, port = flow.local
        return f"{bracketed(host)}:{port}"

    def is_local(self, host: str, port: int, transport: str) -> bool:
        return transport in self.transports and (host, port) in {VIP, VIP6}

    def connect(self, remote: Address) -> Flow:
        local = VIP6 if ":" in remote[0] else VIP
        flow = self.connections[remote] = Flow("TCP", local, remote, next(self._numbers))
        return flow


@implementer(ILog, ILocation, ICredentials)
class State:
    """The replicated state, as far as the proxy reads it."""

    def __init__(self) -> None:
        self.table: dict[str, list[Binding]] = defaultdict(list)
        self.accounts: dict[tuple[str, str], Account] = {}
        self.now = 1_000_000.0

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        raise AssertionError("the proxy proposes nothing")

    def cluster_time(self) -> float:
        return self.now

    def lookup(self, aor: str) -> Sequence[Binding]:
        return sorted(self.table.get(aor, ()), key=lambda binding: -binding.preference)

    def bindings(self, aor: str) -> Sequence[Binding]:
        return self.table.get(aor, ())

    def credential(self, auth_name: str, realm: str) -> Account | None:
        return self.accounts.get((auth_name, realm))

    def known(self, aor: str) -> bool:
        return any(account.aor == aor for account in self.accounts.values())


class House:
    """The proxy, its transaction layer, and the network between it and the phones, whose Vias bear `rport` or not."""

    rport = ""

    def __init__(
        self, *, peers: Sequence[str] = (), allow_inbound: bool = False, timers: Timers | None = None, breadth: int = 60
    ) -> None:
        self.now = 0.0
        self.term = TERM - 1
        self.wires = Wires()
        self.state = State()
        self.timers = timers or Timers()
        self.tokens = Tokens({1: bytes(range(32))})
        self.domains = Domains(
            (
                Domain("sipha.test", "sipha.test", aliases=frozenset({"alias.test"}), algorithms=("MD5",)),
                Domain("other.test", "other.test", algorithms=("MD5",)),
            ),
            addresses=(VIP[0], f"[{VIP6[0]}]"),
        )
        self.settings = ProxySettings(tuple(map(ip_network, peers)), allow_inbound, breadth)
        self.shadows, self.standby = self._shadows(), self._shadows()
        self._lead()
        self.inbox: dict[tuple[str, Address], list[Request | Response]] = defaultdict(list)
        self.raw: list[tuple[bytes, Flow]] = []
        self.errors: list[SipError] = []
        self.fuse: int | None = None
        """How many messages the leader sends before it dies; None: it lives on."""

    def _shadows(self) -> Shadows:
        return Shadows(longest_setup(self.timers))

    def _lead(self) -> None:
        """A node begins to lead, with the shadows that it has heard of."""
        self.fuse = None
        self.term += 1
        self.layer = TransactionLayer(self.timers)
        authenticator = Authenticator(self.state, lambda: self.tokens, self.domains)
        self.proxy = Proxy(
            self.layer,
            log=self.state,
            location=self.state,
            credentials=self.state,
            authenticator=authenticator,
            targets=Targets(self.state, self.state, self.state, authenticator),
            domains=self.domains,
            transport=self.wires,
            term=lambda: self.term,
            shadows=self.shadows,
            settings=self.settings,
        )

    def fail_over(self, *, shadows: bool = True) -> None:
        """The leader is gone, and another node leads: with the shadows of its calls, or without."""
        self.begin_to_lead(shadows=shadows)
        self.advance(0)

    def begin_to_lead(self, *, shadows: bool = True) -> None:
        """Another node leads, and is about to take over what it has shadows of."""
        if not shadows:
            self.standby = self._shadows()
        self.wires.connections.clear()
        self.shadows, self.standby = self.standby, deepcopy(self.standby)  # the third node has heard the same
        self._lead()
        self.proxy.take_over(self.now)

    def lead_anew(self) -> None:
        """The node has lost the lead, and wins it again."""
        self.shadows.cease(self.now)
        self._lead()
        self.proxy.take_over(self.now)
        self.advance(0)

    def phone(
        self, user: str, host: str, port: int = 5060, transport: str = "UDP", domain: str = "sipha.test"
    ) -> Phone:
        return Phone(self, user, domain, (host, port), transport)

    def receive(self, data: bytes, flow: Flow) -> None:
        if self.fuse == 0:
            return
        self.layer.receive(parse(data), flow, self.now)
        self.turn()

    def turn(self) -> None:
        for _ in range(1000):
            while (event := self.layer.next_event()) is not None:
                try:
                    self.act(event)
                except SipError as error:
                    self.errors.append(error)
            if self.shadows.urgent:
                self.share()
            outgoing = self.layer.messages_to_send()
            if not outgoing:
                return
            for data, flow in outgoing:
                if not self._burn():
                    return
                self.raw.append((data, flow))
                if flow.remote in {VIP, VIP6}:
                    self.come_back(data, Flow(flow.transport, flow.remote, flow.local))
                else:
                    self.inbox[flow.transport, flow.remote].append(parse(data))
        raise AssertionError("the proxy never comes to rest")

    def come_back(self, data: bytes, flow: Flow) -> None:
        """Let a message in that was sent to ourselves."""
        self.layer.receive(parse(data), flow, self.now)

    def act(self, event: Event) -> None:
        self.proxy.event_received(event, self.now)

    def share(self) -> None:
        """Let the other nodes hear of the leader's calls."""
        records = self.shadows.take_records()
        if records and self._burn():
            self.standby.received(records, self.now)

    def _burn(self) -> bool:
        if self.fuse == 0:
            return False
        self.fuse = None if self.fuse is None else self.fuse - 1
        return True

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (when := self.next_timer()) is not None and when <= end:
            self.pass_time(when)
            self.handle_timer()
        self.pass_time(end)
        if seconds:
            self.share()

    @property
    def dropped(self) -> int:
        return self.proxy.counters.dropped

    def next_timer(self) -> float | None:
        return self.layer.next_timer()

    def handle_timer(self) -> None:
        self.layer.handle_timer(self.now)
        self.turn()

    def pass_time(self, until: float) -> None:
        """Let all clocks go on, if it isn't later yet."""
        passed = max(until - self.now, 0)
        self.now += passed
        self.state.now += passed

    def fail(self, phone: Phone) -> None:
        """An ICMP error comes for a phone, or its connection breaks."""
        self.layer.flow_failed(Flow(phone.transport, VIP, phone.address), self.now)
        self.turn()

    def call(self, caller: Phone, callee: Phone) -> Call:
        """Set up a call the usual way."""
        caller.invite(callee.aor)
        caller.expect(407)
        caller.authorize()
        caller.expect(100)
        invite = callee.expect("INVITE")
        callee.answer(invite, 180)
        callee.answer(invite, 200)
        caller.expect(180)
        return Call(caller, callee, invite, caller.expect(200))


class Phone:
    """A user agent that does what the test tells it."""

    def __init__(self, house: House, user: str, domain: str, address: Address, transport: str) -> None:
        self.house = house
        self.user = user
        self.domain = domain
        self.address = address
        self.transport = transport
        self.tag = f"tag-{user}"
        self.aor = f"sip:{user}@{domain}"
        param = "" if transport == "UDP" else f";transport={transport.lower()}"
        self.contact = f"sip:{user}@{bracketed(address[0])}:{address[1]}{param}"
        self.via = f"{bracketed(address[0])}:{address[1]}"
        self.flow = self._flow()
        self.last: Request | None = None
        self.challenge: Response | None = None

    def _flow(self) -> Flow:
        if self.transport == "TCP":
            return self.house.wires.connect(self.address)
        local = VIP6 if ":" in self.address[0] else VIP
        return Flow(self.transport, local, self.address)

    def account(self) -> Phone:
        ha1 = {"MD5": digest.ha1("MD5", self.user, self.domain, PASSWORD)}
        self.house.state.accounts[self.user, self.domain] = Account(self.user, self.domain, self.user, self.domain, ha1)
        return self

    def register(
        self,
        *,
        q: int | None = None,
        contact: str = "",
        received: str = "",
        path: tuple[str, ...] = (),
        methods: str = "",
        aor: str = "",
        cflags: int = 0,
    ) -> Phone:
        self.account()
        host, port = self.address
        serial = next(_serial)
        self.house.state.table[aor or self.aor].append(
            Binding(
                aor=aor or self.aor,
                contact=contact or self.contact,
                contact_id=serial,
                version=serial,
                expires_at=2**40,
                call_id="r",
                cseq=1,
                q=q,
                instance="",
                reg_id=0,
                params="",
                received=received or f"sip:{bracketed(host)}:{port};transport={self.transport.lower()}",
                socket="",
                flow=str(self.flow.connection or ""),
                path=path,
                user_agent="",
                methods=methods,
                flags=0,
                cflags=cflags,
                attr="",
                last_modified=0,
            )
        )
        return self

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
        branch: str = "",
        max_forwards: int | None = 70,
        body: str = "",
    ) -> Request:
        """Make a request and send it."""
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{self.transport} {self.via}{self.house.rport};branch={branch or f'z9hG4bK-{next(_serial)}'}",
            *(f"Route: {route}" for route in routes),
            *([] if max_forwards is None else [f"Max-Forwards: {max_forwards}"]),
            f"From: {from_ or f'<{self.aor}>;tag={self.tag}'}",
            f"To: {to or f'<{uri}>'}",
            f"Call-ID: {call_id or f'call-{next(_serial)}'}",
            f"CSeq: {cseq} {method}",
            f"Contact: <{self.contact}>",
            *headers,
            f"Content-Length: {len(body.encode())}",
        ]
        request = parse(("\r\n".join(lines) + "\r\n\r\n" + body).encode("utf-8", "surrogateescape"))
        assert isinstance(request, Request)
        return self.send(request)

    def send(self, request: Request) -> Request:
        if request.method not in {"ACK", "CANCEL"}:
            self.last = request
        self.house.receive(request.copy().render(), self.flow)
        return request

    def invite(self, uri: str, **options: object) -> Request:
        return self.request("INVITE", uri, **options)  # type: ignore[arg-type]

    def authorize(self, *, user: str = "", nc: int = 1) -> Request:
        """Send the last request again with credentials for the challenge that came."""
        assert self.last is not None
        assert self.challenge is not None
        retry = self.last.copy()
        retry.headers.remove("Proxy-Authorization")
        retry.headers.add("Proxy-Authorization", self.credentials(retry, user=user, nc=nc))
        retry.headers.set("CSeq", f"{retry.cseq.number + 1} {retry.method}")
        via = f"SIP/2.0/{self.transport} {self.via}{self.house.rport};branch=z9hG4bK-{next(_serial)}"
        retry.headers.replace_value("Via", via)
        return self.send(retry)

    def credentials(self, request: Request, *, user: str = "", nc: int = 1) -> str:
        assert self.challenge is not None
        _, params = parse_auth_params(self.challenge.headers.get("Proxy-Authenticate") or "")
        realm, nonce, count_ = params["realm"], params["nonce"], f"{nc:08x}"
        name = user or self.user
        answer = digest.response(
            "MD5",
            digest.ha1("MD5", name, realm, PASSWORD),
            digest.ha2("MD5", request.method, request.uri),
            nonce,
            nc=count_,
            cnonce="c",
            qop="auth",
        )
        return (
            f'Digest username="{name}", realm="{realm}", nonce="{nonce}", uri="{request.uri}", response="{answer}", '
            f'algorithm=MD5, qop=auth, cnonce="c", nc={count_}'
        )

    def ack(self, invite: Request, response: Response) -> None:
        """Acknowledge a final response but a 2xx (§17.1.1.3)."""
        ack = Request("ACK", invite.uri, [("Via", str(invite.via)), ("Max-Forwards", "70")])
        for name in ("Route", "From", "Call-ID"):
            for value in invite.headers.all(name):
                ack.headers.add(name, value)
        ack.headers.add("To", response.headers.get("To") or "")
        ack.headers.add("CSeq", f"{invite.cseq.number} ACK")
        self.send(ack)

    def cancel(self, *headers: tuple[str, str]) -> None:
        """Cancel the last request (§9.1)."""
        invite = self.last
        assert invite is not None
        fields = [(name, invite.headers.get(name) or "") for name in ("From", "To", "Call-ID")]
        cancel = Request("CANCEL", invite.uri, [("Via", str(invite.via)), ("Max-Forwards", "70"), *fields])
        cancel.headers.add("CSeq", f"{invite.cseq.number} CANCEL")
        for name, value in headers:
            cancel.headers.add(name, value)
        self.send(cancel)

    def answer(
        self, request: Request, status: int, *headers: tuple[str, str], tag: str = "", body: bytes = b""
    ) -> None:
        """Send a response to a request that came."""
        fields = list(headers)
        if 100 < status < 300:
            fields += [("Record-Route", value) for value in request.headers.all("Record-Route")]
            fields.append(("Contact", f"<{self.contact}>"))
        response = response_to(request, status, to_tag=tag or self.tag, headers=fields, body=body)
        self.house.receive(response.render(), self.flow)

    @property
    def received(self) -> list[Request | Response]:
        """What came and was not looked at yet."""
        return self.house.inbox[self.transport, self.address]

    @property
    def kinds(self) -> list[str | int]:
        return [message.method if isinstance(message, Request) else message.status for message in self.received]

    def take(self) -> Request | Response:
        assert self.received, f"nothing came to {self.user}"
        return self.received.pop(0)

    @overload
    def expect(self, what: str) -> Request: ...

    @overload
    def expect(self, what: int) -> Response: ...

    def expect(self, what: str | int) -> Request | Response:
        """The next message that came: a request of this method, or a response of this status.

        A phone acknowledges final responses to its INVITE but 2xx, as a transaction does, and remembers challenges.
        """
        message = self.take()
        found: str | int = message.method if isinstance(message, Request) else message.status
        assert found == what, f"{self.user} got {message!r}, then {self.kinds}"
        if isinstance(message, Response) and message.status >= 300 and message.cseq.method == "INVITE":
            assert self.last is not None
            self.ack(self.last, message)
        if isinstance(message, Response) and message.status == 407:
            self.challenge = message
        return message

    def silent(self) -> bool:
        return not self.received


class Call:
    """An established dialog, as its two sides know it (§12)."""

    def __init__(self, caller: Phone, callee: Phone, invite: Request, ok: Response) -> None:
        self.caller = caller
        self.callee = callee
        self.invite = invite
        self.ok = ok
        self.route_of_caller = list(reversed([str(route) for route in ok.record_routes]))
        self.route_of_callee = [str(route) for route in invite.record_routes]

    def by_caller(
        self, method: str, *, cseq: int = 10, routes: Sequence[str] | None = None, **options: object
    ) -> Request:
        return self.caller.request(
            method,
            str(options.pop("uri", self.ok.contacts[0].uri)),
            to=str(options.pop("to", self.ok.headers.get("To"))),
            call_id=self.invite.call_id,
            cseq=cseq,
            routes=self.route_of_caller if routes is None else routes,
            **options,  # type: ignore[arg-type]
        )

    def by_callee(
        self, method: str, *, cseq: int = 10, routes: Sequence[str] | None = None, **options: object
    ) -> Request:
        return self.callee.request(
            method,
            str(options.pop("uri", self.invite.contacts[0].uri)),
            from_=str(options.pop("from_", self.ok.headers.get("To"))),
            to=str(options.pop("to", self.ok.headers.get("From"))),
            call_id=self.invite.call_id,
            cseq=cseq,
            routes=self.route_of_callee if routes is None else routes,
            **options,  # type: ignore[arg-type]
        )

    def ack(self) -> None:
        self.by_caller("ACK", cseq=self.invite.cseq.number)
