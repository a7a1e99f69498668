"""A process and all that has come of it: their CPU time, their memory, their cores."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

AHEAD = -10
"""The nice value of a session with precedence: nine times the weight of others, whose nodes must keep their leases."""


@dataclass(frozen=True)
class Tree:
    """The process with this id and its descendants, whoever they are at the time."""

    pid: int

    def pids(self) -> list[int]:
        """The processes that there are now, the first one first."""
        children = defaultdict(list)
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit() and (fields := _stat(int(directory.name))):
                children[int(fields[1])].append(int(directory.name))
        found = [self.pid]
        for pid in found:
            found += children[pid]
        return found

    def cpu(self) -> float:
        """The seconds of CPU time that they have had since they were started, the ended ones included."""
        return sum(map(_cpu, self.pids()))

    def resident(self) -> int:
        """The memory that is a process's own, summed over them, in bytes."""
        return sum(map(_resident, self.pids()))

    def signal(self, number: signal.Signals) -> None:
        """Send them all a signal."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def pin(self, *cores: int) -> None:
        """Let all their threads run on these cores alone."""
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)


@contextmanager
def precedence(pids: Iterable[int]) -> Iterator[None]:
    """Have the sessions of these processes run before all others meanwhile (sched(7), autogroup).

    Without root's rights, or on a kernel that doesn't group processes by session, they run as ever.
    """
    sessions = list(pids)
    _put_ahead(sessions, AHEAD)
    try:
        yield
    finally:
        _put_ahead(sessions, 0)


def _put_ahead(pids: Iterable[int], nice: int) -> None:
    for pid in pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(f"{nice}", "ascii")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cpu(pid: int) -> float:
    try:
        # The clock of a process, as clock_getcpuclockid(3) makes it: exact, and with the threads that have ended.
        own = time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
    fields = _stat(pid)
    return own + (int(fields[13]) + int(fields[14])) / _TICK if fields else own


def _resident(pid: int) -> int:
    try:
        _, pages, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(pages) - int(shared)) * _PAGE
