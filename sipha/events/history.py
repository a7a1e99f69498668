"""What has become of each AOR, on the disk of a node: an SQLite database of its own, read and written by one thread.

All of a node's log is in one order, so that an entry that is applied again after a restart is known by its index. The
log of a new cluster begins anew, and so each cluster that the node was in has an epoch.

An entry is written as one row, packed as it is, and found by a hash of each AOR that it concerns. When all phones come
back at once, this is what the disk has to take beside the log: a row and an index of each event would be three times
as many bytes.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from sipha.errors import SiphaError
from sipha.events.event import AnyEvent, Gap, decode, encode
from sipha.events.told import Told, events_in
from sipha.state.entries import UNDECODABLE

DAMAGED = ".damaged"
"""What is appended to the name of a database that can't be read."""

_CHUNK = 1000
"""AORs whose events are deleted at a time, or a few more."""

_CHUNKS = 20
"""How many times that in one go."""

_FORMAT = 3
"""What is written in the database for its form: one in another form is begun anew."""

_SCHEMA = f"""
PRAGMA user_version = {_FORMAT};
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 4000;
CREATE TABLE IF NOT EXISTS epochs (
    epoch INTEGER PRIMARY KEY, cluster TEXT NOT NULL, began INTEGER NOT NULL, reached INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS entries (
    place INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL, time INTEGER NOT NULL, hashes BLOB NOT NULL,
    changes BLOB, gap BLOB
);
CREATE TABLE IF NOT EXISTS aors (hash INTEGER, place INTEGER, PRIMARY KEY (hash, place)) WITHOUT ROWID;
"""

_PAGE = (
    "SELECT place, changes, gap FROM aors JOIN entries USING (place) WHERE hash = ? AND place <= ? ORDER BY place DESC"
)
_LATEST = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence"  # none is given again after all that was there has gone
_OLDEST = "SELECT place, epoch, time, hashes, coalesce(length(changes), length(gap)) FROM entries ORDER BY place"
_DELETE_HASH = "DELETE FROM aors WHERE hash = ? AND place = ?"

_HASH = "I"
"""The type of a hash in an array."""

_HASHES = 100
_INSERT_HASH = "INSERT INTO aors VALUES (?, ?)"
_INSERT_HASHES = _INSERT_HASH + ", (?, ?)" * (_HASHES - 1)
"""So many in one statement: the interpreter's lock is let go, and asked for again, with each."""

_GAP = 0
"""The hash of what concerns every AOR."""

_END = (1 << 62, 0)

Cursor = tuple[int, int]
"""The place of an entry, in the order in which they were written, and an event's number in there."""


class HistoryError(SiphaError):
    """The history can't be read or written; the message says why."""


class HistoryOff(HistoryError):
    """The configuration says that this node keeps no history."""

    def __init__(self) -> None:
        super().__init__("this node keeps no history; write history.keep in its configuration")


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

    def write(self, told: Sequence[Told | Gap], reached: int, time: int) -> int:
        """Write what entries have changed that weren't written before, and delete what is too old.

        All that the log has changed up to the index `reached` was written then. Returns how many events were written.
        """
        try:
            with self._database:
                written = self._insert(sorted([each for each in told if _index(each) > self.reached], key=_index))
                if reached > self.reached:
                    self._database.execute("UPDATE epochs SET reached = ? WHERE epoch = ?", (reached, self._epoch))
                self._prune(time)
        except sqlite3.Error as error:
            raise HistoryError(str(error)) from error
        self.reached = max(self.reached, reached)
        return written

    def page(self, aor: str, cursor: str = "", limit: int = 1000) -> Page:
        """The events of an AOR before a cursor, with the gaps between them; raises ValueError for what is no cursor."""
        before = _read_cursor(cursor)
        try:
            found = list(islice(self._before(aor, before), limit))
            oldest = self._database.execute("SELECT changes, gap FROM entries ORDER BY place LIMIT 1").fetchone()
            begins = None if oldest is None else next((event.at for _, event in _events(*oldest)), None)
        except (sqlite3.Error, *UNDECODABLE) as error:
            raise HistoryError(str(error)) from error
        last = ".".join(map(str, found[-1][0])) if len(found) == limit else None
        return Page(tuple(event for _, event in found), last, begins)

    def close(self) -> None:
        """Close the database."""
        with suppress(sqlite3.Error):
            self._database.close()

    def _open(self, *, suspect: bool) -> None:
        try:
            whole = self._connect() and (
                not suspect or self._database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            )
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

    def _connect(self) -> bool:
        """Open the database; False if it is in another form."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(self._path, check_same_thread=False)
        (form,) = self._database.execute("PRAGMA user_version").fetchone()
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and form != _FORMAT:
            return False
        self._database.executescript(_SCHEMA)
        return True

    def _enter(self, cluster: str, time: int) -> None:
        if cluster == self._cluster:
            return
        self._epoch, self._cluster, self._began, self.reached = self._epoch + 1, cluster, time, 0
        self._database.execute("INSERT INTO epochs VALUES (?, ?, ?, 0)", (self._epoch, cluster, time))

    def _insert(self, told: Sequence[Told | Gap]) -> int:
        """Write what is new; returns how many events that is."""
        (last,) = self._database.execute(_LATEST).fetchone()
        rows, found, count = [], list[tuple[int, int]](), 0
        for place, each in enumerate(told, last + 1):
            if isinstance(each, Gap):
                hashes, time, changes, gap = {_GAP}, int(each.time * 1000), None, encode(each)
            else:
                hashes, time, changes, gap = set(map(_hash, filter(None, each.aors))), each.time, each.data, None
                count += each.events
            rows.append((place, self._epoch, time, array(_HASH, hashes).tobytes(), changes, gap))
            found += [(number, place) for number in hashes]
        self._database.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
        found.sort()  # in the order of the table, so that neighbours are written together
        whole = len(found) // _HASHES * _HASHES
        for first in range(0, whole, _HASHES):
            self._database.execute(_INSERT_HASHES, list(chain.from_iterable(found[first : first + _HASHES])))
        self._database.executemany(_INSERT_HASH, found[whole:])
        return count

    def _before(self, aor: str, before: Cursor) -> Iterator[tuple[Cursor, AnyEvent]]:
        """The events of an AOR and the gaps, from the latest before a cursor on, each with its own."""
        found = [self._database.execute(_PAGE, (hash_, before[0])) for hash_ in (_hash(aor), _GAP)]
        for place, changes, gap in heapq.merge(*found, key=itemgetter(0), reverse=True):
            for number, event in reversed(list(_events(changes, gap, aor))):
                if (place, number) < before:
                    yield (place, number), event

    def _prune(self, time: int) -> None:
        """Delete what is too old, or too much; what is left over comes the next time."""
        oldest = time - self._keep
        # The time of another cluster can't be compared: all of it is older than this one.
        ended = self._epoch if self._began <= oldest else 0
        for _ in range(_CHUNKS):
            if self._delete(ended, oldest, self._used() - self._max_bytes) < _CHUNK:
                return

    def _delete(self, ended: int, oldest: int, excess: int) -> int:
        """Delete the first entries, up to so many bytes, and those that are too old; returns how many AORs they had."""
        last, gone = 0, list[tuple[int, int]]()
        for place, epoch, time, hashes, size in self._database.execute(_OLDEST):
            too_old = epoch < ended or (epoch == self._epoch and time < oldest)
            if len(gone) >= _CHUNK or not (too_old or excess > 0):
                break
            last = place
            excess -= size
            gone += [(number, place) for number in array(_HASH, hashes)]
        if last:
            self._database.executemany(_DELETE_HASH, gone)
            self._database.execute("DELETE FROM entries WHERE place <= ?", (last,))
        return len(gone)

    def _used(self) -> int:
        """The bytes of the database that are in use."""
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def _index(told: Told | Gap) -> int:
    return told.index if isinstance(told, Gap) else told.entry


def _hash(aor: str) -> int:
    """What an AOR's events are found by, among those of a few others; the events say whose they are."""
    return (crc32(aor.encode("utf-8", "surrogateescape")) >> 1) + 1


def _events(changes: bytes | None, gap: bytes | None, aor: str | None = None) -> Iterator[tuple[int, AnyEvent]]:
    """The events in a row, by their numbers; none in one of a later release that this one doesn't know."""
    try:
        if gap is not None:
            yield 0, decode(gap)
        elif changes is not None:
            yield from events_in(changes, aor)
    except msgspec.ValidationError:
        return


def _read_cursor(text: str) -> Cursor:
    if not text:
        return _END
    try:
        place, number = map(int, text.split("."))
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a cursor") from None
    if not (0 <= place < 1 << 63 and 0 <= number < 1 << 63):
        raise ValueError(f"{text[:40]!r} is not a cursor")
    return place, number
