"""Nodes that ping the phones of one table, on one clock, over wires that do what a test wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.task import Clock
from zope.interface import implementer

from sipha.errors import Unavailable
from sipha.nat.interfaces import IPingTransport
from sipha.nat.keepalive import Keepalive, KeepaliveSettings
from sipha.sip.flow import Address, Flow
from sipha.sip.message import Request, response_to
from sipha.sip.parser import parse
from sipha.sip.token import Tokens
from sipha.state.binding import BEHIND_NAT
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, PutSetting, RaiseSchema, Record, Register, encode
from sipha.state.interfaces import ILog
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome

VIP = ("192.0.2.10", 5060)
STEP = 0.01
ROUND_TRIP = 0.05


@implementer(ILog)
class Site:
    """One table, phones that answer whatever they are asked, and the nodes among which one leads at a time."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.settings = KeepaliveSettings(**settings)
        self.machine = Machine()
        self.tokens: Tokens | None = Tokens({1: bytes(32)})
        self.records: list[Record] = []
        self.heard: dict[str, list[float]] = defaultdict(list)
        """When each phone, by its address, has heard a ping."""
        self.dead: set[str] = set()
        """The addresses of phones that are switched off."""
        self.status = 200
        self.round_trip = ROUND_TRIP
        self.served_until = int(self.clock.seconds() * 1000)
        self.well = True
        self._cseq = 0
        self.apply(RaiseSchema(SCHEMA))
        self.nodes = {name: Node(self, name) for name in "ab"}

    # ILog

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        self.records.append(record)
        done(self.apply(record))

    def cluster_time(self) -> float:
        return self.clock.seconds()

    def apply(self, record: Record, schema: int = SCHEMA) -> Outcome:
        batch = Batch(schema, int(self.clock.seconds() * 1000), Policy(), (record,))
        [outcome] = self.machine.apply(self.machine.index + 1, encode(batch))
        return outcome

    # What happens

    def register(self, *users: str, expires: int = 3600, cflags: int = BEHIND_NAT, **fields: Any) -> None:
        """Register phones behind NAT, each at an address of its own."""
        for user in users:
            self._cseq += 1
            given = {"received": received(user), "socket": "udp:192.0.2.10:5060", **fields}
            contact = given.pop("contact", f"sip:{user}@192.168.1.7:5060")
            self.apply(
                Register(aor(user), f"call-{user}", self._cseq, (Contact(contact, expires),), cflags=cflags, **given)
            )

    def switch(self, state: str) -> None:
        self.apply(PutSetting("pings", state))

    def lead(self, name: str) -> Node:
        self.nodes[name].keepalive.startService()
        return self.nodes[name]

    def fail(self, name: str) -> None:
        """A leader is gone, as the others notice."""
        self.served_until = int(self.clock.seconds() * 1000)
        self.nodes[name].keepalive.stopService()

    def run(self, seconds: float) -> None:
        self.clock.pump([STEP] * round(seconds / STEP))

    def contacts(self) -> list[str]:
        """The AORs that have bindings."""
        return self.machine.location.aors(limit=100_000)


@implementer(IPingTransport)
class Node:
    """One node's keepalive, and its transport: `sent` with when, `failing` where sends go wrong, what was `dropped`."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.open = True
        self.failing: Callable[[Flow], bool] = lambda _: False
        self.dropped = 0
        self.connections: dict[Address, int] = {}
        self.sent: list[tuple[float, bytes, Flow]] = []
        self.keepalive = Keepalive(
            site.clock,
            site.settings,
            site,
            site.machine,
            transport=lambda: self if self.open else None,
            tokens=lambda: site.tokens,
            served_until=lambda: site.served_until,
            well=lambda: site.well,
        )
        self.keepalive.setName(name)

    @property
    def requests(self) -> list[Request]:
        """The pings that are messages."""
        parsed = [parse(data) for _, data, _ in self.sent]
        return [message for message in parsed if isinstance(message, Request)]

    # IPingTransport

    def flow(self, transport: str, remote: Address) -> Flow | None:
        if transport == "UDP":
            return Flow("UDP", VIP, remote)
        return Flow(transport, VIP, remote, self.connections.get(remote, 0)) if transport == "TCP" else None

    def sent_by(self, flow: Flow) -> str:
        return f"{flow.local[0]}:{flow.local[1]}"

    def is_local(self, host: str, port: int, transport: str) -> bool:
        return transport in {"UDP", "TCP"} and (host, port) in {VIP, ("198.51.100.10", 5060)}

    def offer_all(self, messages: Sequence[tuple[bytes, Flow]]) -> Sequence[bool]:
        return [self._offer(data, flow) for data, flow in messages]

    def _offer(self, data: bytes, flow: Flow) -> bool:
        if self.failing(flow):
            return False
        self.sent.append((self.site.clock.seconds(), data, flow))
        if data.startswith(b"OPTIONS"):
            self.site.clock.callLater(self.site.round_trip, self._answer, data, flow)
        return True

    def _answer(self, data: bytes, flow: Flow) -> None:
        request = parse(data)
        assert isinstance(request, Request)
        if flow.remote[0] in self.site.dead:
            return
        self.site.heard[flow.remote[0]].append(self.site.clock.seconds() - self.site.round_trip)
        response = response_to(request, self.site.status, to_tag="phone")
        assert self.keepalive.response_received(response, flow)


def aor(user: str) -> str:
    return f"sip:{user}@sipha.test"


def received(user: str) -> str:
    """Where a phone is: `u12` at 203.0.113.12."""
    return f"sip:{address(user)}:40000;transport=udp"


def address(user: str) -> str:
    number = int(user[1:])
    return f"203.0.{113 + number // 250}.{1 + number % 250}"
