"""Three real voters whose messages are delivered by hand."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sipha.cluster import raft
from sipha.cluster.raft import Timing
from sipha.cluster.voter import Voter
from sipha.cluster.wire import RaftMessage
from sipha.state.time import ClusterTime


class Ballot:
    """Voters a, b and c; `queues[from, to]` holds what is under way, `tables` what each has applied."""

    def __init__(self, directory: Path, names: str = "abc", timing: Timing | None = None) -> None:
        self.now = 1000.0
        self.directory = directory
        self.names = names
        self.timing = timing or Timing()
        self.queues: dict[tuple[str, str], deque[RaftMessage]] = defaultdict(deque)
        self.tables: dict[str, list[bytes]] = {}
        self.answers: list[Any] = []
        self.voters: dict[str, Voter] = {}
        raft.use_clock(lambda: self.now)
        for name in names:
            self.boot(name)
        for name, voter in self.voters.items():
            for peer in set(names) - {name}:
                voter.connected(peer)

    def boot(self, name: str) -> Voter:
        """Start a voter from its files."""
        (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.tables[name] = []
        self.voters[name] = Voter(
            name,
            [peer for peer in self.names if peer != name],
            self.directory / name,
            self.timing,
            lambda: self.now,
            ClusterTime(self.now),
            partial(self.send, name),
            lambda _index, entry: self.tables[name].append(entry),
        )
        return self.voters[name]

    def crash(self, name: str) -> None:
        """End a voter; what it sent is lost."""
        self.voters.pop(name).raft.close()
        for ends in [ends for ends in self.queues if name in ends]:
            del self.queues[ends]

    def send(self, name: str, peer: str, message: RaftMessage) -> bool:
        self.queues[name, peer].append(message)
        return True

    def deliver(self, name: str, peer: str, count: int | None = None) -> list[RaftMessage]:
        """Deliver what is under way from one to another, the first `count` messages or all."""
        queue = self.queues[name, peer]
        delivered = []
        for _ in range(len(queue) if count is None else count):
            delivered.append(queue.popleft())
            if peer in self.voters:
                self.voters[peer].receive(name, delivered[-1])
        return delivered

    def settle(self, among: Sequence[str] | None = None, rounds: int = 6) -> None:
        """Deliver and tick until all is said."""
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

    def close(self) -> None:
        """Release the files."""
        for voter in self.voters.values():
            voter.raft.close()
        raft.use_clock(raft.clock)


Convene = Callable[..., Ballot]
