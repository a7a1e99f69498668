"""Keys kept in order while they come and go, so that a listing can be taken page by page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Generic, Protocol, TypeVar


class _Sortable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...
    def __gt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=_Sortable)

_CHUNK = 85
"""Half of the keys that one chunk may have; so many fill a dict's table (CPython 3.11)."""


class OrderedKeys(Generic[K]):
    """A set of strings, in code point order, or of numbers.

    They stand in chunks of neighbours, each of them a dict that is sorted when it is read: the garbage collector never
    visits a dict of strings, and of lists and tuples it visits each item (50 ms at a million). Whoever is given the
    chunks has the keys as they were: a chunk is copied before it is changed again.
    """

    __slots__ = ("_chunks", "_epoch", "_epochs", "_lowest")

    def __init__(self) -> None:
        self._chunks: list[dict[K, None]] = []
        self._lowest: list[K] = []  # no key of a chunk is lower
        self._epochs: list[int] = []
        self._epoch = 0

    def __len__(self) -> int:
        """How many keys there are."""
        return sum(map(len, self._chunks))

    def __iter__(self) -> Iterator[K]:
        """The keys in order."""
        for chunk in self._chunks:
            yield from sorted(chunk)

    def chunks(self) -> list[Mapping[K, None]]:
        """The keys as they are now: each chunk's come before those of the next, in no order among themselves."""
        self._epoch += 1
        return list(self._chunks)

    def first(self) -> K | None:
        """The first key, or None if there is none."""
        return min(self._chunks[0]) if self._chunks else None

    def add(self, key: K) -> None:
        """Add a key that is not there yet."""
        if not self._chunks:
            self._append([key])
            return
        at = self._place(key)
        chunk = self._own(at)
        chunk[key] = None
        if len(chunk) > 2 * _CHUNK:
            keys = sorted(chunk)
            self._chunks[at : at + 1] = [dict.fromkeys(keys[:_CHUNK]), dict.fromkeys(keys[_CHUNK:])]
            self._lowest[at : at + 1] = [keys[0], keys[_CHUNK]]
            self._epochs.insert(at, self._epoch)

    def extend(self, keys: Sequence[K]) -> None:
        """Add keys that stand in order and come after all that are there; raises ValueError if they don't."""
        last = [max(self._chunks[-1])] if self._chunks else []
        if not all(key < following for key, following in pairwise([*last, *keys])):
            raise ValueError("keys out of order")
        room = _CHUNK - len(self._chunks[-1]) if self._chunks else 0
        if room > 0:
            self._own(-1).update(dict.fromkeys(keys[:room]))
            keys = keys[room:]
        for start in range(0, len(keys), _CHUNK):
            self._append(keys[start : start + _CHUNK])

    def remove(self, key: K) -> None:
        """Remove a key that is there."""
        at = self._place(key)
        chunk = self._own(at)
        del chunk[key]
        if not chunk:
            del self._chunks[at], self._lowest[at], self._epochs[at]

    def after(self, key: K, limit: int) -> list[K]:
        """The first `limit` keys that come after `key`; it needn't be there, and "" is before all others."""
        return list(islice(self._from(key), limit))

    def _from(self, key: K) -> Iterator[K]:
        for chunk in islice(self._chunks, self._place(key), None):
            for other in sorted(chunk):
                if other > key:
                    yield other

    def _place(self, key: K) -> int:
        return bisect_right(self._lowest, key, 1) - 1

    def _own(self, at: int) -> dict[K, None]:
        """The chunk at a place, to be changed."""
        if self._epochs[at] != self._epoch:
            self._epochs[at] = self._epoch
            self._chunks[at] = self._chunks[at].copy()
        return self._chunks[at]

    def _append(self, keys: Sequence[K]) -> None:
        self._chunks.append(dict.fromkeys(keys))
        self._lowest.append(keys[0])
        self._epochs.append(self._epoch)
