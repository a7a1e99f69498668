"""A table of values by key, which can be frozen while it goes on changing.

Nothing here takes long at a million keys: a dict that grows moves all that it holds (25 ms), so the values are spread
over many; and a table that is done with is taken apart in steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from sipha.errors import SiphaError
from sipha.state.ordered import K, OrderedKeys

H = TypeVar("H")
V = TypeVar("V")

Digested = tuple[bytes, int]
"""What a snapshot holds of a value, and its digest."""

_SHARDS = 64  # a power of two
_FREED = 1000
"""How many values are freed in one step: some 1 ms."""
_FREED_CHUNKS = 10


class DamagedMemory(SiphaError):
    """The table is not what the log made of it: bits have flipped, or there is a bug."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; restart the node, and check its memory if that happens again")


class Shards(Generic[H, V]):
    """Values by key, as a dict has them."""

    __slots__ = ("shards",)

    def __init__(self) -> None:
        self.shards: tuple[dict[H, V], ...] = tuple({} for _ in range(_SHARDS))

    def get(self, key: H) -> V | None:
        """The value of a key, None if there is none."""
        return self.shards[hash(key) % _SHARDS].get(key)

    def put(self, key: H, value: V) -> None:
        """Give a key a value, in the place of the one that it has."""
        self.shards[hash(key) % _SHARDS][key] = value

    def add(self, key: H, value: V) -> None:
        """Give a key a value, if it has none."""
        self.shards[hash(key) % _SHARDS].setdefault(key, value)

    def pop(self, key: H) -> V | None:
        """Remove a key, and return the value that it had."""
        return self.shards[hash(key) % _SHARDS].pop(key, None)

    def dismantle(self) -> Iterator[None]:
        """Free what it holds, a little with each step."""
        for shard in self.shards:
            yield from emptied(shard)


class Table(Generic[K, V]):
    """Values by key, in the order of the keys. A value is replaced, never changed, as far as `freeze` sees it."""

    __slots__ = ("_count", "_frozen", "_order", "_values", "get", "shards")

    def __init__(self) -> None:
        self._values: Shards[K, V] = Shards()
        self.shards = self._values.shards
        """The values, for who replaces many: while the table `is_frozen`, what was there is told to `replaced`.

        Who adds many tells `added`."""
        self._order: OrderedKeys[K] = OrderedKeys()
        self._frozen: tuple[FrozenTable[K, V], ...] = ()
        self._count = 0
        self.get: Callable[[K], V | None] = self._values.get
        """The value of a key, None if there is none."""

    def __len__(self) -> int:
        """How many keys there are."""
        return self._count

    def __iter__(self) -> Iterator[V]:
        """The values in the order of their keys; the table must not change meanwhile."""
        for key in self._order:
            yield self._found(key)

    def first(self) -> K | None:
        """The first key, or None if there is none."""
        return self._order.first()

    def after(self, key: K, limit: int) -> list[V]:
        """The values of the first `limit` keys that come after `key`; it needn't be there."""
        return [self._found(following) for following in self._order.after(key, limit)]

    def keys_after(self, key: K, limit: int) -> list[K]:
        """The first `limit` keys that come after `key`; it needn't be there."""
        return self._order.after(key, limit)

    def add(self, key: K, value: V) -> None:
        """Add a key that is not there yet."""
        self._values.put(key, value)
        self.added(key)

    def added(self, key: K) -> None:
        """Take note of a key whose value has been added."""
        self._order.add(key)
        self._count += 1

    def extend(self, items: Iterable[tuple[K, V]]) -> None:
        """Add keys that stand in order and come after all that are there; raises ValueError if they don't."""
        keys = []
        for key, value in items:
            self._values.put(key, value)
            keys.append(key)
        self._order.extend(keys)
        self._count += len(keys)

    def replace(self, key: K, before: V, value: V) -> None:
        """Put a value in the place of the one that the key has."""
        if self._frozen:
            for frozen in self._frozen:
                frozen.keep(key, before)
        self.shards[hash(key) % _SHARDS][key] = value

    @property
    def is_frozen(self) -> bool:
        """True while somebody has frozen it."""
        return bool(self._frozen)

    def replaced(self, values: Iterable[tuple[K, V]]) -> None:
        """Take note of values in whose places there are others now, the earlier one first if a key has had two."""
        for key, before in values:
            for frozen in self._frozen:
                frozen.keep(key, before)

    def remove(self, key: K, before: V) -> None:
        """Remove a key and the value that it has."""
        for frozen in self._frozen:
            frozen.keep(key, before)
        self._order.remove(key)
        self._values.pop(key)
        self._count -= 1

    def freeze(self, record: Callable[[V], Digested]) -> FrozenTable[K, V]:
        """The records of the values as they are now; `close` it when done."""
        frozen = FrozenTable(self._values, self._order.chunks(), record, self._release)
        self._frozen = (*self._frozen, frozen)
        return frozen

    def dismantle(self) -> Iterator[None]:
        """Free what it holds, a little with each step, once nothing that was frozen needs it any more."""
        while self._frozen:
            yield
        yield from self._values.dismantle()

    def _release(self, frozen: FrozenTable[K, V]) -> None:
        self._frozen = tuple(other for other in self._frozen if other is not frozen)

    def _found(self, key: K) -> V:
        value = self._values.get(key)
        if value is None:
            raise DamagedMemory(f"{key!r} is listed and has no value")
        return value


class FrozenTable(Generic[K, V]):
    """The records of a table as they were when it was frozen, in the order of their keys.

    While it is open, the table hands it each value that is replaced or removed before it was passed.
    """

    __slots__ = ("_chunks", "_keeps", "_kept", "_past", "_record", "_release", "_values")

    def __init__(
        self,
        values: Shards[K, V],
        chunks: list[Mapping[K, None]],
        record: Callable[[V], Digested],
        release: Callable[[FrozenTable[K, V]], None],
    ) -> None:
        self._values = values
        self._chunks = deque(chunks)
        self._record = record
        self._release = release
        self._kept: Shards[K, V] = Shards()
        self._keeps = False
        self._past: K | None = None

    def __iter__(self) -> Iterator[Digested]:
        """The records, once; raises DamagedMemory."""
        record, present, pop = self._record, self._values.get, self._kept.pop
        while self._chunks:
            keys = sorted(self._chunks.popleft())
            self._past = keys[-1]
            values = [pop(key) or present(key) for key in keys] if self._keeps else list(map(present, keys))
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    raise DamagedMemory(f"{key!r} is listed and has no value")
                yield record(value)

    def keep(self, key: K, value: V) -> None:
        """Take note that this is about to be replaced."""
        if self._past is None or key > self._past:
            self._kept.add(key, value)
            self._keeps = True

    def close(self) -> Iterator[None]:
        """Let the table change freely; what was kept is freed a little with each step."""
        self._release(self)
        return self._dismantle()

    def _dismantle(self) -> Iterator[None]:
        yield from self._kept.dismantle()
        while self._chunks:
            for _ in range(min(_FREED_CHUNKS, len(self._chunks))):
                self._chunks.popleft()
            yield


def emptied(values: dict[H, V]) -> Iterator[None]:
    """Empty a dict, a little with each step."""
    while values:
        for _ in range(min(_FREED, len(values))):
            values.popitem()
        yield
