"""The bindings of one AOR as they stand in memory: one string of bytes.

    digest of the bindings (128 bits), first expiry (64), second of the expiry bucket (64), the bindings in msgpack

What follows the lead is what is hashed, and what a snapshot holds. One object for each AOR takes half the memory of a
binding's parts, less of the caches when it is looked at, and the garbage collector never visits it.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from struct import Struct

import msgspec

from sipha.state.binding import Binding
from sipha.state.entries import UNDECODABLE
from sipha.state.table import DamagedMemory, Digested

Row = bytes

LEAD = 32
"""Bytes before the bindings."""

LATEST = 1 << 62
"""No binding of a row expires as late, in ms of cluster time."""

_lead = Struct(">QQQQ")
_pack = _lead.pack
_halves = Struct(">QQ").unpack
_encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(tuple[Binding, ...]).decode
"""The bindings of what a snapshot holds of a row."""

lead = _lead.unpack_from
"""Of a row both halves of its digest, the high one first; when the first binding expires, in ms; and its bucket."""


def row_of(bindings: tuple[Binding, ...], bucket: int = LATEST) -> Row | None:
    """The row of these bindings, None if there are none: in this bucket, or in an earlier one if one expires before."""
    if not bindings:
        return None
    earliest = bindings[0].expires_at
    if len(bindings) > 1:
        earliest = min([binding.expires_at for binding in bindings])
    data = _encode(bindings)
    high, low = _halves(blake2b(data, digest_size=16).digest())
    return _pack(high, low, earliest, min(earliest // 1000, bucket)) + data


def load(data: bytes) -> tuple[Row, tuple[Binding, ...]]:
    """The row that a snapshot holds, and its bindings; raises one of UNDECODABLE or ValueError."""
    bindings = decode(data)
    if not bindings:
        raise ValueError("an AOR without bindings")
    earliest = min([binding.expires_at for binding in bindings])
    if not 0 <= earliest < LATEST:
        raise ValueError("a binding that expires in no time of a cluster")
    high, low = _halves(blake2b(data, digest_size=16).digest())
    return _pack(high, low, earliest, earliest // 1000) + data, bindings


def bindings_of(row: Row) -> tuple[Binding, ...]:
    """The bindings, in the order they were made."""
    return decode(row[LEAD:])


def moved(row: Row, bucket: int) -> Row:
    """The same row in another bucket."""
    high, low, earliest, _ = lead(row)
    return _pack(high, low, earliest, bucket) + row[LEAD:]


def digested(row: Row) -> Digested:
    """What a snapshot holds of a row; raises DamagedMemory."""
    data = row[LEAD:]
    halves = _halves(blake2b(data, digest_size=16).digest())
    if halves != lead(row)[:2]:
        aor = "an AOR"
        with suppress(*UNDECODABLE):
            aor = decode(data)[0].aor
        raise DamagedMemory(f"the bindings of {aor} have changed by themselves")
    return data, total(*halves)


def total(high: int, low: int) -> int:
    """The digest, or the sum of digests, whose halves, or sums of halves, these are."""
    return (high << 64) + low
