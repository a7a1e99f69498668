"""What is remembered of removed bindings, so that a delayed REGISTER doesn't bring one back (pitfalls-log-vip 18)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from sipha.state.multiset import digest
from sipha.state.table import DamagedMemory, Digested, FrozenTable, Shards, Table

LIFETIME = 64_000
"""How long a removal is remembered, in ms of cluster time: twice as long as a request is retransmitted (Timer F)."""

CAPACITY = 1 << 17
"""How many are kept; beyond, the oldest go first: no client can fill the memory by registering and unregistering."""

_encode = msgspec.msgpack.Encoder().encode


class Tombstone(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Up to `cseq`, REGISTERs of this AOR and Call-ID come too late, until cluster time `until` in ms."""

    aor: str
    call_id: str
    cseq: int
    until: int


_decode = msgspec.msgpack.Decoder(Tombstone).decode


class Tombstones:
    """The tombstones in the order in which they end; one for each AOR and Call-ID."""

    def __init__(self) -> None:
        self._numbers: Shards[tuple[str, str], int] = Shards()
        self._tombstones: Table[int, Tombstone] = Table()
        self._first = self._next = 0
        self._end = 0  # none ends before
        self.hash = 0

    def __len__(self) -> int:
        """How many tombstones there are."""
        return len(self._tombstones)

    def __iter__(self) -> Iterator[Tombstone]:
        """The tombstones in the order in which they end."""
        return iter(self._tombstones)

    @property
    def shards(self) -> tuple[dict[tuple[str, str], int], ...] | None:
        """What has one key for each AOR and Call-ID of which a removal is remembered; None if there are none."""
        return self._numbers.shards if len(self._tombstones) else None

    def cseq(self, aor: str, call_id: str) -> int:
        """The highest CSeq of a Call-ID that was removed from an AOR; -1 if none is remembered."""
        tombstone = self._get(aor, call_id)
        return -1 if tombstone is None else tombstone.cseq

    def add(self, aor: str, call_id: str, cseq: int, now: int) -> None:
        """Remember for LIFETIME that `cseq` removed, or was removed; a higher one that is remembered stays."""
        before = self._get(aor, call_id)
        if before is not None:
            cseq = max(cseq, before.cseq)
        tombstone = Tombstone(aor, call_id, cseq, now + LIFETIME)
        summand = _digest(tombstone)
        oldest = self._oldest() if len(self._tombstones) >= CAPACITY else None
        if before is not None:
            self._drop(before)
        elif oldest is not None:
            self._drop(oldest)
        self._append(tombstone, summand)

    def prune(self, now: int) -> None:
        """Forget those that end by `now`."""
        if now < self._end:
            return
        while (oldest := self._oldest()) is not None and oldest.until <= now:
            self._drop(oldest)
        self._end = now + LIFETIME if oldest is None else oldest.until

    def freeze(self) -> FrozenTable[int, Tombstone]:
        """The tombstones as they are now, for a snapshot."""
        return self._tombstones.freeze(_record)

    def load(self, records: Iterable[bytes]) -> None:
        """Add what a snapshot holds; raises one of UNDECODABLE or ValueError."""
        for data in records:
            tombstone = _decode(data)
            if self._get(tombstone.aor, tombstone.call_id) is not None:
                raise ValueError("two tombstones of one Call-ID")
            self._append(tombstone, _digest(tombstone))

    def dismantle(self) -> Iterator[None]:
        """Free all, a little with each step."""
        yield from self._tombstones.dismantle()
        yield from self._numbers.dismantle()

    def _get(self, aor: str, call_id: str) -> Tombstone | None:
        number = self._numbers.get((aor, call_id))
        return None if number is None else self._tombstones.get(number)

    def _oldest(self) -> Tombstone | None:
        oldest = self._tombstones.get(self._first)
        if oldest is None:
            first = self._tombstones.first()
            if first is not None:
                self._first = first
                oldest = self._tombstones.get(first)
        return oldest

    def _append(self, tombstone: Tombstone, summand: int) -> None:
        self._numbers.put((tombstone.aor, tombstone.call_id), self._next)
        self._tombstones.add(self._next, tombstone)
        self._next += 1
        self.hash += summand

    def _drop(self, tombstone: Tombstone) -> None:
        key = tombstone.aor, tombstone.call_id
        number = self._numbers.get(key)
        if number is None:
            raise DamagedMemory(f"a tombstone of {tombstone.aor} has no number")
        self.hash -= _digest(tombstone)
        self._numbers.pop(key)
        self._tombstones.remove(number, tombstone)


def _record(tombstone: Tombstone) -> Digested:
    return _encode(tombstone), _digest(tombstone)


def _digest(tombstone: Tombstone) -> int:
    return digest(_encode(("tombstone", tombstone.aor, tombstone.call_id, tombstone.cseq, tombstone.until)))
