"""Virtual time: what is to happen when, in an order that is the same each time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

FLOOD = 30_000
"""How much may be asked for within one second: more is a flood of messages, or time that stands still."""


class Flood(BaseException):
    """More happens in a second than can be meant."""


class Timer:
    """Something that is to happen at `at`, unless it is cancelled before."""

    __slots__ = ("args", "at", "function", "over")

    def __init__(self, at: float, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.at = at
        self.function = function
        self.args = args
        self.over = False

    def active(self) -> bool:
        return not self.over

    def cancel(self) -> None:
        assert not self.over, "cancelled after it was called or cancelled"
        self.over = True

    def getTime(self) -> float:
        return self.at


class Events:
    """The heap of what is to happen; two things at the same moment happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._asked = 0
        self._flood = 0
        self._each_second()

    def _each_second(self) -> None:
        self._flood = self._asked + FLOOD
        self.callLater(1.0, self._each_second)

    def end(self) -> None:
        """Nothing more will happen, however much is asked for."""
        self._flood = sys.maxsize

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any) -> Timer:
        return self.callAt(self.now + delay, function, *args)

    def callAt(self, at: float, function: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer(at, function, args)
        self._asked += 1
        if self._asked > self._flood:
            raise Flood(f"{FLOOD} events within a second, at {self.now:.3f}")
        heappush(self._heap, (timer.at, self._asked, timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, event by event."""
        end = self.now + seconds
        heap = self._heap
        while heap and heap[0][0] <= end:
            at, _, timer = heappop(heap)
            if not timer.over:
                timer.over = True
                self.now = at
                timer.function(*timer.args)
        self.now = end

    def until(self, condition: Callable[[], object], limit: float) -> bool:
        """Let virtual time pass until something is so, or until `limit` seconds have passed."""
        end, heap = self.now + limit, self._heap
        while not condition():
            if not heap or heap[0][0] > end:
                self.now = end
                return bool(condition())
            at, _, timer = heappop(heap)
            if not timer.over:
                timer.over = True
                self.now = at
                timer.function(*timer.args)
        return True
