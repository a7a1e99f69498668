"""Whole replicas on virtual disks, on one clock, with a network that does what a test wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random, seed
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from sipha.cluster import founding, raft
from sipha.cluster.peers import INetwork, INetworkUser
from sipha.cluster.raft import Timing
from sipha.cluster.replica import Replica
from sipha.cluster.wire import MAX_FRAME, AppendEntries, Hello, ProtocolError, RaftMessage, Shared, SnapshotChunk, frame
from sipha.errors import Unavailable
from sipha.sip.flow import Address
from sipha.state.entries import Contact, Policy, Record, Register
from sipha.state.outcomes import Outcome, Registered
from tests.cluster_sim.disk import Crashed, VirtualDisk

CLUSTER_ID = "0123456789abcdef" * 2
DELAY = 0.001
"""Seconds that a message takes."""

RETRY = 0.02
"""Seconds until two nodes are connected, or connected again."""

M = TypeVar("M", bound=RaftMessage)


def register(aor: str, **more: Any) -> Register:
    """A REGISTER of one contact."""
    return Register(aor, f"call of {aor}", 1, (Contact(f"{aor};transport=udp", 3600),), **more)


class Life:
    """The reactor of one life of a node: what is due after its end never happens."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.over = False

    def seconds(self) -> float:
        return self.clock.seconds()

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any) -> Any:
        return self.clock.callLater(delay, self._call, function, args)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self.over:
            function(*args)


@implementer(INetwork)
class Line:
    """One node's connections."""

    def __init__(self, assembly: Assembly, node: str, seeds: Mapping[str, Address]) -> None:
        self.assembly = assembly
        self.node = node
        self.peers = dict(seeds)
        self.talked_to: list[set[str]] = []
        """Whom the node wanted to talk to, each time that it said so."""
        self.counters: Counter[str] = Counter()
        self.hellos: dict[str, Hello] = {}
        self.user: INetworkUser | None = None
        self.full: set[str] = set()
        """The peers that have no room for entries and pieces of a snapshot."""

    def start(self, user: INetworkUser) -> None:
        self.user = user
        self.assembly.dial_soon()

    def stop(self) -> Deferred[None]:
        self.user = None
        for peer in list(self.hellos):
            self.assembly.hang_up(self.node, peer)
        return succeed(None)

    def check(self, peer: str, address: Address) -> None:
        """Everyone can be talked to."""

    def set_peers(self, peers: Mapping[str, Address]) -> None:
        before, self.peers = self.peers, dict(peers)
        self.talked_to.append(set(peers))
        for peer in [peer for peer in self.hellos if peer in before and peer not in peers]:
            self.assembly.hang_up(self.node, peer)
        self.assembly.dial_soon()

    def send(self, peer: str, message: RaftMessage) -> bool:
        if peer not in self.hellos:
            return False
        if peer in self.full and (
            isinstance(message, SnapshotChunk | Shared) or (isinstance(message, AppendEntries) and message.entries)
        ):
            return False
        assert len(frame(message)) <= MAX_FRAME + 4
        self.assembly.send(self.node, peer, message)
        return True

    def heard(self, peer: str) -> float | None:
        return 0.0 if peer in self.hellos else None

    def hello(self, peer: str) -> Hello | None:
        return self.hellos.get(peer)


class Seat:
    """A node: its disk, and while it runs its replica and its line."""

    def __init__(self, assembly: Assembly, name: str) -> None:
        self.name = name
        self.address = f"192.0.2.{ord(name)}:5070"
        self.disk = VirtualDisk(Random(name))
        self.life = Life(assembly.clock)
        self.options: dict[str, Any] = {}
        self.up: Replica | None = None
        self.line: Line

    @property
    def replica(self) -> Replica:
        assert self.up is not None, f"{self.name} is down"
        return self.up


class Assembly:
    """The nodes in `seats`, by name; `founders` are the first members.

    `sent` is all that was sent; `loses` says which of it doesn't arrive; `failed` who has left the cluster, and why.
    Names in `silent` neither hear nor are heard, although they are connected; those in `severed` are not connected.
    """

    def __init__(self, founders: str = "abc", timing: Timing | None = None) -> None:
        seed(1)  # the library draws its timeouts from there
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.founders = founders
        self.timing = timing or Timing()
        self.seats: dict[str, Seat] = {}
        self.sent: list[tuple[str, str, RaftMessage]] = []
        self.failed: list[tuple[str, str]] = []
        self.loses: Callable[[str, str, RaftMessage], bool] = lambda _sender, _receiver, _message: False
        self.silent: set[str] = set()
        self.severed: set[str] = set()
        self._connections: dict[frozenset[str], int] = {}
        self._number = 0
        self._dialling: Any = None
        raft.use_clock(self.clock.seconds)

    # Nodes

    def seat(self, name: str) -> Seat:
        """The seat of a node, with a blank disk if it is new."""
        if name not in self.seats:
            self.seats[name] = Seat(self, name)
        return self.seats[name]

    def found(self) -> None:
        """Let the founders' disks be those of a cluster."""
        voters = {name: self.seat(name).address for name in self.founders}
        for name in self.founders:
            seat = self.seats[name]
            seat.disk.start(Life(self.clock))
            founding.found(seat.disk, name, voters, CLUSTER_ID)

    def start(self, names: str, **options: Any) -> None:
        """Start nodes from their disks; what is said of them in `options` stays so."""
        for name in names:
            seat = self.seat(name)
            assert seat.up is None
            seat.options |= options
            seat.life = Life(self.clock)
            seat.disk.start(seat.life)
            seeds = {peer: ("192.0.2.1", ord(peer)) for peer in self.founders if peer != name}
            seat.line = Line(self, name, seeds)
            seat.up = Replica(
                seat.life,
                name,
                seat.disk,
                seat.line,
                seeds,
                Policy(),
                timing=self.timing,
                clock=self.clock.seconds,
                failed=lambda reason, name=name: self.failed.append((name, reason)),  # type: ignore[misc]
                **seat.options,
            )
            seat.up.start()

    def stop(self, name: str) -> None:
        """Stop a node as its daemon does."""
        seat = self.seats[name]
        replica, seat.up = seat.replica, None
        replica.stop()
        seat.life.over = True

    def crash(self, name: str, *, power_lost: bool = False) -> None:
        """End a node as kill -9 or a power cut does."""
        seat = self.seats[name]
        seat.up, seat.life.over, seat.line.user = None, True, None
        if power_lost:
            seat.disk.lose_power()
        else:
            seat.disk.kill()
        for peer in list(seat.line.hellos):
            self.hang_up(name, peer)

    def wipe(self, name: str) -> None:
        """End a node, and put a blank disk in."""
        self.crash(name)
        self.seats[name].disk.wipe()

    def replica(self, name: str) -> Replica:
        return self.seats[name].replica

    @property
    def running(self) -> list[Replica]:
        return [seat.up for seat in self.seats.values() if seat.up is not None]

    def close(self) -> None:
        """Give the library its clock again."""
        for seat in self.seats.values():
            seat.life.over = True
        raft.use_clock(raft.clock)

    # Time

    def step(self, end: float) -> None:
        """Let time pass until the next thing is due, or until `end`."""
        due = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)
        try:
            self.clock.advance(max(min(due, end) - self.clock.seconds(), 0.0))
        except Crashed:
            for seat in self.seats.values():
                if seat.up is not None and seat.disk._state == "crashed":
                    self.crash(seat.name, power_lost=True)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.step(end)

    def until(self, condition: Callable[[], object], limit: float = 10.0) -> float:
        """Let time pass until something is so; returns the seconds that it took."""
        start = self.clock.seconds()
        while not condition():
            assert self.clock.seconds() < start + limit, "it did not come to pass"
            self.step(start + limit)
        return self.clock.seconds() - start

    # The network

    def send(self, sender: str, receiver: str, message: RaftMessage) -> None:
        self.sent.append((sender, receiver, message))
        if not self.silent & {sender, receiver} and not self.loses(sender, receiver, message):
            number = self._connections[frozenset((sender, receiver))]
            self.clock.callLater(DELAY, self._arrive, number, sender, receiver, message)

    def said(self, kind: type[M], sender: str | None = None, receiver: str | None = None) -> list[M]:
        """All messages of a kind, by anyone or one sender, to anyone or one receiver."""
        return [
            message
            for by, to, message in self.sent
            if isinstance(message, kind) and sender in {None, by} and receiver in {None, to}
        ]

    def dial_soon(self) -> None:
        if self._dialling is None:
            self._dialling = self.clock.callLater(RETRY, self._dial)

    def hang_up(self, one: str, other: str) -> None:
        """End a connection; both notice at once."""
        if self._connections.pop(frozenset((one, other)), None) is None:
            return
        for node, peer in ((one, other), (other, one)):
            line = self.seats[node].line
            line.hellos.pop(peer, None)
            if line.user is not None:
                line.user.disconnected(peer)
        self.dial_soon()

    def sever(self, *names: str) -> None:
        """End all connections of nodes, until they are joined again."""
        self.severed |= set(names)
        for name in names:
            for peer in list(self.seats[name].line.hellos):
                self.hang_up(name, peer)

    def join(self) -> None:
        """Let all be connected, hear and be heard."""
        self.severed.clear()
        self.silent.clear()
        self.dial_soon()

    def _dial(self) -> None:
        self._dialling = None
        lines = [seat.line for seat in self.seats.values() if seat.up is not None and seat.name not in self.severed]
        for one in lines:
            for other in lines:
                if one.node < other.node and (other.node in one.peers or one.node in other.peers):
                    self._connect(one, other)

    def _connect(self, one: Line, other: Line) -> None:
        pair = frozenset((one.node, other.node))
        if pair in self._connections or one.user is None or other.user is None:
            return
        hellos = {one: one.user.introduce(), other: other.user.introduce()}
        for line, peer in ((one, other), (other, one)):
            assert line.user is not None
            known = peer.node in line.peers or hellos[peer].cluster_id
            objection = line.user.greeted(peer.node, hellos[peer]) if known else "unknown node"
            if objection is not None:
                line.counters[objection] += 1
                self.dial_soon()
                return
        self._number += 1
        self._connections[pair] = self._number
        for line, peer in ((one, other), (other, one)):
            line.hellos[peer.node] = hellos[peer]
        for line, peer in ((one, other), (other, one)):
            if line.user is not None and peer.node in line.hellos:
                line.user.connected(peer.node)

    def _arrive(self, number: int, sender: str, receiver: str, message: RaftMessage) -> None:
        seat = self.seats[receiver]
        if self._connections.get(frozenset((sender, receiver))) == number and seat.line.user is not None:
            try:
                seat.line.user.received(sender, message)
            except ProtocolError as error:
                seat.line.counters[error.kind] += 1
                self.hang_up(sender, receiver)

    # What the nodes do

    def leader(self) -> str | None:
        """The node that may act as the leader; no two may."""
        leaders = [replica.node for replica in self.running if replica.leading()]
        assert len(leaders) < 2, leaders
        return leaders[0] if leaders else None

    def wait_for_leader(self, among: str = "") -> str:
        """Wait until a node may act as the leader, any or one of those named."""
        self.until(lambda: (self.leader() or "-") in (among or self.seats))
        leader = self.leader()
        assert leader is not None
        return leader

    def elect(self, name: str) -> Replica:
        """Wait until a node leads, which no other prevents."""
        for replica in self.running:
            if replica.node != name:
                replica._raft.put_election(self.clock.seconds() + 1.5)
        replica = self.replica(name)
        replica._raft.put_election(0.0)
        self.until(replica.leading)
        return replica

    def propose(self, name: str, *records: Record) -> list[Outcome | Unavailable]:
        """Propose at a node; what is returned fills as time passes."""
        outcomes: list[Outcome | Unavailable] = []
        for record in records:
            self.replica(name).propose(record, outcomes.append)
        return outcomes

    def register(self, name: str, aors: Sequence[str], **more: Any) -> None:
        """Have AORs registered, one entry each."""
        for aor in aors:
            outcomes = self.propose(name, register(aor, **more))
            self.until(lambda outcomes=outcomes: outcomes)  # type: ignore[misc]
            assert isinstance(outcomes[0], Registered), outcomes

    def agree(self) -> bool:
        """True if all that run have applied as much, with one result."""
        return len({(status.applied_index, status.hash) for status in map(Replica.status, self.running)}) == 1


Assemble = Callable[..., Assembly]
