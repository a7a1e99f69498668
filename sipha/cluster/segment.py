"""A file of the log: a header, then records of entries, each of which can be checked by itself.

    header: magic, format, index of the first entry, salt, CRC
    record: magic, CRC, length, index, term, term of the entry before, durable, command
    room: zeros, behind the last record of the last file

An entry's index and term name all that is before it (Raft §5.3), so no log is put together from what is left of two.
`durable` is the last index that was on disk when the record was written: a later record thereby vouches for those
before it. All checksums begin with the file's random salt, so that no command can pass for a record, nor can what an
earlier file left in the disk's blocks.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from errno import EIO
from itertools import accumulate
from struct import Struct
from zlib import crc32

from sipha.cluster.disk import Damaged, Disk
from sipha.cluster.wire import Entry
from sipha.errors import ConfigError

_FORMAT = 1
_FILE = b"sipha-log"
_RECORD = b"\xf5\x9e\xc1\xfb"

_header = Struct("<9sHQI")
_checksum = Struct("<I")
_lead = Struct("<4sI")
_body = Struct("<IQQQQ")
_record = Struct("<4sIIQQQQ")

HEADER = _header.size + _checksum.size
"""Bytes before the first record."""

OVERHEAD = _record.size
"""Bytes of a record besides its command."""

_PIECE = 8 << 20
_PATTERN = re.compile(r"log-(\d{20})\Z")


class Segment:
    """The file that begins with entry `first`.

    `size` is its bytes when all its entries are written, `vouched` the `durable` of the last record that was loaded.
    """

    __slots__ = ("_offsets", "_salt", "_terms", "first", "name", "size", "vouched")

    def __init__(self, first: int, salt: int) -> None:
        self.first = first
        self.name = f"log-{first:020d}"
        self.size = HEADER
        self.vouched = 0
        self._salt = salt
        self._offsets = array("Q")
        self._terms = array("Q")

    @classmethod
    def new(cls, first: int) -> Segment:
        """A file that isn't written yet."""
        return cls(first, int.from_bytes(os.urandom(4), "little"))

    @classmethod
    def find(cls, disk: Disk) -> list[int]:
        """The first indices of the files that there are."""
        return sorted(int(match[1]) for name in disk.names() if (match := _PATTERN.match(name)))

    @classmethod
    def open(cls, disk: Disk, first: int) -> Segment:
        """A file of which no record is loaded yet; raises Damaged."""
        segment = cls(first, 0)
        header = disk.read(segment.name, 0, HEADER)
        if len(header) < HEADER:  # its first write was cut short
            return segment
        if crc32(header[: _header.size]) != _checksum.unpack_from(header, _header.size)[0]:
            raise Damaged(f"the header of {segment.name} is damaged")
        magic, version, index, segment._salt = _header.unpack_from(header)
        if magic != _FILE or index != first:
            raise Damaged(f"{segment.name} is another file")
        if version != _FORMAT:
            raise ConfigError(f"{segment.name} is of a later release than this one; install that release again")
        return segment

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._offsets)

    @property
    def last(self) -> int:
        """The index of the last entry; `first` - 1 if there is none."""
        return self.first + len(self._offsets) - 1

    def term_at(self, index: int) -> int:
        """The term of an entry."""
        return self._terms[index - self.first]

    def offset(self, index: int) -> int:
        """Where the record of an entry begins."""
        return self._offsets[index - self.first]

    # In memory

    def add(self, length: int, term: int) -> None:
        """Give the next entry, with a command of so many bytes, its place."""
        self._offsets.append(self.size)
        self._terms.append(term)
        self.size += OVERHEAD + length

    def cut(self, last: int) -> None:
        """Forget the entries after `last`."""
        count = last + 1 - self.first
        if count < len(self._offsets):
            self.size = self._offsets[count]
            del self._offsets[count:], self._terms[count:]

    # To the disk

    def header(self) -> bytes:
        """What the file begins with."""
        header = _header.pack(_FILE, _FORMAT, self.first, self._salt)
        return header + _checksum.pack(crc32(header))

    def records(self, entries: Iterable[Entry], before: int, durable: int) -> bytes:
        """The bytes of entries that follow each other; `before` is the term of the entry before them."""
        salt, lead, pack = self._salt, _lead.pack, _body.pack
        parts: list[bytes] = []
        for command, index, term in entries:
            body = pack(len(command), index, term, before, durable)
            parts += (lead(_RECORD, crc32(command, crc32(body, salt))), body, command)
            before = term
        return b"".join(parts)

    # From the disk

    def load(self, disk: Disk, before: int | None) -> Iterator[list[Entry]]:
        """Load the records, in pieces, up to the first that isn't whole: it begins at `size`.

        `before` is the term of the entry before the first, None if it isn't known.
        """
        while entries := self._parse(disk.read(self.name, self.size, _PIECE), self.first + len(self), before):
            *offsets, self.size = accumulate([OVERHEAD + len(command) for command, _, _ in entries], initial=self.size)
            self._offsets.extend(offsets)
            self._terms.extend([own_term for _, _, own_term in entries])
            yield entries
            before = entries[-1][2]

    def is_torn(self, disk: Disk) -> bool:
        """Return True if something else than room for records lies behind `size`."""
        return bool(disk.read(self.name, self.size).lstrip(b"\0"))

    def vouches(self, disk: Disk, index: int) -> bool:
        """Return True if a record behind `size` says that the entry at `index` was durable."""
        data = disk.read(self.name, self.size)
        view, end = memoryview(data), len(data)
        start = data.find(_RECORD) + OVERHEAD
        while OVERHEAD <= start <= end:
            _, checksum, length, own, _, _, durable = _record.unpack_from(data, start - OVERHEAD)
            stop = start + length
            fits = index <= durable < own and stop <= end
            if fits and crc32(view[start - OVERHEAD + _lead.size : stop], self._salt) == checksum:
                return True
            start = data.find(_RECORD, start - OVERHEAD + 1) + OVERHEAD
        return False

    def read(self, disk: Disk, first: int, last: int, size: int) -> list[Entry]:
        """The entries from `first` on up to `last`: at least one, and about `size` bytes at most; raises OSError."""
        offsets, start = self._offsets, first - self.first
        limit = bisect_left(offsets, offsets[start] + size, start + 1)
        stop = min(limit, last + 1 - self.first)
        end = offsets[stop] if stop < len(offsets) else self.size
        entries = self._parse(disk.read(self.name, offsets[start], end - offsets[start]), first, None)
        if len(entries) != stop - start:
            raise OSError(EIO, f"entry {first + len(entries)} in {self.name} is damaged")
        return entries

    def _parse(self, data: bytes, index: int, before: int | None) -> list[Entry]:
        """The entries at the beginning of `data`, whose first is at `index`."""
        view, salt, end = memoryview(data), self._salt, len(data)
        entries = []
        start = OVERHEAD  # of the command
        while start <= end:
            magic, checksum, length, own, term, own_before, durable = _record.unpack_from(data, start - OVERHEAD)
            stop = start + length
            if (
                stop > end
                or magic != _RECORD
                or own != index
                or own_before != before is not None
                or not length
                or crc32(view[start - OVERHEAD + _lead.size : stop], salt) != checksum
            ):
                break
            entries.append((data[start:stop], own, term))
            self.vouched = durable
            index, before, start = index + 1, term, stop + OVERHEAD
        return entries
