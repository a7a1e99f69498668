"""Strangers at a node's cluster port, who speak TLS as the standard library does or whatever else."""

from __future__ import annotations

import ssl
from socket import create_connection, socket

from sipha.sip.flow import Address
from tests.cluster.world import World


class Caller:
    """One end of a connection, driven by hand while the world turns."""

    def __init__(
        self, world: World, end: socket, context: ssl.SSLContext | None = None, *, server: bool = False
    ) -> None:
        self.world = world
        self.received = b""
        self.closed = False
        self.error = ""
        self.socket = end
        if context is not None:
            self.socket = context.wrap_socket(end, server_side=server, do_handshake_on_connect=False)
        self.socket.setblocking(False)
        if context is not None:
            world.until(lambda: self.closed or self._shakes_hands())

    def say(self, data: bytes) -> None:
        """Send, if there is still anyone."""
        try:
            self.socket.sendall(data)
        except (ssl.SSLError, OSError):
            self.closed = True

    def listens(self) -> bool:
        """Take what has come; True while the connection lasts."""
        try:
            while not self.closed:
                data = self.socket.recv(65536)
                self.received += data
                self.closed = not data
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except (ssl.SSLError, OSError) as error:
            self.error = str(error)
            self.closed = True
        return not self.closed

    def until_closed(self) -> None:
        """Turn the world until the other side has ended the connection."""
        self.world.until(lambda: not self.listens())

    def close(self) -> None:
        self.socket.close()

    def _shakes_hands(self) -> bool:
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except (ssl.SSLError, OSError) as error:
            self.error = str(error)
            self.closed = True
        return True


def call(world: World, address: Address, context: ssl.SSLContext | None = None) -> Caller:
    """Connect to a node."""
    return Caller(world, create_connection(address), context)
