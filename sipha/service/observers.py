"""Where the log goes: to the systemd journal or out as JSON lines, what an event is about in fields of its own."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

JOURNAL = Path("/run/systemd/journal/socket")
"""Where the journal takes entries: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""

PRIORITIES = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}
"""The priorities of syslog (RFC 5424 §6.2.1)."""

PERIOD = 60.0
"""Seconds after which what was said often may be said again."""

BURST = 20
"""How often one thing may be said in that time; of what follows, only the number is told."""

_LONGEST = 16384
"""The characters of the longest text that one entry of the journal is given; datagrams have an end."""

_MAX_KINDS = 1000

Format = Literal["auto", "text", "journal", "json"]


def make_observer(kind: Format, stream: TextIO, environ: Mapping[str, str] = os.environ) -> ILogObserver | None:
    """What writes the log in this form; None for plain text, which twistd writes.

    `auto` is the journal where systemd has connected our output with it, else text.
    """
    if kind == "json":
        return JsonObserver(stream)
    if kind == "journal" or (kind == "auto" and _is_journal(stream, environ)):
        return JournalObserver(JOURNAL)
    return None


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """True if a stream goes to the journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@implementer(ILogObserver)
class JsonObserver:
    """Writes a line of JSON for each event: time, level, namespace, message, then the event's own fields."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        entry = {
            "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
            "level": event["log_level"].name,
            "namespace": event.get("log_namespace", ""),
            "message": text(event),
            **{name: value for name, value in fields(event) if name not in _TAKEN},
        }
        self._stream.write(json.dumps(entry, ensure_ascii=True) + "\n")
        self._stream.flush()


_TAKEN = frozenset(("time", "level", "namespace", "message"))


@implementer(ILogObserver)
class JournalObserver:
    """Hands each event to the journal, with its priority; what it doesn't take is lost."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def __call__(self, event: LogEvent) -> None:
        """Hand an event over."""
        entry = [
            _field("MESSAGE", text(event)[:_LONGEST]),
            _field("PRIORITY", str(PRIORITIES[event["log_level"]])),
            _field("SYSLOG_IDENTIFIER", "sipha"),
            _field("SIPHA_NAMESPACE", str(event.get("log_namespace", ""))),
        ]
        entry += [_field(f"SIPHA_{name.upper()}", str(value)[:_LONGEST]) for name, value in fields(event)]
        try:
            self._socket.sendto(b"".join(entry), self._path)
        except OSError:
            return  # the log has nowhere else to go, and phones don't wait for it


def _field(name: str, value: str) -> bytes:
    """One field of the journal's protocol; one that has line breaks says how long it is."""
    data = value.encode("utf-8", "replace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)


def text(event: LogEvent) -> str:
    """The sentence of an event, with the traceback of its failure if there is one."""
    sentence = formatEvent(event)
    failure = event.get("log_failure")
    return sentence if failure is None else f"{sentence}\n{failure.getTraceback()}"


def fields(event: LogEvent) -> Iterator[tuple[str, Any]]:
    """What an event is about, by name: such of its values as are text or numbers."""
    for name, value in event.items():
        if name.startswith("log_") or name in {"format", "isError", "message", "system", "time"}:
            continue
        if isinstance(value, bool | int | float | str) and name.isidentifier():
            yield name, value


@implementer(ILogObserver)
class Repeats:
    """Passes on what is said again and again up to BURST times in PERIOD; after that, how often it was said.

    The same is what has the same words; of warnings and worse, whatever they are about.
    """

    def __init__(self, observer: ILogObserver, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._clock = clock
        self._kinds: dict[tuple[object, ...], _Kind] = {}

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on, or count it."""
        now = self._clock()
        level = event["log_level"]
        wording = event.get("log_format") if level >= LogLevel.warn else formatEvent(event)
        key = (event.get("log_namespace"), level, wording)
        kind = self._kinds.get(key)
        if kind is None or now >= kind.until:
            self._tell(kind)
            if len(self._kinds) >= _MAX_KINDS:
                self._sweep(now)
            kind = self._kinds[key] = _Kind(now + PERIOD, event)
        kind.count += 1
        if kind.count <= BURST:
            self._observer(event)

    def flush(self) -> None:
        """Say how often what is over was said."""
        self._sweep(self._clock())

    def _sweep(self, now: float) -> None:
        over = [key for key, kind in self._kinds.items() if now >= kind.until]
        for key in over:
            self._tell(self._kinds.pop(key))
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()

    def _tell(self, kind: _Kind | None) -> None:
        if kind is not None and kind.count > BURST:
            first = kind.first
            self._observer(
                {
                    **{name: first[name] for name in ("log_level", "log_namespace", "log_time") if name in first},
                    "log_format": "said {times} times more within {period:g} s: {sentence}",
                    "times": kind.count - BURST,
                    "period": PERIOD,
                    "sentence": formatEvent(first),
                }
            )


class _Kind:
    """What is said again and again."""

    __slots__ = ("count", "first", "until")

    def __init__(self, until: float, first: LogEvent) -> None:
        self.until = until
        self.first = first
        self.count = 0
