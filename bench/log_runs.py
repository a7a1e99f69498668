"""The measurements of `bench.log`: each yields figures, which hold what each round gave."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import log_data
from bench.load import BenchError
from bench.log_figures import Groups, Report, Spread, Stalls
from bench.log_nodes import LEADER_CORE, NAMES, OTHER_CORE, SETTLE, Cluster, Process, cluster, drive, open_loop, until
from bench.noise import measure_noise

RATE = 1000
WINDOW = 2000
SLOW = 0.2
IDEAL = 0.0002
_NEVER = 10**9
_UNCUT = {"logCompactionMinEntries": _NEVER, "logCompactionMinTime": _NEVER}  # the library keeps all of its log
_UNHURRIED = 600.0
_NOTED = 2.0  # by then the library has written down what is committed
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Plan:
    """How much is measured; `seconds` are those of one load."""

    rounds: int = 5
    seconds: float = 5.0
    entries: int = 100_000
    bindings: int = 1_000_000
    writes: int = 7_000_000


QUICK = Plan(2, 3.0, 20_000, 100_000, 300_000)


@dataclass
class Figures:
    """What was measured of one thing, by name of the figure and in order of the rounds: seconds, bytes, numbers."""

    name: str
    rounds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **values: float) -> None:
        """Take what a round gave."""
        for name, value in values.items():
            self.rounds[name].append(value)

    def add_spread(self, name: str, times: Spread) -> None:
        """Take how some times spread in a round."""
        self.add(**{f"{name}_p50": times.p50, f"{name}_p99": times.p99, f"{name}_longest": times.longest})

    def add_report(self, report: Report) -> None:
        """Take what became of a round's entries."""
        self.add(done=report.done, failed=report.failed)
        self.add_spread("commit", report.latency)


class Bench:
    """Measures in directories of its own below `directory`; `progress` is told what is being done."""

    def __init__(self, directory: Path, plan: Plan, progress: Callable[[str], None], *, realtime: bool) -> None:
        self.directory = directory
        self.plan = plan
        self.noise = Figures("this host while the nodes rest")
        self._progress = progress
        self._realtime = realtime
        self._runs = 0

    @contextmanager
    def _cluster(self, what: str, *, tls: bool = True, hurried: bool = True, memory: bool = False) -> Iterator[Cluster]:
        """An empty cluster of our own; its data goes with it."""
        self._progress(what)
        self._runs += 1
        directory = (_MEMORY if memory else self.directory) / f"{self.directory.name}-{self._runs}"
        try:
            with cluster(directory, realtime=self._realtime and hurried) as made:
                if tls:
                    made.certify()
                yield made
        finally:
            shutil.rmtree(directory)

    # What the host does by itself

    def measure_noise(self) -> None:
        """See Noise."""
        noise = measure_noise(self.directory, (LEADER_CORE, OTHER_CORE))
        self.noise.add_spread("sync", noise.sync)
        self.noise.add_spread("sleep", noise.late)

    # Commits

    def commits(self) -> Iterator[Figures]:
        """Entries at a rate, then as many as go in groups: the library's nodes and ours, in turns."""
        ideal = f"sipha, mTLS, a disk of {IDEAL * 1000:g} ms"
        kinds: dict[str, Callable[[Cluster], None]] = {
            "PySyncObj, as documented": lambda made: made.start_stock(NAMES, {}),
            "PySyncObj, tuned": lambda made: made.start_stock(NAMES, _UNCUT | {"appendEntriesUseBatch": False}),
            "sipha, plain, os": lambda made: _start(made, sync=False),
            "sipha, plain, fsync": _start,
            ideal: lambda made: _start(made, slow=IDEAL),
            "sipha, mTLS, fsync": _start,
        }
        figures = {name: Figures(name) for name in kinds}
        for number in range(self.plan.rounds):
            self.measure_noise()
            for name, start in kinds.items():
                what = f"commits, round {number + 1}: {name}"
                with self._cluster(what, tls="TLS" in name, memory=name == ideal) as made:
                    start(made)
                    self._commit(made, figures[name], number)
        yield from figures.values()

    def _commit(self, made: Cluster, figures: Figures, seed: int) -> None:
        leader = made.leader()
        time.sleep(1)
        with _cpu(made, leader, figures, "rate") as done:
            report = open_loop(leader, RATE, self.plan.seconds, seed)
            done(report.done)
        figures.add_report(report)
        with _cpu(made, leader, figures, "groups") as done:
            leader.tell(do="closed", window=WINDOW, seconds=self.plan.seconds, entries=_NEVER)
            groups = leader.answer(Groups)
            done(groups.done)
        figures.add(groups=groups.done / groups.seconds)

    # Starts

    def starts(self) -> Iterator[Figures]:
        """A log that is replayed, by the library's node and by ours, and a snapshot that is loaded."""
        plan = self.plan
        stock = Figures(f"PySyncObj, replay of {plan.entries:,} entries")
        ours = Figures(f"sipha, replay of {plan.entries:,} entries")
        with self._cluster("a log of the library's") as made:
            made.start_stock(("a",), _UNCUT)
            made.leader().tell(do="closed", window=WINDOW, seconds=_NEVER, entries=plan.entries)
            made.nodes["a"].answer(Groups, _UNHURRIED)
            time.sleep(_NOTED)
            for _ in range(plan.rounds):
                made.stop()
                made.start_stock(("a",), _UNCUT)
                _add_start(stock, made.nodes["a"], plan.entries)
        with self._cluster("a log of ours") as made:
            made.found()
            last = log_data.write_log(made.directory / "a", "a", plan.entries)
            for _ in range(plan.rounds):
                made.start("a")
                _add_start(ours, made.nodes["a"], last)
                made.stop()
        yield from (stock, ours)

    def snapshots(self) -> Iterator[Figures]:
        """A big table: loaded, written, and received by a follower that was away, while entries come at a rate."""
        plan = self.plan
        self.measure_noise()
        loaded = Figures(f"sipha, a snapshot of {plan.bindings:,} bindings")
        with self._cluster(loaded.name) as made:
            made.found()
            file = made.directory / "snapshot"
            index = log_data.make_snapshot(file, made.cluster_id, plan.bindings, made.voters)
            for name in ("a", "b"):
                log_data.add_snapshot(made.directory / name, name, file, index)
                made.start(name)
                _add_start(loaded, made.nodes[name], index)
            loaded.add(resident=made.nodes["a"].resident(), size=file.stat().st_size)
            yield loaded
            leader = made.leader()
            (follower,) = made.others(leader)
            time.sleep(1)
            nodes = {"leader": leader, "follower": follower}
            yield from self._watched("two nodes run", nodes, lambda: open_loop(leader, RATE, plan.seconds))
            yield from self._watched(
                "the leader takes a snapshot", nodes, lambda: _load_during(leader, leader, do="snapshot")
            )
            made.start("c", hurried=False)
            late = nodes["late follower"] = made.nodes["c"]
            until(lambda: late.ask(do="status")["leader"])
            yield from self._watched(
                "a follower receives it", nodes, lambda: _load_during(leader, late, do="until", applied=index)
            )
            until(made.agree)

    def _watched(self, what: str, nodes: dict[str, Process], load: Callable[[], Report]) -> Iterator[Figures]:
        """What becomes of a load, then how late the nodes' reactors are meanwhile."""
        self._progress(what)
        for node in nodes.values():
            node.ask(do="watch")
        began = time.monotonic()
        figures = Figures(what)
        figures.add_report(load())
        figures.add(took=time.monotonic() - began - SETTLE)
        yield figures
        for name, node in nodes.items():
            stalls = node.ask(Stalls, do="unwatch")
            figures = Figures(f"{what}: {name}")
            figures.add(own=stalls.own)
            figures.add_spread("late", stalls.late)
            yield figures

    # A node in trouble

    def troubles(self) -> Iterator[Figures]:
        """Commits while all nodes are well, while one's disk is slow, and while one is frozen: in turns."""
        slow = f"disk takes {SLOW * 1000:.0f} ms"
        names = ("all are well", "a follower is frozen", f"a follower's {slow}", f"the leader's {slow}")
        well, frozen, follower, leader = every = [Figures(name) for name in names]
        for number in range(self.plan.rounds):
            self.measure_noise()
            for load, figures in ((self._freeze, (well, frozen)), (self._slow, (follower, leader))):
                with self._cluster(f"troubles, round {number + 1}: {figures[-1].name}") as made:
                    for each, report in zip(figures, load(made), strict=True):
                        each.add_report(report)
        yield from every

    def _freeze(self, made: Cluster) -> Iterator[Report]:
        leader = _begin_without_c(made)
        yield open_loop(leader, RATE, self.plan.seconds)
        made.nodes["c"].freeze()
        yield open_loop(leader, RATE, self.plan.seconds)

    def _slow(self, made: Cluster) -> Iterator[Report]:
        leader = _begin_without_c(made, slow=SLOW)
        yield open_loop(leader, RATE, self.plan.seconds)
        leader.ask(do="transfer", to="c")
        leader = made.leader()
        if leader.name != "c":
            raise BenchError(f"c should lead, and {leader.name} does")
        yield open_loop(leader, RATE, self.plan.seconds)

    # For long

    def bounds(self) -> Iterator[Figures]:
        """Very many writes to the same keys, and what grows."""
        figures = Figures(f"{self.plan.writes:,} writes to 100,000 keys")
        with self._cluster(figures.name, hurried=False) as made:
            made.found()
            made.start(*NAMES)
            leader = made.leader()
            leader.tell(do="closed", window=WINDOW, seconds=_NEVER, entries=self.plan.writes)
            began = time.monotonic()
            snapshots: dict[str, set[str]] = {name: set() for name in NAMES}
            while not leader.answers(within=1.0):
                if time.monotonic() - began > _UNHURRIED:
                    raise BenchError(f"{figures.name} take more than {_UNHURRIED:g} s")
                journals = []
                for name, node in made.nodes.items():
                    files = node.files()
                    journals.append(sum(size for file, size in files.items() if file.startswith("log-")))
                    snapshots[name] |= {file for file in files if file.startswith("snapshot-")}
                figures.add(
                    at=time.monotonic() - began,
                    journal=max(journals),
                    leader=leader.resident(),
                    follower=max(node.resident() for node in made.others(leader)),
                )
            groups = leader.answer(Groups)
            until(made.agree)
            figures.add(
                groups=groups.done / groups.seconds, failed=groups.failed, snapshots=min(map(len, snapshots.values()))
            )
        yield figures


def _begin_without_c(made: Cluster, **options: Any) -> Process:
    """The leader of a cluster that c, which has these options, has joined late."""
    made.found()
    made.start("a", "b")
    made.leader()
    made.start("c", **options)
    until(lambda: made.nodes["c"].ask(do="status")["leader"])
    time.sleep(1)
    return made.leader()


def _load_during(leader: Process, node: Process, **command: Any) -> Report:
    """Ask for entries at a rate while a node does something."""
    leader.ask(do="reset")
    node.tell(**command)
    drive(leader, RATE, _UNHURRIED, enough=lambda: node.answers(0))
    node.answer()
    time.sleep(SETTLE)
    report: Report = leader.ask(Report, do="collect")
    return report


@contextmanager
def _cpu(made: Cluster, leader: Process, figures: Figures, name: str) -> Iterator[Callable[[int], None]]:
    """Find the CPU time of leader and followers for each entry of a load."""
    followers = made.others(leader)
    before = [node.cpu() for node in (leader, *followers)]

    def done(entries: int) -> None:
        first, *rest = (node.cpu() - was for node, was in zip((leader, *followers), before, strict=True))
        each = max(entries, 1)
        figures.add(**{f"{name}_leader": first / each, f"{name}_follower": sum(rest) / len(rest) / each})

    yield done


def _start(made: Cluster, **options: Any) -> None:
    made.found()
    made.start(*NAMES, **options)


def _add_start(figures: Figures, node: Process, applied: int) -> None:
    """Wait until a node that was just started has applied an entry, and take how long each step took."""
    node.tell(do="until", applied=applied)
    told = node.answer(patience=_UNHURRIED)
    figures.add(
        total=told["at"] - node.began,
        importing=told["imported"] - node.began,
        opening=told["opening"],
        applying=told["applying"],
        cpu=told["cpu"],
    )
