"""Real voters with real logs, whose messages are delivered by hand and whose disks are as quick as a test wants."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random, seed
from typing import Any, TypeVar

from twisted.internet.task import Clock

from sipha.cluster import raft
from sipha.cluster.journal import Journal
from sipha.cluster.raft import Timing
from sipha.cluster.voter import Voter
from sipha.cluster.wire import AppendEntries, RaftMessage
from sipha.state.time import ClusterTime
from tests.cluster_sim.disk import VirtualDisk

M = TypeVar("M", bound=RaftMessage)


class Ballot:
    """The voters `names` and the learners `learners`; `queues[from, to]` holds what is under way.

    `tables` holds what each has applied, `answers` what the leader was told of what it appended, `lagging` who needs
    what the log of whom has no more. A disk does what it is told as soon as time passes; a test may make it slow.
    """

    def __init__(self, names: str = "abc", timing: Timing | None = None, learners: str = "") -> None:
        seed(1)  # the library draws its timeouts from there
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.names = names
        self.learners = learners
        self.timing = timing or Timing()
        self.queues: dict[tuple[str, str], deque[RaftMessage]] = defaultdict(deque)
        self.tables: dict[str, list[bytes]] = {}
        self.answers: list[Any] = []
        self.lagging: list[tuple[str, str]] = []
        self.disks: dict[str, VirtualDisk] = {}
        self.journals: dict[str, Journal] = {}
        self.voters: dict[str, Voter] = {}
        raft.use_clock(lambda: self.now)
        for name in names + learners:
            self.boot(name)

    @property
    def now(self) -> float:
        return self.clock.seconds()

    @now.setter
    def now(self, now: float) -> None:
        self.clock.advance(now - self.now)

    def boot(self, name: str, *, base: tuple[int, int] | None = None, forgetful: bool = False) -> Voter:
        """Start a voter from its disk, connected with all that run; a forgetful one has lost what it held."""
        disk = self.disks.get(name)
        if disk is None:
            disk = self.disks[name] = VirtualDisk(Random(name))
            disk.delay = (0.0, 0.0)
        disk.start(self.clock)
        journal = self.journals[name] = Journal.open(disk, base, sync=True, commit=0)
        self.tables[name] = []
        voter = self.voters[name] = Voter(
            name,
            disk,
            journal,
            0 if base is None else base[0],
            self.timing,
            lambda: self.now,
            ClusterTime(self.now),
            partial(self.send, name),
            partial(self.apply, name),
            lambda peer: self.lagging.append((name, peer)),
        )
        journal.on_durable = voter.durable_risen
        voter.set_members(self.names, self.learners)
        voter.may_vote = not forgetful
        for peer, other in self.voters.items():
            if peer != name:
                voter.connected(peer)
                other.greeted(name, forgetful=forgetful)
                other.connected(name)
        return voter

    def crash(self, name: str, *, power_lost: bool = False) -> None:
        """End a voter; what it sent is lost."""
        del self.voters[name]
        if power_lost:
            self.disks[name].lose_power()
        else:
            self.disks[name].kill()
        for ends in [ends for ends in self.queues if name in ends]:
            del self.queues[ends]

    def send(self, name: str, peer: str, message: RaftMessage) -> bool:
        self.queues[name, peer].append(message)
        return True

    def apply(self, name: str, index: int, entry: bytes) -> tuple[int, bytes]:
        self.tables[name].append(entry)
        return index, entry

    def deliver(self, name: str, peer: str, count: int | None = None) -> list[RaftMessage]:
        """Deliver what is under way from one to another, the first `count` messages or all."""
        queue = self.queues[name, peer]
        delivered = []
        for _ in range(len(queue) if count is None else count):
            delivered.append(queue.popleft())
            if peer in self.voters:
                self.voters[peer].receive(name, delivered[-1])
        return delivered

    def under_way(self, name: str, peer: str, kind: type[M]) -> list[M]:
        """The messages of a kind that are under way from one to another."""
        return [message for message in self.queues[name, peer] if isinstance(message, kind)]

    def settle(self, among: Sequence[str] | None = None, rounds: int = 8) -> None:
        """Deliver, let a millisecond pass, and tick until all is said and on disk."""
        among = among or list(self.voters)
        for _ in range(rounds):
            for name in among:
                for peer in among:
                    self.deliver(name, peer)
            self.now += 0.001
            for name in among:
                self.voters[name].tick()

    def elect(self, name: str, among: Sequence[str] | None = None) -> Voter:
        """Make one the leader, with the votes of those named."""
        voter = self.voters[name]
        self.now += 2 * self.timing.election_max
        for other in self.voters.values():
            other.raft.put_election(self.now + 1)
        voter.raft.put_election(0)
        voter.tick()
        self.settle(among)
        assert voter.raft.leads
        return voter

    def append(self, name: str, *entries: bytes) -> None:
        """Append entries at a leader."""
        for entry in entries:
            self.voters[name].raft.append(entry, self.answers.append)

    def heartbeat(self, name: str) -> None:
        """Let a leader's next heartbeat be under way."""
        self.now += self.timing.append_period + 0.01
        self.voters[name].tick()

    def change_members(self, names: str, learners: str = "") -> None:
        """Let others count from now on, everywhere."""
        self.names, self.learners = names, learners
        for voter in self.voters.values():
            voter.set_members(names, learners)

    def close(self) -> None:
        """Give the library its clock again."""
        raft.use_clock(raft.clock)


def append(
    term: int,
    prev: int | None = 1,
    prev_term: int | None = 0,
    entries: Sequence[tuple[bytes, int, int]] = (),
    *,
    commit: int = 0,
    sent: int = 0,
    lease: int = 200,
    time: int = 0,
    claim: int = 1,
    commitment: bytes = b"commitment",
    unaided: bool = False,
) -> AppendEntries:
    """What a leader may say."""
    return AppendEntries(term, commit, prev, prev_term, list(entries), sent, lease, time, claim, commitment, unaided)


Convene = Callable[..., Ballot]
