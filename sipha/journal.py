"""The log for journald, by `twistd --logger sipha.journal.observer`: lines with priorities, and without the time."""

from __future__ import annotations

import sys
from typing import Literal

from twisted.logger import FileLogObserver, LogEvent, LogLevel, eventAsText

Level = Literal["debug", "info", "warn", "error", "critical"]
"""The names of the levels of twisted.logger, which the journal's priorities stand for."""

_PRIORITIES = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}
"""Those of syslog (sd-daemon(3))."""


def observer() -> FileLogObserver:
    """An observer that writes to standard output."""
    return FileLogObserver(sys.stdout, _lines)


def _lines(event: LogEvent) -> str:
    priority = _PRIORITIES.get(event.get("log_level"), _PRIORITIES[LogLevel.info])
    text = eventAsText(event, includeTimestamp=False)
    return "".join(f"<{priority}>{line}\n" for line in text.splitlines())
