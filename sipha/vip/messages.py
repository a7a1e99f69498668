"""What daemon and guard say to each other: one msgpack message in each packet of a SOCK_SEQPACKET socket."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

SOCKET = "/run/sipha-guard/socket"
"""Where the guard listens, unless the configuration says otherwise."""

MAX_MESSAGE = 65536
"""Bytes of a packet."""

MAX_FLOWS = 500
"""Flows of one Tickle."""

Number = Annotated[int, Meta(ge=1)]
Host = Annotated[str, Meta(max_length=64)]
Port = Annotated[int, Meta(ge=1, le=65535)]
HostPort = tuple[Host, Port]
Deadline = Annotated[float, Meta(gt=0, lt=1e12)]
"""Seconds of CLOCK_BOOTTIME."""


class Claim(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """Take the addresses; `number` tells the claims of a connection apart. `last_word` is for the UDP ports `peers`."""

    number: Number
    addresses: Annotated[tuple[Host, ...], Meta(min_length=1, max_length=64)]
    last_word: Annotated[bytes, Meta(max_length=1200)]
    peers: Annotated[tuple[HostPort, ...], Meta(max_length=64)]
    deadline: Deadline


class Renew(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """Hold the addresses until the deadline."""

    number: Number
    deadline: Deadline


class Release(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """Give the addresses up, without a last word."""

    number: Number


class Tickle(msgspec.Struct, frozen=True, array_like=True, tag="tickle"):
    """Send a bogus ACK for each TCP connection, given as the virtual address's end and the peer's."""

    number: Number
    flows: Annotated[tuple[tuple[HostPort, HostPort], ...], Meta(max_length=MAX_FLOWS)]


class Claimed(msgspec.Struct, frozen=True, array_like=True, tag="claimed"):
    """The addresses are here and announced."""

    number: Number


class Renewed(msgspec.Struct, frozen=True, array_like=True, tag="renewed"):
    """The claim lasts until the deadline."""

    number: Number
    deadline: Deadline


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """The claim has ended and nothing of it is left; empty if that was asked for, else why."""

    number: Number
    reason: str


class Alarms(msgspec.Struct, frozen=True, array_like=True, tag="alarms"):
    """What an operator must know, from now on. The first thing that a guard says to the daemon that it serves."""

    texts: tuple[str, ...]


Order = Claim | Renew | Release | Tickle
"""From the daemon to the guard."""

Report = Claimed | Renewed | Ended | Alarms
"""From the guard to the daemon."""

encode = msgspec.msgpack.Encoder().encode

_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def decode_order(packet: bytes) -> Order:
    """Read what the daemon says; raises msgspec.DecodeError or its kind ValidationError."""
    return _orders.decode(packet)


def decode_report(packet: bytes) -> Report:
    """Read what the guard says; raises msgspec.DecodeError or its kind ValidationError."""
    return _reports.decode(packet)
