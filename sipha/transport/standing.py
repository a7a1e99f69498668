"""Sockets of the virtual addresses that stand while the node does, whether it has the addresses or not."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable

from sipha.sip.flow import Address
from sipha.transport.address import bound_socket


class StandingSockets:
    """A socket for each (kind, address), bound at once even if no interface has the address; raises OSError.

    What comes to them is for nobody until someone takes them by `bind`.
    """

    def __init__(self, addresses: Iterable[tuple[socket.SocketKind, Address]]) -> None:
        self._sockets: dict[tuple[socket.SocketKind, Address], socket.socket] = {}
        self.stand(addresses)

    def stand(self, addresses: Iterable[tuple[socket.SocketKind, Address]]) -> None:
        """Bind those that aren't bound yet as well; raises OSError, and then none of them is."""
        before = set(self._sockets)
        try:
            for kind, address in addresses:
                if (kind, address) not in self._sockets:
                    self._sockets[kind, address] = bound_socket(kind, address, freebind=True)
        except OSError:
            self.retire(before)
            raise

    def retire(self, keep: Collection[tuple[socket.SocketKind, Address]]) -> None:
        """Give up all addresses but these."""
        for key in self._sockets.keys() - set(keep):
            self._sockets.pop(key).close()

    def close(self) -> None:
        """Give up the addresses."""
        self.retire(())

    def bind(self, kind: socket.SocketKind, address: Address) -> socket.socket:
        """A socket at one of the addresses, which outlives it; raises OSError."""
        if kind is socket.SOCK_STREAM:
            # The standing one only keeps the port: one that listens would go on accepting when nobody reads any more.
            return bound_socket(kind, address, freebind=True)
        return self._sockets[kind, address].dup()
