"""How much the log of the process shows."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    globalLogPublisher,
)

from sipha import config


class LogThreshold(Service):
    """Keeps what is below the level of the configuration from the observers that the process has when this starts."""

    def __init__(self, settings: config.Log, publisher: LogPublisher = globalLogPublisher) -> None:
        self._publisher = publisher
        self._predicate = LogLevelFilterPredicate()
        self._observers: dict[ILogObserver, ILogObserver] = {}
        self.adopt(settings)

    def startService(self) -> None:
        """Stand before the observers."""
        super().startService()
        for observer in tuple(self._publisher._observers):  # noqa: SLF001  twistd has put them there, and keeps them
            self._observers[observer] = FilteringLogObserver(observer, [self._predicate])
        self._exchange(self._observers)

    def stopService(self) -> None:
        """Leave them as they were."""
        super().stopService()
        self._exchange({filtering: observer for observer, filtering in self._observers.items()})
        self._observers = {}

    def adopt(self, settings: config.Log) -> None:
        """Go by another level."""
        self._predicate.setLogLevelForNamespace("", LogLevel.levelWithName(settings.level))

    def _exchange(self, others: dict[ILogObserver, ILogObserver]) -> None:
        for observer, other in others.items():
            self._publisher.removeObserver(observer)
            self._publisher.addObserver(other)
