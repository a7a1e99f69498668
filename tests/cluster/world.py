"""A real reactor for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor

_STALL = 0.05


class World:
    """A reactor of its own, turned by hand, so that each test begins with a clean one.

    Its time stands still while the machine has this process wait: nobody fell silent then.
    """

    def __init__(self) -> None:
        self.reactor: Any = EPollReactor()
        self.reactor.seconds = self._seconds
        self._now = self._looked = time.monotonic()

    def _seconds(self) -> float:
        looked, self._looked = self._looked, time.monotonic()
        self._now += min(self._looked - looked, _STALL)
        return self._now

    def until(self, condition: Callable[[], object], limit: float = 20.0) -> None:
        """Turn until something is so."""
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, "it did not come to pass"
            self.reactor.iterate(0.005)

    def turn(self, seconds: float) -> None:
        """Turn for some time, in which something must not happen."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)
