"""The mailboxes of the workers' seats, by which a worker hands another what belongs to its calls.

A mailbox is a pair of sockets that stands as long as the pool, whoever has the seat. While nobody reads it there, the
daemon does. A letter is what one worker has for one other in one turn; it is one datagram, and never waited for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import msgspec
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.sip.flow import Address, Flow

Letter = list[tuple[bytes, Flow]]
"""Datagrams, and the flows that they came over: UDP's."""

LETTERS_PER_WAKE = 16

_LARGEST = 1 << 19
"""Bytes; a turn of `sipha.transport.udp` brings less than that."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[bytes, Address, Address]]).decode


@implementer(IReadDescriptor)
class Mailbox:
    """The end of a mailbox that is read; `received` is told of letters, those of one wake-up as one."""

    log: ClassVar = Logger()

    def __init__(self, reactor: Any, end: socket.socket, received: Callable[[Letter], object]) -> None:
        self._reactor = reactor
        self._socket = end
        self._received = received
        self._reading = False
        end.setblocking(False)

    def read(self) -> None:
        """Read it from now on."""
        if not self._reading:
            self._reading = True
            self._reactor.addReader(self)

    def rest(self) -> None:
        """Leave it to another process."""
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    def close(self) -> None:
        """Close this end."""
        self.rest()
        self._socket.close()

    def fileno(self) -> int:
        """See IFileDescriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "mailbox"

    def doRead(self) -> None:
        """Take the letters that have come, or some of them (IReadDescriptor)."""
        received: Letter = []
        with suppress(BlockingIOError):
            for _ in range(LETTERS_PER_WAKE):
                received += self._opened(self._socket.recv(_LARGEST))
        if received:
            self._received(received)

    def _opened(self, letter: bytes) -> Letter:
        try:
            return [(data, Flow("UDP", local, remote)) for data, local, remote in _decode(letter)]
        except msgspec.MsgspecError:  # raised, it would have the reactor leave the mailbox unread for good
            self.log.failure("a mistake of ours in writing a letter")
            return []

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002  nothing is lost: then the daemon hands it over
        """The reactor can't watch the socket (IReadDescriptor)."""
        self._reading = False


class Post:
    """The ends by which the mailboxes of other seats are written to."""

    def __init__(self, ends: Mapping[int, socket.socket]) -> None:
        self._ends = ends
        self._letters: dict[int, Letter] = {}
        for end in ends.values():
            end.setblocking(False)

    def put(self, seat: int, data: bytes, flow: Flow) -> bool:
        """Let a seat have a datagram with the next letter; False if there is no such seat."""
        if seat not in self._ends:
            return False
        self._letters.setdefault(seat, []).append((data, flow))
        return True

    def send(self) -> Letter:
        """Send the letters; return what was in those that aren't taken."""
        letters, self._letters = self._letters, {}
        returned: Letter = []
        for seat, letter in letters.items():
            try:
                self._ends[seat].send(_encode([(data, flow.local, flow.remote) for data, flow in letter]))
            except OSError:  # there is no room, or it is too large
                returned += letter
        return returned
