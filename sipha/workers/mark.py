"""The mark that a worker's Vias bear, by which whoever reads a response knows whose it is, and at which seat."""

from __future__ import annotations

import re

_TOP_VIA = re.compile(rb"\r\n(?:via|v)[ \t]*:((?:[^\r\n,]|\r\n[ \t])*)", re.IGNORECASE)
_PARAM = ";w="
_DIGITS = 3


def make_mark(term: int, number: int, seat: int) -> str:
    """The mark of one life of a worker, the one of this number in its term, at a seat."""
    return f"{term:x}-{number}-{seat}"


def seat_of(mark: str) -> int:
    """The seat that a mark names; -1 if it is none."""
    seat = mark.rpartition("-")[2]
    return int(seat) if seat.isascii() and seat.isdecimal() and len(seat) <= _DIGITS else -1


def param(mark: str) -> str:
    """What a Via bears (RFC 3261 §20.42 lets it bear anything)."""
    return _PARAM + mark


def read_mark(response: bytes) -> str:
    """The mark in the topmost Via of a response; empty if it has none."""
    via = _TOP_VIA.search(response)
    if via is None:
        return ""
    text = via[1].decode("latin-1").partition(_PARAM)[2]
    return text.partition(";")[0].strip()
