"""Whether the history of AORs holds up a node while all phones come back: how late its timers are, and its log's syncs.

    .venv/bin/python -m bench.history [--bindings 100000] [--rate 15000] [--directory DIR]

Entries that make so many new bindings are applied at a rate, first by a node that keeps no history, and then by one
that does, in this process. A timer is due each millisecond; a thread beside it writes and syncs what a log would, in
the same directory. What else the machine does makes both later, so that only the two lines are to be compared. With
PYTHONSAFEPATH=1 PYTHONPATH=TREE:. it measures another tree.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from bench.follower import firsts
from sipha.events.feed import Feed, Source
from sipha.events.history import History
from sipha.events.recorder import Place, Recorder
from sipha.garbage import GarbageCollection
from sipha.state.entries import SCHEMA, Batch, Policy, encode
from sipha.state.machine import Machine

ENTRY = 85
"""New bindings to an entry, as many as a leader makes one of when it has all it can do."""

BYTES = ENTRY * 250
"""What the log has to write of one."""

TICK = 0.001
KEPT = 30 * 86_400.0
MOST = 1 << 28


class Log:
    """A thread that writes and syncs, as that of the log does, and how long each sync took."""

    def __init__(self, path: Path, rate: float) -> None:
        self.took: list[float] = []
        self._path = path
        self._pause = ENTRY / rate
        self._ended = Event()
        self._thread = Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        with self._path.open("wb", buffering=0) as file:
            while not self._ended.is_set():
                file.write(bytes(BYTES))
                began = time.monotonic()
                os.fdatasync(file.fileno())
                self.took.append(time.monotonic() - began)
                time.sleep(self._pause)


class Node:
    """A table whose entries are told and, with a history, kept; and how late a timer was meanwhile."""

    def __init__(self, directory: Path, *, history: bool) -> None:
        self.reactor: Any = EPollReactor()
        self.machine = machine = Machine()
        self.late: list[float] = []
        source = Source("n1", lambda: machine.index, lambda: machine.time / 1000, time.time, lambda _: "n1")
        feed = machine.observer = Feed(self.reactor, source)
        self._pool = ThreadPool(1, 1, "history")
        self.recorder = Recorder(
            self.reactor,
            partial(deferToThreadPool, self.reactor, self._pool),
            lambda suspect: History(directory / "history", KEPT, MOST, suspect=suspect),
            lambda: Place("c", machine.index, machine.time),
            feed.gap,
        )
        if history:
            feed.archive = self.recorder
        self._garbage = GarbageCollection(self.reactor)

    def run(self, bindings: int, rate: float) -> None:
        """Apply the entries, each when it is due, and write what is left."""
        self._pool.start()
        self.reactor.fireSystemEvent("startup")  # threads have their calls run from now on
        self.recorder.start()
        self._garbage.startService()
        phones = firsts(0)
        entries = [
            encode(Batch(SCHEMA, number, Policy(), tuple(islice(phones, ENTRY)))) for number in range(bindings // ENTRY)
        ]
        began = time.monotonic()
        self.reactor.callLater(TICK, self._tick, began + TICK)
        for number, entry in enumerate(entries):
            while time.monotonic() < began + number * ENTRY / rate:
                self.reactor.iterate(0.001)
            self.machine.apply(number + 1, entry)
        ended: list[object] = []
        self.recorder.stop().addBoth(ended.append)
        while not ended:
            self.reactor.iterate(0.001)
        self._garbage.stopService()
        self._pool.stop()

    def _tick(self, due: float) -> None:
        now = time.monotonic()
        self.late.append(now - due)
        self.reactor.callLater(TICK, self._tick, now + TICK)


def _figures(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
    return f"{p50:.2f} ms, p99 {p99:.1f} ms, at most {ordered[-1] * 1e3:.0f} ms"


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(prog="bench.history", description="Measure what the history holds up.")
    parser.add_argument("--bindings", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=15_000)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    for history in (False, True):
        with tempfile.TemporaryDirectory(prefix="sipha-bench-", dir=options.directory) as directory:
            log, node = Log(Path(directory) / "log", options.rate), Node(Path(directory), history=history)
            written, began = _written(), time.process_time()
            node.run(options.bindings, options.rate)
            cpu, written = time.process_time() - began, _written() - written
            log.stop()
            print(
                f"{'with' if history else 'no':4} history: a timer is late by {_figures(node.late)}; a sync of the log "
                f"takes {_figures(log.took)}; {cpu / options.bindings * 1e6:.1f} µs and {written // options.bindings} "
                "bytes to the disk for each binding"
            )


def _written() -> int:
    """The bytes that this process has given to files so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(lines["wchar"])


if __name__ == "__main__":
    main()
