"""Sockets of the virtual addresses that stand while the node does, whether it has the addresses or not."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable

from sipha.sip.flow import Address
from sipha.transport.address import bound_sockets


class StandingSockets:
    """A socket for each (kind, address), bound at once even if no interface has the address; raises OSError.

    Those for UDP are `shares` for each address. What comes to them is for nobody until someone takes them by `bind`.
    """

    def __init__(self, addresses: Iterable[tuple[socket.SocketKind, Address]], shares: int = 1) -> None:
        self._sockets: dict[tuple[socket.SocketKind, Address], list[socket.socket]] = {}
        self._shares = shares
        self.stand(addresses)

    def stand(self, addresses: Iterable[tuple[socket.SocketKind, Address]]) -> None:
        """Bind those that aren't bound yet as well; raises OSError, and then none of them is."""
        before = set(self._sockets)
        try:
            for kind, address in addresses:
                if (kind, address) not in self._sockets:
                    made = bound_sockets(kind, address, shares=self._shares, freebind=True)
                    self._sockets[kind, address] = made
        except OSError:
            self.retire(before)
            raise

    def retire(self, keep: Collection[tuple[socket.SocketKind, Address]]) -> None:
        """Give up all addresses but these."""
        for key in self._sockets.keys() - set(keep):
            for each in self._sockets.pop(key):
                each.close()

    def close(self) -> None:
        """Give up the addresses."""
        self.retire(())

    def bind(self, kind: socket.SocketKind, address: Address) -> list[socket.socket]:
        """Sockets at one of the addresses, which outlives them; raises OSError."""
        if kind is socket.SOCK_STREAM:
            # The standing one only keeps the port: one that listens would go on accepting when nobody reads any more.
            return bound_sockets(kind, address, freebind=True)
        return [each.dup() for each in self._sockets[kind, address]]
