"""How long phones are unserved when a leader fails: sipha, and keepalived with Kamailio, in one network of namespaces.

    make failover               about an hour and a half, as root
    make failover ROUNDS=3      a quarter of an hour

A probe outside sends an OPTIONS each 20 ms to the virtual address, before, during and after each fault. An outage goes
from the first request without an answer to the first that has one again. `unanswered` counts the requests to which
neither they nor their repetition after 0.5 s was answered.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from bench.cluster import create_accounts
from bench.keepalived import NODES, SETTINGS, Pair, pair
from bench.load import HERE, PASSWORD, build, read_report
from tests.system import faults
from tests.system.hosts import VIRTUAL, Hosts
from tests.system.network import OUTSIDE, Network, obstacle
from tests.system.probe import make_probe

LONGEST = 15.0
"""An outage that hasn't ended after so many seconds doesn't end."""

AFTERWARDS = 1.0
"""How long the probe goes on when the address is served again, in seconds."""


@dataclass
class Row:
    """What the rounds of a fault gave: outages in seconds, the sum of the requests that were never answered."""

    server: str
    bindings: int
    fault: str
    outages: list[float] = field(default_factory=list)
    unanswered: int = 0


class Server(Protocol):
    """What is measured."""

    name: str
    faults: dict[str, Callable[[str], object]]
    """By name, what befalls the node that has the address."""

    def holder(self) -> str | None:
        """Return the node that has the address."""

    def fill(self, bindings: int) -> None:
        """Have so many bindings."""

    def restore(self) -> None:
        """Bring back what a fault has taken."""


class Sipha:
    """Three nodes of sipha."""

    name = "sipha"

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self._nodes = {node.name: node for node in hosts.nodes}
        self.faults: dict[str, Callable[[str], object]] = {
            name: partial(self._befall, fault)
            for name, fault in {
                "kill -9 of the daemon": faults.kill_daemon,
                "kill -9 of daemon and guard": faults.kill_both,
                "SIGSTOP of the daemon": faults.stop_daemon,
                "SIGSTOP of daemon and guard": faults.stop_both,
                "link down": faults.unplug,
                "SIGTERM": faults.terminate,
                "siphactl transfer": faults.transfer,
            }.items()
        }

    def holder(self) -> str | None:
        """See Server."""
        leader = self.hosts.leader()
        return leader.name if leader else None

    def fill(self, bindings: int) -> None:
        """See Server."""
        create_accounts(self.hosts, self.hosts.wait_for_leader(), bindings)
        register(self.hosts.network, bindings, "-a", PASSWORD, "-d", self.hosts.domain)

    def restore(self) -> None:
        """See Server."""
        self.hosts.restore()
        self.hosts.wait_until_well()

    def _befall(self, fault: faults.Fault, name: str) -> None:
        fault(self.hosts, self._nodes[name])


class Keepalived:
    """Two nodes of Kamailio with keepalived."""

    def __init__(self, pair: Pair) -> None:
        self.name = f"keepalived ({pair.settings.name}), Kamailio"
        self.pair = pair
        self.holder = pair.holder
        self.restore = pair.restore
        self.faults: dict[str, Callable[[str], object]] = {
            "kill -9 of the daemon": lambda name: pair.signal(name, signal.SIGKILL),
            "SIGSTOP of the daemon": lambda name: pair.signal(name, signal.SIGSTOP),
            "link down": pair.network.unplug,
        }

    def fill(self, bindings: int) -> None:
        """See Server."""
        register(self.pair.network, bindings, "-d", "sipha.test")


def register(network: Network, users: int, *options: str) -> None:
    """Have so many users of regload register."""
    host = network.host(OUTSIDE)
    command = [str(build() / "regload"), "-t", f"{VIRTUAL[0]}:5060", "-b", host, "-C", f"{host}:5999", *options]
    counts = ["-n", str(users), "-N", str(users), "-w", "64", "-x", "-T", "10000", "-D", "600"]
    report = read_report(network.run(OUTSIDE, *command, *counts))
    if report["ok"] != users:
        raise RuntimeError(f"only {report['ok']:.0f} of {users} users could register")


def measure(network: Network, server: Server, fault: str, row: Row) -> None:
    """Do a fault to the node that has the address, and add to the row how long the address wasn't served."""
    with make_probe(network, (VIRTUAL[0], 5060)) as probe:
        if not probe.wait_for_answer(LONGEST):
            raise RuntimeError(f"{server.name} doesn't answer before {fault}")
        time.sleep(0.5 + random.random())  # at any moment between two adverts, checks or heartbeats
        holder = server.holder()
        if holder is None:
            raise RuntimeError(f"nobody has the address before {fault}")
        server.faults[fault](holder)
        moved = _moves(server, holder) and probe.wait_for_answer(LONGEST)
        time.sleep(AFTERWARDS)
    row.outages.append(probe.outage if moved else math.inf)
    row.unanswered += probe.unanswered
    print(f"  {server.name}, {row.bindings} bindings, {fault}: {row.outages[-1]:.2f} s", file=sys.stderr, flush=True)


def _moves(server: Server, holder: str) -> bool:
    """Wait until another node has the address; False if that doesn't come."""
    deadline = time.monotonic() + LONGEST
    while server.holder() in {None, holder}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def rounds(network: Network, server: Server, bindings: int, number: int) -> Iterator[Row]:
    """Measure all faults of a server."""
    server.fill(bindings)
    for fault in server.faults:
        row = Row(server.name, bindings, fault)
        for _ in range(number):
            measure(network, server, fault, row)
            server.restore()
        yield row


def render(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    lines = ["| server | bindings | fault | median s | worst s | unanswered |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        median, worst = statistics.median(row.outages), max(row.outages)
        cells = [row.server, f"{row.bindings:,}", row.fault, _seconds(median), _seconds(worst), str(row.unanswered)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(outage: float) -> str:
    return "doesn't end" if math.isinf(outage) else f"{outage:.2f}"


def main() -> int:
    """Measure, print the table and write the figures; 1 if it could not be done."""
    parser = argparse.ArgumentParser(prog="bench.failover", description="Measure failovers.")
    parser.add_argument("--rounds", type=int, default=20, help="of each fault (%(default)s)")
    parser.add_argument("--bindings", type=int, nargs="+", default=[10, 100_000], help="%(default)s")
    parser.add_argument("--only", choices=["sipha", "keepalived"], help="one of the servers")
    parser.add_argument("--json", type=Path, default=HERE / "build" / "failover.json", help="where the figures go")
    options = parser.parse_args()
    if reason := obstacle():
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        if options.only != "keepalived":
            for bindings in options.bindings:
                with Hosts.run(Path(directory, f"sipha-{bindings}")) as hosts:
                    rows += rounds(hosts.network, Sipha(hosts), bindings, options.rounds)
        if options.only != "sipha":
            for number, settings in enumerate(SETTINGS):
                with (
                    Network(len(NODES)) as network,
                    pair(network, Path(directory, f"pair-{number}"), settings) as running,
                ):
                    rows += rounds(network, Keepalived(running), options.bindings[0], options.rounds)
    print(render(rows))
    options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
