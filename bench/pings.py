"""What pings cost the leader: one process, real sockets on loopback, no replication, and phones in the same process.

    .venv/bin/python -m bench.pings [--bindings 100000] [--seconds 5]

The time is that of the process while it sends pings and takes answers; what the phones do in between isn't counted. It
goes through `--seconds` of a schedule of 25 s as fast as it can. Beside it stands what the kernel takes for such
datagrams, by the same interpreter, in the same run.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from twisted.internet.testing import MemoryReactorClock
from zope.interface import classImplements, implementer

from sipha.errors import Unavailable
from sipha.garbage import GarbageCollection
from sipha.nat.interfaces import IPingTransport
from sipha.nat.keepalive import Keepalive, KeepaliveSettings
from sipha.nat.schedule import SLOT
from sipha.sip.events import Event
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, response_to
from sipha.sip.parser import parse
from sipha.sip.token import Tokens
from sipha.state.binding import BEHIND_NAT
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Record, Register, encode
from sipha.state.interfaces import ILog
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome
from sipha.transport.endpoint import Endpoint
from sipha.transport.interfaces import ITransactionUser
from sipha.transport.listeners import Listeners
from sipha.transport.sockets import Listener

PHONES = 40
BATCH = 500
ROUNDS = 20
RATE = 4000
"""Pings per second of 100,000 bindings."""


class Stopwatch:
    """The CPU time of this process, in seconds: in all, and of the longest lap."""

    def __init__(self) -> None:
        self.total = self.longest = 0.0

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Count what is done meanwhile."""
        begin = time.process_time()
        yield
        taken = time.process_time() - begin
        self.total += taken
        self.longest = max(self.longest, taken)


# The endpoint is the transport that the keepalive asks for; compiled, it can't be inherited from.
classImplements(Endpoint, IPingTransport)


@implementer(ILog, ITransactionUser)
class Leader:
    """A node that leads, with so many bindings behind NAT, at a few addresses."""

    def __init__(self, bindings: int) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(100_000.0)
        self.machine = Machine()
        self.tokens = Tokens({1: bytes(32)})
        listeners = Listeners(self.reactor, [Listener("UDP", "127.0.9.100", 0)])
        self.endpoint = Endpoint(self.reactor, TransactionLayer(), listeners, intercept=self._take)
        self.keepalive = Keepalive(
            self.reactor,
            KeepaliveSettings(),
            self,
            self.machine,
            transport=lambda: self.endpoint,
            tokens=lambda: self.tokens,
            served_until=lambda: int(self.cluster_time() * 1000),
        )
        self.endpoint.start(self)
        [listener] = listeners.addresses
        self._socket = f"udp:{listener.host}:{listener.port}"
        self.phones = [_phone(f"127.0.9.{number + 1}") for number in range(PHONES)]
        for start in range(0, bindings, BATCH):
            records = tuple(self._register(number) for number in range(start, min(start + BATCH, bindings)))
            batch = Batch(SCHEMA, int(self.cluster_time() * 1000), Policy(), records)
            self.machine.apply(self.machine.index + 1, encode(batch))
        GarbageCollection(self.reactor).startService()  # at the pace of a node

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """See ILog; no phone is lost."""
        raise NotImplementedError

    def cluster_time(self) -> float:
        """See ILog."""
        return self.reactor.seconds()

    def event_received(self, event: Event, now: float) -> None:
        """See ITransactionUser; all that comes is taken before."""
        raise NotImplementedError

    def turn(self) -> None:
        """Let the slot that is due have its pings."""
        self.reactor.advance(SLOT / 1000)

    def receive(self) -> None:
        """Take all answers that have come."""
        [udp] = self.reactor.readers
        counters, before = self.keepalive.counters, -1
        while before < counters.answered < counters.sent:
            before = counters.answered
            udp.doRead()

    def _take(self, data: bytes, flow: Flow) -> bool:
        return self.keepalive.datagram_received(data, flow)

    def _register(self, number: int) -> Register:
        host, port = self.phones[number % PHONES].getsockname()
        user = f"user{number:07}"
        return Register(
            f"sip:{user}@sipha.test",
            f"call-{number}@192.168.1.7",
            1,
            (Contact(f"sip:{user}@192.168.1.7:5060;transport=udp", 3600),),
            received=f"sip:{host}:{port};transport=udp",
            socket=self._socket,
            user_agent="phone/1.0",
            methods="INVITE,ACK,BYE,CANCEL,OPTIONS",
            cflags=BEHIND_NAT,
        )


def _phone(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    made.bind((host, 0))
    made.setblocking(False)
    return made


def _datagrams(phone: socket.socket) -> Iterator[tuple[bytes, tuple[str, int]]]:
    while True:
        try:
            yield phone.recvfrom(65535)
        except BlockingIOError:
            return


def _answer(phones: Sequence[socket.socket]) -> None:
    """Have the phones answer what they have heard, as a usual phone does."""
    fields = [
        ("Contact", "<sip:user@192.168.1.7>"),
        ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS"),
        ("Server", "phone"),
    ]
    for phone in phones:
        for data, source in _datagrams(phone):
            request = parse(data)
            assert isinstance(request, Request)
            phone.sendto(response_to(request, 200, to_tag="phone", headers=fields).render(), source)


def _kernel(phones: Sequence[socket.socket], size: int) -> tuple[float, float]:
    """What a datagram costs to send, and to receive, in µs."""
    send, receive = Stopwatch(), Stopwatch()
    addresses = [phone.getsockname() for phone in phones]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(ROUNDS):
            with send.lap():
                for number in range(BATCH):
                    sender.sendto(bytes(size), addresses[number % len(addresses)])
            with receive.lap():
                for phone in phones:
                    for _ in _datagrams(phone):
                        pass
    return send.total / ROUNDS / BATCH * 1e6, receive.total / ROUNDS / BATCH * 1e6


@dataclass(frozen=True)
class Cost:
    """What pings cost: a first look through all bindings in seconds; a ping and its answer in µs of CPU time.

    `share` is what RATE of them take of a core, `longest` the longest turn of the reactor in seconds; `sendto` and
    `recvfrom` are those of the kernel, in µs.
    """

    counters: str
    index: float
    ping: float
    answer: float
    longest: float
    sendto: float
    recvfrom: float

    @property
    def share(self) -> float:
        """What so many pings a second take of a core."""
        return (self.ping + self.answer) * RATE / 1e6


def measure(bindings: int, seconds: float) -> Cost:
    """Ping, and say what it cost."""
    leader = Leader(bindings)
    index, send, receive = Stopwatch(), Stopwatch(), Stopwatch()
    leader.keepalive.startService()
    with index.lap():
        leader.reactor.advance(0)
    for _ in range(int(seconds * 1000 / SLOT)):
        with send.lap():
            leader.turn()
        _answer(leader.phones)
        with receive.lap():
            leader.receive()
    counters = leader.keepalive.counters
    return Cost(
        str(counters),
        index.total,
        send.total / counters.sent * 1e6,
        receive.total / counters.answered * 1e6,
        send.longest,
        *_kernel(leader.phones, 400),
    )


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(prog="bench.pings", description="Measure pings in one process.")
    parser.add_argument("--bindings", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    cost = measure(options.bindings, options.seconds)
    print(cost.counters)
    print(f"looking through {options.bindings} bindings: {cost.index:.2f} s")
    print(f"a ping: {cost.ping:.1f} µs, its answer: {cost.answer:.1f} µs; {RATE}/s: {cost.share:.1%} of a core")
    print(f"a bare sendto: {cost.sendto:.1f} µs, a bare recvfrom: {cost.recvfrom:.1f} µs")
    print(f"the longest turn: {cost.longest * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
