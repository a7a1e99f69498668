"""What stands in memory of the bindings of one AOR."""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, gc=False):
    """The bindings of one AOR: encoded, hashed, the first expiry in ms, and the second of its expiry bucket.

    Only the bucket is ever changed, which is each node's own business.
    """

    data: bytes
    digest: int
    earliest: int
    bucket: int
