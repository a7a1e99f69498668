"""A worker's front with the daemon's registry behind it, to be told what a registrar in one process is told."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, get_args

from twisted.internet.task import Clock

from sipha.nat.detection import Test
from sipha.registrar.interfaces import Verdict
from sipha.sip.flow import Address, Flow
from sipha.sip.message import Response
from sipha.sip.timers import Timers
from sipha.transport.udp import UdpSocket
from sipha.workers.front import Front
from sipha.workers.mailbox import Post
from sipha.workers.mark import make_mark
from sipha.workers.messages import (
    Ceded,
    Datagrams,
    Failed,
    Registers,
    RegistrarSettings,
    Settings,
    Start,
    Verdicts,
    Word,
    decode_order,
    decode_word,
    frame,
    pack,
    unpack,
)
from sipha.workers.table import Table
from tests.registrar.conftest import FLOW, Site

TABLE = Table()
"""Shared by all tests: a file each would be too many."""

LISTENERS: tuple[Address, ...] = (FLOW.local, ("2001:db8::10", 5060))

_NONCE = re.compile(rb'nonce="[^"]*"')
_DATE = re.compile(rb"Date: [^\r]*")


def masked(data: bytes) -> bytes:
    """A message without what differs from one to the other that is the same else."""
    return _DATE.sub(b"Date: now", _NONCE.sub(b'nonce="N"', data))


class Line:
    """The kernel's side of a worker's socket: `sent` is told what is sent by it."""

    def __init__(self, address: Address, sent: Callable[[bytes, Flow], object]) -> None:
        self.family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._address = address
        self._sent = sent

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockname(self) -> Address:
        return self._address

    def fileno(self) -> int:
        return -1  # a kernel in C can send nothing by it, and leaves all to `sendto`

    def sendto(self, data: bytes, remote: tuple[Any, ...]) -> None:
        self._sent(data, Flow("UDP", self._address, (remote[0], remote[1])))


def socket_at(address: Address, sent: Callable[[bytes, Flow], object]) -> UdpSocket:
    """A worker's socket, by which nothing leaves the test."""
    line: Any = Line(address, sent)
    reactor: Any = None
    return UdpSocket(
        reactor, address, _ignore, _ignore, Counter(), bind=lambda _kind, _address: [line], receive_buffer=None
    )


def _ignore(*_: object) -> None:
    pass


class WorkerSite(Site):
    """A site whose datagrams a worker reads: what it says to the daemon goes over the wire, and so does the answer."""

    def start(self, is_behind_nat: Callable[..., bool] = lambda _origin, _flow: False, **settings: Any) -> None:
        """(Re)start daemon and worker."""
        super().start(is_behind_nat, **settings)
        self.said: list[Word] = []
        self.verdicts: list[tuple[str, Any]] = []
        self.held = False
        mine = self.settings
        self.worker_settings = Settings(
            tuple(self.domains.all),
            ("192.0.2.10",),
            RegistrarSettings(mine.policy, mine.min_expires_policy, mine.expires_jitter, tuple(map(str, mine.edges))),
            300,
            get_args(Test),
            (),
            False,
            60,
            ("112",),
        )
        self.begin(1)

    def begin(self, number: int) -> None:
        """Have another worker in the place of the one that there is."""
        term = self.replica.term
        own = tuple(("UDP", *address) for address in LISTENERS)
        since, mark = int(self.replica.now), make_mark(term, number, 0)
        start = Start(LISTENERS, own, term, number, since, mark, astuple(Timers()), self.worker_settings)
        order = decode_order(frame(start)[4:])
        assert isinstance(order, Start)
        self.front = Front(
            Clock(),
            order,
            self.replica,
            lambda: self.tokens,
            self._hear,
            lambda: None,
            lambda: self.replica.now,
            TABLE.file,
            Post({}),
        )
        self.front.use([socket_at(address, self._note_sent) for address in LISTENERS])
        self.front.lease(self.replica.now + 1e9, ahead=0.0)

    def receive(self, data: bytes, flow: Flow = FLOW) -> Response | None:
        """Let a datagram come in; the response, if one was sent at once."""
        before = len(self.sent)
        self.front.datagrams_received([(data, flow)], 0.0, 0.0)
        return None if len(self.sent) == before else self.last

    def settle(self) -> None:
        """Let the worker have the verdicts that it waits for."""
        verdicts, self.verdicts = self.verdicts, []
        order = decode_order(frame(Verdicts(1e12, verdicts))[4:])
        assert isinstance(order, Verdicts)
        self.front.registry.settle([(tag, unpack(verdict)) for tag, verdict in order.verdicts])

    def responses(self) -> Counter[int]:
        """What was sent, by status, whoever sent it."""
        counts = self.front.report().counts
        reported = {int(name.partition("/")[2]): n for name, n in counts.items() if name.startswith("responses/")}
        return self.registrar.responses + Counter(reported)

    def _note_sent(self, data: bytes, flow: Flow) -> None:
        self.sent.append((data, flow))

    def _hear(self, word: Word) -> None:
        word = decode_word(frame(word)[4:])
        self.said.append(word)
        if isinstance(word, Registers):
            for tag, host, port, record, claim in word.registers:
                self.registry.carry_out(
                    (tag, (host, port)),
                    record.aor,
                    record,
                    claim,
                    self.replica.now,
                    word.received,
                    self._note,
                    tag,
                )
            self.registry.propose()
            if not self.held:
                self.settle()
        elif isinstance(word, Ceded):
            self.authenticator.take(word.ceded, self.replica.now)
        elif isinstance(word, Datagrams):
            for data, index, host, port in word.datagrams:
                super().receive(data, Flow("UDP", LISTENERS[index], (host, port)))
        else:
            assert isinstance(word, Failed)

    def _note(self, verdicts: list[tuple[str, Verdict]]) -> None:
        self.verdicts += [(tag, pack(verdict)) for tag, verdict in verdicts]
