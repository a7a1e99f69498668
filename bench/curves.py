"""How the cost of a REGISTER grows: with the table, the nodes, an AOR's contacts, and what comes at once.

    make curves            a quarter of an hour, and 8 GB of memory
    make curves QUICK=1    a few minutes, with smaller tables

Three nodes unless something else is said, under TLS, with fsync; cores are as in bench.run. `make figures` draws them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from bench import command
from bench.cluster import LEADER_CORE, OTHER_CORE, REPLICATED, Cluster
from bench.load import BenchError, Load, Sample
from bench.noise import measure_noise
from bench.result import describe_machine

_NETWORK = 110


@dataclass(frozen=True)
class Plan:
    """Rounds, seconds of a load, users; and at which points each curve is measured."""

    rounds: int = 5
    seconds: float = 5.0
    users: int = 10_000
    bindings: tuple[int, ...] = (10_000, 100_000, 300_000, 1_000_000)
    nodes: tuple[int, ...] = (1, 3, 5)
    contacts: tuple[int, ...] = (1, 2, 4, 8)
    windows: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)


QUICK = Plan(rounds=2, seconds=1.5, users=2_000, bindings=(10_000, 50_000))


@dataclass
class Point:
    """What was measured at one place of a curve, round by round; `resident` is a node's memory in bytes.

    `entries` are the log's for each REGISTER.
    """

    x: int
    samples: list[Sample] = field(default_factory=list)
    resident: int = 0
    entries: list[float] = field(default_factory=list)


@dataclass
class Curves:
    """All curves; `shares` are the parts of a core that a busy process got before each cluster was started."""

    machine: str
    plan: Plan
    shares: list[float] = field(default_factory=list)
    bindings: list[Point] = field(default_factory=list)
    nodes: list[Point] = field(default_factory=list)
    contacts: list[Point] = field(default_factory=list)
    windows: list[Point] = field(default_factory=list)


def read(file: Path) -> Curves:
    """Read what was written; raises msgspec.ValidationError."""
    return msgspec.json.decode(file.read_bytes(), type=Curves)


class Bench:
    """Measures in directories of its own below `directory`."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.shares: list[float] = []

    def bindings(self) -> Iterator[Point]:
        """Users in random order out of more and more, all of whom are registered."""
        for number in self.plan.bindings:
            with self._cluster(bindings=number) as cluster:
                load, point = Load(cluster), Point(number)
                for _ in range(self.plan.rounds):
                    sample = load.register(users=range(number), seconds=self.plan.seconds, shuffled=True)
                    point.samples.append(_told(f"{number:,} bindings", sample))
                point.resident = cluster.trees()["leader"].resident()
            yield point

    def nodes(self) -> Iterator[Point]:
        """Clusters of several sizes, in turns."""
        points = {number: Point(number) for number in self.plan.nodes}
        for _ in range(self.plan.rounds):
            for number, point in points.items():
                with self._cluster(size=number) as cluster:
                    sample = self._refresh(cluster)
                    point.samples.append(_told(f"{number} nodes", sample))
        yield from points.values()

    def contacts(self) -> Iterator[Point]:
        """Users that have more and more contacts, of which one is refreshed."""
        with self._cluster() as cluster:
            load, users = Load(cluster), range(self.plan.users)
            cluster.add_users(len(users))
            for number in self.plan.contacts:
                for contact in range(number):
                    load.register(users=users, count=len(users), port=5999 - contact)
                if (there := _status(cluster)["bindings"]) != number * len(users):
                    raise BenchError(f"{len(users)} users have {there} contacts instead of {number} each")
                point = Point(number)
                for _ in range(self.plan.rounds):
                    sample = load.register(users=users, seconds=self.plan.seconds)
                    point.samples.append(_told(f"{number} contacts", sample))
                yield point

    def windows(self) -> Iterator[Point]:
        """More and more REGISTERs under way at once, and so in one entry of the log."""
        with self._cluster() as cluster:
            load, users = Load(cluster), range(self.plan.users)
            cluster.add_users(len(users))
            load.register(users=users, count=len(users))
            points = {window: Point(window) for window in self.plan.windows}
            for _ in range(self.plan.rounds):
                for window, point in points.items():
                    before = _status(cluster)["applied_index"]
                    sample = load.register(users=users, seconds=self.plan.seconds, window=window)
                    point.entries.append((_status(cluster)["applied_index"] - before) / sample.ok)
                    point.samples.append(_told(f"{window} at once", sample))
            yield from points.values()

    def _refresh(self, cluster: Cluster) -> Sample:
        load, users = Load(cluster), range(self.plan.users)
        cluster.add_users(len(users))
        load.register(users=users, count=len(users))
        return load.register(users=users, seconds=self.plan.seconds)

    @contextmanager
    def _cluster(self, *, size: int = REPLICATED.size, bindings: int = 0) -> Iterator[Cluster]:
        """A cluster of our own, which perhaps begins with so many of the users' bindings."""
        self.shares.append(measure_noise(self.directory, (LEADER_CORE, OTHER_CORE)).share)
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            cluster = Cluster(replace(REPLICATED, size=size), Path(name), f"127.0.{_NETWORK}")
            if bindings:
                cluster.preload(bindings, phones=True)
            try:
                cluster.start()
                yield cluster
            finally:
                cluster.stop()


def _status(cluster: Cluster) -> dict[str, Any]:
    status = cluster.sandbox.status(cluster.leader)
    if status is None:
        raise BenchError(f"{cluster.leader.name} doesn't answer")
    return status


def _told(what: str, sample: Sample) -> Sample:
    print(f"  {what}: {sample.rate:,.0f}/s, leader {sample.cpu_us['leader']:.1f} µs", file=sys.stderr, flush=True)
    return sample


def main() -> None:
    """Measure the curves."""
    options = command.options("bench.curves", "Measure how the cost of a REGISTER grows.", "curves.json")
    plan = QUICK if options.quick else Plan()
    curves = Curves(describe_machine(), plan)
    with command.scratch(options.directory) as directory:
        bench = Bench(directory, plan)
        curves.windows = list(bench.windows())
        curves.contacts = list(bench.contacts())
        curves.nodes = list(bench.nodes())
        curves.bindings = list(bench.bindings())
        curves.shares = bench.shares
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(curves), indent=1) + b"\n")


if __name__ == "__main__":
    main()
