"""Where the last words of the other nodes' guards come in: datagrams at the address that the nodes' connections use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import DatagramProtocol

from sipha.cluster.wire import LastWord, ProtocolError, read_datagram


class LastWords(DatagramProtocol):
    """Tells `heard` of each last word; `count` gets the reason why something isn't one, and the host it came from."""

    def __init__(self, heard: Callable[[LastWord], None], count: Callable[[str, str], None]) -> None:
        self._heard = heard
        self._count = count

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Take one datagram, from whomever it comes."""
        try:
            word = read_datagram(datagram)
        except ProtocolError as error:
            self._count(error.kind, addr[0])
        else:
            self._heard(word)
