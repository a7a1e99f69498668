from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.service.observers import BURST, PERIOD, JournalObserver, JsonObserver, Repeats, make_observer


@implementer(ILogObserver)
class Log:
    """A logger, and an observer that keeps what it is told."""

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)

    def __init__(self) -> None:
        self.publisher = LogPublisher()
        self.logger = Logger(namespace="sipha.test", observer=self.publisher)
        self.events: list[LogEvent] = []
        self.now = 0.0


@pytest.fixture
def log() -> Log:
    return Log()


def test_line_of_json_has_what_the_event_is_about(log: Log) -> None:
    stream = io.StringIO()
    log.publisher.addObserver(JsonObserver(stream))
    log.logger.error(
        "{aor} is refused: {status}", aor="sip:alice@sipha.test", status=3, call_id="a\nb", message="?", thing=object()
    )
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "error",
        "namespace": "sipha.test",
        "message": "sip:alice@sipha.test is refused: 3",
        "aor": "sip:alice@sipha.test",
        "status": 3,
        "call_id": "a\nb",
    }


def test_line_of_json_has_the_traceback(log: Log) -> None:
    stream = io.StringIO()
    log.publisher.addObserver(JsonObserver(stream))
    log.logger.failure("a mistake", Failure(ValueError("of ours")))
    entry = json.loads(stream.getvalue())
    assert entry["level"] == "critical"
    assert entry["message"].startswith("a mistake\n")
    assert "ValueError: of ours" in entry["message"]


def read_journal(data: bytes) -> dict[str, str]:
    """The fields of an entry, read as https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ says."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


@pytest.mark.parametrize("sentence", ["all is well", "two\nlines=1"])
def test_journal_gets_priority_message_and_fields(log: Log, tmp_path: Path, sentence: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        log.publisher.addObserver(JournalObserver(path))
        log.logger.error("{sentence}", sentence=sentence, aor="sip:alice@sipha.test")
        assert read_journal(journal.recv(65536)) == {
            "MESSAGE": sentence,
            "PRIORITY": "3",
            "SYSLOG_IDENTIFIER": "sipha",
            "SIPHA_NAMESPACE": "sipha.test",
            "SIPHA_SENTENCE": sentence,
            "SIPHA_AOR": "sip:alice@sipha.test",
        }


def test_journal_that_is_away_stops_nothing(log: Log, tmp_path: Path) -> None:
    log.publisher.addObserver(JournalObserver(tmp_path / "none"))
    log.publisher.addObserver(log)
    log.logger.info("all is well")
    assert len(log.events) == 1


def test_form_follows_where_the_output_goes(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        found = os.fstat(stream.fileno())
        own = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert isinstance(make_observer("auto", stream, own), JournalObserver)
        assert make_observer("auto", stream, {"JOURNAL_STREAM": "1:2"}) is None
        assert make_observer("auto", stream, {}) is None
        assert make_observer("text", stream, own) is None
        assert isinstance(make_observer("journal", stream, {}), JournalObserver)
        assert isinstance(make_observer("json", stream, own), JsonObserver)
    assert make_observer("auto", io.StringIO(), own) is None


def messages(log: Log) -> list[Any]:
    return [event["log_format"].format(**event) for event in log.events]


def test_what_is_said_too_often_is_counted(log: Log) -> None:
    repeats = Repeats(log, lambda: log.now)
    log.publisher.addObserver(repeats)
    for number in range(BURST + 5):
        log.logger.error("no way to {number}", number=number)
    log.logger.info("something else")
    assert messages(log) == [*(f"no way to {number}" for number in range(BURST)), "something else"]
    log.events.clear()
    log.now = PERIOD
    log.logger.error("no way to {number}", number=7)
    assert messages(log) == [f"said 5 times more within {PERIOD:g} s: no way to 0", "no way to 7"]
    assert {event["log_level"] for event in log.events} == {LogLevel.error}


def test_what_is_about_different_things_is_said_each_time_unless_it_is_a_warning(log: Log) -> None:
    log.publisher.addObserver(Repeats(log, lambda: log.now))
    for number in range(BURST + 5):
        log.logger.info("REGISTER {number}", number=number)
    assert len(log.events) == BURST + 5


def test_number_of_what_was_said_too_often_is_told_though_nothing_follows(log: Log) -> None:
    repeats = Repeats(log, lambda: log.now)
    log.publisher.addObserver(repeats)
    for _ in range(BURST + 1):
        log.logger.info("again")
    log.events.clear()
    log.now = PERIOD - 1
    repeats.flush()
    assert not log.events
    log.now = PERIOD
    repeats.flush()
    repeats.flush()
    assert messages(log) == [f"said 1 times more within {PERIOD:g} s: again"]
