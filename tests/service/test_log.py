from __future__ import annotations

import json

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, LogPublisher, formatEvent
from zope.interface import implementer

from sipha import config
from sipha.journal import Level
from sipha.service.log import Log
from sipha.service.observers import BURST, PERIOD


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
    threshold = Log(Clock(), config.Log(level="warn"), publisher)
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


@pytest.mark.parametrize(
    ("before", "level", "said"), [("info", "debug", True), ("warn", "critical", True), ("critical", "error", False)]
)
def test_other_level_is_said_and_ends_with_the_next_configuration(
    publisher: LogPublisher, lines: list[str], before: Level, level: Level, said: bool
) -> None:
    log = Log(Clock(), config.Log(level=before), publisher)
    log.startService()
    log.set_level(level)
    words = f"the log shows {level} and above, no longer {before}, until the configuration is loaded again"
    assert lines == [words] * said
    lines.clear()
    say(publisher)
    assert lines[0] == log.level == level
    log.adopt(config.Log(level=before))
    lines.clear()
    say(publisher)
    assert lines[0] == log.level == before


def test_log_has_the_form_that_is_asked_for(
    publisher: LogPublisher, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(Clock(), config.Log(format="json"), publisher)
    log.startService()
    say(publisher)
    assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == [
        "info", "warn", "error", "critical",
    ]  # fmt: skip
    assert not lines
    log.stopService()
    say(publisher)
    assert len(lines) == 5


def test_log_tells_how_often_what_it_left_out_was_said(publisher: LogPublisher, lines: list[str]) -> None:
    clock = Clock()
    log = Log(clock, config.Log(), publisher)
    log.startService()
    for number in range(BURST + 3):
        Logger("test", observer=publisher).error("no way to {number}", number=number)
    assert len(lines) == BURST
    clock.advance(PERIOD)
    assert lines[BURST:] == [f"said 3 times more within {PERIOD:g} s: no way to 0"]
