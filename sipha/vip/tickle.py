"""Tickles: what makes a TCP client whose server is gone notice it at once, as CTDB does.

An ACK that fits nothing makes the client tell its own numbers (RFC 9293 §3.10.7.4), and to those the kernel here, which
knows no such connection, answers with RST. A stateful firewall that drops what belongs to no connection it knows
hides it.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterable

from sipha.sip.flow import Address
from sipha.vip.neighbours import checksum

PACE = 0.01
"""Seconds between two slices."""

SLICE = 50
"""Connections of a slice: with PACE, 5,000 in a second."""

_OFFSET_AND_ACK = 5 << 12 | 0x10


class Tickles:
    """Connections whose clients are still to be tickled; each is the virtual address's end, and the client's."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Address, Address]] = deque()

    def __bool__(self) -> bool:
        """True while some wait."""
        return bool(self._waiting)

    def add(self, flows: Iterable[tuple[Address, Address]]) -> None:
        """Let these wait, too."""
        self._waiting.extend(flows)

    def send_slice(self) -> None:
        """Tickle the next ones, through the kernel's gate; what can't be sent is lost."""
        for _ in range(min(SLICE, len(self._waiting))):
            ours, theirs = self._waiting.popleft()
            try:
                _send(ours, theirs)
            except OSError:
                continue


def _send(ours: Address, theirs: Address) -> None:
    family = socket.AF_INET6 if ":" in ours[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP) as raw:
        raw.bind((ours[0], 0))
        raw.sendto(bogus_ack(ours, theirs), (theirs[0], 0))


def bogus_ack(ours: Address, theirs: Address) -> bytes:
    """A TCP segment that acknowledges nothing of anything (RFC 9293 §3.1)."""
    family = socket.AF_INET6 if ":" in ours[0] else socket.AF_INET
    segment = struct.pack("!HHIIHHHH", ours[1], theirs[1], 0, 0, _OFFSET_AND_ACK, 0, 0, 0)
    pseudo = (
        socket.inet_pton(family, ours[0])
        + socket.inet_pton(family, theirs[0])
        + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
    )
    return segment[:16] + checksum(pseudo + segment) + segment[18:]
