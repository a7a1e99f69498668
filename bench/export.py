"""What it costs to export a large table: from a follower, while phones register with the leader.

    make bench-export                 a million bindings, some three minutes
    make bench-export BINDINGS=100000

The bindings come from a snapshot that is made beforehand. Cores are as in bench.run; who takes the export shares the
followers' core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import log_data
from bench.load import HERE, LOAD_CORE
from bench.run import PATIENT, Bench, Plan, Row, resident
from sipha.cluster import founding
from sipha.cluster.storage import Storage
from sipha.sandbox import Sandbox, SandboxNode

BINDINGS = 1_000_000
RATE = 1000
"""REGISTERs a second that the leader has to answer meanwhile."""

_PLAN = Plan(accounts=10_000, users=10_000)
_PIECE = 1 << 20
_LOADING = 300.0
"""Seconds in which three nodes on one machine have read the table."""


@dataclass
class Export:
    """One export: its length, how long it took, and how much more memory the node had at most meanwhile, in bytes."""

    lines: int
    size: int
    index: int
    seconds: float
    growth: int


@dataclass
class Result:
    """How many bindings there are, and the leader's answers without an export, and with one, by its form.

    They are those of the five seconds whose 99th percentile is the median.
    """

    bindings: int
    before: Row
    during: dict[str, Row]
    exports: dict[str, Export]


def measure(sandbox: Sandbox, bindings: int) -> Result:
    """Measure a cluster that `loaded` has made."""
    bench = Bench(sandbox, _PLAN)
    bench.load_accounts()
    bench.register("every phone once", "-N", str(_PLAN.users), "-r", str(RATE), "-D", "60")
    load = ("-N", "100000000", "-r", str(RATE))
    result = Result(bindings + _PLAN.users, bench.register("no export", *load, "-D", "10"), {}, {})
    follower = bench.followers[0]
    for form in ("jsonl", "csv"):
        thread = Taking(follower, form)
        thread.start()
        rows = []
        while thread.is_alive():
            rows.append(bench.register(f"{form} export from {follower.name}", *load, "-D", "5"))
        thread.join()
        result.exports[form] = thread.result()
        # One of some ten: what the host did in a bad moment says nothing of the export.
        result.during[form] = sorted(rows, key=lambda row: row.p99_us)[len(rows) // 2]
    return result


class Taking(threading.Thread):
    """Takes an export from a node, and watches its memory."""

    def __init__(self, node: SandboxNode, form: str) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._url = f"{node.admin}/v1/bindings.{form}"
        self._export: Export | None = None

    def run(self) -> None:
        """Take it."""
        before = most = resident(self._node)
        began = time.monotonic()
        lines = size = 0
        with urllib.request.urlopen(self._url, timeout=30) as response:
            index = int(response.headers["Sipha-Index"])
            while piece := response.read(_PIECE):
                lines += piece.count(b"\n")
                size += len(piece)
                most = max(most, resident(self._node))
        self._export = Export(lines, size, index, time.monotonic() - began, most - before)

    def result(self) -> Export:
        """What was taken; raises RuntimeError if it was cut short."""
        if self._export is None:
            raise RuntimeError(f"{self._url} was cut short")
        return self._export


@contextmanager
def loaded(directory: Path, bindings: int, prefix: str = "127.0.7") -> Iterator[Sandbox]:
    """Three nodes that begin with so many bindings."""
    quiet = '[nat]\nping_scope = "none"'
    sandbox = Sandbox(directory, prefix=prefix, cluster=PATIENT, extra=quiet)
    sandbox.found()
    with founding.taken(sandbox.nodes[0].data) as disk:
        storage = Storage.open(disk, sandbox.nodes[0].name, sync=True, snapshot=None)
        assert storage.identity is not None
        cluster_id = storage.identity.cluster_id
        storage.journal.close()
    file = directory / "snapshot"
    index = log_data.make_snapshot(file, cluster_id, bindings, {node.name: node.address for node in sandbox.nodes})
    for node in sandbox.nodes:
        log_data.add_snapshot(node.data, node.name, file, index)
    try:
        for node in sandbox.nodes:
            sandbox.start_node(node)
        sandbox.wait_for_leader(_LOADING)
        yield sandbox
    finally:
        sandbox.stop()


def render(result: Result) -> str:
    """The table."""
    rows = [result.before, *result.during.values()]
    lines = [
        f"{row.name:<28}{row.rate:>8,.0f}/s  p50 {row.p50_us / 1000:.2f} ms  p99 {row.p99_us / 1000:.2f} ms  "
        f"{row.failed} failed"
        for row in rows
    ]
    lines += [
        f"{form}: {one.lines:,} lines, {one.size / 1e6:,.0f} MB in {one.seconds:.1f} s; the node had "
        f"{one.growth / 1e6:.1f} MB more at most"
        for form, one in result.exports.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench.export", description="Export bindings from a follower under load.")
    parser.add_argument("--bindings", type=int, default=BINDINGS, help="how many there are (%(default)s)")
    parser.add_argument("--json", type=Path, default=HERE / "build" / "export.json", help="where the figures go")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    with (
        tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory,
        loaded(Path(directory), options.bindings) as sandbox,
    ):
        result = measure(sandbox, options.bindings)
    print(render(result))
    options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
