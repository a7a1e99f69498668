"""Copies of SIP messages for a capture server such as Homer: HEP version 3 over UDP.

https://github.com/sipcapture/HEP, "Homer Encapsulation Protocol" revision 3.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

from sipha.sip.flow import Address, Flow

_GENERIC = 0
"""The vendor of the chunks that the document defines."""

_SIP = 1
_PROTOCOLS = {"UDP": 17, "TCP": 6}
_CALL_ID = (b"\ncall-id:", b"\ni:")
_OVERHEAD = 1024
"""Bytes that the chunks beside the message take at most."""

_LONGEST_ID = 256

_LONGEST = 65507 - _OVERHEAD
"""The bytes of the longest message that a datagram has room for."""


def encode(data: bytes, flow: Flow, when: float, *, sent: bool, agent: int, key: str = "") -> bytes:
    """A message that was `sent` over a flow, or received, at a wall clock's time, as capture agent `agent` tells it."""
    source, target = (flow.local, flow.remote) if sent else (flow.remote, flow.local)
    chunks = b"".join(
        (
            *_ends(source, target),
            _chunk(2, struct.pack("!B", _PROTOCOLS[flow.transport])),
            *_time(when),
            _chunk(11, struct.pack("!B", _SIP)),
            _chunk(12, struct.pack("!I", agent)),
            *([_chunk(14, key.encode())] if key else ()),
            *([_chunk(17, call_id)] if (call_id := _call_id(data)) else ()),
            _chunk(15, data),
        )
    )
    return b"HEP3" + struct.pack("!H", len(chunks) + 6) + chunks


def _ends(source: Address, target: Address) -> Iterator[bytes]:
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    first = 3 if family == socket.AF_INET else 5
    yield _chunk(1, struct.pack("!B", family))
    yield _chunk(first, socket.inet_pton(family, source[0]))
    yield _chunk(first + 1, socket.inet_pton(family, target[0]))
    yield _chunk(7, struct.pack("!H", source[1]))
    yield _chunk(8, struct.pack("!H", target[1]))


def _time(when: float) -> Iterator[bytes]:
    seconds = int(when)
    yield _chunk(9, struct.pack("!I", seconds & 0xFFFFFFFF))
    yield _chunk(10, struct.pack("!I", int((when - seconds) * 1_000_000)))


def _chunk(kind: int, value: bytes) -> bytes:
    return struct.pack("!HHH", _GENERIC, kind, len(value) + 6) + value


def _call_id(data: bytes) -> bytes:
    """By which a capture server finds what belongs together; empty if it isn't found at once."""
    head = data.partition(b"\r\n\r\n")[0]
    folded = head.lower()
    for name in _CALL_ID:
        begin = folded.find(name)
        if begin >= 0:
            return head[begin + len(name) :].partition(b"\n")[0].strip()[:_LONGEST_ID]
    return b""


class Capture:
    """Sends a copy of each message to the capture server at `server`; what can't be sent at once is `lost`."""

    def __init__(self, server: Address, agent: int, key: str, wall_time: Callable[[], float]) -> None:
        self.sent = 0
        self.lost = 0
        self._agent = agent
        self._key = key
        self._wall_time = wall_time
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with suppress(OSError):  # there may be a way later
            self._socket.connect(server)
        self._server = server

    def passed(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        """Tell of a message that was sent or received."""
        if len(data) > _LONGEST:
            self.lost += 1
            return
        packet = encode(data, flow, self._wall_time(), sent=sent, agent=self._agent, key=self._key)
        try:
            self._socket.sendto(packet, self._server)
        except OSError:
            self.lost += 1
        else:
            self.sent += 1

    def close(self) -> None:
        """Tell no more."""
        self._socket.close()
