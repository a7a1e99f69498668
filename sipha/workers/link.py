"""The link between the daemon and a worker: one end of a pair of sockets, read and written by the reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.workers.messages import BrokenFrame, Order, Word, cut, frame

BYTES_PER_WAKE = 65536
"""As much is read before the reactor gets its turn."""


@implementer(IReadWriteDescriptor)
class Link:
    """Sends messages, all of one turn of the reactor at its end, and tells `received` of each that comes.

    `received` raises BrokenFrame or ValueError for one that isn't understood. `gone` is called once when the other end
    has closed, with why, and nothing after that; `drained` when all that waited was taken.
    """

    def __init__(
        self,
        reactor: Any,
        end: socket.socket,
        received: Callable[[bytes], None],
        gone: Callable[[str], None],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        self._reactor = reactor
        self._socket = end
        self._received = received
        self._gone = gone
        self._drained = drained
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._flushing: IDelayedCall | None = None
        self._writing = False
        self._finishing = self._finished = False
        self._open = True
        end.setblocking(False)
        reactor.addReader(self)

    @property
    def waiting(self) -> int:
        """Bytes that the other end hasn't taken."""
        return len(self._outgoing)

    def send(self, message: Order | Word) -> None:
        """Send a message at the end of this turn; none if the link is gone. Raises ValueError or TypeError."""
        if self._open and not self._finishing:
            self._outgoing += frame(message)
            if self._flushing is None and not self._writing:
                self._flushing = self._reactor.callLater(0, self.flush)

    def flush(self) -> None:
        """Send what waits now."""
        if self._flushing is not None and self._flushing.active():
            self._flushing.cancel()
        self._flushing = None
        if self._open and not self._writing:
            self.doWrite()

    def finish(self) -> None:
        """Send what waits, and nothing after that: the other end then reads that this is all."""
        self._finishing = True
        self.flush()

    def close(self) -> None:
        """Close this end at once."""
        if self._open:
            self._open = False
            if self._flushing is not None and self._flushing.active():
                self._flushing.cancel()
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()

    def fileno(self) -> int:
        """See IFileDescriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "link"

    def doRead(self) -> None:
        """Take what has come, or a part of that (IReadDescriptor)."""
        self._read()

    def catch_up(self) -> None:
        """Take all that has come."""
        while self._open and self._read():
            pass

    def _read(self) -> bool:
        """Take a part of what has come; False if that is all."""
        try:
            data = self._socket.recv(BYTES_PER_WAKE)
            if not data:
                self._end("")
                return False
            self._incoming += data
            for body in cut(self._incoming):
                self._received(body)
                if not self._open:
                    return False
        except BlockingIOError:
            return False
        except (OSError, ValueError, BrokenFrame) as error:
            self._end(str(error))
        return True

    def doWrite(self) -> None:
        """Send what waits, as much as is taken (IWriteDescriptor)."""
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._reactor.addWriter(self)
            return
        except OSError as error:
            self._end(str(error))
            return
        if self._writing:
            self._writing = False
            self._reactor.removeWriter(self)
            self._drained()
        if self._finishing and not self._finished:
            self._finished = True
            self._socket.shutdown(socket.SHUT_WR)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor can't watch the socket (IReadDescriptor)."""
        self._end(str(reason.value))

    def _end(self, why: str) -> None:
        if self._open:
            self.close()
            self._gone(why)
