"""How much the log of the process shows, and where it goes."""

from __future__ import annotations

import sys
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    globalLogPublisher,
)

from sipha import config
from sipha.journal import Level
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
        self._own_log = Logger(source=self, observer=publisher)
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

    @property
    def level(self) -> Level:
        """The level that this goes by now."""
        return self._level

    def adopt(self, settings: config.Log) -> None:
        """Go by the level of a configuration."""
        self._go_by(settings.level)

    def set_level(self, level: Level) -> None:
        """Go by another level until a configuration is adopted, and say so if either level shows that."""
        before = self._level
        self._go_by(min(before, level, key=LogLevel.levelWithName))
        self._own_log.warn(
            "the log shows {now} and above, no longer {before}, until the configuration is loaded again",
            now=level,
            before=before,
        )
        self._go_by(level)

    def _go_by(self, level: Level) -> None:
        self._level = level
        self._predicate.setLogLevelForNamespace("", LogLevel.levelWithName(level))

    def _flush(self) -> None:
        for repeats in self._repeats:
            repeats.flush()

    def _exchange(self, old: list[ILogObserver], new: list[ILogObserver]) -> None:
        for observer in old:
            self._publisher.removeObserver(observer)
        for observer in new:
            self._publisher.addObserver(observer)
