"""The clock of all deadlines here."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the machine was booted, time asleep included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
