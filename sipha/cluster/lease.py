"""The lease: for how long a leader may act as the only one, and what its followers promise for it.

A heartbeat states the lease's duration. A follower that accepts it promises neither to vote nor to stand until that
long after its receipt, and a tenth more for clocks that run apart. The leader counts from when it *sent* the heartbeat
that a majority acknowledged, which is earlier; so no other can be elected while the lease lasts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from sipha.cluster.wire import MAX_LEASE

MARGIN = 1.1
"""What a follower adds to the stated duration, as a factor."""


class Lease:
    """The leader's side. Times are seconds of one clock that never goes back.

    `usable` is for the owner to set once the state holds all that was committed before the term.
    """

    def __init__(self, duration: float, others: Iterable[str]) -> None:
        self.duration = duration
        self.until = 0.0
        self.usable = False
        self._acknowledged = dict.fromkeys(others, -math.inf)
        self._held = False

    def begin(self) -> None:
        """A term of ours begins: nothing that was acknowledged before counts."""
        self._held, self.usable = True, False
        self._acknowledged = dict.fromkeys(self._acknowledged, -math.inf)
        self.until = self._end()

    def end(self) -> None:
        """We lead no more."""
        self._held, self.usable = False, False
        self.until = 0.0

    def acknowledge(self, node: str, sent: float) -> None:
        """A follower accepted the heartbeat that we sent at `sent` in this term."""
        if self._held and sent > self._acknowledged[node]:
            self._acknowledged[node] = sent
            self.until = self._end()

    def valid(self, now: float) -> bool:
        """True while no other node can be elected."""
        return now < self.until

    def _end(self) -> float:
        """The end that a majority supports; it includes ourselves, so one node alone has a lease without end."""
        others = sorted(self._acknowledged.values(), reverse=True)
        needed = (len(others) + 1) // 2
        return math.inf if not needed else others[needed - 1] + self.duration


class Promise:
    """The follower's side: neither vote nor stand before `until`.

    The longest duration ever promised stands in the file `path`, because a node that restarts doesn't know to whom it
    promised, and keeps still for that long. An unreadable file counts as the longest duration there is.
    """

    def __init__(self, path: Path, now: float) -> None:
        self._path = path
        self._longest = self._read()
        self.until = now + self._longest * MARGIN

    def give(self, duration: float, now: float) -> None:
        """A leader's heartbeat that states `duration` was accepted."""
        if duration > self._longest:
            self._write(duration)
            self._longest = duration
        self.until = max(self.until, now + duration * MARGIN)

    def binds(self, now: float) -> bool:
        """True while we may neither vote nor stand."""
        return now < self.until

    def _read(self) -> float:
        try:
            duration = float(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError):
            return MAX_LEASE / 1000
        return duration if 0 <= duration <= MAX_LEASE / 1000 else MAX_LEASE / 1000

    def _write(self, duration: float) -> None:
        """Durably: the promise is answered only after this."""
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="ascii") as file:
            file.write(repr(duration))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
