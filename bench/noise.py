"""What the host does by itself: how long its disk takes to sync, how late it wakes a sleeper, what else it does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.log_figures import Spread, spread

_SYNCS = 200
_RECORD = 450
_BUSY = 0.3


@dataclass(frozen=True)
class Noise:
    """Seconds in which a small record is on disk, and by which a sleep of a millisecond ends too late.

    `share` is the part of a core that a busy process gets, of that core where it gets less.
    """

    sync: Spread
    late: Spread
    share: float


def measure_noise(directory: Path, cores: Iterable[int]) -> Noise:
    """Find out what a file in this directory, a sleeper, and a busy process on each of these cores have to wait."""
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
    return Noise(spread(syncs), spread(late), min(map(_share, cores)))


def _share(core: int) -> float:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    began, spent = time.monotonic(), time.thread_time()
    while time.monotonic() - began < _BUSY:
        pass
    elapsed, spent = time.monotonic() - began, time.thread_time() - spent
    os.sched_setaffinity(0, before)
    return spent / elapsed
