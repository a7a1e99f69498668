"""The messages of one AOR as they pass, a line of JSON for each: as many, and for as long, as a person reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.server import Request
from zope.interface import implementer

LONGEST = 600.0
"""Seconds after which a trace ends by itself."""

MOST = 10_000
"""Messages after which it does."""

WAITING = 500
"""Messages that may wait for a client; one that is slower is hung up on."""

_encode = msgspec.json.Encoder().encode


class Traced(msgspec.Struct, frozen=True, tag="message"):
    """A message: when it passed (wall clock), whether we sent it, between which addresses, and its text."""

    at: str
    sent: bool
    transport: str
    local: str
    remote: str
    message: str


class TraceEnded(msgspec.Struct, frozen=True, tag="end"):
    """The last line: why there are no more."""

    ended: str


Follow = Callable[[Callable[[Traced], object]], Callable[[], None]]
"""Has a function told of each message, until what is returned is called."""


@implementer(IPushProducer)
class TraceStream:
    """Writes a trace to a request."""

    def __init__(self, reactor: IReactorTime, request: Request) -> None:
        self._reactor = reactor
        self._request = request
        self._waiting: deque[bytes] = deque()
        self._paused = False
        self._count = 0
        self._stop: Callable[[], None] | None = None
        self._end: IDelayedCall | None = None
        self._done: Deferred[None] = Deferred(lambda _: self._leave())

    def start(self, follow: Follow) -> Deferred[None]:
        """Begin; fires at the end, and is to be cancelled when the client is gone."""
        self._stop = follow(self._take)
        self._end = self._reactor.callLater(LONGEST, self._over, f"after {LONGEST:g} s; ask again to go on")
        self._request.registerProducer(self, True)
        self._request.write(b"\n")  # the head goes out at once
        return self._done

    def resumeProducing(self) -> None:
        """Write what waits."""
        self._paused = False
        while self._waiting and not self._paused:
            self._request.write(self._waiting.popleft())

    def pauseProducing(self) -> None:
        """Let what comes wait."""
        self._paused = True

    def stopProducing(self) -> None:
        """The client is gone."""
        self._leave()

    def _take(self, traced: Traced) -> None:
        self._count += 1
        line = _encode(traced) + b"\n"
        if not self._paused:
            self._request.write(line)
        elif len(self._waiting) < WAITING:
            self._waiting.append(line)
        else:
            transport: Any = self._request.transport  # Twisted doesn't say that it is a TCP one
            self._leave()
            transport.abortConnection()
            return
        if self._count >= MOST:
            self._over(f"after {MOST} messages; ask again to go on")

    def _over(self, reason: str) -> None:
        self._leave()
        self._request.write(b"".join(self._waiting) + _encode(TraceEnded(reason)) + b"\n")
        self._request.unregisterProducer()
        self._done.callback(None)

    def _leave(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        if self._end is not None and self._end.active():
            self._end.cancel()
