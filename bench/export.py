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

from bench.cluster import REPLICATED, Cluster
from bench.load import HERE, LOAD_CORE, Load, Sample
from bench.tree import Tree
from sipha.sandbox import SandboxNode

BINDINGS = 1_000_000
RATE = 1000
"""REGISTERs a second that the leader has to answer meanwhile."""

_USERS = 10_000
_PIECE = 1 << 20


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
    before: Sample
    during: dict[str, Sample]
    exports: dict[str, Export]


def measure(cluster: Cluster, bindings: int) -> Result:
    """Measure a cluster that `loaded` has made."""
    load, users = Load(cluster), range(_USERS)
    cluster.add_users(_USERS)
    load.register(users=users, count=_USERS, rate=RATE)
    result = Result(bindings + _USERS, load.register(users=users, rate=RATE, seconds=10), {}, {})
    follower = cluster.followers[0]
    for form in ("jsonl", "csv"):
        thread = Taking(follower, form)
        thread.start()
        samples = []
        while thread.is_alive():
            samples.append(load.register(users=users, rate=RATE, seconds=5))
        thread.join()
        result.exports[form] = thread.result()
        # One of some ten: what the host did in a bad moment says nothing of the export.
        result.during[form] = sorted(samples, key=lambda sample: sample.p99_us)[len(samples) // 2]
    return result


class Taking(threading.Thread):
    """Takes an export from a node, and watches its memory."""

    def __init__(self, node: SandboxNode, form: str) -> None:
        super().__init__(daemon=True)
        assert node.process is not None
        self._tree = Tree(node.process.pid)
        self._url = f"{node.admin}/v1/bindings.{form}"
        self._export: Export | None = None

    def run(self) -> None:
        """Take it."""
        before = most = self._tree.resident()
        began = time.monotonic()
        lines = size = 0
        with urllib.request.urlopen(self._url, timeout=30) as response:
            index = int(response.headers["Sipha-Index"])
            while piece := response.read(_PIECE):
                lines += piece.count(b"\n")
                size += len(piece)
                most = max(most, self._tree.resident())
        self._export = Export(lines, size, index, time.monotonic() - began, most - before)

    def result(self) -> Export:
        """What was taken; raises RuntimeError if it was cut short."""
        if self._export is None:
            raise RuntimeError(f"{self._url} was cut short")
        return self._export


@contextmanager
def loaded(directory: Path, bindings: int, prefix: str = "127.0.7") -> Iterator[Cluster]:
    """Three nodes that begin with so many bindings."""
    cluster = Cluster(REPLICATED, directory, prefix)
    cluster.preload(bindings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def render(result: Result) -> str:
    """The table."""
    samples = {"no export": result.before, **{f"{form} export": sample for form, sample in result.during.items()}}
    lines = [
        f"{name:<28}{sample.rate:>8,.0f}/s  p50 {sample.p50_us / 1000:.2f} ms  p99 {sample.p99_us / 1000:.2f} ms  "
        f"{sample.failed} failed"
        for name, sample in samples.items()
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
        loaded(Path(directory), options.bindings) as cluster,
    ):
        result = measure(cluster, options.bindings)
    print(render(result))
    options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
