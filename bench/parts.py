"""What a large table and pings cost sipha, in a process that runs the sources that its path leads to.

`bench.run` starts it for each build of sipha that it measures, with the plan in JSON; it prints the figures of each
round, in JSON, by their names in the table of goals.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from bench import pings, table
from bench.cluster import BUILT, Variant
from bench.load import HERE, run_ahead
from bench.log_runs import Bench, Plan
from bench.result import Plan as Whole


def measure(variant: Variant, directory: Path, plan: Whole) -> dict[str, list[float]]:
    """Measure a variant's sources; raises BenchError."""
    trees = [BUILT, HERE.parent] if variant.compiled else [HERE.parent]
    command = [sys.executable, "-m", "bench.parts", str(directory), msgspec.json.encode(plan).decode()]
    printed = run_ahead(command, PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(map(str, trees)))
    return msgspec.json.decode(printed, type=dict[str, list[float]])


def main() -> None:
    """Measure what runs here, and print it."""
    directory, plan = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Whole)
    log = Bench(directory, Plan(1, plan.seconds, bindings=plan.bindings), _progress, realtime=False)
    loaded, *others = (figures.rounds for figures in log.snapshots())
    figures = {
        table.MEMORY: [resident / plan.bindings for resident in loaded["resident"]],
        table.START: loaded["total"],
        table.STALL: [max(own for each in others for own in each.get("own", []))],
    }
    _progress("pings")
    figures[table.PINGS] = [pings.measure(plan.phones, plan.seconds).share]
    sys.stdout.buffer.write(msgspec.json.encode(figures))


def _progress(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
