"""sipha beside its peers, in turns under the same load on the same cores, as tables and as JSON.

    make bench            about half an hour, and 5 GB of memory
    make bench QUICK=1    three minutes, with smaller tables

Whoever answers the phones has core 0; replicas and the load generator share core 1. Who needs a database may use both
cores. CPU time is that of all processes of a server, the kernel's part included, so it is what a request costs even
where another process was in the way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bench import command, parts, table
from bench.cluster import (
    ALONE,
    COMPILED,
    COMPILED_ALONE,
    LEADER_CORE,
    OTHER_CORE,
    REPLICATED,
    VARIANTS,
    Cluster,
)
from bench.load import BenchError, Load, Sample, Server
from bench.noise import measure_noise
from bench.peers import PEERS
from bench.result import CALL, CALLS, FIRST, HIGH, MOST, OVERLOAD, QUICK, STEADY, STORM, Plan, Result, describe_machine

_IDLE = 2.0
_NETWORK = 100
"""The third number of the first server's loopback addresses."""


class Bench:
    """All servers, running, and what they came to."""

    def __init__(self, servers: Sequence[Server], plan: Plan, result: Result, directory: Path) -> None:
        self.plan = plan
        self.result = result
        self._directory = directory
        self._loads = [Load(server) for server in servers]
        self._users = range(plan.users)

    def prepare(self) -> None:
        """Have each server's users registered, and see what each does while nothing comes."""
        for load in self._loads:
            server = load.server
            _progress(f"{server.name}: users")
            server.add_users(self.plan.users + self.plan.rounds * self.plan.fresh)
            load.register(users=self._users, count=self.plan.users)
            self.result.servers[server.name] = server.guarantee
        before = {load.server.name: _cpu(load.server) for load in self._loads}
        time.sleep(_IDLE)
        self.result.idle = {
            load.server.name: (_cpu(load.server) - before[load.server.name]) / _IDLE for load in self._loads
        }

    def round(self, number: int) -> None:
        """Put each load upon each server in turns."""
        plan, users, seconds = self.plan, self._users, self.plan.seconds
        first = plan.users + number * plan.fresh
        fresh = range(first, first + plan.fresh)
        maximum: dict[str, float] = {}
        loads: dict[str, Callable[[Load], Sample]] = {
            FIRST: lambda load: load.register(users=fresh, count=plan.fresh, reuse=False),
            MOST: lambda load: load.register(users=users, seconds=seconds),
            STEADY: lambda load: load.register(users=users, seconds=seconds, rate=1000),
            HIGH: lambda load: self._high(load, maximum[load.server.name]),
            CALL: lambda load: load.call(users=plan.callers, seconds=seconds),
            CALLS: lambda load: load.call(users=plan.callers, seconds=seconds, rate=100),
        }
        noise = measure_noise(self._directory, (LEADER_CORE, OTHER_CORE))
        for name, times in ((table.SYNC, noise.sync), (table.LATE, noise.late)):
            self.result.noise.setdefault(f"{name} p50", []).append(times.p50)
            self.result.noise.setdefault(f"{name} p99", []).append(times.p99)
        self.result.shares.append(noise.share)
        for name, put in loads.items():
            for load in self._loads:
                server = load.server.name
                sample = put(load)
                if name == MOST:
                    maximum[server] = sample.rate
                self.result.add(server, name, sample)
                _progress(f"round {number + 1}, {name}: {server} {sample.rate:,.0f}/s, {sample.cost:.1f} µs")

    def _high(self, load: Load, maximum: float) -> Sample:
        """80 % of what the server can serve at this moment, and could when its maximum was measured."""
        now = load.register(users=self._users, seconds=self.plan.seconds).rate
        return load.register(users=self._users, seconds=self.plan.seconds, rate=0.8 * min(now, maximum))


def overload(directory: Path, plan: Plan, result: Result, prefix: str) -> None:
    """Offer sipha, compiled, twice what it can serve, then kill all its nodes and have all phones register at once."""
    cluster = Cluster(COMPILED, directory, prefix)
    with _running([cluster]):
        load, users = Load(cluster), range(plan.phones)
        _progress(f"{plan.phones:,} phones")
        cluster.add_users(plan.phones)
        shares = []
        most = load.register(users=users, seconds=plan.seconds).rate
        for _ in range(plan.rounds):
            twice = load.register(users=users, seconds=plan.seconds, rate=2 * most)
            result.add(cluster.name, OVERLOAD, twice)
            # The maximum changes from one moment to the next, with what else the host does.
            before, most = most, load.register(users=users, seconds=plan.seconds).rate
            shares.append(twice.rate / ((before + most) / 2))
        result.parts[cluster.name] = {table.SERVED: shares}
        cluster.restart()
        # As phones do after a power cut: RFC 3261's retransmissions, and another try once Retry-After has passed.
        options = ("-x", "-p", "-T", "32000")
        storm = load.register(*options, users=users, count=plan.phones, seconds=120, window=plan.phones, reuse=False)
        result.add(cluster.name, STORM, storm)
        if not cluster.agreed():
            raise BenchError("the tables of the nodes differ")


def measure_parts(directory: Path, plan: Plan, result: Result) -> None:
    """Find what a large table and pings cost sipha, as the interpreter runs it, and compiled."""
    for variant in (REPLICATED, COMPILED):
        _progress(f"{variant.name}: a large table, and pings")
        result.parts.setdefault(variant.name, {}).update(parts.measure(variant, directory, plan))


def measure_start(directory: Path, plan: Plan, result: Result, prefix: str) -> None:
    """Find how long it takes from killing a node with a large table until a phone has registered with it again.

    By itself, since three have two cores to share here; it has sipha's own timers, which belong to that.
    """
    for variant, alone in ((REPLICATED, ALONE), (COMPILED, COMPILED_ALONE)):
        cluster = Cluster(replace(alone, cluster=""), directory / alone.name, prefix)
        _progress(f"{variant.name}: {plan.bindings:,} bindings")
        cluster.preload(plan.bindings)
        with _running([cluster]):
            cluster.add_users(1)
            load, took = Load(cluster), []
            for _ in range(plan.rounds):
                began = time.monotonic()
                cluster.restart()
                load.register(users=range(1), count=1, reuse=False)
                took.append(time.monotonic() - began)
        result.parts.setdefault(variant.name, {})[table.SERVES] = took


@contextmanager
def _running(servers: Sequence[Server]) -> Iterator[None]:
    """Start the servers, and end them with the block."""
    with ExitStack() as stack:
        try:
            for server in servers:
                _progress(f"{server.name}: starts")
                stack.callback(server.stop)
                server.start()
            yield
        except BaseException:
            for server in servers:
                for log in filter(Path.exists, server.logs()):
                    print(f"-- {log}", *log.read_text(errors="replace").splitlines()[-10:], sep="\n", file=sys.stderr)
            raise


def _cpu(server: Server) -> float:
    return sum(tree.cpu() for tree in server.trees().values())


def _progress(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


def make_servers(directory: Path) -> list[Server]:
    """Variants of sipha and the peers, each with a directory and a network of its own."""
    clusters = [lambda *where, variant=variant: Cluster(variant, *where) for variant in VARIANTS]
    makers: list[Callable[[Path, str], Server]] = [*clusters, *PEERS]
    return [make(directory / f"{number}", f"127.0.{_NETWORK + number}") for number, make in enumerate(makers)]


def main() -> None:
    """Run the benchmark."""
    options = command.options("bench.run", "Measure sipha beside its peers.", "bench.json")
    plan = QUICK if options.quick else Plan()
    result = Result(describe_machine(), plan)
    with command.scratch(options.directory) as directory:
        servers = make_servers(directory)
        with _running(servers):
            bench = Bench(servers, plan, result, directory)
            bench.prepare()
            for number in range(plan.rounds):
                bench.round(number)
        overload(directory / "overload", plan, result, f"127.0.{_NETWORK}")
        measure_parts(directory, plan, result)
        if plan.bindings == Plan.bindings:  # the start with a small table says nothing
            measure_start(directory / "start", plan, result, f"127.0.{_NETWORK}")
    result.write(options.json)
    print(table.text(result))


if __name__ == "__main__":
    main()
