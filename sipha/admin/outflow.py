"""A long answer on its way out, made as fast as the socket takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.web.server import Request
from zope.interface import implementer

PAUSE = 0.002
"""Seconds between two chunks, in which phones are served."""

PATIENCE = 60.0
"""Seconds after which a client that takes nothing is hung up on: what changes in the table meanwhile is kept for it."""


@implementer(IPushProducer)
class Outflow:
    """Writes the chunks to a request; no more of them is held than the transport's own buffer has."""

    def __init__(self, reactor: IReactorTime, request: Request, chunks: Iterator[bytes]) -> None:
        self._reactor = reactor
        self._request = request
        self._chunks = chunks
        self._next: IDelayedCall | None = None
        self._done: Deferred[None] = Deferred(lambda _: self._wait(None))
        self._log = Logger(namespace="sipha.admin")

    def start(self) -> Deferred[None]:
        """Begin; fires when all is written, and is to be cancelled when nobody takes it any more."""
        self._request.registerProducer(self, True)
        self.resumeProducing()
        return self._done

    def resumeProducing(self) -> None:
        """Go on."""
        if not self._done.called:
            self._wait(self._reactor.callLater(PAUSE, self._write))

    def pauseProducing(self) -> None:
        """Wait until the client has taken what was written."""
        self._wait(self._reactor.callLater(PATIENCE, self._hang_up))

    def stopProducing(self) -> None:
        """The client is gone."""
        self._wait(None)

    def _hang_up(self) -> None:
        self._wait(None)
        transport: Any = self._request.transport  # Twisted doesn't say that it is a TCP one
        transport.abortConnection()

    def _wait(self, call: IDelayedCall | None) -> None:
        before, self._next = self._next, call
        if before is not None and before.active():
            before.cancel()

    def _write(self) -> None:
        self.resumeProducing()
        try:
            chunk = next(self._chunks, None)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must not take it for the end
            self._log.critical("an answer can't be finished: {error!r}", error=error)
            self._hang_up()
            return
        if chunk is not None:
            self._request.write(chunk)  # which may pause us
            return
        self._wait(None)
        self._request.unregisterProducer()
        self._done.callback(None)
