"""What a node has promised durably, each in a file of its own: the line that `seal` makes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from sipha.cluster.wire import MAX_LEASE


class Ballot(Struct):
    """The current term and the node that got our vote in it."""

    term: int
    vote: str | None


class Longest(Struct):
    """The longest duration of a lease that was ever promised, in seconds."""

    duration: Annotated[float, Meta(ge=0, le=MAX_LEASE / 1000)]
