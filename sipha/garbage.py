"""The pace of Python's garbage collector, whose pauses must not outlast a lease.

Reference counts free nearly all; the collector is for cycles. A collection visits every object of its generation, some
five million in a second, and all else waits. So the young ones are visited often and few at a time, and the old ones
only when they are few: transactions and connections take their cycles apart when they end.
"""

from __future__ import annotations

import gc
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall

INTERVAL = 60.0
"""Seconds between two looks at the old objects."""

FEW = 100_000
"""How many old objects may be visited at once: some 20 ms."""

_YOUNG = 20_000
_MIDDLE = 2
_NEVER = 1_000_000_000


class GarbageCollection(Service):
    """Sets the collector's pace while it runs; what was loaded before it starts is never visited again."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._next: IDelayedCall | None = None
        self._before = gc.get_threshold()

    def startService(self) -> None:
        """Set the pace."""
        super().startService()
        gc.collect()
        gc.freeze()
        self._before = gc.get_threshold()
        gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
        self._next = self._reactor.callLater(INTERVAL, self._look)

    def stopService(self) -> None:
        """Set it back."""
        super().stopService()
        gc.set_threshold(*self._before)
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _look(self) -> None:
        self._next = self._reactor.callLater(INTERVAL, self._look)
        if len(gc.get_objects(generation=2)) < FEW:
            gc.collect()
