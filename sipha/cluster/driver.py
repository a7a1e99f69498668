"""Drives the log from the reactor, one step after the other, and ends that when a step can't be trusted any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from twisted.logger import Logger

from sipha.cluster.guards import DivergedError
from sipha.cluster.wire import ProtocolError
from sipha.state.entries import UnknownSchema
from sipha.state.machine import DamagedMemory

TICK = 0.02
"""Seconds between two looks at the library's timers."""

_MAX_FAILURES = 5
_FAILURES_WITHIN = 1.0


class Driver:
    """Calls `advance` soon after each `kick` and with each tick, `look_around` with each tick.

    `left` is told in a sentence why the node can take no more part; nothing is called after that.
    """

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        advance: Callable[[], None],
        look_around: Callable[[], None],
        left: Callable[[str], None],
    ) -> None:
        self.state: Literal["new", "running", "stopped", "failed"] = "new"
        self.reason = ""
        """Why the node has failed."""
        self._reactor = reactor
        self._clock = clock
        self._advance = advance
        self._look_around = look_around
        self._left = left
        self._ticking: Any = None
        self._kicked: Any = None
        self._failures: list[float] = []
        self._log = Logger(namespace="sipha.cluster")

    @property
    def running(self) -> bool:
        """True while the node takes part."""
        return self.state == "running"

    def start(self) -> None:
        """Begin, at the end of this turn of the reactor."""
        self.state = "running"
        self._ticking = self._reactor.callLater(0, self._tick)

    def stop(self) -> None:
        """Call nothing any more."""
        self.state = "stopped"
        for call in (self._ticking, self._kicked):
            if call is not None and call.active():
                call.cancel()

    def kick(self) -> None:
        """Advance once more at the end of this turn of the reactor, for all that happens in it."""
        if self._kicked is None and self.running:
            self._kicked = self._reactor.callLater(0, self._tick_kicked)

    def guard(self, step: Callable[[], None], *, kick: bool = True) -> None:
        """Do one step; a failing one must not end the driving, but a node that goes on failing must not lead.

        Raises ProtocolError, which is the peer's fault.
        """
        if not self.running:
            return
        try:
            step()
        except ProtocolError:
            raise
        except (DivergedError, DamagedMemory, UnknownSchema, OSError, MemoryError) as error:
            self.give_up(error)
        except Exception:  # noqa: BLE001  whatever it is, it is counted
            self._log.failure("a step of the log failed")
            now = self._clock()
            self._failures = [when for when in self._failures if now - when < _FAILURES_WITHIN] + [now]
            if len(self._failures) >= _MAX_FAILURES:
                self._fail("the log fails again and again")
        if kick:
            self.kick()

    def give_up(self, error: Exception) -> None:
        """Take no more part: nothing more can be promised after this error."""
        if not self.running:
            return
        if isinstance(error, OSError):  # what memory and file hold of the log may differ now
            self._fail(f"the disk can't be written: {error}")
        elif isinstance(error, MemoryError):  # an entry may have been applied in part
            self._fail("the memory is full")
        else:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self.state, self.reason = "failed", reason
        self._ticking.cancel()
        self._left(reason)

    def _tick(self) -> None:
        self._ticking = self._reactor.callLater(TICK, self._tick)
        self.guard(self._advance, kick=False)
        self.guard(self._look_around, kick=False)

    def _tick_kicked(self) -> None:
        self._kicked = None
        self.guard(self._advance, kick=False)
