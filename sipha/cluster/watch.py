"""A look at the leader's lease: to act when it ends, and to answer who waits before that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sipha.cluster.lease import Lease

_LOW = 0.4
"""Which part of the lease is left when a majority that has not renewed it is taken for gone."""


class LeaseWatch:
    """Calls `ended` when the `lease` has ended; times are seconds of `clock`."""

    def __init__(self, reactor: Any, clock: Callable[[], float], lease: Lease, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self._clock = clock
        self._lease = lease
        self._ended = ended
        self._low_looks = 0  # at a lease that runs low, one after the other
        self._call: Any = None

    def begin(self) -> None:
        """Look again when the lease ends, as far as it is known now."""
        self.stop()
        remaining = self._lease.until - self._clock()
        if math.isfinite(remaining):
            self._call = self._reactor.callLater(max(remaining, 0.001), self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._call is not None and self._call.active():
            self._call.cancel()

    def count(self, *, held: bool) -> None:
        """Take note, at each tick, whether the lease runs low while leadership is held."""
        self._low_looks = self._low_looks + 1 if held and self._runs_low() else 0

    def misses_majority(self) -> bool:
        """Return True if no majority has answered for long.

        It takes two looks: what came while this process was held up is read between them.
        """
        return self._low_looks > 1 and self._runs_low()

    def _runs_low(self) -> bool:
        return self._lease.until - self._clock() < _LOW * self._lease.duration

    def _look(self) -> None:
        if self._lease.usable and self._lease.valid(self._clock()):
            self.begin()
        else:
            self._ended()
