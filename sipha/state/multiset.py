"""The hash of a table as a multiset of records: each record's digest added up, so that order does not matter.

Two nodes that applied the same entries have the same sum, which each keeps up to date by adding and subtracting
(pitfalls-log-vip 16). It finds divergence, not forgery: whoever may choose records freely can make sums collide.
"""

from __future__ import annotations

from hashlib import blake2b

MASK = (1 << 128) - 1
"""Sums are taken modulo 2^128."""


def digest(record: bytes) -> int:
    """The digest of one record: 128 bits of BLAKE2b."""
    return int.from_bytes(blake2b(record, digest_size=16).digest(), "big")
