"""The bindings of one AOR as they stand in memory: one string of bytes.

    digest of the bindings (128 bits), first expiry (64), second of the expiry bucket (64), the bindings in msgpack

What follows the lead is what is hashed, and what a snapshot holds. One object for each AOR takes half the memory of a
binding's parts, less of the caches when it is looked at, and the garbage collector never visits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from struct import Struct

import msgspec

from sipha.state.binding import Binding, decode
from sipha.state.entries import UNDECODABLE, Record, Refresh, Register
from sipha.state.outcomes import Outcome, Registered
from sipha.state.table import DamagedMemory, Digested

Row = bytes

_Rows = tuple[dict[str, Row], ...]
_Replaced = list[tuple[str, Row]] | None
Made = tuple[Register, int, Row]
"""A REGISTER that has made a binding, whose id this is, and its row."""

refresh_plain: (
    Callable[[_Rows, Sequence[Record | None], list[Outcome], _Replaced, int, int, int, int, int], tuple[int, int]]
    | None
) = None
"""Apply records from the one that has no outcome yet to the first that isn't a Refresh, or plainly applies.

What changes are the shards of the rows, the outcomes, and the list of those that were replaced, if that is wanted.
Version, time, and three figures of the policy are the moment's. What is returned are both halves of what the sum of the
digests has grown by, modulo 2^128.
"""
first_plain: (
    Callable[
        [
            _Rows,
            tuple[dict[tuple[str, str], int], ...] | None,
            Sequence[Record | None],
            list[Outcome],
            list[Made],
            Iterator[int],
            int,
            int,
            int,
            int,
            int,
        ],
        tuple[int, int],
    ]
    | None
) = None
"""Apply records from the one that has no outcome yet to the first that isn't plainly the first REGISTER of its AOR.

What changes are the shards of the rows, the outcomes, and the list of what was made. No record is such that has one of
the tombstones, if there are any. What follows is as for `refresh_plain`, after the iterator that gives the ids.
"""
shorten_plain: Callable[[Row, Register], Refresh | None] | None = None
"""The record that a REGISTER is shortened to, if the row is plain."""
load_plain: Callable[[bytes], tuple[Row, str] | None] | None = None
"""The row that a snapshot holds, and its AOR, if it is plain."""

try:  # in C, if it was built; what is in Python, here and in `registration`, does the same
    from sipha.state._first import first as _first
    from sipha.state._row import load as _load
    from sipha.state._row import refresh as _refresh
    from sipha.state._row import shortened as _shortened
except ImportError:
    pass
else:
    refresh_plain, first_plain, shorten_plain, load_plain = _refresh, _first, _shortened, _load

LEAD = 32
"""Bytes before the bindings."""

_BUCKET = 24  # where in the lead

LATEST = 1 << 62
"""No binding of a row expires as late, in ms of cluster time."""

_lead = Struct(">QQQQ")
_times = Struct(">QQ").pack
_halves = Struct(">QQ").unpack
_encode = msgspec.msgpack.Encoder().encode
_Raw = msgspec.Raw
lead = _lead.unpack_from
"""Of a row both halves of its digest, the high one first; when the first binding expires, in ms; and its bucket."""


def row_of(bindings: tuple[Binding, ...], bucket: int = LATEST) -> Row | None:
    """The row of these bindings, None if there are none: in this bucket, or in an earlier one if one expires before."""
    if not bindings:
        return None
    return _row_of(bindings, min([binding.expires_at for binding in bindings]), bucket)


def row_of_one(binding: Binding, bucket: int = LATEST) -> Row:
    """The row of an AOR that has one binding."""
    return _row_of((binding,), binding.expires_at, bucket)


def load(data: bytes) -> tuple[Row, str, int]:
    """The row that a snapshot holds, its AOR, and how many bindings it has; raises one of UNDECODABLE or ValueError."""
    if load_plain is not None:
        plain = load_plain(data)
        if plain is not None:
            return *plain, 1
    bindings = decode(data)
    if not bindings:
        raise ValueError("an AOR without bindings")
    earliest = min([binding.expires_at for binding in bindings])
    if not 0 <= earliest < LATEST:
        raise ValueError("a binding that expires in no time of a cluster")
    return _row_of_data(data, earliest, earliest // 1000), bindings[0].aor, len(bindings)


def bindings_of(row: Row) -> tuple[Binding, ...]:
    """The bindings, in the order they were made."""
    return decode(row[LEAD:])


def outcome_of(row: Row, time: int) -> Registered:
    """The outcome that tells of a row, at a cluster time in ms."""
    return Registered(_Raw(row[LEAD:]), time)


def moved(row: Row, bucket: int) -> Row:
    """The same row in another bucket."""
    return row[:_BUCKET] + bucket.to_bytes(LEAD - _BUCKET, "big") + row[LEAD:]


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


def _row_of(bindings: tuple[Binding, ...], earliest: int, bucket: int) -> Row:
    data = _encode(bindings)
    second = earliest // 1000
    return _row_of_data(data, earliest, min(bucket, second))


def _row_of_data(data: bytes, earliest: int, bucket: int) -> Row:
    return blake2b(data, digest_size=16).digest() + _times(earliest, bucket) + data
