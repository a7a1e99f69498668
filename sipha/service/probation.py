"""The probation of a configuration: whether phones are served under it, by what the node sees of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

LIMIT = 10.0
"""Seconds that a probation may last."""

LOOK = 0.1
"""Seconds between two looks."""


class Probation:
    """The `verdict` on a configuration that has been applied: why it can't stay, or nothing if it can.

    A node that `must_serve` phones has LIMIT for it: `trouble` says why it doesn't yet. Any other has shown all that it
    can by having opened its sockets; a `patient` probation waits whether it will come to serve them.
    """

    def __init__(
        self, reactor: Any, must_serve: Callable[[], bool], trouble: Callable[[], str], *, patient: bool = False
    ) -> None:
        self.verdict: Deferred[str] = Deferred()
        self._reactor = reactor
        self._must_serve = must_serve
        self._trouble = trouble
        self._patient = patient
        self._until = reactor.seconds() + LIMIT
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._looking.start(LOOK).addErrback(self.verdict.errback)

    def cancel(self) -> None:
        """Leave it undecided: the verdict fails with CancelledError."""
        if self._looking.running:
            self._looking.stop()
        self.verdict.cancel()

    def _look(self) -> None:
        late = self._reactor.seconds() >= self._until
        if not self._must_serve():
            if late or not self._patient:
                self._decide("")
        elif not (trouble := self._trouble()):
            self._decide("")
        elif late:
            self._decide(trouble)

    def _decide(self, verdict: str) -> None:
        self._looking.stop()
        self.verdict.callback(verdict)
