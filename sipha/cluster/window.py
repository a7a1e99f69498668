"""The last entries of the log, kept in memory, and what the library sees of the log's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import overload

from sipha.cluster.wire import Entry

_COUNT = 4096


class Window:
    """Entries from `first` on; `size` is the bytes of their commands."""

    __slots__ = ("_entries", "first", "size")

    def __init__(self, first: int) -> None:
        self.first = first
        self.size = 0
        self._entries: list[Entry] = []

    def __getitem__(self, index: int) -> Entry:
        """The entry at `index`."""
        return self._entries[index - self.first]

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        self._entries.append(entry)
        self.size += len(entry[0])

    def extend(self, entries: list[Entry]) -> None:
        """Add the next entries."""
        self._entries += entries
        self.size += sum([len(entry[0]) for entry in entries])

    def take(self, first: int, last: int, size: int) -> list[Entry]:
        """The entries from `first` on up to `last`: at least one, and no more than `size` bytes or 4096 entries."""
        start = first - self.first
        entries = self._entries[start : min(start + last - first + 1, start + _COUNT)]
        for number, (command, _, _) in enumerate(entries):
            size -= len(command)
            if size < 0 and number:
                return entries[:number]
        return entries

    def cut(self, last: int) -> None:
        """Forget the entries after `last`."""
        count = max(last + 1 - self.first, 0)
        self.size -= sum(len(command) for command, _, _ in self._entries[count:])
        del self._entries[count:]
        self.first = min(self.first, last + 1)

    def trim(self, size: int, last: int) -> None:
        """Forget the oldest, none after `last`, until the others' commands have no more than `size` bytes."""
        count = 0
        for command, index, _ in self._entries:
            if self.size <= size or index > last:
                break
            self.size -= len(command)
            count += 1
        del self._entries[:count]
        self.first += count


class Tail:
    """The entries from `first` to `last`, read as they are looked at: the library measures them and takes a few."""

    __slots__ = ("_entries", "_first", "_last", "_read")

    def __init__(self, read: Callable[[int, int], list[Entry]], first: int, last: int) -> None:
        self._read = read
        self._first = first
        self._last = last
        self._entries: list[Entry] = []  # those that were looked at

    def __len__(self) -> int:
        """The number of entries."""
        return max(self._last - self._first + 1, 0)

    def __iter__(self) -> Iterator[Entry]:
        """All of them, some 64 KiB at a time."""
        count = 0
        while count < len(self):
            self._look(count + 1)
            yield from self._entries[count:]
            count = len(self._entries)

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry] | Tail: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry] | Tail:
        """An entry, the first few, or the tail without the first few."""
        if isinstance(item, int):
            self._look(item + 1)
            return self._entries[item]
        if item.stop is None:
            return Tail(self._read, self._first + item.start, self._last)
        self._look(item.stop)
        return self._entries[: item.stop]

    def _look(self, count: int) -> None:
        count = min(count, len(self))
        while len(self._entries) < count and (more := self._read(self._first + len(self._entries), self._last)):
            self._entries += more
