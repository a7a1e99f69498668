"""What the host does by itself: how long its disk takes to sync, and how late it wakes who sleeps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.log_figures import Spread, spread

_SYNCS = 200
_RECORD = 450


@dataclass(frozen=True)
class Noise:
    """Seconds in which a small record is on disk, and by which a sleep of a millisecond ends too late."""

    sync: Spread
    late: Spread


def measure_noise(directory: Path) -> Noise:
    """Find out what a file in this directory, and a sleeper on our cores, have to wait."""
    file = directory / "noise"
    syncs, late = [], []
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for _ in range(_SYNCS):
        began = time.monotonic()
        time.sleep(0.001)
        late.append(time.monotonic() - began - 0.001)
        os.write(descriptor, bytes(_RECORD))
        began = time.monotonic()
        os.fdatasync(descriptor)
        syncs.append(time.monotonic() - began)
    os.close(descriptor)
    file.unlink()
    return Noise(spread(syncs), spread(late))
