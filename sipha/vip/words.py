"""Last words: what the guard tells the other nodes for a daemon that can't any more."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from sipha.sip.flow import Address

COPIES = (0.0, 0.02, 0.05)
"""Seconds from the word to each of its copies: datagrams get lost, and one is enough."""


class LastWords:
    """Datagrams that are to be sent, and when."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, bytes, Address]] = []

    @property
    def due(self) -> float:
        """When to call `send`."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def speak(self, word: bytes, peers: Iterable[Address], now: float) -> None:
        """Send the first copies, and the others later."""
        copies = [(now + later, word, peer) for peer in peers for later in COPIES]
        self._waiting = sorted(self._waiting + copies)
        self.send(now)

    def send(self, now: float) -> None:
        """Send what is due; what the kernel doesn't take is lost."""
        while self.due <= now:
            _, word, peer = self._waiting.pop(0)
            family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
            try:
                with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as datagrams:
                    datagrams.sendto(word, peer)
            except OSError:
                continue
