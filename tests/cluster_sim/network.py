"""The simulated network: connections that are slow, congested, cut in one direction or both, replaced and repeated.

A connection brings messages in order, as TCP does. What was under way on one that ends is lost, and may yet come late
on the next one between the same two processes. Beyond what TCP does, a message may come twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING
from zlib import crc32

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from sipha.cluster import wire
from sipha.cluster.peers import APART, INetwork, INetworkUser
from sipha.cluster.wire import (
    MAX_FRAME,
    AppendEntries,
    AppendReply,
    Checkpoint,
    Hello,
    LeaseAck,
    Message,
    Ping,
    Propose,
    ProtocolError,
    RaftMessage,
    SnapshotChunk,
    SnapshotReply,
    frame,
    read_datagram,
)
from sipha.sip.flow import Address

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World

RETRY = 0.3
"""Seconds between attempts to connect."""

SILENCE = 2.0
"""Seconds after which an end notices that nothing comes any more."""

TRAFFIC = (AppendEntries, AppendReply, LeaseAck, Checkpoint, SnapshotChunk, SnapshotReply)
"""What is said all the time; what isn't goes astray and is repeated `RARE` times as often."""

RARE = 4

FAST = (0.0002, 0.002)
"""Seconds that a message takes, at least and at most."""

STRAY = 3.0
"""Seconds, at most, by which a message comes late that an earlier connection has left behind."""

REPEATS = (0.003, 0.1, 2.0)
"""Seconds, at most, between a message and its repetition."""


class Connection:
    """Two directions, each in order; the end is noticed after what was sent before it."""

    __slots__ = ("arrival", "ends", "held", "hello", "left", "lives", "open")

    def __init__(self, one: Node, other: Node) -> None:
        self.ends = (one.name, other.name)
        self.lives = {one.name: one.life, other.name: other.life}
        self.open = True
        self.left: set[str] = set()  # the ends that have closed it
        self.arrival = dict.fromkeys(self.ends, 0.0)  # of the last message, by receiver
        self.hello: dict[str, Hello] = {}  # that was accepted, by receiver
        # While the way is cut; None is the connection's end.
        self.held: dict[str, list[bytes | None]] = {end: [] for end in self.ends}

    def peer(self, end: str) -> str:
        """The other end."""
        one, other = self.ends
        return other if end == one else one


@implementer(INetwork)
class Link:
    """The connections of one life of a node with its `peers`."""

    def __init__(self, node: Node, peers: Iterable[str]) -> None:
        self.node = node
        self.net = node.world.net
        self.peers = set(peers)
        self.counters: Counter[str] = Counter()
        self.connections: dict[str, Connection] = {}
        self.user: INetworkUser | None = None
        self._strangers: dict[Connection, None] = {}  # that were made, and have yet to say hello
        self.sends_left: tuple[int, type] | None = None
        """After how many more messages of a kind the node dies; None if it doesn't."""
        self._full: set[str] = set()
        self._heard: dict[str, float] = {}

    def start(self, user: INetworkUser) -> None:
        self.user = user

    def stop(self) -> Deferred[None]:
        self.user = None
        self.drop()
        return succeed(None)

    def drop(self) -> None:
        """End all connections."""
        for peer in list(self.connections):
            self.net.close(self.connections.pop(peer), self.node.name)

    def check(self, peer: str, address: Address) -> None:
        """Everyone can be talked to."""

    def set_peers(self, peers: Mapping[str, Address]) -> None:
        self.peers = set(peers)
        for peer in [peer for peer in self.connections if peer not in self.peers]:
            self._end(peer)
        for connection in list(self._strangers):
            if connection.peer(self.node.name) not in self.peers:
                self.net.close(connection, self.node.name)

    def heard(self, peer: str) -> float | None:
        return self.net.events.now - self._heard[peer] if peer in self.connections else None

    def hello(self, peer: str) -> Hello | None:
        connection = self.connections.get(peer)
        return None if connection is None else connection.hello[self.node.name]

    def send(self, peer: str, message: RaftMessage) -> bool:
        connection = self.connections.get(peer)
        if connection is None:
            return False
        node, net = self.node, self.net
        if net.congestion and (
            isinstance(message, SnapshotChunk) or (isinstance(message, AppendEntries) and message.entries)
        ):
            if peer in self._full:
                return False
            if net.dice.random() < net.congestion:
                self._full.add(peer)
                node.reactor().callLater(net.dice.uniform(0.001, 0.03), self._has_room, peer)
                return False
        node.world.invariants.sent(node, peer, message)
        # Who hands a record to the leader relies on its connection, which brings it once or never.
        chance = 0 if isinstance(message, Propose) else 1 if isinstance(message, TRAFFIC) else RARE
        net.transmit(connection, peer, self._frame(message), chance)
        if self.sends_left is not None and isinstance(message, self.sends_left[1]):
            left, kind = self.sends_left
            if not left:
                raise node.death("while it sends")
            self.sends_left = left - 1, kind
        return True

    def _frame(self, message: Message) -> bytes:
        data = frame(message)
        assert len(data) <= MAX_FRAME + 4, f"a {type(message).__name__} of {len(data)} bytes"
        return data

    def _has_room(self, peer: str) -> None:
        self._full.discard(peer)
        if self.user is not None and peer in self.connections:
            self.user.connected(peer)

    def made(self, connection: Connection) -> None:
        """Say hello on a new connection."""
        if self.user is None:
            self.net.close(connection, self.node.name)
        else:
            self._strangers[connection] = None
            self.net.transmit(connection, connection.peer(self.node.name), self._frame(self.user.introduce()))

    def received(self, connection: Connection, data: bytes) -> None:
        """Take what has come on a connection: first the peer's hello."""
        self.node.world.trace = crc32(data, self.node.world.trace)
        peer = connection.peer(self.node.name)
        if self.node.name in connection.left:
            return
        if self.node.name not in connection.hello:
            self._greet(peer, connection, data)
        elif self.connections.get(peer) is not connection:
            self.net.close(connection, self.node.name)  # as TCP does with RST
        else:
            self._heard[peer] = self.net.events.now
            self.take(peer, data)

    def take(self, peer: str, data: bytes) -> None:
        """Hand a message on; one that is refused ends the connection."""
        if self.user is None or peer not in self.connections:
            return
        message = wire._decoder.decode(data[4:])
        assert not isinstance(message, Hello | Ping)
        self._hand(peer, message)

    def _hand(self, peer: str, message: RaftMessage) -> None:
        assert self.user is not None
        node = self.node
        node.world.invariants.hears(node, peer, message)
        try:
            self.user.received(peer, message)
        except ProtocolError as error:
            self.counters[str(error)] += 1
            self._end(peer)
        node.world.invariants.heard(node, peer, message)

    def hear(self, word: bytes) -> None:
        """A peer's guard has the last word; it has a way of its own."""
        if self.user is not None:
            last_word = read_datagram(word)
            self.node.world.invariants.hears_last_word(self.node, last_word)
            self.user.last_word_heard(last_word)

    def ended(self, connection: Connection) -> None:
        """This end notices that the connection is gone."""
        peer = connection.peer(self.node.name)
        if self.connections.get(peer) is connection:
            self._end(peer)

    def _greet(self, peer: str, connection: Connection, data: bytes) -> None:
        """Take a new connection in the old one's place, if we go on with whoever says this."""
        hello = wire._decoder.decode(data[4:])
        assert isinstance(hello, Hello)
        self._strangers.pop(connection, None)
        user = self.user
        unknown = user is None or (peer not in self.peers and not hello.cluster_id)
        refused = "unknown node" if user is None or unknown else user.greeted(peer, hello)
        if user is None or refused is not None:
            self.counters[refused or ""] += 1
            self.net.close(connection, self.node.name)
            return
        if peer in self.connections:
            self._end(peer)
        connection.hello[self.node.name] = hello
        self.connections[peer] = connection
        self._heard[peer] = self.net.events.now
        self.node.greets(peer)
        self._full.discard(peer)
        self.net.bring_strays(peer, self.node)
        user.connected(peer)

    def _end(self, peer: str) -> None:
        self.net.close(self.connections.pop(peer), self.node.name)
        if self.user is not None:
            self.user.disconnected(peer)


class Net:
    """All connections and what is wrong with them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events = world.events
        self.dice = world.dice
        self.cuts: set[tuple[str, str]] = set()  # from, to
        self.delay = FAST
        self.lags: dict[tuple[str, str], tuple[float, float]] = {}
        """How long a message takes on the ways that are slow: from, to."""
        self.retry = RETRY
        self.congestion = 0.0
        self.strays = 0.0
        """How likely a message that a connection leaves behind still comes."""
        self.repeats = 0.0
        """How likely a message comes twice."""
        self._stray: dict[tuple[str, str], list[tuple[dict[str, int], bytes]]] = defaultdict(list)
        self._connections: dict[frozenset[str], Connection] = {}  # the latest between two
        self._apart: dict[tuple[str, str], float] = {}  # since when two try to connect

    def join(self, names: Iterable[str]) -> None:
        """Go on trying to connect each with each."""
        for one, other in combinations(names, 2):
            self._connect(one, other)

    def _connect(self, one: str, other: str) -> None:
        nodes = self.world.nodes
        if self._may_connect(one, other) and not {(one, other), (other, one)} & self.cuts:
            self._apart.pop((min(one, other), max(one, other)))
            connection = self._connections[frozenset((one, other))] = Connection(nodes[one], nodes[other])
            for end in (one, other):
                delay = self.dice.uniform(*self.delay)
                connection.arrival[end] = self.events.now + delay
                self.events.callLater(delay, nodes[end].receive, connection.lives[end], Link.made, connection)
        else:
            self.events.callLater(self.retry * self.dice.uniform(0.5, 1.0), self._connect, one, other)

    def _may_connect(self, one: str, other: str) -> bool:
        """Return True if both are up and one calls: the later-named does at once, the other after some time apart."""
        one, other = sorted((one, other))
        nodes = self.world.nodes
        if not (nodes[one].listens and nodes[other].listens):
            return False
        since = self._apart.setdefault((one, other), self.events.now)
        return nodes[other].calls(one) or (nodes[one].calls(other) and self.events.now - since > APART)

    def bring_strays(self, sender: str, node: Node) -> None:
        """A connection is there: let what earlier ones have left behind come on it."""
        lives = {sender: self.world.nodes[sender].life, node.name: node.life}
        for between, data in self._stray.pop((sender, node.name), ()):
            if between == lives:
                late = self.dice.uniform(0, STRAY) * self.dice.random()
                self.events.callLater(late, node.receive, node.life, Link.take, sender, data)

    def transmit(self, connection: Connection, to: str, data: bytes | None, chance: int = 0) -> None:
        """Bring a message, or the connection's end, to the other end in order; it waits while the way is cut.

        `chance` is how many times as likely as others it goes astray, and comes twice.
        """
        sender = connection.peer(to)
        if (sender, to) in self.cuts:
            connection.held[to].append(data)
            return
        left = self.events.now + self.world.nodes[sender].ahead
        delay = self.lags.get((sender, to), self.delay)
        arrival = max(left + self.dice.uniform(*delay), connection.arrival[to])
        connection.arrival[to] = arrival
        if data is not None and chance and self.repeats and self.dice.random() < chance * self.repeats:
            late = arrival - self.events.now + self.dice.choice(REPEATS) * self.dice.random()
            self.events.callLater(late, self.world.nodes[to].receive, connection.lives[to], Link.take, sender, data)
        if data is not None and chance and self.strays and self.dice.random() < chance * self.strays:
            self._stray[sender, to].append((connection.lives, data))
        self.events.callAt(arrival, self._arrive, connection, to, data)  # exactly then: the order hangs on it

    def _arrive(self, connection: Connection, to: str, data: bytes | None) -> None:
        node, life = self.world.nodes[to], connection.lives[to]
        if data is None:
            node.receive(life, Link.ended, connection)
        elif node.life == life:
            node.receive(life, Link.received, connection, data)
        else:
            self.close(connection, to)  # as TCP does with RST

    def close(self, connection: Connection, by: str) -> None:
        """One end closes the connection: the other notices, and a new one is tried."""
        connection.left.add(by)
        if not connection.open:
            return
        connection.open = False
        other = connection.peer(by)
        if self.world.nodes[other].up:
            self.transmit(connection, other, None)
            self.events.callLater(SILENCE, self._silence, connection, other)
        if self._connections.get(frozenset(connection.ends)) is connection:
            self.events.callLater(self.retry * self.dice.uniform(0.5, 1.0), self._connect, *connection.ends)

    def abandon(self, name: str) -> None:
        """A node has died: end what it was connected by, or was about to be."""
        for connection in list(self._connections.values()):
            if name in connection.ends:
                self.close(connection, name)

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing pass in one direction; both ends notice only by the silence."""
        self.cuts.add((sender, receiver))
        connection = self._connections.get(frozenset((sender, receiver)))
        if connection is not None:
            for end in connection.ends:
                self.events.callLater(self.dice.uniform(1.0, 1.2) * SILENCE, self._silence, connection, end)

    def heal(self) -> None:
        """Let everything pass; what was held arrives, late, as TCP would repeat it."""
        self.cuts.clear()
        self.lags.clear()
        for connection in self._connections.values():
            for to, held in connection.held.items():
                connection.held[to] = []
                for data in held:
                    self.transmit(connection, to, data)

    def reset(self, one: str, other: str) -> None:
        """End the connection between two."""
        connection = self._connections.get(frozenset((one, other)))
        if connection is not None and connection.open:
            self._break(connection, one)

    def falls_silent(self, name: str) -> None:
        """A node does nothing for long: its peers give up."""
        for connection in self._connections.values():
            if name in connection.ends:
                self.events.callLater(SILENCE, self._silence, connection, connection.peer(name))

    def _silence(self, connection: Connection, end: str) -> None:
        one, other = connection.ends
        peer = self.world.nodes[connection.peer(end)]
        if {(one, other), (other, one)} & self.cuts or not connection.open or peer.frozen:
            self._break(connection, end)

    def _break(self, connection: Connection, end: str) -> None:
        """End a connection from one of its ends."""
        self.close(connection, end)
        self.world.nodes[end].receive(connection.lives[end], Link.ended, connection)
