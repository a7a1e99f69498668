"""Virtual addresses that a command moves, as in clouds, where the network knows no ARP."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, fail, inlineCallbacks
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.errors import NotClaimed
from sipha.sip.flow import Address, Flow
from sipha.vip.address import IVirtualAddress
from sipha.vip.placement import Placement

ATTEMPTS = 3
"""How often a release is tried."""

AGAIN = 1.0
"""Seconds between two attempts."""

_LINE = 500


class _Run(ProcessProtocol):
    """One run of the command, killed with all that it has started `deadline` seconds after it began.

    `ended` fires with what went wrong; empty if nothing did.
    """

    def __init__(self, reactor: Any, arguments: Sequence[str], deadline: float) -> None:
        self.ended: Deferred[str] = Deferred()
        self._log = Logger(namespace="sipha.vip")
        self._late = False
        self._deadline = deadline
        # Before the command is started: it may have ended when spawnProcess returns.
        self._timer: IDelayedCall = reactor.callLater(deadline, self._kill)
        # A session of its own makes it a group that can be killed; our environment is its.
        self._process = reactor.spawnProcess(self, "setsid", ("setsid", *arguments), env=None)

    def outReceived(self, data: bytes) -> None:
        """Log what it says."""
        for line in data.decode(errors="replace").splitlines():
            self._log.info("the hook says: {line}", line=line[:_LINE])

    errReceived = outReceived

    def processExited(self, reason: Failure) -> None:
        """The command is through, whoever still holds its output."""
        if self._timer.active():
            self._timer.cancel()
        if self._late:
            self.ended.callback(f"the hook was killed after {self._deadline:g} s")
        elif reason.check(ProcessDone):
            self.ended.callback("")
        else:
            self.ended.callback(f"the hook failed: {reason.value}")

    def _kill(self) -> None:
        self._late = True
        with suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(ProcessExitedAlready):
            self._process.signalProcess("KILL")


@implementer(IVirtualAddress)
class HookAddress:
    """Addresses that `command claim|release ADDRESS…` moves; it must end within `deadline` seconds, with status 0.

    It is run once at a time, and may be told again what it has done already. Whoever claims elsewhere takes the
    addresses away from here: a release that fails is tried ATTEMPTS times, and then left at that, with an alarm.
    """

    def __init__(self, reactor: Any, placements: Sequence[Placement], command: str, deadline: float) -> None:
        self.held = False
        self._reactor = reactor
        self._addresses = tuple(placement.address for placement in placements)
        self._command = command
        self._deadline = deadline
        self._wanted = False
        self._tried = False  # the addresses may be here
        self._turn = DeferredLock()
        self._trouble = ""

    def start(self) -> None:
        """Nothing is needed."""

    def stop(self) -> Deferred[None]:
        """See `release`."""
        return self.release()

    def claim(
        self,
        last_word: bytes,  # noqa: ARG002  nobody outlives us who could speak
        peers: Sequence[Address],  # noqa: ARG002
        deadline: float,  # noqa: ARG002
    ) -> Deferred[None]:
        """Run the command; fires when it is through."""
        if self._wanted:
            return fail(NotClaimed("an earlier claim has not ended yet"))
        self._wanted = True
        return self._turn.run(self._claim)

    def renew(self, deadline: float) -> None:
        """Nothing ends by itself."""

    def release(self) -> Deferred[None]:
        """Run the command if the addresses may be here; fires when it is through."""
        self._wanted = self.held = False
        return self._turn.run(self._release)

    def tickle(self, flows: Iterable[Flow]) -> None:
        """Nothing: that takes privileges."""

    def alarms(self) -> Iterator[str]:
        """What went wrong the last time."""
        if self._trouble:
            yield self._trouble

    @inlineCallbacks
    def _claim(self) -> Generator[Deferred[Any], Any, None]:
        if self._wanted:
            self._tried = True
            yield self._run("claim")
        if self._trouble or not self._wanted:
            self._wanted = False
            raise NotClaimed(self._trouble or "it was released")
        self.held = True

    @inlineCallbacks
    def _release(self) -> Generator[Deferred[Any], Any, None]:
        for attempt in range(ATTEMPTS):
            if self._wanted or not self._tried:
                return
            if attempt:
                yield deferLater(self._reactor, AGAIN)
            yield self._run("release")
            self._tried = bool(self._trouble)

    def _run(self, verb: str) -> Deferred[None]:
        run = _Run(self._reactor, (self._command, verb, *self._addresses), self._deadline)
        return run.ended.addCallback(self._learn)

    def _learn(self, trouble: str) -> None:
        self._trouble = trouble
