"""Socket addresses: between the literals of a flow and what the kernel wants, and sockets bound to them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address

from sipha.sip.flow import Address

Bind = Callable[[socket.SocketKind, Address], Sequence[socket.socket]]
"""Gives non-blocking sockets that are bound to an address, to be closed by whom they are given to; raises OSError.

It is one, or for UDP perhaps several, among which the kernel divides what comes.
"""

_IP_FREEBIND = 15
_IPV6_FREEBIND = 78


def family(host: str) -> socket.AddressFamily:
    """The address family of a literal."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def canonical(host: str) -> str:
    """A host in the spelling that flows use: no brackets, and an IPv6 address in its shortest form (RFC 5952)."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" not in bare:
        return bare.lower()
    try:
        return str(IPv6Address(bare))
    except ValueError:
        return bare.lower()


def socket_address(address: Address, kind: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What a socket of the address family `kind` wants; raises OSError unless the host is a literal of that family.

    Without this check Python would ask the DNS, and block.
    """
    host, port = address
    if kind == socket.AF_INET:
        socket.inet_pton(socket.AF_INET, host)
        return address
    bare, _, scope = host.partition("%")
    socket.inet_pton(socket.AF_INET6, bare)
    return bare, port, 0, int(scope) if scope.isdecimal() else 0


def flow_address(host: str, port: int, scope: int = 0) -> Address:
    """The address of a flow from what the kernel says; a link-local host carries its scope, as in `fe80::1%2`."""
    return (f"{host}%{scope}" if scope else host), port


def bound_sockets(
    kind: socket.SocketKind, address: Address, *, shares: int = 1, freebind: bool = False
) -> list[socket.socket]:
    """A socket as `bound_socket` makes it, or for UDP `shares` of them at one address; raises OSError.

    The kernel gives all that comes from one source to the same of them, as long as all stay open.
    """
    made = [bound_socket(kind, address, freebind=freebind)]
    if kind is socket.SOCK_DGRAM and shares > 1:
        # Only now: the first one must not get an address that another process has and shares.
        made[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared = (address[0], made[0].getsockname()[1])
        try:
            for _ in range(1, shares):
                made.append(bound_socket(kind, shared, freebind=freebind, share=True))  # noqa: PERF401  all are closed
        except BaseException:
            for each in made:
                each.close()
            raise
    return made


def bound_socket(
    kind: socket.SocketKind, address: Address, *, freebind: bool = False, share: bool = False
) -> socket.socket:
    """A non-blocking socket bound to an address; with `freebind` even to one that no interface has yet.

    An IPv6 socket takes no IPv4: the virtual address of each family has a listener of its own. With `share` others of
    this user may have the address, too, if they share it. Raises OSError.
    """
    ipv6 = family(address[0]) is socket.AF_INET6
    made = socket.socket(family(address[0]), kind)
    try:
        made.setblocking(False)
        if ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if freebind:
            made.setsockopt(
                socket.IPPROTO_IPV6 if ipv6 else socket.IPPROTO_IP, _IPV6_FREEBIND if ipv6 else _IP_FREEBIND, 1
            )
        if kind is socket.SOCK_STREAM:
            # Connections of an earlier listener linger in TIME_WAIT; for UDP this option would let two processes
            # share the port.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(socket_address(address, made.family))
    except BaseException:
        made.close()
        raise
    return made


def giving(bound: socket.socket) -> Bind:
    """What gives a socket that is bound already."""
    return lambda _kind, _address: (bound,)
