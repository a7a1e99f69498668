"""How long a server is away, seen from outside: an OPTIONS each 20 ms over UDP."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from select import select
from typing import NamedTuple, Self

from sipha.sip.flow import Address
from tests.system.network import OUTSIDE, Network

INTERVAL = 0.02
"""Seconds from one request to the next."""

T1 = 0.5
"""After how many seconds a request is repeated (RFC 3261 §17.1.2.1), once."""

_BRANCH = re.compile(rb"^SIP/2\.0 ([0-9]{3}).*?;branch=z9hG4bKprobe([0-9]+)", re.DOTALL)
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("=qq")


@dataclass
class Question:
    """An OPTIONS: when it was sent, and when each of its answers came; wall clock."""

    data: bytes
    sent: float
    repeated: float | None = None
    answers: list[float] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        """True if the answer came before the request was repeated."""
        return bool(self.answers) and self.answers[0] - self.sent < T1


class Outage(NamedTuple):
    """From the sending of the first request without an answer in time to that of the first which has one again."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.begin


class Probe:
    """Asks a server through a UDP socket, from `with` to the end of its block; then `outages` says what it was like.

    The socket is closed in the end.
    """

    def __init__(self, sock: socket.socket, server: Address) -> None:
        self.questions: list[Question] = []
        self._socket = sock
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    @property
    def outages(self) -> list[Outage]:
        """When the server was away; what is not over yet ends with the last request."""
        found = []
        for answered, group in groupby([*self.questions], key=lambda question: question.answered):
            run = list(group)
            if not answered:
                found.append(Outage(run[0].sent, run[-1].sent + INTERVAL))
        return found

    @property
    def outage(self) -> float:
        """The longest outage in seconds, 0 if there was none."""
        return max((outage.seconds for outage in self.outages), default=0.0)

    @property
    def unanswered(self) -> int:
        """How many requests have no answer, although they were repeated."""
        return sum(1 for question in self.questions if question.repeated and not question.answers)

    @property
    def pace(self) -> float:
        """The longest time between two requests in seconds: what is shorter can't be seen."""
        sent = [question.sent for question in self.questions]
        return max((after - before for before, after in pairwise(sent)), default=0.0)

    def wait_for_answer(self, within: float) -> bool:
        """Wait until a request that was sent from now on has its answer."""
        first, deadline = len(self.questions), time.monotonic() + within
        while not any(question.answers for question in self.questions[first:]):
            if time.monotonic() > deadline:
                return False
            time.sleep(INTERVAL)
        return True

    def _run(self) -> None:
        start = time.monotonic()
        repeated = 0
        # What is under way when the block ends may still be answered, or be repeated and answered.
        while not self._ended.is_set() or (self.questions and self.questions[-1].sent + 2 * T1 > time.time()):
            now = time.monotonic()
            if not self._ended.is_set() and now >= start + len(self.questions) * INTERVAL:
                question = Question(self._options(len(self.questions)), time.time())
                self.questions.append(question)
                self._send(question)
            while repeated < len(self.questions) and self.questions[repeated].sent + T1 <= time.time():
                question = self.questions[repeated]
                repeated += 1
                if not question.answers:
                    question.repeated = time.time()
                    self._send(question)
            if select([self._socket], [], [], max(0.0, min(INTERVAL, start + len(self.questions) * INTERVAL - now)))[0]:
                self._receive()

    def _send(self, question: Question) -> None:
        with suppress(OSError):  # no route, no neighbour: it is unanswered
            self._socket.sendto(question.data, self._server)

    def _receive(self) -> None:
        with suppress(OSError):
            data, control, *_ = self._socket.recvmsg(4096, 64)
            seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
            if (found := _BRANCH.match(data)) and found[1] == b"200":
                self.questions[int(found[2])].answers.append(seconds + nanoseconds / 1e9)

    def _options(self, number: int) -> bytes:
        host, port = self._socket.getsockname()[:2]
        here, there = (
            (f"[{host}]:{port}", f"[{self._server[0]}]") if ":" in host else (f"{host}:{port}", self._server[0])
        )
        lines = (
            f"OPTIONS sip:{there} SIP/2.0",
            f"Via: SIP/2.0/UDP {here};rport;branch=z9hG4bKprobe{number}",
            "Max-Forwards: 70",
            f"From: <sip:probe@{here}>;tag=probe",
            f"To: <sip:{there}>",
            f"Call-ID: probe-{number}@{here}",
            f"CSeq: {number + 1} OPTIONS",
            "Content-Length: 0",
            "\r\n",
        )
        return "\r\n".join(lines).encode()


def make_probe(network: Network, server: Address) -> Probe:
    """Make a probe in the network's place outside."""
    with network.inside(OUTSIDE):
        sock = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((network.host6(OUTSIDE) if ":" in server[0] else network.host(OUTSIDE), 0))
    return Probe(sock, server)


def describe(outages: Sequence[Outage], start: float) -> str:
    """The outages on one line, in seconds since a moment."""
    return ", ".join(f"{outage.seconds:.2f} s from {outage.begin - start:+.2f} s on" for outage in outages) or "none"
