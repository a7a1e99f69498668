"""The shared secrets from which every keyed derivation is made (sip/token), held as a ring."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sipha.state.entries import PutKey
from sipha.state.multiset import digest
from sipha.state.outcomes import Done
from sipha.state.table import Digested

RING_SIZE = 8
"""How many keys stay valid: with a key a day, tokens a week old are still verified."""

_LAST_ID = 255

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, bytes]).decode


class Keys:
    """The ring: key id (1–255) to secret, oldest first, so that the last one is the current one.

    Ids rise by one, and after 255 comes 1: a token names its key in one byte.
    """

    def __init__(self) -> None:
        self.ring: dict[int, bytes] = {}
        self.current: int | None = None
        """The id of the key that new tokens are made with; None while there is no key."""
        self.hash = 0

    def put(self, record: PutKey) -> Done:
        """Add a key as the current one and drop the oldest beyond RING_SIZE."""
        key_id = (self.current or 0) % _LAST_ID + 1
        ring = dict([*self.ring.items(), (key_id, record.secret)][-RING_SIZE:])
        self.ring, self.current, self.hash = ring, key_id, _hash(ring)
        return Done(1)

    def freeze(self) -> list[Digested]:
        """The keys as they are now, oldest first, for a snapshot."""
        return [(_encode(item), _digest(item)) for item in self.ring.items()]

    def load(self, records: Sequence[bytes]) -> None:
        """Add what a snapshot holds, in order; raises one of UNDECODABLE."""
        self.ring |= map(_decode, records)
        self.current = next(reversed(self.ring), None)
        self.hash = _hash(self.ring)


def _hash(ring: dict[int, bytes]) -> int:
    return sum(map(_digest, ring.items()))


def _digest(item: tuple[int, bytes]) -> int:
    return digest(_encode(("key", *item)))
