"""An endpoint whose reactor stands still, and who uses it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from math import inf

from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from sipha.sip.events import Event, RequestReceived
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import response_to
from sipha.sip.overload import ADMITTED, T1, Overload
from sipha.transport.connection import Connection
from sipha.transport.endpoint import Endpoint, Shortcut
from sipha.transport.interfaces import ITransactionUser
from sipha.transport.listeners import Listeners
from sipha.transport.sockets import Listener
from tests.transport.test_stream import Wire

HOST = "127.0.0.1"


def request(method: str = "OPTIONS", transport: str = "UDP", *, extra: str = "", branch: str = "z9hG4bKa") -> bytes:
    return (
        f"{method} sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/{transport} 192.0.2.1;rport;branch={branch}\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:a@sipha.test>;tag=1\r\nTo: <sip:sipha.test>\r\nCall-ID: a\r\n"
        f"CSeq: 1 {method}\r\n{extra}Content-Length: 0\r\n\r\n"
    ).encode()


@implementer(ITransactionUser)
class User:
    """A transaction user that answers requests with 200 and remembers what happened."""

    def __init__(self, layer: TransactionLayer) -> None:
        self.layer = layer
        self.events: list[tuple[Event, float]] = []
        self.act: Callable[[Event, float], None] = self.answer

    def event_received(self, event: Event, now: float) -> None:
        self.events.append((event, now))
        self.act(event, now)

    def answer(self, event: Event, now: float) -> None:
        if isinstance(event, RequestReceived):
            self.layer.reply(response_to(event.request, 200, to_tag="t"), event.flow)


class Node:
    """An endpoint whose reactor stands still, and a phone."""

    def __init__(self, *listeners: Listener) -> None:
        self.reactor = MemoryReactorClock()
        self.layer = TransactionLayer()
        self.user = User(self.layer)
        self.intercepted: bytes | tuple[bytes, ...] = ()
        self.cut_short: bytes | tuple[bytes, ...] = ()
        self.lease_until = inf
        self.clock = 0
        """Counts how often it was read."""
        self.overload = Overload()
        self.before: list[tuple[int, list[bytes]]] = []
        """Each time that messages were about to be sent: how many events there had been, and what had come before."""
        self.listeners = Listeners(self.reactor, listeners or [Listener("UDP", HOST, 0)])
        self.endpoint = Endpoint(
            self.reactor,
            self.layer,
            self.listeners,
            lease_until=lambda: self.lease_until,
            clock=self._read_clock,
            before_sending=lambda: self.before.append((len(self.user.events), self.answers())),
            tag=lambda _: "keyed",
            intercept=lambda data, _: data.startswith(self.intercepted),
            overload=self.overload,
        )
        shortcut: Shortcut = lambda data, _flow, _now: data.startswith(self.cut_short)  # noqa: E731  it is typed so
        assert self.endpoint.start(self.user, shortcut).result is True
        self.phone = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.phone.bind((HOST, 0))
        self.phone.settimeout(5)

    def _read_clock(self) -> float:
        self.clock += 1
        return self.clock

    @property
    def flow(self) -> Flow:
        flow = self.endpoint.flow("UDP", self.phone.getsockname())
        assert flow is not None
        return flow

    def receive(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.phone.sendto(data, self.flow.local)
        [udp] = self.reactor.readers
        udp.doRead()

    def receive_late(self, *datagrams: bytes) -> list[bytes]:
        """Let datagrams come that have waited for T1, after REGISTERs that are served all the same; return answers."""
        early = [(request("REGISTER", branch=f"z9hG4bKe{number}"), self.flow) for number in range(ADMITTED - 1)]
        self.endpoint._datagrams_received(early, T1, 0.0)
        self.answers()
        self.user.events.clear()
        self.before.clear()
        self.endpoint._datagrams_received([(data, self.flow) for data in datagrams], T1, 0.0)
        return [answer for _, answers in self.before for answer in answers] + self.answers()

    def answers(self) -> list[bytes]:
        answers = []
        self.phone.setblocking(False)
        while True:
            try:
                answers.append(self.phone.recv(65535))
            except BlockingIOError:
                return answers

    def accept(self) -> tuple[Connection, Wire]:
        connection = self.reactor.adoptedPorts[0][2].buildProtocol(IPv4Address("TCP", "192.0.2.1", 40000))
        wire = Wire()
        wire.protocol = connection
        connection.makeConnection(wire)
        return connection, wire


def statuses(answers: list[bytes]) -> list[int]:
    return [int(answer.split()[1]) for answer in answers]
