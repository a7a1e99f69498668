"""A node of sipha's log in a process of its own: `Replica` without SIP, and what `bench.log_nodes` asks of it.

Entries are asked for by a source, which sends the time of each down a socket, or by the node itself: one for each that
is committed.
"""

from __future__ import annotations

import socket
import sys
import time
from array import array
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

STARTED = time.monotonic()

from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.interfaces import IReadDescriptor  # noqa: E402
from twisted.logger import globalLogBeginner, textFileLogObserver  # noqa: E402
from zope.interface import implementer  # noqa: E402

from bench.log_data import BOOT  # noqa: E402
from bench.log_figures import STAMP, Groups, Latency, Stalls, record, spread  # noqa: E402
from sipha.cluster.disk import FileDisk  # noqa: E402
from sipha.cluster.peers import Peers  # noqa: E402
from sipha.cluster.raft import Timing  # noqa: E402
from sipha.cluster.recorder import Recorder  # noqa: E402
from sipha.cluster.replica import Replica  # noqa: E402
from sipha.cluster.tls import Credentials  # noqa: E402
from sipha.errors import Unavailable  # noqa: E402
from sipha.garbage import GarbageCollection  # noqa: E402
from sipha.sip.flow import Address  # noqa: E402
from sipha.state.entries import Policy  # noqa: E402
from sipha.state.outcomes import Outcome  # noqa: E402

reactor: Any = _reactor

_PIECE = 64 * 1024
_WATCH = 0.001
_LOOK = 0.01


class Setup(msgspec.Struct):
    """How the node is to be.

    `tls` is the directory of the certificates, empty for plain TCP; `slow` is by how many seconds each sync of its disk
    takes longer.
    """

    node: str
    addresses: dict[str, tuple[str, int]]
    directory: str
    tls: str = ""
    sync: bool = True
    slow: float = 0.0
    keys: int = 100_000


class SlowRecorder(Recorder):
    """Takes longer by some seconds for each sync."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def sync(self, file: int) -> None:
        """See Recorder."""
        time.sleep(self._seconds)
        super().sync(file)


class SlowDisk(FileDisk):
    """A disk whose syncs take longer by some seconds."""

    def __init__(self, directory: str, seconds: float) -> None:
        super().__init__(directory, reactor, partial(SlowRecorder, seconds))
        self._seconds = seconds

    def sync(self, name: str) -> None:
        """See Disk."""
        time.sleep(self._seconds)
        super().sync(name)


@implementer(IReadDescriptor)
class Ear:
    """Our end of a pair of sockets: `heard` is told what comes."""

    def __init__(self, descriptor: int, heard: Callable[[bytes], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._heard = heard
        reactor.addReader(self)

    def say(self, what: Any) -> None:
        """Say something to the other end."""
        self._socket.send(msgspec.json.encode(what))

    def fileno(self) -> int:
        """See IReadDescriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See IReadDescriptor."""
        return "bench"

    def doRead(self) -> None:
        """See IReadDescriptor."""
        data = self._socket.recv(_PIECE)
        if data:
            self._heard(data)
        else:
            reactor.stop()

    def connectionLost(self, reason: Any) -> None:
        """See IReadDescriptor."""


class Watch:
    """How late a timer of one millisecond is, which is for how long the reactor did something else.

    What of that was our own doing shows in the CPU time of the reactor's thread: the host may have had other work.
    """

    def __init__(self) -> None:
        self._late = array("d")
        self._own = 0.0
        self._due = self._cpu = 0.0
        self._call: Any = None

    def start(self) -> None:
        """Begin to watch."""
        self._late = array("d")
        self._own = 0.0
        self._arm()

    def stop(self) -> Stalls:
        """Watch no more, and say how late it was."""
        self._call.cancel()
        return Stalls(spread(self._late), self._own)

    def _arm(self) -> None:
        self._due = time.monotonic() + _WATCH
        self._cpu = time.thread_time()
        self._call = reactor.callLater(_WATCH, self._ring)

    def _ring(self) -> None:
        late = time.monotonic() - self._due
        self._late.append(late)
        self._own = max(self._own, min(late, time.thread_time() - self._cpu))
        self._arm()


class Node:
    """The replica, and what is asked of it."""

    def __init__(self, setup: Setup, control: int, source: int) -> None:
        self._setup = setup
        disk = SlowDisk(setup.directory, setup.slow) if setup.slow else FileDisk(setup.directory, reactor)
        peers: dict[str, Address] = {name: (host, port) for name, (host, port) in setup.addresses.items()}
        own = peers.pop(setup.node)
        network = Peers(reactor, setup.node, own, peers, "sipha", _credentials(setup))
        began = time.monotonic()
        self.replica = Replica(
            reactor,
            setup.node,
            disk,
            network,
            peers,
            Policy(),
            sync=setup.sync,
            timing=Timing(election_min=0.8, election_max=1.6),  # the machine may be busy
            boot_id=BOOT,
            failed=self._failed,
        )
        self._opened = time.monotonic()
        self._opening = self._opened - began
        self._latency = Latency()
        self._watch = Watch()
        self._numbers = count()
        self._control = Ear(control, self._command)
        self._source = Ear(source, self._asked)
        self._rest = b""

    def start(self) -> None:
        """Run."""
        GarbageCollection(reactor).startService()
        reactor.addSystemEventTrigger("before", "shutdown", self.replica.stop)
        self.replica.start()

    def _failed(self, reason: str) -> None:
        print(f"{self._setup.node}: {reason}", file=sys.stderr)
        reactor.stop()

    # Entries

    def _propose(self, done: Callable[[Outcome | Unavailable], None]) -> None:
        self.replica.propose(record(next(self._numbers), self._setup.keys), done)

    def _asked(self, data: bytes) -> None:
        data = self._rest + data
        size = len(data) - len(data) % STAMP.size
        self._rest = data[size:]
        for (began,) in STAMP.iter_unpack(data[:size]):
            self._propose(partial(self._answered, began))

    def _answered(self, began: float, outcome: Outcome | Unavailable) -> None:
        self._latency.add(not isinstance(outcome, Unavailable), time.monotonic() - began)

    def do_closed(self, window: int, seconds: float, entries: int) -> None:
        """Keep so many records waiting, for some seconds or until so many are committed; say what became of them."""
        good = bad = waiting = 0
        refilling = False
        began = time.monotonic()

        def refill() -> None:
            nonlocal waiting, refilling
            refilling = False
            elapsed = time.monotonic() - began
            if elapsed < seconds and good < entries:
                while waiting < window and not refilling:  # an answer at once is a refusal
                    waiting += 1
                    self._propose(done)
            elif not waiting:
                self._control.say(Groups(good, bad, elapsed))

        def done(outcome: Outcome | Unavailable) -> None:
            nonlocal good, bad, waiting, refilling
            waiting -= 1
            if isinstance(outcome, Unavailable):
                bad += 1
            else:
                good += 1
            if not refilling:
                refilling = True
                reactor.callLater(0.01 if bad else 0.0, refill)  # what is refused would be refused again at once

        refill()

    # Commands

    def _command(self, data: bytes) -> None:
        command = msgspec.json.decode(data)
        getattr(self, f"do_{command.pop('do')}")(**command)

    def do_status(self) -> None:
        """Say where the node is."""
        status = self.replica.status()
        self._control.say(
            {
                "leading": status.leading,
                "leader": status.leader,
                "applied": status.applied_index,
                "snapshot": status.snapshot_index,
                "journal": status.journal_bytes,
                "hash": status.hash,
                "alarms": status.alarms,
                "counters": status.counters,
            }
        )

    def do_reset(self) -> None:
        """Forget what was measured."""
        self._latency = Latency()
        self._control.say(None)

    def do_collect(self) -> None:
        """Say what was measured."""
        self._control.say(self._latency.report())

    def do_watch(self) -> None:
        """Watch the reactor."""
        self._watch.start()
        self._control.say(None)

    def do_unwatch(self) -> None:
        """Say how late the reactor was."""
        self._control.say(self._watch.stop())

    def do_snapshot(self) -> None:
        """Take a snapshot; when it is durable, say how long that took."""
        before = self.replica.status().snapshot_index
        began = time.monotonic()

        def look() -> None:
            if self.replica.status().snapshot_index == before:
                reactor.callLater(_LOOK, look)
            else:
                self._control.say(time.monotonic() - began)

        self.replica._catchup.want()  # noqa: SLF001  nobody but the replica itself has to want one
        look()

    def do_transfer(self, to: str) -> None:
        """Hand leadership on, and say what has become of that."""
        self.replica.transfer(to).addBoth(lambda result: self._control.say(str(result)))

    def do_until(self, applied: int) -> None:
        """When an entry is applied say when that was, and how long each step since the start took."""

        def look() -> None:
            if self.replica.machine.index < applied:
                reactor.callLater(_WATCH, look)
                return
            now = time.monotonic()
            self._control.say(
                {
                    "imported": STARTED,
                    "opening": self._opening,
                    "applying": now - self._opened,
                    "at": now,
                    "cpu": time.process_time(),
                }
            )

        look()


def _credentials(setup: Setup) -> Credentials | None:
    if not setup.tls:
        return None
    directory = Path(setup.tls)
    return Credentials(directory / "ca.pem", directory / f"{setup.node}.pem", directory / f"{setup.node}.key")


def main() -> None:
    """Run the node that the arguments describe: a Setup in JSON, and the descriptors of two sockets."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    log = Path(f"{setup.directory}.log").open("a")  # noqa: SIM115  as long as the process lives
    globalLogBeginner.beginLoggingTo([textFileLogObserver(log)], redirectStandardIO=False)
    node = Node(setup, int(sys.argv[2]), int(sys.argv[3]))
    reactor.callWhenRunning(node.start)
    reactor.run()


if __name__ == "__main__":
    main()
