from __future__ import annotations

import pytest
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, LogPublisher, formatEvent
from zope.interface import implementer

from sipha import config
from sipha.service.log import LogThreshold


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def publisher(lines: list[str]) -> LogPublisher:
    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    return LogPublisher(observe)


def say(publisher: LogPublisher) -> None:
    log = Logger("test", observer=publisher)
    for level in LogLevel.iterconstants():
        log.emit(level, level.name)


def test_log_shows_what_is_of_the_level_or_above(publisher: LogPublisher, lines: list[str]) -> None:
    threshold = LogThreshold(config.Log(level="warn"), publisher)
    say(publisher)
    assert len(lines) == 5, "it has not begun"
    lines.clear()
    threshold.startService()
    say(publisher)
    assert lines == ["warn", "error", "critical"]
    lines.clear()
    threshold.adopt(config.Log(level="critical"))
    say(publisher)
    assert lines == ["critical"]
    lines.clear()
    threshold.stopService()
    say(publisher)
    assert len(lines) == 5
