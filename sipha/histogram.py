"""How often values lay between which bounds: plain integers, which cost nothing but their counting."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

LATENCIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Bounds in seconds, from what a commit takes to what nobody waits for."""


class Histogram:
    """Values, of which only their `sum` is kept, and how many were at most each of the `bounds`, or above them all."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCIES) -> None:
        self.bounds = bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def take(self) -> tuple[list[int], float]:
        """Return what was counted, and the sum, and begin anew."""
        taken = self._counts, self.sum
        self._counts, self.sum = [0] * (len(self.bounds) + 1), 0.0
        return taken

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count what was taken of another with the same bounds."""
        self._counts = [own + other for own, other in zip(self._counts, counts, strict=True)]
        self.sum += total

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Each bound in text, `+Inf` the last, and how many values were not above it."""
        return zip([*map(str, self.bounds), "+Inf"], accumulate(self._counts), strict=True)
