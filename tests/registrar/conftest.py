"""A registrar over a real state machine, and a phone that knows its password."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest
from zope.interface import implementer

from sipha.auth.authenticator import Authenticator
from sipha.auth.domain import Domain, Domains
from sipha.cluster.proposals import Tell, tell_each
from sipha.errors import Unavailable
from sipha.registrar.record import RegistrarSettings
from sipha.registrar.registrar import Registrar
from sipha.registrar.registry import Registry
from sipha.sip import digest
from sipha.sip.flow import Flow
from sipha.sip.headers import parse_auth_params
from sipha.sip.message import Request, Response, mark_received
from sipha.sip.origin import Origin
from sipha.sip.parser import parse
from sipha.sip.token import Tokens
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import Batch, PutAccount, Record, encode
from sipha.state.interfaces import IBatchLog, ICredentials, ILocation
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome

FLOW = Flow("UDP", ("192.0.2.10", 5060), ("192.0.2.1", 5060))
DOMAIN = Domain("sipha.test", "the realm", aliases=frozenset(("alias.test",)))
OTHER = Domain("other.test", "other realm", third_party=True)


@implementer(IBatchLog, ILocation, ICredentials)
class Replica:
    """One node of one: what is proposed is applied at `commit`, at once unless `held`."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now = 1000.0
        self.term = 3
        self.held = False
        self.failure: Unavailable | None = None
        self.entries = 0
        self.settings = RegistrarSettings()
        self._waiting: list[tuple[Record, Any, Tell]] = []

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        self.propose_all([(record, done)], tell_each)

    def propose_all(self, records: Sequence[tuple[Record, Any]], tell: Tell) -> None:
        self._waiting += [(record, waiting, tell) for record, waiting in records]
        if not self.held:
            self.commit()

    def commit(self) -> None:
        proposals, self._waiting = self._waiting, []
        outcomes: Sequence[Outcome | Unavailable]
        if self.failure is not None:
            outcomes = [self.failure] * len(proposals)
        else:
            self.entries += 1
            batch = Batch(1, int(self.now * 1000), self.settings.policy, tuple(record for record, _, _ in proposals))
            outcomes = self.machine.apply(self.machine.index + 1, encode(batch))
        for tell, group in groupby(zip(proposals, outcomes, strict=True), lambda each: each[0][2]):
            tell([(waiting, outcome) for (_, waiting, _), outcome in group])

    @property
    def proposed(self) -> Sequence[tuple[Record, Any, Tell]]:
        """What waits for `commit`: each record, by what its proposer knows it, and who that is."""
        return self._waiting

    def cluster_time(self) -> float:
        return self.now

    def lookup(self, aor: str) -> Sequence[Binding]:
        return self.machine.location.lookup(aor, int(self.now * 1000))

    def bindings(self, aor: str) -> Sequence[Binding]:
        return self.machine.location.bindings(aor, int(self.now * 1000))

    def credential(self, auth_name: str, realm: str) -> Account | None:
        return self.machine.accounts.credential(auth_name, realm)

    def known(self, aor: str) -> bool:
        return self.machine.accounts.known(aor)

    def put_account(self, username: str, domain: Domain = DOMAIN, *, auth_name: str = "", **ha1: str) -> None:
        name = auth_name or username
        hashes = ha1 or {
            algorithm: digest.ha1(algorithm, name, domain.realm, f"{username}-secret")
            for algorithm in ("MD5", "SHA-256", "SHA-512-256")
        }
        self.propose(PutAccount(username, domain.name, name, domain.realm, hashes), lambda _: None)


@dataclass
class Site:
    """A registrar, what it sent, and the parts to change; one that `glances` is offered datagrams first."""

    replica: Replica = field(default_factory=Replica)
    settings: RegistrarSettings = field(default_factory=RegistrarSettings)
    domains: Domains = field(default_factory=lambda: Domains((DOMAIN, OTHER), ("192.0.2.10",)))
    tokens: Tokens | None = field(default_factory=lambda: Tokens({1: b"k" * 32}))
    glances: bool = False

    def __post_init__(self) -> None:
        self.sent: list[tuple[bytes, Flow]] = []
        self.together: list[int] = []
        """How many were sent each time."""
        for username in ("alice", "bob"):
            self.replica.put_account(username)
        self.replica.put_account("carol", OTHER)
        self.replica.put_account("dave", OTHER)
        self.start()

    def start(
        self, is_behind_nat: Callable[[Origin, Flow], bool] = lambda _origin, _flow: False, **settings: Any
    ) -> None:
        """(Re)start the registrar, as a new leader does."""
        self.settings = RegistrarSettings(**settings) if settings else self.settings
        self.replica.settings = self.settings
        self.authenticator = Authenticator(self.replica, lambda: self.tokens, self.domains)
        self.registry = Registry(
            self.replica, self.replica, self.authenticator, self.settings, clock=lambda: self.replica.now
        )
        self.registrar = Registrar(
            self.registry,
            self.replica,
            self.authenticator,
            self.domains,
            cluster_time=self.replica.cluster_time,
            term=lambda: self.replica.term,
            send=self._send,
            settings=self.settings,
            is_behind_nat=is_behind_nat,
            wall_time=lambda: 1289645282.5,
            clock=lambda: self.replica.now,
        )

    def _send(self, messages: list[tuple[bytes, Flow]]) -> None:
        self.sent += messages
        self.together.append(len(messages))

    def receive(self, data: bytes, flow: Flow = FLOW) -> Response | None:
        """Let a datagram come in alone; the response, if one was sent at once."""
        before = len(self.sent)
        self.read(data, flow)
        self.registry.propose()
        if len(self.sent) == before:
            return None
        assert len(self.sent) == before + 1
        return self.last

    def read(self, data: bytes, flow: Flow = FLOW) -> None:
        """Let a datagram come in, perhaps with others."""
        if not (self.glances and self.registrar.datagram_received(data, flow, self.replica.now)):
            request = parse(data)
            assert isinstance(request, Request)
            mark_received(request, flow)
            self.registrar.request_received(request, flow, self.replica.now)

    @property
    def last(self) -> Response:
        response = parse(self.sent[-1][0])
        assert isinstance(response, Response)
        return response

    def contacts(self, aor: str = "sip:alice@sipha.test") -> list[str]:
        return [binding.contact for binding in self.replica.bindings(aor)]


class Phone:
    """A phone: each call to `register` is a new REGISTER, with credentials once it was challenged."""

    def __init__(self, site: Site, user: str = "alice", domain: Domain = DOMAIN, flow: Flow = FLOW) -> None:
        self.site = site
        self.user = user
        self.auth_name = user
        self.password = f"{user}-secret"
        self.domain = domain
        self.flow = flow
        self.uri = f"sip:{domain.name}"
        self.to = self.from_ = f"<sip:{user}@{domain.name}>"
        self.call_id = f"call-{user}"
        self.algorithm = "MD5"
        self.qop = "auth"
        self.cseq = 0
        self.count = 0
        self.nonce = ""
        self.last = b""

    def message(self, *lines: str, authorization: str | None = None) -> bytes:
        """A REGISTER with these header lines, of the next CSeq."""
        self.cseq += 1
        transport, _, (host, port), _ = self.flow
        host = f"[{host}]" if ":" in host else host
        if authorization is None and self.nonce:
            authorization = self.authorization()
        head = [
            f"REGISTER {self.uri} SIP/2.0",
            f"Via: SIP/2.0/{transport} {host}:{port};rport;branch=z9hG4bK{self.user}{self.cseq}",
            "Max-Forwards: 70",
            f"From: {self.from_};tag=from-{self.user}",
            f"To: {self.to}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {self.cseq} REGISTER",
            *lines,
            *([f"Authorization: {authorization}"] if authorization else []),
            "Content-Length: 0",
            "\r\n",
        ]
        self.last = "\r\n".join(head).encode("utf-8", "surrogateescape")
        return self.last

    def authorization(self, **changed: str) -> str:
        """The value of an Authorization header field for the nonce at hand."""
        self.count += 1
        ha1 = digest.ha1(self.algorithm, self.auth_name, self.domain.realm, self.password)
        uri = changed.get("uri", self.uri)
        count = changed.get("nc", f"{self.count:08x}")
        counted = {"nc": count, "cnonce": "c0ffee", "qop": self.qop} if self.qop else {}
        fields = {
            "username": f'"{self.auth_name}"',
            "realm": f'"{self.domain.realm}"',
            "nonce": f'"{self.nonce}"',
            "uri": f'"{uri}"',
            "response": '"{}"'.format(
                digest.response(self.algorithm, ha1, digest.ha2(self.algorithm, "REGISTER", uri), self.nonce, **counted)
            ),
            "algorithm": self.algorithm,
        }
        if counted:
            fields |= {"qop": self.qop, "nc": count, "cnonce": '"c0ffee"'}
        fields |= {name: f'"{value}"' for name, value in changed.items() if name not in {"uri", "nc"}}
        return "Digest " + ", ".join(f"{name}={value}" for name, value in fields.items())

    def send(self, *lines: str, authorization: str | None = None) -> Response | None:
        """Send one REGISTER as it is."""
        return self.site.receive(self.message(*lines, authorization=authorization), self.flow)

    def take_nonce(self, response: Response) -> None:
        for value in response.headers.all("WWW-Authenticate"):
            params = parse_auth_params(value)[1]
            if params["algorithm"] == self.algorithm:
                self.nonce, self.count = params["nonce"], 0
                return
        raise AssertionError(f"no challenge for {self.algorithm} in {response!r}")

    def register(self, *lines: str) -> Response:
        """Register, and answer the challenge if there is one."""
        response = self.send(*lines)
        assert response is not None
        if response.status == 401:
            self.take_nonce(response)
            response = self.send(*lines)
            assert response is not None
        return response

    def contact(self, *more: str, port: int = 5060) -> str:
        return f"Contact: <sip:{self.user}@192.0.2.1:{port}>{''.join(more)}"


@pytest.fixture(params=[False, True], ids=["parses", "glances"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(glances=request.param)


@pytest.fixture
def alice(site: Site) -> Phone:
    return Phone(site)
