"""The log on disk, behind the library's journal hook: what is called durable survives a power cut.

In memory everything changes at once. What must happen on the disk follows in the same order, on the disk's own thread;
entries that come meanwhile wait and are written together, with one fsync. A failed write is never tried again, since
nobody knows what the file holds then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import overload

from twisted.logger import Logger

from sipha.cluster.disk import Damaged, Disk
from sipha.cluster.seal import seal, unseal
from sipha.cluster.sealed import Ballot
from sipha.cluster.segment import Segment
from sipha.cluster.window import Tail, Window
from sipha.cluster.wire import Entry
from sipha.cluster.writer import Done, Writer

MEMBERSHIP = 4
"""The first byte of a command that changes the members."""

SEGMENT = 64 << 20
"""Bytes from which on a file of the log gets no more entries."""

WINDOW = 32 << 20
"""Bytes of the latest commands that are kept in memory, about."""

_NO_OP = b"\x01"
_SLICE = 64 << 10
_GROUP = 1 << 20
_FEW = 4
"""Entries that are taken rather than looked at: a leader has so few to send to who is up to date."""

_TERM = "term"


class Journal:
    """The entries from `first_index`, the base, which a snapshot covers or which is entry 1, to `last_index`.

    Made by `open`. The attributes may be set: `on_durable` is called when `durable` has risen, also within `flush` and
    `sync_now`; `on_failed` once, when nothing will be durable any more; `on_membership` when `membership` has changed.
    """

    def __init__(self, disk: Disk, *, sync: bool) -> None:
        self.on_durable: Callable[[], None] = lambda: None
        self.on_failed: Callable[[OSError], None] = lambda _: None
        self.on_membership: Callable[[], None] = lambda: None
        self.generation = 0
        """Rises when entries are cut off that may be on disk."""
        self._disk = disk
        self._sync = sync
        self._writer = Writer(disk, self._settled, self._failed, sync=sync)
        self._log = Logger(namespace="sipha.cluster")
        self._ballot = Ballot(0, None)
        self._kept: Ballot | None = None  # what is known to be on disk
        self._commit = 0
        self._segments: list[Segment] = []
        self._window = Window(0)
        self._base = self._last = (_NO_OP, 0, 0)
        self._issued = 0  # the last index that was given to the writer
        self._members: list[tuple[int, bytes]] = []
        self._closed = False

    @classmethod
    def open(cls, disk: Disk, base: tuple[int, int] | None, *, sync: bool, commit: int) -> Journal:
        """Open the log, or begin one; `base` is index and term of the snapshot that it follows.

        `commit` is the commit index last known. Without `sync` nothing is awaited, so a power cut may take the last
        seconds. Raises Damaged, OSError, and ConfigError if a later release wrote it.
        """
        journal = cls(disk, sync=sync)
        journal._load(base)
        journal._load_ballot()
        if commit > journal.last_index:
            lost = f"the log ends at entry {journal.last_index}, but those up to {commit} were committed"
            if sync:
                raise Damaged(lost)
            journal._log.warn("{lost}: the price of durability = os in a power cut", lost=lost)
        journal._commit = max(min(commit, journal.last_index), journal.first_index)
        return journal

    def close(self) -> None:
        """Write and sync what is left; nobody is told anything any more."""
        if not self._closed:
            self._closed = True
            self.sync_now()

    # The log

    @property
    def first_index(self) -> int:
        """The index of the base."""
        return self._base[1]

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return self._last[1]

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._last[2]

    @property
    def durable(self) -> int:
        """The index up to which entries are on disk; it falls when they are cut off."""
        return self._writer.durable

    @property
    def backlog(self) -> int:
        """Bytes of the entries that are not on disk yet."""
        first = max(self.durable + 1, self._segments[0].first)  # a reset that the disk is at begins a new log
        if first > self.last_index:
            return 0
        segment = self._segment(first)
        return sum(each.size for each in self._segments if each.first >= segment.first) - segment.offset(first)

    @property
    def size(self) -> int:
        """Bytes in the log's files."""
        return sum(segment.size for segment in self._segments)

    @property
    def membership(self) -> tuple[int, bytes] | None:
        """Index and command of the latest entry that changes the members."""
        return self._members[-1] if self._members else None

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if the log has none."""
        if not self._base[1] <= index <= self._last[1]:
            return None
        return self._term(index)

    def _term(self, index: int) -> int:
        return self._window[index][2] if index >= self._window.first else self._segment(index).term_at(index)

    def __len__(self) -> int:
        """The number of entries with the base."""
        return self._last[1] - self._base[1] + 1

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry] | Tail: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry] | Tail:
        """An entry; of a closed slice the first 64 KiB of commands; of an open one all, or a view. Raises OSError."""
        if isinstance(item, slice):
            start = self._base[1] + item.start
            if item.stop is None:
                last = self._last[1]
                if last - start < _FEW and start >= self._window.first:
                    few = self._window.take(start, last, _SLICE)
                    if len(few) == last - start + 1:
                        return few
                return Tail(self.entries, start, last)
            return self.entries(start, self._base[1] + item.stop - 1)
        if item == -1:
            return self._last
        if item == 0:
            return self._base
        index = (self._base[1] if item > 0 else self._last[1] + 1) + item
        if not self._base[1] <= index <= self._last[1]:
            raise IndexError(item)
        return self.entries(index, index)[0]

    def entries(self, first: int, last: int) -> list[Entry]:
        """The entries from `first` on up to `last`, as many as make up 64 KiB, at least one; raises OSError."""
        last = min(last, self._last[1])
        if not self._base[1] <= first <= last:
            return []
        if first >= self._window.first:
            return self._window.take(first, last, _SLICE)
        return self._segment(first).read(self._disk, first, min(last, self._window.first - 1), _SLICE)

    @property
    def window_first(self) -> int:
        """The index of the first entry after the base that is in memory."""
        return max(self._window.first, self._base[1] + 1)

    def recent(self, end: int, limit: int) -> list[Entry]:
        """Up to `limit` entries before `end` that are in memory, newest first: as many as make up 64 KiB, or one."""
        found: list[Entry] = []
        size = 0
        for index in range(min(end, self._last[1] + 1) - 1, self.window_first - 1, -1):
            entry = self._window[index]
            size += len(entry[0])
            if len(found) == limit or (found and size > _SLICE):
                break
            found.append(entry)
        return found

    def add(self, command: bytes, index: int, term: int) -> None:
        """Add the next entry; `flush` writes it."""
        last = self._last[1]
        if index != last + 1 or not command:
            raise ValueError(f"entry {index} is empty, or doesn't follow entry {last}")
        segment = self._segments[-1]
        if segment.size >= SEGMENT:
            segment = Segment.new(index)
            self._segments.append(segment)
        segment.add(len(command), term)
        self._last = (command, index, term)
        self._window.add(self._last)
        if command[0] == MEMBERSHIP:
            self._put_members([*self._members, (index, command)])

    def deleteEntriesFrom(self, position: int) -> None:
        """Cut off the entries from `journal[position]` on; the base stays."""
        if not 0 < position < len(self):
            raise IndexError(position)
        self._last = self[position - 1]
        last = self._last[1]
        self._window.cut(last)
        cut = []
        while self._segments[-1].first > last:
            cut.append(self._segments.pop())
        segment = self._segments[-1]
        segment.cut(last)
        if last < self._issued:
            names = [later.name for later in cut if later.first <= self._issued]
            self._issued = last
            self.generation += 1
            self._writer.cut(names, segment.name, segment.size, last)
            self.flush()
        self._put_members([member for member in self._members if member[0] <= last])

    def compact(self, index: int) -> None:
        """Forget the entries before `index`, which a durable snapshot covers; raises OSError."""
        if not self._base[1] < index <= self._last[1]:
            return
        (self._base,) = self.entries(index, index)
        names = []
        while len(self._segments) > 1 and self._segments[1].first <= min(index, self.durable):
            names.append(self._segments.pop(0).name)
        if names:
            self._disk.run_bulk(partial(self._remove, names), self._removed)
        self._put_members([member for member in self._members if member[0] >= index])

    def reset(self, index: int, term: int, done: Done) -> None:
        """Let a base that a durable snapshot covers take the place of the whole log; `done` when it has on disk."""

        def told(error: OSError | None) -> None:
            if not self._closed:
                done(error)

        files = [segment.name for segment in self._segments if segment.first <= self._issued]
        self._replace(files, index, term, told)
        self.flush()

    # Term and vote, and what else the library calls

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Keep term and vote, durably; raises OSError."""
        ballot = Ballot(term, votedForNodeId)
        if ballot != self._kept:
            self._kept = None
            self._disk.replace(_TERM, seal(ballot))
            self._ballot = self._kept = ballot

    def getCurrentTerm(self) -> int:
        """The current term."""
        return self._ballot.term

    def getVotedForNodeId(self) -> str | None:
        """Who got our vote in the current term."""
        return self._ballot.vote

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Note the commit index; `Progress` keeps it."""
        self._commit = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        """The commit index."""
        return self._commit

    def onOneSecondTimer(self) -> None:
        """Nothing is left for later."""

    def _destroy(self) -> None:
        self.close()

    # On the disk

    def flush(self) -> None:
        """Have written what was added: now, or as soon as what is under way is done."""
        if self._closed:
            return
        if not self._sync:
            self.sync_now()
        elif not self._writer.running:
            self._collect()
            self._writer.start()

    def sync_now(self) -> None:
        """Write and sync what was added, before this returns."""
        self._collect()
        while self._writer.busy:
            self._writer.finish()
            self._collect()

    def _collect(self) -> None:
        """Give the writer a group of the entries that were added."""
        first = self._issued + 1
        if first > self._last[1] or self._writer.error is not None:
            return
        segment = self._segment(first)
        entries = self._window.take(first, segment.last, _GROUP)
        self._issued = entries[-1][1]
        header = segment.header() if first == segment.first else None
        if header is not None:  # only the last file has room behind its records
            full = self._segment(first - 1)
            self._writer.cut((), full.name, full.size, full.last)
        records = segment.records(entries, self._term(first - 1), self.durable)
        self._writer.write(segment.name, header, segment.offset(first), records, self._issued)

    def _settled(self, risen: bool) -> None:
        if self._window.size > WINDOW + WINDOW // 4:
            self._window.trim(WINDOW, self.durable)
        if risen and not self._closed:
            self.on_durable()
        self.flush()

    def _failed(self, error: OSError) -> None:
        self._log.error("the log can't be written: {error}", error=error)
        if not self._closed:
            self.on_failed(error)

    def _replace(self, files: list[str], index: int, term: int, done: Done) -> None:
        """Begin anew with a base, and have the writer do the same."""
        segment = Segment.new(index)
        self._segments = [segment]
        self._base = self._last = (_NO_OP, index, term)
        segment.add(len(_NO_OP), term)
        self._window = Window(index)
        self._window.add(self._base)
        self._issued = index
        self.generation += 1
        content = segment.header() + segment.records([self._base], term, 0)
        self._writer.replace(files[::-1], segment.name, content, index, done)
        self._put_members([])

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self._disk.remove(name)

    def _removed(self, result: object) -> None:
        if isinstance(result, OSError):
            self._log.warn("can't remove an old part of the log: {error}", error=result)

    def _put_members(self, members: list[tuple[int, bytes]]) -> None:
        before = self.membership
        self._members = members
        if self.membership != before:
            self.on_membership()

    def _segment(self, index: int) -> Segment:
        return self._segments[bisect_right(self._segments, index, key=attrgetter("first")) - 1]

    # Opening

    def _load(self, base: tuple[int, int] | None) -> None:
        index, term = base or (1, 0)
        firsts = Segment.find(self._disk)
        while len(firsts) > 1 and firsts[1] <= index:
            self._disk.remove(Segment(firsts.pop(0), 0).name)
        if firsts:
            if firsts[0] > index:
                raise Damaged(f"the log begins at entry {firsts[0]}, and no snapshot holds what was before")
            self._load_segments(firsts)
            self._issued = self._last[1]
            if base is None and not len(self._segments[0]):
                raise Damaged(f"{self._segments[0].name} has lost its entries")
        if not firsts or self._last[1] < index or self._term(index) != term:
            self._replace([segment.name for segment in self._segments], index, term, lambda _: None)
            self.sync_now()
            if self._writer.error is not None:
                raise self._writer.error
        else:
            (self._base,) = self._segment(index).read(self._disk, index, index, _SLICE)
            self._writer.durable = self._issued
            self._members = [member for member in self._members if member[0] >= index]

    def _load_segments(self, firsts: list[int]) -> None:
        """Read the files as far as one follows the other, and make them durable."""
        self._window = Window(firsts[0])
        for first in firsts:
            if self._segments and first != self._segments[-1].last + 1:
                break
            segment = Segment.open(self._disk, first)
            self._segments.append(segment)
            for entries in segment.load(self._disk, self._last[2] if len(self._segments) > 1 else None):
                self._last = entries[-1]
                self._window.extend(entries)
                self._window.trim(WINDOW, self._last[1])
                self._members += [(index, command) for command, index, _ in entries if command[0] == MEMBERSHIP]
            if segment.size < self._disk.size(segment.name):
                break
        self._cut_tail([Segment.open(self._disk, first) for first in firsts[len(self._segments) :]])
        vouched = self._segments[-1].vouched
        for segment in self._segments:
            if len(segment) and vouched < segment.last:
                self._disk.rewrite(segment.name, segment.offset(max(vouched + 1, segment.first)))
            self._disk.sync(segment.name)
        self._disk.sync_names()

    def _cut_tail(self, rest: list[Segment]) -> None:
        """Cut off what was being written when the power went; raises Damaged if it was durable before."""
        segment = self._segments[-1]
        if rest or segment.is_torn(self._disk):
            index = segment.last + 1
            if any(each.vouches(self._disk, index) for each in [segment, *rest]):
                raise Damaged(f"entry {index} in {segment.name} is damaged")
            self._log.warn("what the log has behind entry {last} was never whole and is cut off", last=segment.last)
        if not len(segment) and len(self._segments) > 1:
            rest.insert(0, self._segments.pop())
        for each in rest:
            self._disk.remove(each.name)
        segment = self._segments[-1]
        if segment.size < self._disk.size(segment.name):
            self._disk.truncate(segment.name, segment.size)

    def _load_ballot(self) -> None:
        try:
            self._ballot = unseal(self._disk.read(_TERM), Ballot)
        except FileNotFoundError:
            if self._last[1] > 1:
                raise Damaged(f"the file {_TERM} is missing") from None
        except ValueError:
            raise Damaged(f"the file {_TERM} is unreadable") from None
        if self._ballot.term < self._last[2]:
            raise Damaged(f"the file {_TERM} is older than the log")
