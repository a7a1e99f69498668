"""The connections between the nodes: one TCP connection per pair, plain, and therefore on loopback only.

Of two nodes the one with the later name dials. Both say hello first: the dialler goes on only with the node that it
dialled, the other only with a node of its cluster that it doesn't dial itself. A new connection takes the place of
the old one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, implementer

from sipha.cluster.wire import (
    MAX_FRAME,
    MAX_NAME,
    PROTOCOL,
    AppendEntries,
    FrameReader,
    Hello,
    Message,
    Ping,
    ProtocolError,
    RaftMessage,
    frame,
)
from sipha.errors import ConfigError
from sipha.sip.flow import Address

RETRY = 0.3
"""Seconds between attempts to connect."""

PING = 0.3
"""Seconds after which a connection that has nothing else to say shows that it lives."""

SILENCE = 2.0
"""Seconds of silence after which a connection counts as dead; also the time a stranger has for its hello."""

MAX_STRANGERS = 16
"""Connections that have not said hello yet."""

MAX_UNSENT = 1 << 20
"""Bytes more for a peer that doesn't read what it has been sent; beyond, its connection ends."""


class INetworkUser(Interface):
    """Who is behind the connections."""

    def connected(peer: str) -> None:
        """The peer can be sent to: there is a new connection, or room again in the present one."""

    def disconnected(peer: str) -> None:
        """The peer can't be sent to."""

    def received(peer: str, message: RaftMessage) -> None:
        """A message came; raises ProtocolError, which ends the connection."""


class INetwork(Interface):
    """Messages between the nodes, in order while a connection lasts."""

    counters: Counter[str] = Attribute("How often a connection was refused or ended, by reason.")

    def start(user: INetworkUser) -> None:
        """Listen and connect."""

    def stop() -> Deferred[None]:
        """End all connections and listen no more; the user hears of nothing any more."""

    def send(peer: str, message: RaftMessage) -> bool:
        """Send if the peer is connected and, for entries, has room; False if not."""

    def heard(peer: str) -> float | None:
        """For how many seconds nothing has come from the peer; None if it isn't connected."""


def check_name(what: str, name: str) -> None:
    """Raise ConfigError unless the name of a node or cluster fits into a hello."""
    if not 1 <= len(name) <= MAX_NAME:
        raise ConfigError(f"the name of the {what}, {name!r}, must have 1 to {MAX_NAME} characters")


def check_loopback(node: str, address: Address) -> None:
    """Raise ConfigError unless the node's address is one that other machines can't reach."""
    host = address[0]
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(f"the cluster address of {node}, {host!r}, is not an IP address") from None
    if not loopback:
        raise ConfigError(
            f"the cluster address of {node}, {host}, is not a loopback address, and the nodes talk unencrypted; "
            "use one of 127.0.0.0/8, or ::1"
        )


@implementer(INetwork)
class Peers:
    """The connections of node `node` at `address` to its `peers`, within the cluster named `cluster`.

    `counters` says how often a connection was refused or ended, by reason.
    """

    def __init__(
        self, reactor: Any, node: str, address: Address, peers: Mapping[str, Address], cluster: str = "sipha"
    ) -> None:
        if node in peers:
            raise ConfigError(f"node {node} is among its own peers; list only the others")
        for name, node_address in {node: address, **peers}.items():
            check_name("node", name)
            check_loopback(name, node_address)
        check_name("cluster", cluster)
        self.counters: Counter[str] = Counter()
        self.node = node
        self.cluster = cluster
        self._reactor = reactor
        self._address = address
        self._peers = dict(peers)
        self._connections: dict[str, Connection] = {}
        self._strangers: set[Connection] = set()
        self._user: INetworkUser | None = None
        self._port: Any = None
        self._dialling: dict[str, Any] = {}  # the call that will dial, or the attempt to connect
        self._watching: Any = None
        self._log = Logger(namespace="sipha.cluster")

    def start(self, user: INetworkUser) -> None:
        """Listen and connect; raises ConfigError if the address can't be had."""
        self._user = user
        if not self._peers:
            return
        host, port = self._address
        try:
            self._port = self._reactor.listenTCP(port, _Factory(self, None), interface=host)
        except CannotListenError as error:
            raise ConfigError(f"can't listen for the other nodes on {host} port {port}: {error.socketError}") from None
        for peer in self._peers:
            if self.node > peer:
                self._dial(peer)
        self._watching = self._reactor.callLater(PING, self._watch)

    def stop(self) -> Deferred[None]:
        """End all connections and listen no more."""
        self._user = None
        for waiting in [self._watching, *self._dialling.values()]:
            if waiting is not None:
                waiting.cancel()
        for connection in [*self._connections.values(), *self._strangers]:
            connection.end()
        port, self._port, self._watching, self._dialling = self._port, None, None, {}
        return maybeDeferred(lambda: None if port is None else port.stopListening())

    def send(self, peer: str, message: RaftMessage) -> bool:
        """Send if the peer is connected and, for entries, has room."""
        connection = self._connections.get(peer)
        if connection is None or (connection.full and isinstance(message, AppendEntries) and message.entries):
            return False
        connection.send(message)
        return True

    def heard(self, peer: str) -> float | None:
        """For how many seconds nothing has come from the peer; None if it isn't connected."""
        connection = self._connections.get(peer)
        return None if connection is None else self.seconds() - connection.heard

    # What the connections call

    def seconds(self) -> float:
        """The reactor's time."""
        return float(self._reactor.seconds())

    def made(self, connection: Connection) -> None:
        """There is a connection to someone."""
        if connection.dialled is None and len(self._strangers) >= MAX_STRANGERS:
            connection.end("too many strangers")
        else:
            self._strangers.add(connection)

    def greeted(self, connection: Connection, hello: Hello) -> str | None:
        """The other side's first message: its name if we go on with it, else the connection is ended."""
        expected = connection.dialled
        if hello.protocol != PROTOCOL:
            connection.end("other protocol version")
        elif hello.cluster != self.cluster:
            connection.end("other cluster")
        elif hello.node not in self._peers or (expected is None and hello.node < self.node):
            connection.end("unknown node")
        elif expected not in (None, hello.node):
            connection.end("other node than dialled")
        else:
            self._strangers.discard(connection)
            return hello.node
        return None

    def bind(self, peer: str, connection: Connection) -> None:
        """Both have said hello: the connection is the one to this peer."""
        old = self._connections.pop(peer, None)
        if old is not None:
            old.end("replaced")
            self._tell_disconnected(peer)
        self._connections[peer] = connection
        self._log.info("connected with {peer}", peer=peer)
        self.has_room(peer)

    def _dial(self, peer: str) -> None:
        host, port = self._peers[peer]
        endpoint = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
        way = endpoint(self._reactor, host, port, timeout=1, bindAddress=(self._address[0], 0))
        attempt = self._dialling[peer] = way.connect(_Factory(self, peer))
        attempt.addCallbacks(lambda _: self._dialled(peer), lambda _: self._dial_later(peer))

    def _dialled(self, peer: str) -> None:
        self._dialling.pop(peer, None)

    def _dial_later(self, peer: str) -> None:
        self._dialled(peer)
        if self._user is not None:
            self._dialling[peer] = self._reactor.callLater(RETRY, self._dial, peer)

    def has_room(self, peer: str) -> None:
        """The peer can take entries."""
        if self._user is not None:
            self._user.connected(peer)

    def received(self, peer: str, message: RaftMessage) -> None:
        """A message of a bound connection."""
        if self._user is not None:
            self._user.received(peer, message)

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        self._strangers.discard(connection)
        if connection.dialled is not None and connection.dialled not in self._dialling:
            self._dial_later(connection.dialled)
        peer = connection.peer
        if peer is not None and self._connections.get(peer) is connection:
            del self._connections[peer]
            self._log.info("disconnected from {peer}", peer=peer)
            self._tell_disconnected(peer)

    def _tell_disconnected(self, peer: str) -> None:
        if self._user is not None:
            self._user.disconnected(peer)

    def _watch(self) -> None:
        """Say something on idle connections, and end those that say nothing."""
        self._watching = self._reactor.callLater(PING, self._watch)
        now = self.seconds()
        for connection in [*self._connections.values(), *self._strangers]:
            if now - connection.heard > SILENCE:
                connection.end("silent")
            elif connection.peer is not None and now - connection.said > PING:
                connection.send(Ping())


@implementer(IPushProducer)
class Connection(Protocol):
    """One connection; `dialled` is the peer that we called, None if we were called."""

    def __init__(self, peers: Peers, dialled: str | None) -> None:
        self.dialled = dialled
        self.peer: str | None = None
        self.full = False
        self.heard = self.said = peers.seconds()
        self._peers = peers
        self._reader = FrameReader()
        self._unsent = 0
        self._ended = False

    def send(self, message: Message) -> None:
        """Write a message."""
        data = frame(message)
        self.said = self._peers.seconds()
        if self.full:
            self._unsent += len(data)
            if self._unsent > MAX_UNSENT:
                self.end("does not read")
        self._transport.write(data)

    def end(self, reason: str | None = None) -> None:
        """End the connection at once, and count why."""
        if not self._ended:
            self._ended = True
            if reason is not None:
                self._peers.counters[reason] += 1
            self._transport.abortConnection()

    def connectionMade(self) -> None:
        """Say hello if we called."""
        self._transport.setTcpNoDelay(True)
        self._transport.registerProducer(self, True)
        self._peers.made(self)
        if self.dialled is not None:
            self.send(Hello(PROTOCOL, self._peers.cluster, self._peers.node))

    def dataReceived(self, data: bytes) -> None:
        """Take the messages; anything else ends the connection."""
        if self.peer is not None:  # a stranger is not heard before its hello is whole
            self.heard = self._peers.seconds()
        try:
            for message in self._reader.feed(data):
                if not self._ended:
                    self._take(message)
        except ProtocolError as error:
            self.end(error.kind)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002  Twisted names it
        """Gone, whoever ended it."""
        self._ended = True
        self._peers.lost(self)

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

    def _take(self, message: Message) -> None:
        if self.peer is None:
            if not isinstance(message, Hello):
                raise ProtocolError("out of place")
            self.peer = self._peers.greeted(self, message)
            if self.peer is not None:
                self.heard = self._peers.seconds()
                self._reader.limit = MAX_FRAME
                if self.dialled is None:
                    self.send(Hello(PROTOCOL, self._peers.cluster, self._peers.node))
                self._peers.bind(self.peer, self)
        elif isinstance(message, Hello):
            raise ProtocolError("out of place")
        elif not isinstance(message, Ping):
            self._peers.received(self.peer, message)


class _Factory(Factory):
    """Makes the connections, of those that we call or of those that call us."""

    noisy = False

    def __init__(self, peers: Peers, dialled: str | None) -> None:
        self._peers = peers
        self._dialled = dialled

    def buildProtocol(self, addr: IAddress | None) -> Connection:  # noqa: ARG002  Twisted names it
        return Connection(self._peers, self._dialled)
