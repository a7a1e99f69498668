"""A flow: the way a message came, and the way its answer goes back (RFC 5626 §3)."""

from __future__ import annotations

from typing import NamedTuple

Address = tuple[str, int]
"""Host and port; the host is an IPv4 or IPv6 literal without brackets."""

RELIABLE = frozenset({"TCP", "TLS", "WS", "WSS"})


class Flow(NamedTuple):
    """One UDP address pair, or one connection of a stream transport.

    `transport` is spelt as in a Via: UDP, TCP, TLS, WS, WSS. `connection` numbers the stream connections that
    this process has had, from 1; it is 0 for UDP, and for a stream that is yet to be opened.
    """

    transport: str
    local: Address
    remote: Address
    connection: int = 0

    @property
    def reliable(self) -> bool:
        """True if the transport itself retransmits (RFC 3261 §17)."""
        return self.transport in RELIABLE
