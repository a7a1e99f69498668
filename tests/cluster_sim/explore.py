"""Runs seeds: clusters under random faults, with clients whose histories must be linearizable.

    python -m tests.cluster_sim.explore --seeds 1000 --first 1

says which seed fails, and why, with exit status 1; `--seeds 1 --first SEED` repeats it exactly.
"""

from __future__ import annotations

import argparse
import random
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogBeginner, globalLogPublisher
from zope.interface import implementer

from tests.cluster_sim.clients import Client, Refreshing, Registering
from tests.cluster_sim.events import Flood
from tests.cluster_sim.faults import Faults
from tests.cluster_sim.network import RETRY
from tests.cluster_sim.node import Options
from tests.cluster_sim.violation import Violation
from tests.cluster_sim.weather import WEATHERS, Weather
from tests.cluster_sim.world import World, seeded, small

AORS = ("sip:alice@example.com", "sip:bob@example.com")

TO_LEAD = 8.0
"""Seconds after all is mended within which a node must lead."""

TO_SETTLE = 8.0
"""Seconds after that within which all must have the same."""

PROCESSES = 2

_CHUNK = 20


@dataclass(frozen=True)
class Result:
    """How a seed went: `trace` is a checksum over all that happened."""

    seed: int
    trace: int
    commits: int
    operations: int
    failure: str = ""


@implementer(ILogObserver)
class Complaints:
    """What is logged as a failure; nothing should be."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.heard.append(f"{formatEvent(event)}: {event['log_failure'].getTraceback()}")


def explore(seed: int, nodes: int | None = None, weather: Weather | None = None) -> Result:
    """Run one seed; in the weather that it draws, if none is given."""
    world: World | None = None
    complaints = Complaints()
    globalLogPublisher.addObserver(complaints)
    failure = ""
    try:
        with seeded(seed), small():
            try:
                weather = weather or random.Random(f"{seed} weather").choice(WEATHERS)
                world = make(seed, weather, nodes)
                _run(world, weather)
            except (AssertionError, Violation, Flood) as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                failure = f"{error} ({last.name}, line {last.lineno})"
            except Exception:  # noqa: BLE001  whatever it is, it is the seed's
                failure = traceback.format_exc()
            if world is not None:
                world.close()
    finally:
        globalLogPublisher.removeObserver(complaints)
    if complaints.heard and not failure:
        failure = complaints.heard[0]
    if world is None:
        return Result(seed, 0, 0, 0, failure)
    return Result(seed, world.trace, world.invariants.commits, len(world.history.operations), failure)


def make(seed: int, weather: Weather, nodes: int | None = None) -> World:
    """The cluster of a seed."""
    dice = random.Random(f"{seed} world")
    count = nodes or dice.choice(weather.nodes)
    names = "abcde"[:count]
    minimum = dice.choice(weather.elections)
    guarded = dice.random() < 0.7
    options = {
        name: Options(
            election_min=dice.choice(minimum),
            priority=dice.choice([100, 100, 50]),
            guarded=guarded,
        )
        for name in names + "x"
    }
    world = World(seed, names, spare="x", options=options)
    world.net.retry = dice.choice([0.05, RETRY])
    return world


def _run(world: World, weather: Weather) -> None:
    """Faults under load, then peace, then all must agree."""
    faults = Faults(world, weather)
    dice = faults.dice
    pause, loyalty = dice.choice(weather.pauses), dice.choice([0.95, 0.95, 0.3])
    clients = [Client(world, f"c{number}", AORS, pause, loyalty) for number in range(dice.choice([2, 4]))]
    phones: list[Registering | Refreshing] = [
        *(Registering(world, f"p{number}", 0.5) for number in range(weather.phones)),
        Refreshing(world, "r", pause),
    ]
    world.advance(dice.choice([0.0, 0.5, 2.0]))
    for _ in range(dice.choice([10, 20, 30])):
        world.advance(dice.expovariate(1 / faults.pace))
        faults.strike()
    faults.end()
    world.until(world.leader, world.patience + TO_LEAD, "no node leads")
    for client in clients:
        client.stopped = True
    for phone in phones:
        phone.stopped = True
    world.settle(TO_SETTLE)
    for client in clients:
        client.look()
    world.advance(1.0)
    world.history.check()


def run(seeds: Iterator[int], nodes: int | None = None, processes: int = PROCESSES) -> Iterator[Result]:
    """Run seeds side by side."""
    with ProcessPoolExecutor(processes, initializer=hush) as pool:
        under_way: set[Future[list[Result]]] = set()
        while True:
            while len(under_way) < 2 * processes and (chunk := list(islice(seeds, _CHUNK))):
                under_way.add(pool.submit(_explore_all, chunk, nodes))
            if not under_way:
                return
            done = next(as_completed(under_way))
            under_way.remove(done)
            yield from done.result()


def hush() -> None:
    """Let this process log nothing: its nodes complain all the time."""
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)


def _explore_all(seeds: list[int], nodes: int | None) -> list[Result]:
    return [explore(seed, nodes) for seed in seeds]


def main() -> int:
    """Run the seeds that the command line names."""
    parser = argparse.ArgumentParser(description="Runs seeds of the simulated cluster until one fails.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--nodes", type=int, choices=[3, 5], help="as many nodes, instead of what each seed draws")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="how many run side by side")
    parser.add_argument("--keep-on", action="store_true", help="run all, even if one fails")
    arguments = parser.parse_args()
    failed = commits = operations = count = 0
    seeds = iter(range(arguments.first, arguments.first + arguments.seeds))
    for result in run(seeds, arguments.nodes, arguments.processes):
        count, commits, operations = count + 1, commits + result.commits, operations + result.operations
        if result.failure:
            failed += 1
            print(f"seed {result.seed} (trace {result.trace:08x}) fails: {result.failure}", flush=True)
            if not arguments.keep_on:
                return 1
    print(f"{count} seeds, {failed} failed; {commits} commits, {operations} operations checked")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
