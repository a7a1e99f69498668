"""The connections between the nodes: one per pair, under mutual TLS 1.3; plain TCP on loopback only.

Of two nodes the one with the later name dials. Both say hello first: the dialler goes on only with the node that it
dialled, the other only with a node of its cluster that it doesn't dial itself, and each only if the certificate at the
other end is that node's. A new connection takes the place of the old one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from zope.interface import Attribute, Interface, implementer

from sipha.cluster.authority import check_name, host_name
from sipha.cluster.connection import Connection, Connections
from sipha.cluster.lastwords import LastWords
from sipha.cluster.tls import Certificates, Credentials, TlsFactory, load
from sipha.cluster.wire import PROTOCOL, AppendEntries, Hello, LastWord, Ping, RaftMessage, Shared, SnapshotChunk
from sipha.errors import ConfigError
from sipha.sip.flow import Address

RETRY = 0.3
"""Seconds between attempts to connect."""

PING = 0.3
"""Seconds after which a connection that has nothing else to say shows that it lives."""

APART = 3.0
"""Seconds without a connection after which the node with the earlier name dials too."""

SILENCE = 2.0
"""Seconds of silence after which a connection counts as dead; also the time a stranger has for handshake and hello."""

MAX_STRANGERS = 16
"""Connections from others that have not said hello yet."""

QUIET = 60.0
"""Seconds between two lines in the log about refusals for the same reason."""

WARNING = timedelta(days=30)
"""How long before the certificate expires the log says so, once a day."""

_DAY = 86400.0


class INetworkUser(Interface):
    """Who is behind the connections."""

    def introduce() -> Hello:
        """What to say about ourselves to whoever is at the other end of a new connection."""

    def greeted(peer: str, hello: Hello) -> str | None:
        """The peer, whose name is verified, says this of itself: why we refuse it, in one of few phrases, or None."""

    def connected(peer: str) -> None:
        """The peer can be sent to: there is a new connection, or room again in the present one."""

    def disconnected(peer: str) -> None:
        """The peer can't be sent to."""

    def received(peer: str, message: RaftMessage) -> None:
        """A message came; raises ProtocolError, which ends the connection."""

    def last_word_heard(word: LastWord) -> None:
        """A guard's last word came, or what somebody wants us to take for it."""


class INetwork(Interface):
    """Messages between the nodes, in order while a connection lasts."""

    counters: Counter[str] = Attribute("How often a connection was refused or ended, by reason.")

    def start(user: INetworkUser) -> None:
        """Listen and connect."""

    def stop() -> Deferred[None]:
        """End all connections and listen no more; the user hears of nothing any more."""

    def send(peer: str, message: RaftMessage) -> bool:
        """Send if the peer is connected and, for entries, pieces of a snapshot and what is shared, has room."""

    def heard(peer: str) -> float | None:
        """For how many seconds nothing has come from the peer; None if it isn't connected."""

    def hello(peer: str) -> Hello | None:
        """What the peer said of itself on the present connection; None if it isn't connected."""

    def check(peer: str, address: Address) -> None:
        """Raise ConfigError unless the peer could be talked to at the address."""

    def set_peers(peers: Mapping[str, Address]) -> None:
        """Talk to these from now on, and to no others; raises ConfigError if they can't be talked to."""


@implementer(INetwork)
class Peers:
    """The connections of node `node` at `address` to its `peers`, within the cluster named `cluster`.

    Without `credentials` they are not encrypted, and the addresses must be loopback ones. `counters` says how often a
    connection was refused or ended, by reason; `certificates` is None if there are no credentials.
    """

    def __init__(  # noqa: PLR0917  who, where, with whom, as whom
        self,
        reactor: Any,
        node: str,
        address: Address,
        peers: Mapping[str, Address],
        cluster: str = "sipha",
        credentials: Credentials | None = None,
    ) -> None:
        check_name("cluster", cluster)
        self.counters: Counter[str] = Counter()
        self.node = node
        self.cluster = cluster
        self._log = Logger(namespace="sipha.cluster")
        self._encrypted = credentials is not None
        self.check(node, address)
        self._check_peers(peers)
        self.certificates = (
            None
            if credentials is None
            else Certificates(credentials, partial(load, credentials, host_name(node, cluster)), self._complain)
        )
        self._reactor = reactor
        self._address = address
        self._peers = dict(peers)
        self._connections: dict[str, Connection] = {}
        self._strangers: dict[Connection, None] = {}  # in the order in which they came
        self._user: INetworkUser | None = None
        self._ports: list[Any] = []
        self._dialling: dict[str, Any] = {}  # the call that will dial, or the attempt to connect
        self._watching: Any = None
        self._apart: dict[str, float] = {}  # since when there has been no connection with a peer
        self._reminding: Any = None
        self._told: dict[str, float] = {}  # when the log last spoke of a reason

    def start(self, user: INetworkUser) -> None:
        """Listen and connect; raises ConfigError if the address can't be had."""
        self._user = user
        if self.certificates is not None:
            self._remind()
        self._reach_out()

    def stop(self) -> Deferred[None]:
        """End all connections and listen no more."""
        self._user = None
        for waiting in [self._watching, self._reminding, *self._dialling.values()]:
            if waiting is not None:
                waiting.cancel()
        for connection in [*self._connections.values(), *self._strangers]:
            connection.end()
        ports, self._ports, self._watching, self._reminding, self._dialling = self._ports, [], None, None, {}
        return gatherResults(maybeDeferred(port.stopListening) for port in ports).addCallback(lambda _: None)

    def send(self, peer: str, message: RaftMessage) -> bool:
        """Send if the peer is connected and, for entries, pieces of a snapshot and what is shared, has room."""
        connection = self._connections.get(peer)
        if connection is None:
            return False
        if connection.full and (
            isinstance(message, SnapshotChunk | Shared) or (isinstance(message, AppendEntries) and message.entries)
        ):
            return False
        connection.send(message)
        return True

    def heard(self, peer: str) -> float | None:
        """For how many seconds nothing has come from the peer; None if it isn't connected."""
        connection = self._connections.get(peer)
        return None if connection is None else self.seconds() - connection.heard

    def hello(self, peer: str) -> Hello | None:
        """What the peer said of itself on the present connection; None if it isn't connected."""
        connection = self._connections.get(peer)
        return None if connection is None else connection.hello

    def set_peers(self, peers: Mapping[str, Address]) -> None:
        """Talk to these from now on, and to no others; raises ConfigError if they can't be talked to."""
        self._check_peers(peers)
        before, self._peers = self._peers, dict(peers)
        for peer in sorted({*before, *self._connections}):
            if peer not in peers or (before.get(peer, peers[peer]) != peers[peer] and self._dials(peer)):
                self._hang_up(peer)
        if self._user is not None:
            self._reach_out()

    def check_certificates(self) -> None:
        """Raise ConfigError if the certificates, as they are now, can't be used."""
        try:
            if self.certificates is not None:
                self.certificates.check()
        except ConfigError as error:
            self.counters["new certificates unusable"] += 1
            raise ConfigError(f"{error}; the old certificates stay in use") from error

    def reload(self) -> None:
        """Read the certificates again, for new connections; if they can't be used, the log says why."""
        if self.certificates is not None:
            self.certificates.reload()

    # What the connections call

    def seconds(self) -> float:
        """The reactor's time."""
        return float(self._reactor.seconds())

    def made(self, connection: Connection) -> None:
        """There is a connection to someone."""
        if self._user is None:
            connection.end()
            return
        callers = [stranger for stranger in self._strangers if stranger.dialled is None]
        if connection.dialled is None and len(callers) >= MAX_STRANGERS:
            # Whoever fills the places must not keep the peers out: the oldest that calls from elsewhere goes first.
            hosts = {host for host, _ in self._peers.values()}
            oldest = next((stranger for stranger in callers if stranger.host not in hosts), callers[0])
            del self._strangers[oldest]
            oldest.end("too many strangers")
        self._strangers[connection] = None

    def introduce(self) -> Hello:
        """What to say about ourselves."""
        if self._user is None:
            raise RuntimeError("the network is stopped")
        return self._user.introduce()

    def identifies(self, connection: Connection, node: str) -> bool:
        """True if the certificate at the other end is that of the node, or if there are none."""
        return self.certificates is None or connection.bears(host_name(node, self.cluster))

    def greeted(self, connection: Connection, hello: Hello) -> str | None:
        """Why we don't go on with whoever says this first, or None."""
        if hello.protocol != PROTOCOL:
            return "other protocol version"
        if hello.cluster != self.cluster:
            return "other cluster"
        if hello.node == self.node or (hello.node not in self._peers and not hello.cluster_id):
            # One that was added to the cluster may lead it before we have read that in the log; a certificate it has.
            return "unknown node"
        if connection.dialled not in {None, hello.node}:
            return "other node than dialled"
        if not self.identifies(connection, hello.node):
            return "certificate of another node"
        return None if self._user is None else self._user.greeted(hello.node, hello)

    def bind(self, peer: str, connection: Connection) -> None:
        """Both have said hello: the connection is the one to this peer."""
        self._strangers.pop(connection, None)
        old = self._connections.pop(peer, None)
        if old is not None:
            old.end("replaced")
            self._tell_disconnected(peer)
        self._connections[peer] = connection
        self._log.info("connected with {peer}", peer=peer)
        self.has_room(peer)

    def has_room(self, peer: str) -> None:
        """The peer can take entries."""
        if self._user is not None:
            self._user.connected(peer)

    def received(self, peer: str, message: RaftMessage) -> None:
        """A message of a bound connection."""
        if self._user is not None:
            self._user.received(peer, message)

    def _last_word_heard(self, word: LastWord) -> None:
        if self._user is not None:
            self._user.last_word_heard(word)

    def count(self, reason: str, host: str) -> None:
        """A connection was refused or is ended, or a datagram dropped."""
        self.counters[reason] += 1
        now = self.seconds()
        if reason not in self._told or now - self._told[reason] >= QUIET:
            self._told[reason] = now
            self._log.warn(
                "what comes from {host} is refused: {reason} ({count} so far)",
                host=host,
                reason=reason,
                count=self.counters[reason],
            )

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        self._strangers.pop(connection, None)
        peer = connection.peer
        if peer is not None and self._connections.get(peer) is connection:
            self._unbind(peer)
        if connection.dialled is not None and not self._reaches(connection.dialled):
            self._dial_later(connection.dialled)

    # Whom we talk to

    def check(self, peer: str, address: Address) -> None:
        """Raise ConfigError unless the peer could be talked to at the address."""
        check_name("node", peer)
        host = address[0]
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            raise ConfigError(f"the cluster address of {peer}, {host!r}, is not an IP address") from None
        if literal.is_unspecified or literal.is_multicast:
            raise ConfigError(f"the cluster address of {peer}, {host}, is not that of one node; write the node's own")
        if not (self._encrypted or literal.is_loopback):
            raise ConfigError(
                f"the cluster address of {peer}, {host}, is not a loopback address, and without certificates the nodes "
                "talk unencrypted; make some with siphactl ca, or use one of 127.0.0.0/8, or ::1"
            )

    def _check_peers(self, peers: Mapping[str, Address]) -> None:
        if self.node in peers:
            raise ConfigError(f"node {self.node} is among its own peers; list only the others")
        for peer, address in peers.items():
            self.check(peer, address)

    def _dials(self, peer: str) -> bool:
        return self.node > peer

    def _reaches(self, peer: str) -> bool:
        """True if we have dialled the peer, or are about to."""
        connections = (*self._connections.values(), *self._strangers)
        return peer in self._dialling or any(connection.dialled == peer for connection in connections)

    def _reach_out(self) -> None:
        """Listen if there is anyone to hear, and dial whom we have not."""
        if self._peers and not self._ports:
            host, port = self._address
            try:
                self._ports.append(self._reactor.listenTCP(port, self._factory(None), interface=host))
                last_words = LastWords(self._last_word_heard, self.count)
                self._ports.append(self._reactor.listenUDP(port, last_words, interface=host))
            except CannotListenError as error:
                raise ConfigError(
                    f"can't listen for the other nodes on {host} port {port}: {error.socketError}"
                ) from None
            self._watching = self._reactor.callLater(PING, self._watch)
        for peer in self._peers:
            if self._dials(peer) and not self._reaches(peer):
                self._dial(peer)

    def _factory(self, dialled: str | None) -> IProtocolFactory:
        factory = Connections(self, dialled)
        if self.certificates is None:
            return factory
        return TlsFactory(self.certificates, dialled is not None, factory, self._reactor)

    def _dial(self, peer: str) -> None:
        if peer in self._connections:
            self._dialled(peer)
            return
        host, port = self._peers[peer]
        endpoint = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
        way = endpoint(self._reactor, host, port, timeout=1, bindAddress=(self._address[0], 0))
        attempt = self._dialling[peer] = way.connect(self._factory(peer))
        attempt.addCallbacks(lambda _: self._dialled(peer), lambda _: self._dial_later(peer))

    def _dialled(self, peer: str) -> None:
        self._dialling.pop(peer, None)

    def _dial_later(self, peer: str) -> None:
        self._dialled(peer)
        if self._user is not None and peer in self._peers and self._dials(peer):
            self._dialling[peer] = self._reactor.callLater(RETRY, self._dial, peer)

    def _hang_up(self, peer: str) -> None:
        """End what there is between us; what we dialled is dialled again if it is still a peer.

        A caller who has yet to say who it is may be the peer, and knows by our hello what we were until now.
        """
        waiting = self._dialling.pop(peer, None)
        if waiting is not None:
            waiting.cancel()
        for connection in [*self._connections.values(), *self._strangers]:
            if peer in {connection.peer, connection.dialled} or connection.peer is connection.dialled is None:
                connection.end()
        if peer in self._connections:
            self._unbind(peer)

    def _unbind(self, peer: str) -> None:
        del self._connections[peer]
        self._log.info("disconnected from {peer}", peer=peer)
        self._tell_disconnected(peer)

    def _tell_disconnected(self, peer: str) -> None:
        if self._user is not None:
            self._user.disconnected(peer)

    # What recurs

    def _watch(self) -> None:
        """Say something on idle connections, and end those that say nothing."""
        self._watching = self._reactor.callLater(PING, self._watch)
        now = self.seconds()
        for connection in [*self._connections.values(), *self._strangers]:
            if now - connection.heard > SILENCE:
                connection.end("silent")
            elif connection.peer is not None and now - connection.said > PING:
                connection.send(Ping())
        for peer in self._peers:
            if peer in self._connections:
                self._apart.pop(peer, None)
            elif now - self._apart.setdefault(peer, now) > APART and not self._reaches(peer):
                self._apart[peer] = now
                self._dial(peer)  # it may not know yet that it should

    def _remind(self) -> None:
        """Say that the certificate will expire soon."""
        self._reminding = self._reactor.callLater(_DAY, self._remind)
        if self.certificates is not None and self.certificates.expires - datetime.now(UTC) < WARNING:
            self._log.warn(
                "the certificate of {node} expires at {expires}: the others will then refuse new connections with it; "
                "make another with siphactl ca issue",
                node=self.node,
                expires=self.certificates.expires,
            )

    def _complain(self, problem: str) -> None:
        """New certificates can't be used."""
        self.counters["new certificates unusable"] += 1
        self._log.error("{problem}; the old certificates stay in use", problem=problem)
