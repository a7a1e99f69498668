"""The timers of RFC 3261 §17 and Table 4, RFC 6026 and RFC 4320, and the queue that they wait in.

A timer whose duration never varies is set in the order in which it fires, so each of those has a FIFO: setting,
stopping and firing cost the same however many wait. The others (A, E and G, whose intervals double, and those that the
transaction user sets) wait in a heap. A stopped timer lets go of its subject at once and leaves the queue when its turn
comes, or when there are too many of its kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Any

_MIN_STALE = 512
"""Stopped timers in the heap that are not worth a sweep."""


class TimerName(StrEnum):
    """The timers by their letters; `TRYING` is the delay of RFC 4320 §4.1, which gave it no letter."""

    A = "Timer A"
    B = "Timer B"
    D = "Timer D"
    E = "Timer E"
    F = "Timer F"
    G = "Timer G"
    H = "Timer H"
    I = "Timer I"  # noqa: E741 - the RFC's letter
    J = "Timer J"
    K = "Timer K"
    L = "Timer L"
    M = "Timer M"
    TRYING = "Trying"


@dataclass(frozen=True, slots=True)
class Timers:
    """The values of the timers, in seconds (RFC 3261 Table 4), on an unreliable transport.

    `timer_c` (§16.6 step 11) and `branch_timeout` (how long a branch may stay without any response) are for a proxy,
    which sets the first itself and passes the second to `TransactionLayer.start`.
    """

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    timer_c: float = 185.0
    branch_timeout: float = 6.0

    def __post_init__(self) -> None:
        """Refuse what would retransmit without end."""
        if not 0 < self.t1 <= self.t2:
            raise ValueError("timers: 0 < T1 <= T2 must hold")

    @property
    def timeout(self) -> float:
        """Timers B, F, H, J, L and M: 64*T1, as long as a client retransmits (§17.1.1.2, RFC 6026 §7)."""
        return 64 * self.t1

    @property
    def d(self) -> float:
        """Timer D: at least 32 s, since the server's T1 is not known here (§17.1.1.2)."""
        return max(32.0, self.timeout)

    @property
    def trying(self) -> float:
        """The time until a client's Timer E is reset to T2: a non-INVITE request gets its 100 then (RFC 4320 §4.1)."""
        elapsed, interval = 0.0, self.t1
        while interval < self.t2:
            elapsed += interval
            interval *= 2
        return elapsed

    def constant(self) -> dict[TimerName, float]:
        """Return the timers that have one value for all transactions on unreliable transports."""
        name = TimerName
        values = dict.fromkeys((name.B, name.F, name.H, name.J, name.L, name.M), self.timeout)
        return {**values, name.D: self.d, name.I: self.t4, name.K: self.t4, name.TRYING: self.trying}


class Timer:
    """One timer: fires at `when` for its `subject`; `name` is None for a timer of the transaction user."""

    __slots__ = ("name", "subject", "when")

    def __init__(self, when: float, name: TimerName | None, subject: Any) -> None:
        self.when = when
        self.name = name
        self.subject = subject

    @property
    def running(self) -> bool:
        """True until the timer has fired or was stopped."""
        return self.subject is not None

    def take(self) -> Any:
        """Return the subject and let go of it: the timer has fired; None if it was stopped before."""
        subject, self.subject = self.subject, None
        return subject


class TimerQueue:
    """All running timers, in the order in which they fire as far as anyone can tell."""

    def __init__(self, constants: Mapping[TimerName, float]) -> None:
        self._constants = dict(constants)
        self._fifos: dict[TimerName, deque[Timer]] = {name: deque() for name in constants}
        self._waiting = tuple(self._fifos.values())
        # The serial keeps timers of one moment in the order they were set, and the comparison off the timers.
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self._stale = 0

    def start_constant(self, name: TimerName, subject: Any, now: float) -> Timer:
        """Start a timer that has one value for all; `now` must not go back between calls."""
        timer = Timer(now + self._constants[name], name, subject)
        self._fifos[name].append(timer)
        return timer

    def start(self, when: float, name: TimerName | None, subject: Any) -> Timer:
        """Start a timer that fires at `when`."""
        timer = Timer(when, name, subject)
        self._serial += 1
        heappush(self._heap, (when, self._serial, timer))
        return timer

    def stop(self, timer: Timer) -> None:
        """Stop a timer; one that has fired or was stopped before stays as it is."""
        if timer.subject is None:
            return
        timer.subject = None
        # A stopped timer of a FIFO counts here too: an upper bound is enough to keep the heap in proportion.
        self._stale += 1
        if self._stale > _MIN_STALE and self._stale * 2 > len(self._heap):
            self._sweep()

    def next(self) -> float | None:
        """Return when the next timer fires, or None if none runs."""
        first: float | None = None
        for fifo in self._waiting:
            while fifo and fifo[0].subject is None:
                fifo.popleft()
            if fifo and (first is None or fifo[0].when < first):
                first = fifo[0].when
        heap = self._heap
        while heap and heap[0][2].subject is None:
            heappop(heap)
        if heap and (first is None or heap[0][0] < first):
            first = heap[0][0]
        return first

    def pop(self, now: float) -> Timer | None:
        """Take out a running timer that is due; None if there is none.

        Constant timers come first: after a pause, what has ended is not retransmitted once more.
        """
        for fifo in self._waiting:
            while fifo and (fifo[0].subject is None or fifo[0].when <= now):
                timer = fifo.popleft()
                if timer.subject is not None:
                    return timer
        heap = self._heap
        while heap and (heap[0][2].subject is None or heap[0][0] <= now):
            timer = heappop(heap)[2]
            if timer.subject is not None:
                return timer
        return None

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].subject is not None]
        heapify(self._heap)
        self._stale = 0
