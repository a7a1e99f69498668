"""What the figures of the log are made of: the entries, and times and how they spread."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Register, encode

ENTRY = 400
"""Bytes of an entry with one record."""

STAMP = Struct("<d")
"""When an entry was asked for, by the monotonic clock."""

_PARAMETERS = ';audio;video;mobility="mobile";methods="INVITE,ACK,BYE,CANCEL,OPTIONS"'


class Spread(NamedTuple):
    """Some times in seconds."""

    p50: float
    p99: float
    longest: float


class Report(NamedTuple):
    """What became of entries that came at a rate."""

    done: int
    failed: int
    latency: Spread


class Groups(NamedTuple):
    """What became of entries that came as fast as they could."""

    done: int
    failed: int
    seconds: float


class Stalls(NamedTuple):
    """How late a timer was, in seconds, and at most by its own process's doing."""

    late: Spread
    own: float


class Latency:
    """What became of entries, and how long it took."""

    def __init__(self) -> None:
        self._failed = 0
        self._times = array("d")

    def add(self, good: bool, seconds: float) -> None:
        """Count one."""
        if good:
            self._times.append(seconds)
        else:
            self._failed += 1

    def report(self) -> Report:
        """What was counted."""
        return Report(len(self._times), self._failed, spread(self._times))


def spread(times: Iterable[float]) -> Spread:
    """How times spread."""
    ordered = sorted(times) or [0.0]
    count = len(ordered)
    return Spread(ordered[count // 2], ordered[count * 99 // 100], ordered[-1])


class Range(NamedTuple):
    """What several rounds gave."""

    median: float
    least: float
    most: float

    def text(self, form: str, scale: float = 1.0) -> str:
        """The median, and from where to where the rounds went."""
        median, least, most = (format(each * scale, form) for each in self)
        return median if least == most else f"{median} ({least}–{most})"


def over(rounds: Sequence[float]) -> Range:
    """What several rounds gave."""
    return Range(statistics.median(rounds), min(rounds), max(rounds))


def record(number: int, keys: int) -> Register:
    """A phone's REGISTER, which makes an entry of 400 bytes by itself; there are `keys` phones."""
    cseq, phone = divmod(number, keys)
    return Register(
        f"sip:u{phone:08}@example.com",
        f"{phone:08x}-5f3e-4a77-9d2c@192.0.2.17",
        cseq + 1_000_000,
        (
            Contact(
                f"sip:u{phone:08}@192.0.2.17:5062;transport=udp;line=abcdef",
                3600,
                None,
                f"<urn:uuid:00000000-0000-1000-8000-{phone:012X}>",
                0,
                _PARAMETERS,
            ),
        ),
        received="sip:192.0.2.17:5062",
        socket="udp:192.0.2.1:5060",
        path=("<sip:edge1.example.net;lr>",),
        user_agent="Acme Phone 1.2.10",
        methods="INVITE,ACK,CANCEL,BYE",
    )


assert len(encode(Batch(SCHEMA, 123_456_789, Policy(), (record(0, 1),)))) == ENTRY
