"""What has become of each AOR, on the disk of a node: an SQLite database of its own, read and written by one thread.

All of a node's log is in one order, so that an entry that is applied again after a restart is known by its index. The
log of a new cluster begins anew, and so each cluster that the node was in has an epoch.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from sipha.errors import SiphaError
from sipha.events.event import AnyEvent, Gap, decode

DAMAGED = ".damaged"
"""What is appended to the name of a database that can't be read."""

_CHUNK = 1000
"""Events that are deleted at a time."""

_CHUNKS = 20
"""How many times that in one go."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS epochs (
    epoch INTEGER PRIMARY KEY, cluster TEXT NOT NULL, began INTEGER NOT NULL, reached INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    epoch INTEGER, entry INTEGER, number INTEGER, time INTEGER NOT NULL, aor TEXT NOT NULL, event BLOB NOT NULL,
    PRIMARY KEY (epoch, entry, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_aor ON events (aor, epoch, entry, number);
"""

_PAGE = (
    "SELECT epoch, entry, number, event FROM events WHERE aor = ? AND (epoch, entry, number) < (?, ?, ?) "
    "ORDER BY epoch DESC, entry DESC, number DESC LIMIT ?"
)
_DELETE = (
    "DELETE FROM events WHERE (epoch, entry, number) IN (SELECT epoch, entry, number FROM "
    "(SELECT * FROM events ORDER BY epoch, entry, number LIMIT ?) WHERE epoch < ? OR time < ?)"
)
_END = (1 << 62, 0, 0)

Cursor = tuple[int, int, int]
"""Epoch, index and number of an event."""


class HistoryError(SiphaError):
    """The history can't be read or written; the message says why."""


class HistoryOff(HistoryError):
    """The configuration says that this node keeps no history."""

    def __init__(self) -> None:
        super().__init__("this node keeps no history; write history.keep in its configuration")


class Row(NamedTuple):
    """An event to be written: index and number, cluster time in ms, the AOR (none for a gap), and JSON."""

    entry: int
    number: int
    time: int
    aor: str
    event: bytes


class Page(NamedTuple):
    """Events from the latest to the earliest; the cursor of the next page, None on the last one.

    `begins` is the wall time of the earliest event of any AOR that is kept, None if there is none.
    """

    events: tuple[AnyEvent, ...]
    cursor: str | None
    begins: str | None


class History:
    """The events in a database; all is raised as HistoryError, after which it is to be closed and opened anew.

    What is older than `keep` seconds of cluster time goes, and so does the oldest beyond `max_bytes`. A `suspect` one
    is checked, and one that is damaged is moved aside. Only one thread at a time may use it.
    """

    def __init__(self, path: Path, keep: float, max_bytes: int, *, suspect: bool = False) -> None:
        self._path = path
        self._keep = int(keep * 1000)
        self._max_bytes = max_bytes
        self._epoch = 0
        self._cluster = ""
        self._began = 0
        self.reached = 0
        """The index up to which the history knows what the log of this cluster has changed, or that it doesn't."""
        try:
            self._open(suspect=suspect)
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(str(error)) from error

    def enter(self, cluster: str, time: int) -> int:
        """Be in a cluster, at a cluster time in ms; returns what is `reached` there."""
        try:
            with self._database:
                self._enter(cluster, time)
        except sqlite3.Error as error:
            raise HistoryError(str(error)) from error
        return self.reached

    def write(self, rows: Sequence[Row], reached: int, time: int) -> int:
        """Write the events, of entries that weren't written before, and delete what is too old.

        All that the log has changed up to the index `reached` was written then. Returns how many were written.
        """
        try:
            with self._database:
                new = [(self._epoch, *row) for row in rows if row.entry > self.reached]
                self._database.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?)", new)
                if reached > self.reached:
                    self._database.execute("UPDATE epochs SET reached = ? WHERE epoch = ?", (reached, self._epoch))
                self._prune(time)
        except sqlite3.Error as error:
            raise HistoryError(str(error)) from error
        self.reached = max(self.reached, reached)
        return len(new)

    def page(self, aor: str, cursor: str = "", limit: int = 1000) -> Page:
        """The events of an AOR before a cursor, with the gaps between them; raises ValueError for what is no cursor."""
        before = _read_cursor(cursor)
        try:
            found = [self._database.execute(_PAGE, (of, *before, limit)).fetchall() for of in (aor, "")]
            oldest = self._database.execute("SELECT event FROM events ORDER BY epoch, entry, number LIMIT 1").fetchone()
        except sqlite3.Error as error:
            raise HistoryError(str(error)) from error
        rows = list(heapq.merge(*found, reverse=True))[:limit]
        events = tuple(event for row in rows if (event := _read(row[3])) is not None)
        first = None if oldest is None else _read(oldest[0])
        last = ".".join(map(str, rows[-1][:3])) if len(rows) == limit else None
        return Page(events, last, None if first is None else first.at)

    def close(self) -> None:
        """Close the database."""
        with suppress(sqlite3.Error):
            self._database.close()

    def _open(self, *, suspect: bool) -> None:
        try:
            self._connect()
            whole = not suspect or self._database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            whole = False
        if not whole:
            self.close()
            self._path.replace(self._path.with_name(self._path.name + DAMAGED))
            for end in ("-wal", "-shm"):
                self._path.with_name(self._path.name + end).unlink(missing_ok=True)
            self._connect()
        latest = self._database.execute(
            "SELECT epoch, cluster, began, reached FROM epochs ORDER BY epoch DESC"
        ).fetchone()
        if latest is not None:
            self._epoch, self._cluster, self._began, self.reached = latest

    def _connect(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(self._path, check_same_thread=False)
        self._database.executescript(_SCHEMA)

    def _enter(self, cluster: str, time: int) -> None:
        if cluster == self._cluster:
            return
        self._epoch, self._cluster, self._began, self.reached = self._epoch + 1, cluster, time, 0
        self._database.execute("INSERT INTO epochs VALUES (?, ?, ?, 0)", (self._epoch, cluster, time))

    def _prune(self, time: int) -> None:
        """Delete what is too old, or too much; what is left over comes the next time."""
        oldest = time - self._keep
        # The time of another cluster can't be compared: all of it is older than this one.
        ended = self._epoch if self._began <= oldest else 0
        for _ in range(_CHUNKS):
            if self._used() > self._max_bytes:
                deleted = self._database.execute(_DELETE, (_CHUNK, self._epoch + 1, 0)).rowcount
            else:
                deleted = self._delete_older(ended, oldest)
            if deleted < _CHUNK:
                return

    def _delete_older(self, ended: int, oldest: int) -> int:
        first = self._database.execute("SELECT epoch, time FROM events ORDER BY epoch, entry, number").fetchone()
        if first is None or (first[0] >= ended and (first[0] < self._epoch or first[1] >= oldest)):
            return 0
        return self._database.execute(_DELETE, (_CHUNK, ended, oldest if first[0] == self._epoch else 0)).rowcount

    def _used(self) -> int:
        """The bytes of the database that are in use."""
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def gap_row(gap: Gap, event: bytes) -> Row:
    """A gap, as it is written: it is every AOR's."""
    return Row(gap.index, 0, int(gap.time * 1000), "", event)


def _read(event: bytes) -> AnyEvent | None:
    """Read an event; None for one of a later release that this one doesn't know."""
    try:
        return decode(event)
    except msgspec.ValidationError:
        return None


def _read_cursor(text: str) -> Cursor:
    if not text:
        return _END
    try:
        epoch, entry, number = map(int, text.split("."))
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a cursor") from None
    if not all(0 <= part < 1 << 63 for part in (epoch, entry, number)):
        raise ValueError(f"{text[:40]!r} is not a cursor")
    return epoch, entry, number
