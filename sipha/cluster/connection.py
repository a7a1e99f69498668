"""One connection between two nodes: TLS first, then each says hello, then messages follow."""

from __future__ import annotations

from struct import Struct as Layout
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.interfaces import IAddress, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.cluster import tls
from sipha.cluster.wire import (
    MAX_FRAME,
    MAX_HELLO,
    AppendEntries,
    AppendReply,
    FrameReader,
    Hello,
    Message,
    Ping,
    ProtocolError,
    Shared,
    frame,
)

if TYPE_CHECKING:
    from sipha.cluster.peers import Peers

MAX_UNSENT = 1 << 20
"""Bytes more for a peer that doesn't read what it has been sent; beyond, its connection ends."""

_URGENT = (AppendEntries, AppendReply, Shared)

_hello = msgspec.msgpack.Decoder(Hello)
_length = Layout("!I")


@implementer(IHandshakeListener, IPushProducer)
class Connection(Protocol):
    """One connection; `dialled` is the peer that we called, None if we were called.

    Who is at the other end is a stranger, of whom nothing but a hello is decoded, until `peer` says who it is.
    """

    def __init__(self, peers: Peers, dialled: str | None) -> None:
        self.dialled = dialled
        self.peer: str | None = None
        self.hello: Hello | None = None
        self.host = ""
        self.full = False
        self.heard = self.said = peers.seconds()
        self._peers = peers
        self._first = bytearray()  # a stranger's hello, as far as it has come
        self._reader = FrameReader()
        self._unsent = 0
        self._ended = False

    def send(self, message: Message) -> None:
        """Write a message.

        The transport puts all that one turn of the reactor writes into one piece; for what a commit waits for, and for
        what has to be elsewhere before we act on it, that would be two turns late.
        """
        data = frame(message)
        self.said = self._peers.seconds()
        if self.full:
            self._unsent += len(data)
            if self._unsent > MAX_UNSENT:
                self.end("does not read")
        if self._ended:
            return
        if isinstance(message, _URGENT) and not self.full:
            tls.send(self._transport, data)
        else:
            self._transport.write(data)

    def end(self, reason: str | None = None) -> None:
        """End the connection at once, and count why."""
        if not self._ended:
            self._ended = True
            if reason is not None:
                self._peers.count(reason, self.host)
            self._transport.abortConnection()

    def connectionMade(self) -> None:
        """There is a connection to someone; under TLS nothing can be said yet."""
        self.host = self._transport.getPeer().host
        self._transport.setTcpNoDelay(True)
        self._peers.made(self)
        if self._peers.certificates is None:
            self._opened()

    def handshakeCompleted(self) -> None:
        """TLS has verified that the other side's certificate is of our authority, but not whose it is."""
        self._opened()

    def dataReceived(self, data: bytes) -> None:
        """Take the messages; anything else ends the connection."""
        try:
            if self.peer is None:  # a stranger is not heard before its hello is whole
                data = self._take_hello(data)
            if self.peer is not None:
                self.heard = self._peers.seconds()
                for message in self._reader.feed(data):
                    if not self._ended:
                        self._take(self.peer, message)
        except ProtocolError as error:
            self.end(error.kind)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone, whoever ended it."""
        fault = None if self._ended else tls.fault(self._transport, reason.value)
        if fault is not None:
            self._peers.count(fault, self.host)
        self._ended = True
        self._peers.lost(self)
        # No cycles for the collector to find: the transport holds us as its producer, an error its own traceback.
        self.transport = None
        reason.cleanFailure()

    def pauseProducing(self) -> None:
        """The peer doesn't take what was written."""
        self.full = True

    def resumeProducing(self) -> None:
        """The peer has taken all that was written."""
        self.full = False
        self._unsent = 0
        if self.peer is not None and not self._ended:
            self._peers.has_room(self.peer)

    def stopProducing(self) -> None:
        """Gone."""

    @property
    def _transport(self) -> Any:
        return self.transport

    def bears(self, name: str) -> bool:
        """True if the other side has shown that the certificate of `name` is its own."""
        return tls.bears(self._transport, name)

    def _opened(self) -> None:
        """Say hello if we called, but only to whom we called."""
        if self._ended or self.dialled is None:
            return
        if self._peers.identifies(self, self.dialled):
            self.send(self._peers.introduce())
        else:
            self.end("certificate of another node")

    def _take_hello(self, data: bytes) -> bytes:
        """Take a stranger's first message, and return what follows it."""
        first = self._first
        first += data
        if len(first) < _length.size or self._ended:
            return b""
        (size,) = _length.unpack_from(first)
        if size > MAX_HELLO:
            raise ProtocolError("frame too long")
        if len(first) < _length.size + size:
            return b""
        try:
            hello = _hello.decode(first[_length.size : _length.size + size])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("not a message") from None
        refusal = self._peers.greeted(self, hello)
        if refusal is not None:
            self.end(refusal)
            return b""
        self.peer, self.hello, self._first = hello.node, hello, bytearray()
        self._reader.limit = MAX_FRAME
        self._transport.registerProducer(self, True)
        if self.dialled is None:
            self.send(self._peers.introduce())
        self._peers.bind(hello.node, self)
        return bytes(first[_length.size + size :])

    def _take(self, peer: str, message: Message) -> None:
        if isinstance(message, Hello):
            raise ProtocolError("out of place")
        if not isinstance(message, Ping):
            self._peers.received(peer, message)


class Connections(Factory):
    """Makes the connections, of those that we call or of those that call us."""

    noisy = False

    def __init__(self, peers: Peers, dialled: str | None) -> None:
        self._peers = peers
        self._dialled = dialled

    def buildProtocol(self, addr: IAddress | None) -> Connection:  # noqa: ARG002  Twisted names it
        """See IProtocolFactory."""
        return Connection(self._peers, self._dialled)
