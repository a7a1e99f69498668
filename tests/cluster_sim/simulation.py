"""N real replicas in one process, with a virtual clock and a simulated network, all from one seed.

Everything is as in the daemon (library, journal files, guards, lease, group commit) but the reactor, the clock and the
connections. A crash drops the replica as kill -9 would, and a restart builds it from its files.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from zope.interface import implementer

from sipha.cluster import raft
from sipha.cluster.leadership import ILeader
from sipha.cluster.peers import INetwork, INetworkUser
from sipha.cluster.raft import Timing
from sipha.cluster.replica import Replica
from sipha.cluster.wire import MAX_FRAME, AppendEntries, FrameReader, Hello, Ping, RaftMessage, frame
from sipha.errors import Unavailable
from sipha.state.entries import Contact, Policy, Register
from sipha.state.outcomes import Outcome, Registered

RETRY = 0.3
SILENCE = 2.0


@dataclass(eq=False)
class Connection:
    """A TCP connection: each direction is in order, and its end is noticed after what was sent before it."""

    ends: tuple[str, str]
    open: bool = True
    arrival: dict[str, float] = field(default_factory=dict)  # of the last message, by receiver
    held: dict[str, list[Callable[[], None]]] = field(default_factory=dict)  # while the way is cut, by receiver


class Machine:
    """One node: its files, its clock, and the replica that runs while it is up."""

    def __init__(self, simulation: Simulation, name: str, minimum: float) -> None:
        self.simulation = simulation
        self.name = name
        self.offset = simulation.random.uniform(10, 10_000)
        self.rate = simulation.random.uniform(0.995, 1.005)
        self.timing = Timing(election_min=minimum, election_max=2 * minimum)
        self.replica: Replica | None = None
        self.boots = 0
        self.frozen_until = 0.0

    def clock(self) -> float:
        """This node's CLOCK_BOOTTIME."""
        return self.offset + self.simulation.clock.seconds() * self.rate

    @contextmanager
    def running(self) -> Iterator[None]:
        """The library has one clock per process: let it be this node's while this node runs."""
        raft.use_clock(self.clock)
        try:
            yield
        finally:
            raft.use_clock(self.simulation.clock.seconds)

    def run(self, boot: int, function: Callable[..., Any], *args: Any) -> None:
        """Run an event of this node, unless it is of an earlier life; later if the node is frozen."""
        if boot != self.boots or self.replica is None:
            return
        now = self.simulation.clock.seconds()
        if now < self.frozen_until:
            self.simulation.clock.callLater(self.frozen_until - now, self.run, boot, function, *args)
            return
        with self.running():
            function(*args)
        self.simulation.check()


class NodeReactor:
    """The reactor of one life of a node."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.boot = machine.boots

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any) -> IDelayedCall:
        return self.machine.simulation.clock.callLater(delay, self.machine.run, self.boot, function, *args)

    def seconds(self) -> float:
        return self.machine.simulation.clock.seconds()


@implementer(INetwork)
class Network:
    """The connections of one life of a node."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.simulation = machine.simulation
        self.boot = machine.boots
        self.counters: Counter[str] = Counter()
        self.connections: dict[str, Connection] = {}
        self.full: set[str] = set()
        self.user: INetworkUser | None = None

    def start(self, user: INetworkUser) -> None:
        self.user = user

    def stop(self) -> Deferred[None]:
        self.user = None
        for peer in list(self.connections):
            self.simulation.close(self.connections.pop(peer), self.machine.name)
        return succeed(None)

    def heard(self, peer: str) -> float | None:
        return 0.0 if peer in self.connections else None

    def send(self, peer: str, message: RaftMessage) -> bool:
        connection = self.connections.get(peer)
        if connection is None:
            return False
        if isinstance(message, AppendEntries) and message.entries:
            if peer in self.full:
                return False
            if self.simulation.random.random() < self.simulation.congestion:
                self.full.add(peer)
                delay = self.simulation.random.uniform(0.001, 0.03)
                self.simulation.clock.callLater(delay, self.machine.run, self.boot, self.has_room, peer)
                return False
        data = frame(message)
        self.simulation.transmit(connection, peer, lambda: self.simulation.network(peer).received(connection, data))
        return True

    def has_room(self, peer: str) -> None:
        self.full.discard(peer)
        if self.user is not None and peer in self.connections:
            self.user.connected(peer)

    def bind(self, peer: str, connection: Connection) -> None:
        """A new connection takes the old one's place."""
        if self.user is None:
            return
        if peer in self.connections:
            self.simulation.close(self.connections.pop(peer), self.machine.name)
            self.user.disconnected(peer)
        self.connections[peer] = connection
        self.user.connected(peer)

    def ended(self, connection: Connection) -> None:
        """This end notices that the connection is gone."""
        (peer,) = set(connection.ends) - {self.machine.name}
        if self.connections.get(peer) is connection:
            del self.connections[peer]
            if self.user is not None:
                self.user.disconnected(peer)

    def received(self, connection: Connection, data: bytes) -> None:
        (peer,) = set(connection.ends) - {self.machine.name}
        if self.connections.get(peer) is not connection:
            self.simulation.close(connection, self.machine.name)  # as TCP does with RST
        elif self.user is not None:
            reader = FrameReader()
            reader.limit = MAX_FRAME
            (message,) = reader.feed(data)
            assert not isinstance(message, Hello | Ping)
            self.user.received(peer, message)


@implementer(ILeader)
class Witness:
    """Sees what a node's leadership is worth at the moment it is gained."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name

    def gained(self) -> None:
        simulation = self.simulation
        simulation.gains.append((simulation.clock.seconds(), self.name))
        replica = simulation.machines[self.name].replica
        assert replica is not None
        missing = [aor for aor in simulation.acknowledged if not replica.bindings(aor)]
        assert not missing, f"{self.name} leads without {len(missing)} acknowledged bindings, {missing[:3]}"

    def lost(self) -> None:
        """Nothing to check: `leading` is, after every event."""


class Simulation:
    """A cluster; `check` runs after every event of every node."""

    def __init__(self, seed: int, directory: Path, names: str = "abc", *, minima: Sequence[float] = (0.25,)) -> None:
        random.seed(seed)  # the library draws its election timeouts from the module
        self.random = random.Random(seed)
        self.clock = Clock()
        self.directory = directory
        self.cuts: set[tuple[str, str]] = set()  # from, to
        self.delay = (0.0002, 0.002)
        self.congestion = 0.0
        self.proposed: dict[str, tuple[str, int, float]] = {}  # at whom, in which of its lives, when
        self.answers: dict[str, list[Outcome | Unavailable]] = {}
        self.acknowledged: set[str] = set()
        self.gains: list[tuple[float, str]] = []
        self.failures: list[str] = []
        self.hashes: dict[int, int] = {}
        self.machines = {name: Machine(self, name, self.random.choice(minima)) for name in names}
        raft.use_clock(self.clock.seconds)
        for name in names:
            self.boot(name)
        for one, other in combinations(names, 2):
            self.connect(one, other)

    # Nodes

    def boot(self, name: str) -> None:
        """Start a node from its files."""
        machine = self.machines[name]
        machine.boots += 1
        machine.frozen_until = 0.0
        peers = {peer: ("127.0.0.1", 1) for peer in self.machines if peer != name}
        with machine.running():
            machine.replica = Replica(
                NodeReactor(machine),
                name,
                ("127.0.0.1", 1),
                peers,
                self.directory / name,
                Policy(),
                network=Network(machine),
                timing=machine.timing,
                clock=machine.clock,
                failed=self.failures.append,
            )
            machine.replica.leadership.observe(Witness(self, name))
            machine.replica.start()

    def crash(self, name: str) -> None:
        """End a node as kill -9 does; what it sent before still arrives."""
        machine = self.machines[name]
        replica = machine.replica
        if replica is None:
            return
        network = self.network(name)
        network.user = None
        for peer in list(network.connections):
            self.close(network.connections.pop(peer), name)
        machine.replica = None
        replica._lock.close()
        replica._raft.close()

    def freeze(self, name: str, seconds: float) -> None:
        """Let a node do nothing for some time, as SIGSTOP does."""
        self.machines[name].frozen_until = self.clock.seconds() + seconds

    @property
    def up(self) -> list[str]:
        """The nodes that run."""
        return [name for name, machine in self.machines.items() if machine.replica is not None]

    def replica(self, name: str) -> Replica:
        """The replica of a node that is up."""
        replica = self.machines[name].replica
        assert replica is not None
        return replica

    def leader(self) -> str | None:
        """The node that is leading, if one is."""
        return next((name for name in self.up if self.leading(name)), None)

    def leading(self, name: str) -> bool:
        """What the node says of itself."""
        with self.machines[name].running():
            return self.replica(name).leading()

    # Network

    def network(self, name: str) -> Network:
        """The connections of a node that is up."""
        network = self.replica(name)._network
        assert isinstance(network, Network)
        return network

    def connect(self, one: str, other: str) -> None:
        """Go on trying to connect two nodes."""
        up = self.machines[one].replica and self.machines[other].replica
        if up and not {(one, other), (other, one)} & self.cuts:
            connection = Connection((one, other))
            for end, peer in ((one, other), (other, one)):
                machine = self.machines[end]
                delay = self.random.uniform(*self.delay)
                connection.arrival[end] = self.clock.seconds() + delay
                self.clock.callLater(delay, machine.run, machine.boots, self.network(end).bind, peer, connection)
        else:
            self.clock.callLater(RETRY, self.connect, one, other)

    def transmit(self, connection: Connection, to: str, deliver: Callable[[], None]) -> None:
        """Bring something to the other end, in order; it waits while the way is cut."""
        (sender,) = set(connection.ends) - {to}
        if (sender, to) in self.cuts:
            connection.held.setdefault(to, []).append(deliver)
            return
        arrival = max(self.clock.seconds() + self.random.uniform(*self.delay), connection.arrival.get(to, 0.0))
        connection.arrival[to] = arrival
        machine = self.machines[to]
        self.clock.callLater(arrival - self.clock.seconds(), machine.run, machine.boots, deliver)

    def close(self, connection: Connection, by: str) -> None:
        """One end closes the connection: the other notices, and a new one is tried."""
        if not connection.open:
            return
        connection.open = False
        (other,) = set(connection.ends) - {by}
        if self.machines[other].replica is not None:
            self.transmit(connection, other, lambda: self.network(other).ended(connection))
            self.clock.callLater(SILENCE, self._silence, connection, other)
        self.clock.callLater(RETRY, self.connect, *connection.ends)

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing pass in one direction; both ends notice only by the silence."""
        self.cuts.add((sender, receiver))
        for name in (sender, receiver):
            if self.machines[name].replica is not None:
                for connection in self.network(name).connections.values():
                    if set(connection.ends) == {sender, receiver}:
                        self.clock.callLater(self.random.uniform(1.0, 1.2) * SILENCE, self._silence, connection, name)

    def heal(self) -> None:
        """Let everything pass; what was held arrives, late, as TCP would repeat it."""
        self.cuts.clear()
        for name in self.up:
            for connection in list(self.network(name).connections.values()):
                for delivery in connection.held.pop(name, []):
                    self.transmit(connection, name, delivery)

    def _silence(self, connection: Connection, end: str) -> None:
        sender, receiver = connection.ends
        cut = {(sender, receiver), (receiver, sender)} & self.cuts
        machine = self.machines[end]
        if machine.replica is not None and (cut or not connection.open):
            self.close(connection, end)
            machine.run(machine.boots, self.network(end).ended, connection)

    # Work

    def propose(self, name: str, expires: int = 7200) -> str:
        """A phone nobody has seen before registers at a node."""
        aor = f"sip:{len(self.answers)}@example.com"
        self.answers[aor] = []
        self.proposed[aor] = (name, self.machines[name].boots, self.clock.seconds())
        contact = Contact(f"{aor};transport=udp", expires)

        def done(outcome: Outcome | Unavailable) -> None:
            self.answers[aor].append(outcome)
            assert len(self.answers[aor]) == 1, f"{aor} was answered twice"
            if isinstance(outcome, Registered):
                assert [binding.aor for binding in outcome.bindings] == [aor]
                self.acknowledged.add(aor)

        self.machines[name].run(
            self.machines[name].boots, self.replica(name).propose, Register(aor, aor, 1, (contact,)), done
        )
        return aor

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, event by event."""
        end = self.clock.seconds() + seconds
        while self.clock.calls and self.clock.calls[0].getTime() <= end:
            self.clock.advance(max(self.clock.calls[0].getTime() - self.clock.seconds(), 0.0))
        self.clock.advance(max(end - self.clock.seconds(), 0.0))

    def until(self, condition: Callable[[], object], limit: float = 10.0) -> None:
        """Let virtual time pass until something is so."""
        end = self.clock.seconds() + limit
        while not condition():
            assert self.clock.seconds() < end, "it did not come to pass"
            self.advance(0.005)

    def check(self) -> None:
        """At most one leads; tables are equal at equal index; nobody has given up."""
        assert not self.failures
        leading = [name for name in self.up if self.leading(name)]
        assert len(leading) < 2, f"{leading} lead at {self.clock.seconds():.3f}"
        for name in self.up:
            machine = self.replica(name).machine
            known = self.hashes.setdefault(machine.index, machine.hash())
            assert known == machine.hash(), f"{name} differs at {machine.index}"

    def check_answered(self) -> None:
        """Whoever proposed to a node that is still up, and didn't just do so, has an answer."""
        for aor, (name, boot, when) in self.proposed.items():
            if self.machines[name].boots == boot and name in self.up and when < self.clock.seconds() - 4:
                assert self.answers[aor], f"{name} never answered {aor}, proposed at {when:.3f}"

    def check_converged(self) -> None:
        """Everyone is up and connected: one leads, and all have all that was acknowledged."""
        self.until(self.leader)
        self.advance(1.0)
        states = {(self.replica(name).machine.index, self.replica(name).machine.hash()) for name in self.machines}
        assert len(states) == 1, states
        for name in self.machines:
            missing = [aor for aor in self.acknowledged if not self.replica(name).machine.location.bindings(aor, 0)]
            assert not missing, f"{name} lacks {len(missing)}"

    def close_all(self) -> None:
        """Release the files."""
        for name in self.up:
            self.crash(name)
        raft.use_clock(raft.clock)
