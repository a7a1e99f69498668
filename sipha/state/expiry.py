"""When to look at which AOR for bindings that ran out: a bucket of AORs for each second of cluster time.

An AOR stands in one bucket, at or before its first binding's expiry. A refresh leaves it there; only when the bucket
is due is it moved on, so refreshes cost nothing and the buckets never hold more than there are AORs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sipha.state.table import emptied


class ExpiryBuckets:
    """The AORs by the second at which they are looked at."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        # A dict rather than a set: it keeps the order, and a small one takes a third of the memory.
        self._buckets: dict[int, dict[str, None]] = {}

    def __len__(self) -> int:
        """How many AORs stand in the buckets."""
        return sum(map(len, self._buckets.values()))

    def add(self, aor: str, second: int) -> None:
        """Put an AOR into the bucket of a second."""
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = {aor: None}
        else:
            bucket[aor] = None

    def remove(self, aor: str, second: int) -> None:
        """Take an AOR out of the bucket that it is in."""
        bucket = self._buckets[second]
        del bucket[aor]
        if not bucket:
            del self._buckets[second]

    def due(self, second: int, limit: int) -> Iterator[tuple[str, int]]:
        """Up to `limit` AORs of the buckets before `second`, earliest first, each with its bucket.

        Each may be moved to another bucket, from `second` on, before the next is taken.
        """
        for bucket in sorted(due for due in self._buckets if due < second):
            aors = list(islice(self._buckets[bucket], limit))
            for aor in aors:
                yield aor, bucket
            limit -= len(aors)
            if limit <= 0:
                return

    def dismantle(self) -> Iterator[None]:
        """Free all, a little with each step."""
        while self._buckets:
            yield from emptied(self._buckets.popitem()[1])
