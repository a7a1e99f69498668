"""A command that measures servers: its options, its core, and where it keeps what it needs meanwhile."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import OTHER_CORE
from bench.daemon import DaemonError
from bench.load import HERE, BenchError
from bench.postgresql import DatabaseError
from sipha.sandbox import SandboxError

DISK = Path("/var/tmp")
"""Where /tmp is memory, a sync would cost nothing there."""


@dataclass(frozen=True)
class Options:
    """What the command line says: how long to measure, and where figures and data go."""

    quick: bool
    directory: Path
    json: Path


def options(prog: str, description: str, figures: str) -> Options:
    """Read the command line, take the core of the load, and have all servers end with us; exit if a core is missing."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--quick", action="store_true", help="shorter, with smaller tables")
    parser.add_argument("--directory", type=Path, default=DISK, help="where the data are meanwhile (%(default)s)")
    parser.add_argument("--json", type=Path, default=HERE / "build" / figures, help="where the figures go")
    given = parser.parse_args()
    if (os.cpu_count() or 1) <= OTHER_CORE:
        sys.exit("bench: needs two cores, one for who answers and one for the load")
    os.sched_setaffinity(0, {OTHER_CORE})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return Options(given.quick, given.directory, given.json)


@contextmanager
def scratch(where: Path) -> Iterator[Path]:
    """A directory for the data of servers; what can't be measured ends the command in a sentence."""
    try:
        with tempfile.TemporaryDirectory(prefix="sipha-bench-", dir=where) as name:
            directory = Path(name)
            directory.chmod(0o755)  # the database's user has to get through
            yield directory
    except (BenchError, SandboxError, DaemonError, DatabaseError) as error:
        sys.exit(f"bench: {error}")
