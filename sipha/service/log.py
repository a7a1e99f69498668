"""How much the log of the process shows, and where it goes."""

from __future__ import annotations

import sys
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    globalLogPublisher,
)

from sipha import config
from sipha.service.observers import PERIOD, Repeats, make_observer


class Log(Service):
    """Stands before the observers that the process has when this starts, or in their place if the form isn't theirs.

    What is below the level of the configuration goes no further, nor what is said again and again.
    """

    def __init__(self, reactor: Any, settings: config.Log, publisher: LogPublisher = globalLogPublisher) -> None:
        self._reactor = reactor
        self._publisher = publisher
        self._format = settings.format
        self._predicate = LogLevelFilterPredicate()
        self._repeats: list[Repeats] = []
        self._before: list[ILogObserver] = []
        self._own: list[ILogObserver] = []
        self._flushing = LoopingCall(self._flush)
        self._flushing.clock = reactor
        self.adopt(settings)

    def startService(self) -> None:
        """Stand before the observers."""
        super().startService()
        self._before = list(self._publisher._observers)  # noqa: SLF001  twistd has put them there, and keeps them
        other = make_observer(self._format, sys.stdout)
        self._repeats = [
            Repeats(observer, self._reactor.seconds) for observer in (self._before if other is None else [other])
        ]
        self._own = [FilteringLogObserver(repeats, [self._predicate]) for repeats in self._repeats]
        self._exchange(self._before, self._own)
        self._flushing.start(PERIOD, now=False)

    def stopService(self) -> None:
        """Leave them as they were."""
        super().stopService()
        self._flushing.stop()
        self._exchange(self._own, self._before)

    def adopt(self, settings: config.Log) -> None:
        """Go by another level."""
        self._predicate.setLogLevelForNamespace("", LogLevel.levelWithName(settings.level))

    def _flush(self) -> None:
        for repeats in self._repeats:
            repeats.flush()

    def _exchange(self, old: list[ILogObserver], new: list[ILogObserver]) -> None:
        for observer in old:
            self._publisher.removeObserver(observer)
        for observer in new:
            self._publisher.addObserver(observer)
