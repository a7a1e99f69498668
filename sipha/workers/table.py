"""What the daemon has looked up for its workers, in memory that they share: most lookups need no question.

The memory begins with the version of the accounts that the daemon knows, and has a slot for each AOR, in which only the
one is that was looked up last. A slot is CRC-32 (4 bytes) and length (4) of what follows: the AOR, a zero, and its
bindings as `Location.packed` gives them. A reader takes a copy, and believes it only if CRC and AOR are right: what is
being written meanwhile it doesn't find.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from mmap import ACCESS_READ, PAGESIZE, mmap
from struct import Struct
from zlib import crc32

from zope.interface import implementer

from sipha.errors import SiphaError
from sipha.state.binding import Binding, decode
from sipha.state.interfaces import IBindingsObserver, ILocation
from sipha.state.location import unpacked

SLOT = 1024
"""Bytes: two bindings as most phones have them."""

SLOTS = 1 << 16
"""As many users may be called again and again; if two of them have the same slot, each is asked for more often."""

_SIZE = PAGESIZE + SLOTS * SLOT
_lead = Struct("=II")
_EMPTY = bytes(4)
_ENDLESS = 1 << 62


class Unknown(SiphaError):
    """The daemon has to be asked."""


@implementer(IBindingsObserver)
class Table:
    """The daemon's side: it writes, and forgets each AOR whose bindings change.

    `file` is for the workers.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("sipha-lookups")
        os.ftruncate(self.file, _SIZE)
        self._memory = mmap(self.file, _SIZE)
        # Until when each is good, 0 if it is empty: no page is touched for an AOR that nobody has called.
        self._until = array("q", [0]) * SLOTS

    def close(self) -> None:
        """Let go of the memory; who still reads it finds it as it is."""
        self._memory.close()
        os.close(self.file)

    def begin_version(self, version: int) -> None:
        """Have no reader believe anything who knows accounts of an earlier version."""
        with memoryview(self._memory) as memory, memory[:8].cast("Q") as words:
            words[0] = version  # at once

    def put(self, aor: str, packed: bytes) -> None:
        """Let an AOR have these bindings, if there is room for them."""
        key = _key(aor)
        body = key + packed
        if len(body) <= SLOT - _lead.size:
            number = _number(key)
            at = _place(number)
            self._memory[at : at + len(_EMPTY)] = _EMPTY
            self._memory[at + _lead.size : at + _lead.size + len(body)] = body
            self._memory[at : at + _lead.size] = _lead.pack(crc32(body), len(body))
            self._until[number] = min([binding.expires_at for binding in decode(packed)], default=_ENDLESS)

    def changed(self, aor: str) -> None:
        """See IBindingsObserver."""
        number = _number(_key(aor))
        if self._until[number]:
            self._forget(number)

    def refreshed(self, aor: str, expires_at: int, packed: bytes) -> None:
        """See IBindingsObserver: readers have to hear of it only if a binding lives less long than they think."""
        key = _key(aor)
        number = _number(key)
        if expires_at < self._until[number]:
            begin = _place(number) + _lead.size
            if self._memory[begin : begin + len(key)] == key:
                self._forget(number)
                self.put(aor, packed)

    def replaced(self) -> None:
        """See IBindingsObserver."""
        for number in [number for number, until in enumerate(self._until) if until]:
            self._forget(number)

    def _forget(self, number: int) -> None:
        at = _place(number)
        self._memory[at : at + len(_EMPTY)] = _EMPTY
        self._until[number] = 0


@implementer(ILocation)
class View:
    """A worker's side, which knows accounts of a `version` at a `cluster_time`; it raises Unknown for what isn't there.

    It is good only while phones may be heard.
    """

    def __init__(self, file: int, version: Callable[[], int], cluster_time: Callable[[], float]) -> None:
        self._memory = mmap(file, _SIZE, access=ACCESS_READ)
        self._words = memoryview(self._memory)[:8].cast("Q")
        self._version = version
        self._cluster_time = cluster_time

    def lookup(self, aor: str) -> Sequence[Binding]:
        """See ILocation."""
        key = _key(aor)
        at = _place(_number(key))
        slot = self._memory[at : at + SLOT]
        crc, size = _lead.unpack_from(slot)
        body = slot[_lead.size : _lead.size + size]
        if not crc or crc32(body) != crc or not body.startswith(key) or self._words[0] != self._version():
            raise Unknown(aor)
        bindings = unpacked(body[len(key) :], int(self._cluster_time() * 1000))
        if bindings is None:
            raise Unknown(aor)
        return bindings

    bindings = lookup


def _key(aor: str) -> bytes:
    return aor.encode("utf-8", "surrogateescape") + b"\0"


def _number(key: bytes) -> int:
    return crc32(key) % SLOTS


def _place(number: int) -> int:
    return PAGESIZE + number * SLOT
