"""The log's figures: sipha's three nodes beside those of the library as it is delivered, in one run.

    make bench-log            about a quarter of an hour, and 3 GB of memory
    make bench-log QUICK=1    some two minutes

Each kind of node has its turn in each round; a figure is the median of the rounds, and what follows in parentheses is
the least and the most. The leader has core 0 to itself, its followers and the source of the load share core 1. CPU time
is the kernel scheduler's. Nothing here can fail but the nodes: what the host adds is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.load import HERE, BenchError
from bench.log_figures import over
from bench.log_nodes import OTHER_CORE, REALTIME
from bench.log_runs import QUICK, RATE, Bench, Figures, Plan

MILLI, MICRO, MEGA = 1e3, 1e6, 1e-6


class Column(NamedTuple):
    """A column of a table: its head, the figure's name, how it is scaled and written."""

    head: str
    name: str
    scale: float = MILLI
    form: str = ".2f"


NOISE = (
    Column("fdatasync p50 ms", "sync_p50"),
    Column("p99", "sync_p99"),
    Column("sleep late p50 ms", "sleep_p50"),
    Column("p99", "sleep_p99"),
)
COMMITS = (
    Column("p50 ms", "commit_p50"),
    Column("p99 ms", "commit_p99"),
    Column("leader µs", "rate_leader", MICRO, ".0f"),
    Column("follower µs", "rate_follower", MICRO, ".0f"),
    Column("groups/s", "groups", 1, ",.0f"),
    Column("leader µs", "groups_leader", MICRO, ".1f"),
    Column("follower µs", "groups_follower", MICRO, ".1f"),
    Column("failed", "failed", 1, ".0f"),
)
STARTS = (
    Column("total s", "total", 1),
    Column("importing", "importing", 1),
    Column("opening", "opening", 1),
    Column("applying", "applying", 1),
    Column("CPU s", "cpu", 1),
)
TABLE = (
    *STARTS[:1],
    *STARTS[4:],
    Column("resident MB", "resident", MEGA, ",.0f"),
    Column("file MB", "size", MEGA, ",.0f"),
)
SNAPSHOTS = (
    Column("s", "took", 1, ".1f"),
    Column("p50 ms", "commit_p50"),
    Column("p99 ms", "commit_p99"),
    Column("longest ms", "commit_longest"),
    Column("failed", "failed", 1, ".0f"),
)
STALLS = (
    Column("p99 ms", "late_p99"),
    Column("longest ms", "late_longest", MILLI, ".1f"),
    Column("by its own doing ms", "own", MILLI, ".1f"),
)
TROUBLES = (
    Column("p50 ms", "commit_p50"),
    Column("p99 ms", "commit_p99"),
    Column("longest ms", "commit_longest"),
    Column("failed", "failed", 1, ".0f"),
)
RATIOS = (
    ("p50", "commit_p50"),
    ("leader's CPU", "rate_leader"),
    ("groups", "groups"),
    ("leader's CPU in groups", "groups_leader"),
)


def table(title: str, columns: Sequence[Column], rows: Sequence[Figures]) -> str:
    """A table of figures."""
    lines = [[title, *(column.head for column in columns)]]
    for row in rows:
        cells = [
            over(row.rounds[column.name]).text(column.form, column.scale) if column.name in row.rounds else ""
            for column in columns
        ]
        lines.append([row.name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    ]
    return "\n".join(text)


def ratios(rows: Sequence[Figures]) -> Iterator[str]:
    """How the last kind of node compares to the first two, round by round."""
    ours = rows[-1].rounds
    for theirs in rows[:2]:
        parts = []
        for what, name in RATIOS:
            ratio = over([own / other for own, other in zip(ours[name], theirs.rounds[name], strict=True)])
            parts.append(f"{what} × {ratio.text('.2f')}")
        yield f"{rows[-1].name}, compared to {theirs.name}: {', '.join(parts)}"


def growth(figures: Figures) -> str:
    """What has grown between a tenth and the end of many writes."""
    rounds = figures.rounds
    early, megabytes = len(rounds["at"]) // 10, 1 << 20
    told = [
        f"{name} {rounds[name][early] / megabytes:,.0f} → {rounds[name][-1] / megabytes:,.0f} MiB, never more than "
        f"{max(rounds[name]) / megabytes:,.0f}"
        for name in ("journal", "leader", "follower")
    ]
    return (
        f"{figures.name}: {rounds['groups'][0]:,.0f}/s, {rounds['failed'][0]:.0f} failed, {rounds['snapshots'][0]:.0f} "
        f"snapshots; largest journal, memory of leader and followers, from a tenth to the end: {'; '.join(told)}"
    )


def show_commits(rows: Sequence[Figures]) -> str:
    """Commits of the library's nodes and ours."""
    return "\n".join((table(f"commits of 400 bytes at {RATE}/s, then in groups", COMMITS, rows), *ratios(rows)))


def show_snapshots(rows: Sequence[Figures]) -> str:
    """A large table: loaded, then written and received while commits go on."""
    first, *others = rows
    loads = [row for row in others if "took" in row.rounds]
    stalls = [row for row in others if "own" in row.rounds]
    return "\n\n".join(
        (
            table("start of a node with", TABLE, [first]),
            table(f"commits at {RATE}/s while", SNAPSHOTS, loads),
            table("reactors' stalls while", STALLS, stalls),
        )
    )


SECTIONS: dict[str, Callable[[Sequence[Figures]], str]] = {
    "commits": show_commits,
    "starts": lambda rows: table("start of a node", STARTS, rows),
    "snapshots": show_snapshots,
    "troubles": lambda rows: table(f"commits at {RATE}/s", TROUBLES, rows),
    "bounds": lambda rows: "\n".join(map(growth, rows)),
}
"""How the figures of each of the Bench's methods are shown."""


def main() -> int:
    """Run the benchmark; 1 if it could not be."""
    parser = argparse.ArgumentParser(prog="bench.log", description="Measure the log of three nodes.")
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="what is measured; all if none is named")
    parser.add_argument("--quick", action="store_true", help="shorter, with smaller tables")
    parser.add_argument("--realtime", action="store_true", help="run the nodes before all other processes (as root)")
    parser.add_argument("--directory", type=Path, help="where the nodes' data are while it runs")
    parser.add_argument("--json", type=Path, default=HERE / "build" / "log.json", help="where the figures go")
    options = parser.parse_args()
    if (os.cpu_count() or 1) <= OTHER_CORE:
        print("bench: needs two cores, one of them for the leader", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {OTHER_CORE})
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(REALTIME + 1))
    plan = QUICK if options.quick else Plan()
    print(f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}; {plan.rounds} rounds\n")
    results: dict[str, list[Figures]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="sipha-log-", dir=options.directory) as directory:
            bench = Bench(Path(directory), plan, _progress, realtime=options.realtime)
            for name, show in SECTIONS.items():
                if name in (options.sections or SECTIONS):
                    results[name] = list(getattr(bench, name)())
                    print(show(results[name]), "", sep="\n", flush=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if bench.noise.rounds:
        results["noise"] = [bench.noise]
        print(table("noise, in each round", NOISE, results["noise"]))
    options.json.parent.mkdir(exist_ok=True)
    raw = {section: {row.name: row.rounds for row in rows} for section, rows in results.items()}
    options.json.write_text(json.dumps({"plan": vars(plan), "figures": raw}, indent=1) + "\n")
    return 0


def _progress(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
