"""What an entry of the log has changed, packed until somebody wants to see it: of most of it nobody ever does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from sipha.events.event import AnyEvent, Moment, event_of
from sipha.state.changes import Change


class _Packed(msgspec.Struct, frozen=True, gc=False, array_like=True):
    moment: Moment
    changes: tuple[Change, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


class Told(NamedTuple):
    """The changes of an entry, which was applied at a cluster time in ms: their AORs, empty where there is none.

    `data` is what `events_in` takes.
    """

    entry: int
    time: int
    aors: tuple[str, ...]
    data: bytes

    @property
    def events(self) -> int:
        """How many concern an AOR."""
        return sum(map(bool, self.aors))


def told(moment: Moment, changes: Sequence[Change]) -> Told:
    """Pack the changes of an entry, of which none is a plain refresh."""
    data = _encode(_Packed(moment, tuple(changes)))
    return Told(moment.entry, moment.time, tuple([change.aor for change in changes]), data)


def events_in(data: bytes, aor: str | None = None) -> Iterator[tuple[int, AnyEvent]]:
    """The events of an entry by their numbers, all of them or those that concern an AOR.

    Raises msgspec.DecodeError, and msgspec.ValidationError for what a later release has written.
    """
    packed = _decode(data)
    for number, change in enumerate(packed.changes):
        if aor is None or change.aor == aor:
            yield number, event_of(packed.moment, number, change)
