"""Keys kept in order while they come and go, so that a listing can be taken page by page."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice

_CHUNK = 512


class OrderedKeys:
    """A set of strings in code point order, in chunks, so that no change moves more than a thousand of them."""

    __slots__ = ("_chunks", "_firsts")

    def __init__(self, keys: Iterable[str] = ()) -> None:
        ordered = sorted(set(keys))
        self._chunks = [ordered[start : start + _CHUNK] for start in range(0, len(ordered), _CHUNK)]
        self._firsts = [chunk[0] for chunk in self._chunks]

    def __len__(self) -> int:
        """How many keys there are."""
        return sum(map(len, self._chunks))

    def __iter__(self) -> Iterator[str]:
        """The keys in order."""
        for chunk in self._chunks:
            yield from chunk

    def add(self, key: str) -> None:
        """Add a key that is not there yet."""
        if not self._chunks:
            self._chunks.append([key])
            self._firsts.append(key)
            return
        at = max(bisect_right(self._firsts, key) - 1, 0)
        chunk = self._chunks[at]
        insort(chunk, key)
        if len(chunk) > 2 * _CHUNK:
            self._chunks[at : at + 1] = [chunk[:_CHUNK], chunk[_CHUNK:]]
            self._firsts.insert(at + 1, chunk[_CHUNK])
        self._firsts[at] = chunk[0]

    def remove(self, key: str) -> None:
        """Remove a key that is there."""
        at = bisect_right(self._firsts, key) - 1
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key)]
        if chunk:
            self._firsts[at] = chunk[0]
        else:
            del self._chunks[at], self._firsts[at]

    def after(self, key: str, limit: int) -> list[str]:
        """The first `limit` keys that come after `key`; it needn't be there, and "" is before all others."""
        return list(islice(self._from(key), limit))

    def _from(self, key: str) -> Iterator[str]:
        at = max(bisect_right(self._firsts, key) - 1, 0)
        for number in range(at, len(self._chunks)):
            chunk = self._chunks[number]
            yield from islice(chunk, bisect_right(chunk, key) if number == at else 0, None)
