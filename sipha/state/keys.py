"""The shared secrets from which every keyed derivation is made (sip/token), held as a ring."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sipha.state.entries import PutKey
from sipha.state.multiset import digest
from sipha.state.outcomes import Done

RING_SIZE = 8
"""How many keys stay valid: with a key a day, tokens a week old are still verified."""

_LAST_ID = 255


class Keys:
    """The ring: key id (1–255) to secret, oldest first, so that the last one is the current one.

    Ids rise by one, and after 255 comes 1: a token names its key in one byte.
    """

    def __init__(self, ring: Iterable[tuple[int, bytes]] = ()) -> None:
        self.ring = dict(ring)
        self.current = next(reversed(self.ring), None)
        """The id of the key that new tokens are made with; None while there is no key."""
        self.hash = sum(map(_digest, self.ring.items()))

    def put(self, record: PutKey) -> Done:
        """Add a key as the current one and drop the oldest beyond RING_SIZE."""
        key_id = (self.current or 0) % _LAST_ID + 1
        self.ring = dict([*self.ring.items(), (key_id, record.secret)][-RING_SIZE:])
        self.current = key_id
        self.hash = self.recompute()
        return Done(1)

    def recompute(self) -> int:
        """The hash taken afresh from the keys."""
        return sum(map(_digest, self.ring.items()))


def _digest(item: tuple[int, bytes]) -> int:
    return digest(msgspec.msgpack.encode(("key", *item)))
