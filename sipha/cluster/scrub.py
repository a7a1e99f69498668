"""Is the table in memory still what the log made of it? Each record is looked at, little by little."""

from __future__ import annotations

from collections.abc import Iterator

from sipha.state.machine import Machine

PERIOD = 3600.0
"""Seconds between the beginnings of two passes over the table."""


class Scrub:
    """Passes over the table of `machine`, some hundred records with each `step`."""

    def __init__(self, machine: Machine, now: float) -> None:
        self._machine = machine
        self._next = now + PERIOD
        self._pass: Iterator[None] | None = None

    def step(self, now: float) -> None:
        """Go on, if a pass is due; raises DamagedMemory."""
        if self._pass is None:
            if now < self._next:
                return
            self._next = now + PERIOD
            self._pass = self._machine.scrub()
        if next(self._pass, self) is self:
            self._pass = None
