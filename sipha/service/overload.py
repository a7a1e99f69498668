"""What an operator hears of overload: when it begins and ends, and an alarm meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from sipha.sip.overload import QUIET, Overload


class OverloadAlarm:
    """Raised from when `overload` refuses requests until none has been refused for some time."""

    def __init__(self, reactor: Any, log: Logger) -> None:
        self.overload = Overload(self._begins)
        self._reactor = reactor
        self._log = log
        self._ending: IDelayedCall | None = None

    @property
    def raised(self) -> bool:
        """True while requests are refused, and some time after."""
        return self._ending is not None

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        if self.raised:
            yield (
                "more requests come than this node can serve: those that are least urgent are refused; look at what "
                "sends them, and at sipha_shed_total"
            )

    def stop(self) -> None:
        """Look no longer; if it was raised, that ends."""
        if self._ending is not None:
            self._end()

    def _begins(self, wait: float) -> None:
        self._log.warn("more comes than can be served: requests wait for {wait:.2f} s", wait=wait)
        if self._ending is None:
            self._ending = self._reactor.callLater(QUIET, self._look)

    def _look(self) -> None:
        if self.overload.lasts(self._reactor.seconds()):
            self._ending = self._reactor.callLater(QUIET, self._look)
        else:
            self._end()

    def _end(self) -> None:
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        self._ending = None
        tallies = self.overload.tallies.values()
        self._log.info(
            "no more comes than can be served; in this leadership {refused} were refused, {ignored} not answered",
            refused=self.overload.behind + sum(tally.refused for tally in tallies),
            ignored=sum(tally.ignored for tally in tallies),
        )
