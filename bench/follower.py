"""What a REGISTER costs a follower of the log, by CPU time: one in this process, which hears a leader over TLS.

    .venv/bin/python -m bench.follower [--first] [--rounds 40] [--phones 20000] [--group 16]

Who leads is here too, as far as the follower can tell: it sends refreshes, or with `--first` the REGISTERs of phones
that are new, so many to an entry, and the next entry when the follower has the last one on its disk; that it is
committed is told with the next. What is counted is the follower's: the reactor's thread, from the bytes of the kernel
to the answer, the thread that writes the log, and the one that writes the history. It prints the least of the rounds,
since whatever else the machine does only adds to it; of the history, which gathers what it writes, all of it. To
compare two trees, run them in turns, with PYTHONSAFEPATH=1 PYTHONPATH=TREE:.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.epollreactor import EPollReactor
from zope.interface import implementer

from bench.log_nodes import Cluster
from sipha import config
from sipha.cluster.disk import FileDisk
from sipha.cluster.guards import REGULAR
from sipha.cluster.peers import INetworkUser, Peers
from sipha.cluster.raft import Timing, clock
from sipha.cluster.replica import Replica
from sipha.cluster.tls import Credentials
from sipha.cluster.wire import PROTOCOL, AppendEntries, AppendReply, Entry, Hello, LastWord, RaftMessage
from sipha.config.texts import AbsolutePath, DomainName, NodeName
from sipha.events.recorder import Recorder
from sipha.service.events import EventService
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Register, encode
from sipha.state.machine import Machine

LEADER, FOLLOWER = "a", "b"
GROUPS = (1, 4, 16, 64, 160)
ENTRIES = 16
"""Entries of a round."""

TERM = 2
HEARTBEAT = 0.05
_FOUNDED = (3, 1)  # index and term of the last entry of a founder's log
_PATIENT = Timing(election_min=4.0, election_max=8.0)
_SECRET = bytes(32)


def record(phone: int, cseq: int) -> Register:
    """A REGISTER as the registrar proposes it."""
    user = f"u{phone:08}"
    return Register(
        f"sip:{user}@sipha.test",
        f"c{phone:08}@ua.sipha.test",
        cseq,
        (Contact(f"sip:{user}@127.0.8.200:5999;transport=udp", 3600, jitter=phone % 360),),
        received="sip:127.0.8.200:5999",
        socket="udp:127.0.8.100:5060",
        user_agent="phone/1.0",
    )


def network(cluster: Cluster, node: str, others: Collection[str], reactor: Any) -> Peers:
    """The connections of a node with others."""
    directory = cluster.directory / "tls"
    credentials = Credentials(*(directory / name for name in ("ca.pem", f"{node}.pem", f"{node}.key")))
    addresses = {name: cluster.addresses[name] for name in others}
    return Peers(reactor, node, cluster.addresses[node], addresses, "sipha", credentials)


def refreshes(phones: int) -> Iterator[Register]:
    """Phones that are there register again, in turns."""
    for cseq in count(2):
        yield from (record(phone, cseq) for phone in range(phones))


def firsts(phones: int) -> Iterator[Register]:
    """Phones that aren't there register, in no order."""
    for number in count(1):
        yield record(phones + number * 48_271 % 99_999_989, 1)


def events(reactor: Any, directory: Path, replica: Replica) -> EventService:
    """What happens on a node, told and kept as in a whole one, with a history in a directory of its own."""
    node = config.Node(NodeName(replica.node), AbsolutePath(str(directory / "events")))
    node.data_dir.path.mkdir()
    service = EventService(reactor, config.Config(node, (config.Domain(DomainName("sipha.test")),)), replica, tuple)
    service.startService()
    return service


class Spent(NamedTuple):
    """Seconds of CPU time for each REGISTER: of the reactor's thread, and of those that write log and history."""

    reactor: float
    disk: float
    history: float


class Rounds:
    """Phones that are registered, and what registers then.

    `commit` has a replica take an entry, and says how many seconds of CPU time its reactor took; `turn` has it do what
    is due; `recorder` writes its history.
    """

    def __init__(
        self,
        phones: int,
        registers: Iterator[Register],
        commit: Callable[[tuple[Register, ...]], float],
        turn: Callable[[float], object],
        recorder: Recorder,
    ) -> None:
        self._registers = registers
        self._commit = commit
        self._turn = turn
        self._recorder = recorder
        for first in range(0, phones, 100):
            commit(tuple(record(phone, 1) for phone in range(first, first + 100)))
        (self._history,) = _clocks("PoolThread-history-0")
        self._write()

    def least(self, rounds: int, group: int) -> Spent:
        """What REGISTERs take, with so many to an entry."""
        begin = time.clock_gettime(self._history)
        found = [self._round(group) for _ in range(rounds)]
        self._write()
        history = (time.clock_gettime(self._history) - begin) / rounds / ENTRIES / group
        return Spent(min(reactor for reactor, _ in found), min(disk for _, disk in found), history)

    def _round(self, group: int) -> tuple[float, float]:
        batches = [tuple(islice(self._registers, group)) for _ in range(ENTRIES)]
        begin = self._disk()
        spent = sum(map(self._commit, batches))
        return spent / ENTRIES / group, (self._disk() - begin) / ENTRIES / group

    def _disk(self) -> float:
        """Seconds of CPU time of what writes the log: all that runs beside this thread, but for the history's."""
        return time.process_time() - time.thread_time() - time.clock_gettime(self._history)

    def _write(self) -> None:
        """Have the history written."""
        written: list[object] = []
        self._recorder.read("", "", 1).addBoth(written.append)
        while not written:
            self._turn(0.001)


def _clocks(thread: str) -> Iterator[int]:
    """The CPU clock of each thread of this name."""
    return (time.pthread_getcpuclockid(each.ident or 0) for each in threading.enumerate() if each.name == thread)


@implementer(INetworkUser)
class Leader:
    """Who leads."""

    def __init__(self, cluster: Cluster) -> None:
        self.reactor: Any = EPollReactor()
        self.acked = _FOUNDED[0]
        self.connections = 0
        self._machine = Machine()
        self._last: tuple[int, int] = _FOUNDED
        self._time = 0
        self._beaten = 0.0
        self._cluster_id = cluster.cluster_id
        self.network = network(cluster, LEADER, [FOLLOWER], self.reactor)
        self.network.start(self)

    def introduce(self) -> Hello:
        """See INetworkUser."""
        return Hello(PROTOCOL, "sipha", LEADER, self._cluster_id, "0" * 32, SCHEMA, 100, trouble="")

    def greeted(self, peer: str, hello: Hello) -> str | None:  # noqa: ARG002  an interface
        """See INetworkUser."""
        return None

    def connected(self, peer: str) -> None:  # noqa: ARG002  an interface
        """See INetworkUser."""
        self.connections += 1

    def disconnected(self, peer: str) -> None:
        """See INetworkUser."""

    def received(self, peer: str, message: RaftMessage) -> None:  # noqa: ARG002  an interface
        """See INetworkUser."""
        if isinstance(message, AppendReply):
            self.acked = max(self.acked, message.next_index - 1)

    def last_word_heard(self, word: LastWord) -> None:
        """See INetworkUser."""

    def append(self, registers: tuple[Register, ...]) -> int:
        """Send the next entry, in which these are; return its index."""
        index, term = self._last
        self._time += 10
        records = tuple(map(self._machine.location.shortened, registers))
        entry = encode(Batch(SCHEMA, self._time, Policy(), records))
        self._machine.apply(index + 1, entry)
        command = bytes([REGULAR]) + entry
        self._last = (index + 1, TERM)
        self._send(index, term, [(command, index + 1, TERM)])
        return index + 1

    def beat(self) -> None:
        """Send a heartbeat if it is due."""
        if time.monotonic() - self._beaten > HEARTBEAT:
            self._send(*self._last, [])

    def _send(self, index: int, term: int, entries: list[Entry]) -> None:
        self._beaten = time.monotonic()
        sent = int(clock() * 1e6)
        append = AppendEntries(TERM, self.acked, index, term, entries, sent, 3000, self._time, 1, _SECRET, False)
        if not self.network.send(FOLLOWER, append):
            raise RuntimeError("the follower takes no more")


class Bench:
    """A leader, and a follower that has a binding of each of so many phones, before what registers then."""

    def __init__(self, directory: Path, phones: int, registers: Iterator[Register]) -> None:
        cluster = Cluster(directory, realtime=False)
        cluster.certify()
        cluster.found()
        self.leader = Leader(cluster)
        self.reactor: Any = EPollReactor()
        disk = FileDisk(str(directory / FOLLOWER), self.reactor)
        peers = network(cluster, FOLLOWER, cluster.addresses.keys() - {FOLLOWER}, self.reactor)
        seeds = {name: address for name, address in cluster.addresses.items() if name != FOLLOWER}
        self.replica = Replica(self.reactor, FOLLOWER, disk, peers, seeds, Policy(), timing=_PATIENT, boot_id="bench")
        self.events = events(self.reactor, directory, self.replica)
        self.replica.start()
        while not self.leader.connections:
            self.leader.reactor.iterate(0.005)
            self.reactor.iterate(0.005)
        assert self.events.recorder is not None
        self.least = Rounds(phones, registers, self._commit, self._turn, self.events.recorder).least

    def beat(self, count: int) -> float:
        """The seconds of the reactor's thread for a heartbeat, and what is done between two."""
        spent = 0.0
        for _ in range(count):
            time.sleep(HEARTBEAT)
            self.leader.beat()
            spent += self._turn(0)
        return spent / count

    def _commit(self, registers: tuple[Register, ...]) -> float:
        """Have the follower take an entry; the seconds of its reactor's thread."""
        index = self.leader.append(registers)
        spent = 0.0
        while self.leader.acked < index:
            spent += self._turn(0.001)
            self.leader.reactor.iterate(0)
        return spent

    def _turn(self, wait: float) -> float:
        begin = time.thread_time()
        self.reactor.iterate(wait)
        self.reactor.iterate(0)
        return time.thread_time() - begin

    def stop(self) -> None:
        """End both."""
        ended: list[object] = []
        self.events.stopService().addBoth(ended.append)
        self.replica.stop().addBoth(ended.append)
        self.leader.network.stop().addBoth(ended.append)
        while len(ended) < 3:
            self.leader.reactor.iterate(0.005)
            self.reactor.iterate(0.005)


def options(prog: str, description: str) -> argparse.Namespace:
    """The options of this bench, and of the leader's."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--first", action="store_true", help="phones that are new, rather than refreshes")
    parser.add_argument("--group", type=int, action="append", help="REGISTERs to an entry; several times for several")
    parser.add_argument("--phones", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=40)
    return parser.parse_args()


def measure(least: Callable[[int, int], Spent], rounds: int, groups: Sequence[int]) -> None:
    """Measure with so many REGISTERs to an entry, and print."""
    for group in groups:
        reactor, disk, history = (seconds * 1e6 for seconds in least(rounds, group))
        print(
            f"{group:4} to an entry: {reactor:.1f} µs a REGISTER in the reactor, {disk:.1f} for the disk, "
            f"{history:.1f} for the history; {reactor * group:.0f} µs an entry in the reactor"
        )


def main() -> None:
    """Read the options, measure, and print."""
    asked = options("bench.follower", "Measure what a REGISTER costs a follower.")
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        bench = Bench(Path(directory), asked.phones, (firsts if asked.first else refreshes)(asked.phones))
        measure(bench.least, asked.rounds, asked.group or GROUPS)
        print(f"a heartbeat: {bench.beat(10) * 1e6:.0f} µs")
        bench.stop()


if __name__ == "__main__":
    main()
