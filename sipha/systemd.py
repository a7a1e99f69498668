"""What systemd hears of a process that it has started: its state (sd_notify(3)), and the priority of log lines.

Without Twisted, for the guard's sake.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def notify(*assignments: str) -> None:
    """Tell systemd all of these, each such as "READY=1", if it listens; what it can't take at once is lost."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ours:
        ours.connect("\0" + path[1:] if path.startswith("@") else path)
        ours.send("\n".join(assignments).encode())


def patience() -> float:
    """Seconds without "WATCHDOG=1" after which systemd kills this process (WatchdogSec=); infinity if it never does."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}  # not the one that has started us
    return int(microseconds) / 1e6 if meant and microseconds.isdecimal() else float("inf")


@contextmanager
def reloading() -> Iterator[None]:
    """Have systemd show that the configuration is being read again, until the block ends."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


def mark_priorities() -> None:
    """Have logging's %(levelname)s be what journald reads a line's priority from; empty if it isn't journald's line."""
    for level, priority in ((logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)):
        logging.addLevelName(level, f"<{priority}>" if "JOURNAL_STREAM" in os.environ else "")
