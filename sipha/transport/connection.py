"""One stream connection: bytes to messages, keepalive (RFC 5626 §4.4.1), and what may wait to be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response
from sipha.sip.parser import Keepalive, StreamParser

if TYPE_CHECKING:
    from sipha.transport.stream import Streams

READ_SIZE = 16384
"""How many bytes are read at a time: what they cost comes on top of the time that a turn of the reactor may take."""

PING = b"\r\n\r\n"
"""What a client sends to keep its flow open (RFC 5626 §3.5.1)."""

PONG = b"\r\n"
"""What a server answers to a client's double CRLF (RFC 5626 §3.5.1)."""

Received = Request | Response | MalformedMessage
"""What a connection hands over: a message, or why one could not be read."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Connection(Protocol):
    """One connection; until it is open, what is sent waits in it."""

    def __init__(self, streams: Streams, flow: Flow, max_message: int) -> None:
        self.flow = flow
        self.closing = False
        self.failed = False
        self._streams = streams
        self._parser = StreamParser(max_message)
        self._waiting: list[bytes] | None = []
        self._unsent = 0
        self._congested = False
        self._ended = False

    def connectionMade(self) -> None:
        """Send what has waited."""
        transport = self._transport
        transport.bufferSize = READ_SIZE
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        transport.registerProducer(self, True)
        waiting, self._waiting, self._unsent = self._waiting or [], None, 0
        for data in waiting:
            self.write(data)
        self._streams.opened(self)

    def write(self, data: bytes) -> bool:
        """Send, or queue while the connection is being opened; False if it is closed or the peer doesn't read."""
        if self.closing:
            return False
        if self._waiting is None:
            self._transport.write(data)
            if not self._congested:
                return True
        else:
            self._waiting.append(data)
        self._unsent += len(data)
        if self._unsent <= self._streams.limits.write_buffer:
            return True
        self._streams.drop(self, "unread")
        return False

    def dataReceived(self, data: bytes) -> None:
        """Hand over the whole messages that these bytes complete, all at once; later if this turn has no time left."""
        if not self.closing:
            self._parser.feed(data)
            self._streams.fed(self)

    def deliver(self) -> None:
        """Hand over the whole messages that have come."""
        parser = self._parser
        received: list[Received] = []
        pings = 0
        while True:
            try:
                message = parser.next()
            except MalformedMessage as error:
                received.append(error)
                if parser.fatal:
                    break
                continue
            if message is None:
                break
            if isinstance(message, Keepalive):
                pings += message.ping
            else:
                received.append(message)
        if pings:
            # RFC 5626 §4.4.1: "When a server receives a double CRLF sequence between SIP messages [...], it MUST
            # immediately respond with a single CRLF over the same connection."
            self.write(PONG * pings)
        self._streams.received(self, received, partial=parser.pending)
        # An error holds this frame by its traceback: with its list, that would be a cycle, for the collector to find.
        del received
        if parser.fatal:
            self.close()

    def close(self) -> None:
        """Close once all that was written is sent; the peer has `linger` seconds to take it."""
        if not self.closing:
            self.closing = True
            # Twisted never closes while a paused producer is registered.
            self._transport.unregisterProducer()
            self._transport.loseConnection()
            self._streams.closing(self)

    def abort(self) -> None:
        """Close at once and drop what was not sent."""
        self.closing = True
        if self._waiting is None:
            self._transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The peer sends no more; it may still wait for answers (IHalfCloseableProtocol)."""
        self._ended = True
        self._streams.ended(self)

    def writeConnectionLost(self) -> None:
        """See IHalfCloseableProtocol; we never half-close."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - lost is lost
        """See IProtocol."""
        self.closing = True
        self._streams.lost(self)

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`."""
        self._transport.pauseProducing()

    def resume_reading(self) -> None:
        """Read on, unless there is another reason not to."""
        if not (self._ended or self.closing or self._congested or self._streams.is_due(self)):
            self._transport.resumeProducing()

    def pauseProducing(self) -> None:
        """The peer doesn't read: take no more requests from it (IPushProducer)."""
        self._congested = True
        self.pause_reading()
        self._streams.congested(self)

    def resumeProducing(self) -> None:
        """The peer has read everything (IPushProducer)."""
        self._congested = False
        self._unsent = 0
        self.resume_reading()
        self._streams.relieved(self)

    def stopProducing(self) -> None:
        """See IProducer; connectionLost follows."""

    @property
    def _transport(self) -> Any:
        return self.transport
