"""What is remembered of removed bindings, so that a delayed REGISTER doesn't bring one back (pitfalls-log-vip 18)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from sipha.state.multiset import digest

LIFETIME = 64_000
"""How long a removal is remembered, in ms of cluster time: twice as long as a request is retransmitted (Timer F)."""

CAPACITY = 1 << 17
"""How many are kept; beyond, the oldest go first: no client can fill the memory by registering and unregistering."""


class Tombstone(NamedTuple):
    """Up to `cseq`, REGISTERs of this AOR and Call-ID come too late, until cluster time `until` in ms."""

    aor: str
    call_id: str
    cseq: int
    until: int


class Tombstones:
    """The tombstones in the order in which they end; one for each AOR and Call-ID."""

    def __init__(self, tombstones: Iterable[Tombstone] = ()) -> None:
        self._tombstones = OrderedDict(((tombstone.aor, tombstone.call_id), tombstone) for tombstone in tombstones)
        self.hash = self.recompute()

    def __len__(self) -> int:
        """How many tombstones there are."""
        return len(self._tombstones)

    def __iter__(self) -> Iterator[Tombstone]:
        """The tombstones in the order in which they end."""
        return iter(self._tombstones.values())

    def cseq(self, aor: str, call_id: str) -> int:
        """The highest CSeq of a Call-ID that was removed from an AOR; -1 if none is remembered."""
        tombstone = self._tombstones.get((aor, call_id))
        return -1 if tombstone is None else tombstone.cseq

    def add(self, aor: str, call_id: str, cseq: int, now: int) -> None:
        """Remember for LIFETIME that `cseq` removed, or was removed; a higher one that is remembered stays."""
        before = self._tombstones.pop((aor, call_id), None)
        if before is not None:
            self.hash -= _digest(before)
            cseq = max(cseq, before.cseq)
        tombstone = self._tombstones[aor, call_id] = Tombstone(aor, call_id, cseq, now + LIFETIME)
        self.hash += _digest(tombstone)
        if len(self._tombstones) > CAPACITY:
            self._drop_oldest()

    def prune(self, now: int) -> None:
        """Forget those that end by `now`."""
        while self._tombstones and next(iter(self._tombstones.values())).until <= now:
            self._drop_oldest()

    def recompute(self) -> int:
        """The hash taken afresh from the tombstones."""
        return sum(map(_digest, self._tombstones.values()))

    def _drop_oldest(self) -> None:
        self.hash -= _digest(self._tombstones.popitem(last=False)[1])


def _digest(tombstone: Tombstone) -> int:
    return digest(msgspec.msgpack.encode(("tombstone", *tombstone)))
