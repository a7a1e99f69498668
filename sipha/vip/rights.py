"""What a process that must never be late asks of the kernel; each it may be refused."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

_PRIORITY = 10
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def hurry() -> Iterator[str]:
    """Come first, stay in memory, be the last to be killed for it; yields what was refused, for the log."""
    # What was imported is never visited again; the little that is left over costs the collector microseconds.
    gc.collect()
    gc.freeze()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except PermissionError:
        yield "no real-time priority (CAP_SYS_NICE, or LimitRTPRIO in the unit): under load this process may be late"
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    except PermissionError:
        if int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")) > -1000:
            yield "this process may be killed when memory is short (CAP_SYS_RESOURCE, or OOMScoreAdjust in the unit)"
    if ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE):
        yield "this process may be swapped out (CAP_IPC_LOCK, or LimitMEMLOCK in the unit)"
