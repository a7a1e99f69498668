"""What an entry of the log costs its leader, by CPU time: one in this process, which two followers hear over TLS.

    .venv/bin/python -m bench.leader [--first] [--rounds 40] [--phones 20000] [--group 16]

The followers are here too, as far as the leader can tell: they have on disk whatever they are sent. Refreshes, or with
`--first` the REGISTERs of phones that are new, are proposed, so many to an entry, and the next ones when all of the
last have their outcome and the leader's own disk has the entry. What is counted is the leader's: the reactor's thread,
from `propose` to the outcomes, with what the kernel does for it, the thread that writes the log, and the one that
writes the history. It prints the least of the rounds, since whatever else the machine does only adds to it; of the
history, which gathers what it writes, all of it. To compare two trees, run them in turns, with
PYTHONSAFEPATH=1 PYTHONPATH=TREE:.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from zope.interface import implementer

from bench.follower import GROUPS, Rounds, events, firsts, measure, network, options, refreshes
from bench.load import BenchError
from bench.log_nodes import Cluster
from sipha.cluster.disk import FileDisk
from sipha.cluster.peers import INetworkUser
from sipha.cluster.raft import Timing
from sipha.cluster.replica import Replica
from sipha.cluster.wire import (
    PROTOCOL,
    AppendEntries,
    AppendReply,
    Hello,
    LastWord,
    LeaseAck,
    PreVote,
    PreVoteGranted,
    RaftMessage,
    RequestVote,
    VoteGranted,
)
from sipha.state.entries import SCHEMA, Policy, Register
from sipha.state.outcomes import Registered

LEADER, FOLLOWERS = "c", ("a", "b")
LEASE_ACK = 25_000
"""Microseconds between two acknowledgements of the lease, as a follower gives them."""

PATIENCE = 30.0
"""Seconds within which there is a leader."""


@implementer(INetworkUser)
class Follower:
    """Who follows, and has all on disk."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self.reactor: Any = EPollReactor()
        self._node = node
        self._acked = 0
        self._cluster_id = cluster.cluster_id
        self.network = network(cluster, node, [LEADER], self.reactor)
        self.network.start(self)

    def introduce(self) -> Hello:
        """See INetworkUser."""
        return Hello(PROTOCOL, "sipha", self._node, self._cluster_id, "0" * 32, SCHEMA, 100, trouble="")

    def greeted(self, peer: str, hello: Hello) -> str | None:  # noqa: ARG002  an interface
        """See INetworkUser."""
        return None

    def connected(self, peer: str) -> None:
        """See INetworkUser."""

    def disconnected(self, peer: str) -> None:
        """See INetworkUser."""

    def received(self, peer: str, message: RaftMessage) -> None:
        """See INetworkUser."""
        if isinstance(message, AppendEntries):
            if message.entries:
                index = message.entries[-1][1]
                self.network.send(
                    peer, AppendReply(message.term, index + 1, reset=False, success=True, sent=message.sent)
                )
            if message.sent - self._acked > LEASE_ACK or not message.entries:
                self._acked = message.sent
                self.network.send(peer, LeaseAck(message.term, message.claim, message.sent))
        elif isinstance(message, PreVote):
            self.network.send(peer, PreVoteGranted(message.term, 0, 0))
        elif isinstance(message, RequestVote):
            self.network.send(peer, VoteGranted(message.term))

    def last_word_heard(self, word: LastWord) -> None:
        """See INetworkUser."""


class Bench:
    """Two followers, and a leader that has a binding of each of so many phones, before what registers then."""

    def __init__(self, directory: Path, phones: int, registers: Iterator[Register]) -> None:
        cluster = Cluster(directory, realtime=False)
        cluster.certify()
        cluster.found()
        self.followers = [Follower(cluster, name) for name in FOLLOWERS]
        self.reactor: Any = EPollReactor()
        disk = FileDisk(str(directory / LEADER), self.reactor)
        peers = network(cluster, LEADER, FOLLOWERS, self.reactor)
        seeds = {name: address for name, address in cluster.addresses.items() if name != LEADER}
        timing = Timing(election_min=4.0, election_max=8.0)
        self.replica = Replica(self.reactor, LEADER, disk, peers, seeds, Policy(), timing=timing, boot_id="bench")
        self.events = events(self.reactor, directory, self.replica)
        self.replica.start()
        began = time.monotonic()
        while not self.replica.leading():
            self._turn(0.005)
            if time.monotonic() - began > PATIENCE:
                raise BenchError("nobody leads")
        assert self.events.recorder is not None
        self.least = Rounds(phones, registers, self._commit, self._turn, self.events.recorder).least

    def _commit(self, registers: tuple[Register, ...]) -> float:
        """Have the leader commit an entry; the seconds of its reactor's thread."""
        outcomes: list[object] = []
        begin = time.thread_time()
        for register in registers:
            self.replica.propose(register, outcomes.append)
        spent = time.thread_time() - begin
        while len(outcomes) < len(registers) or self._behind():
            spent += self._turn(0.001)
        if not all(isinstance(outcome, Registered) for outcome in outcomes):
            raise BenchError(f"refused: {outcomes[-1]}")
        return spent

    def _behind(self) -> bool:
        status = self.replica.status()
        return status.durable_index < status.last_index

    def _turn(self, wait: float) -> float:
        begin = time.thread_time()
        self.reactor.iterate(wait)
        self.reactor.iterate(0)
        spent = time.thread_time() - begin
        for follower in self.followers:
            follower.reactor.iterate(0)
        return spent

    def stop(self) -> None:
        """End all three."""
        ended: list[object] = []
        self.events.stopService().addBoth(ended.append)
        self.replica.stop().addBoth(ended.append)
        for follower in self.followers:
            follower.network.stop().addBoth(ended.append)
        while len(ended) < 2 + len(self.followers):
            self._turn(0.005)


def main() -> None:
    """Read the options, measure, and print."""
    asked = options("bench.leader", "Measure what an entry costs the leader.")
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        bench = Bench(Path(directory), asked.phones, (firsts if asked.first else refreshes)(asked.phones))
        measure(bench.least, asked.rounds, asked.group or GROUPS)
        bench.stop()


if __name__ == "__main__":
    main()
