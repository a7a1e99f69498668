"""What apply made of a record: one outcome each, and what the proposer answers with."""

from __future__ import annotations

import msgspec

from sipha.state.binding import Binding, decode

_encode = msgspec.msgpack.Encoder().encode


class Registered(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="registered"):
    """The REGISTER was applied, or was a repeat or a query: `bindings` are the AOR's at cluster time `time` in ms.

    They are here in msgpack, `data`, and are made for who asks: of three nodes, the one that answers the phone.
    """

    data: msgspec.Raw
    time: int

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The bindings; raises one of UNDECODABLE if another node has sent what are none."""
        return decode(self.data)

    def __repr__(self) -> str:
        """What it tells, rather than where its bytes are."""
        return f"Registered({self.bindings!r}, {self.time})"


class Rejected(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="rejected"):
    """The REGISTER was refused with a SIP status, and nothing changed."""

    status: int
    reason: str


class Done(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="done"):
    """The record was applied; `count` is the number of things it changed."""

    count: int


class NotFound(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="not-found"):
    """What the record names does not exist, and nothing changed."""

    detail: str


class Conflict(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="conflict"):
    """What the record would create exists, and nothing changed."""

    detail: str


class Invalid(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="invalid"):
    """The record, or the whole entry, is not one that this schema knows, and nothing changed."""

    detail: str


class Outdated(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="outdated"):
    """What the record names is not what is there, and nothing changed: who has shortened it proposes it in full."""


Outcome = Registered | Rejected | Done | NotFound | Conflict | Invalid | Outdated


def registered(bindings: tuple[Binding, ...], time: int) -> Registered:
    """The outcome that tells of these bindings."""
    return Registered(msgspec.Raw(_encode(bindings)), time)
