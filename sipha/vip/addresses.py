"""The addresses of the kernel's interfaces, by rtnetlink."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute, NetlinkError

from sipha.vip.placement import Placement

LIFETIME = 10
"""Seconds after which the kernel removes an address that nobody refreshes: only to clean up, and some seconds late."""

REFRESH = 3.0
"""Seconds between two refreshes."""

_ATTEMPTS = 10
_IFA_F_NODAD = 0x02
_NLM_F_DUMP_INTR = 0x10
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100


class Addresses:
    """Adds and removes addresses, and knows which are here. Raises OSError, which names what it is about."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def add(self, placement: Placement) -> None:
        """Add an address that isn't here yet."""
        self._change("add", placement)

    def refresh(self, placement: Placement) -> None:
        """Have the kernel keep the address for LIFETIME more. It would be added if it were not here."""
        self._change("replace", placement)

    def remove(self, placement: Placement) -> None:
        """Remove the address if it is here, with whatever prefix and on whatever interface."""
        for index, prefix in self._find(placement):
            try:
                with _naming(str(placement)):
                    self._netlink.addr(
                        "delete", index=index, family=placement.family, address=placement.address, prefixlen=prefix
                    )
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.ENODEV}:
                    raise

    def missing(self, placements: Iterable[Placement]) -> list[Placement]:
        """Return those that are on no interface."""
        return [placement for placement in placements if not self._find(placement)]

    def _find(self, placement: Placement) -> list[tuple[int, int]]:
        """The indices of the interfaces that have the address, each with the length of its prefix."""
        for _ in range(_ATTEMPTS):
            with _naming(str(placement)):
                found = list(self._netlink.get_addr(family=placement.family))
            if not any(each["header"]["flags"] & _NLM_F_DUMP_INTR for each in found):
                return [
                    (each["index"], each["prefixlen"])
                    for each in found
                    if (each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")) == placement.address
                ]
        raise InterruptedError(errno.EINTR, "the addresses change all the time", str(placement))

    def _change(self, verb: str, placement: Placement) -> None:
        with _naming(placement.interface):
            self._netlink.addr(
                verb,
                index=socket.if_nametoindex(placement.interface),
                family=placement.family,
                address=placement.address,
                prefixlen=placement.prefix,
                # No new connection of the node's own begins at an address that isn't preferred.
                preferred_lft=0,
                valid_lft=LIFETIME,
                # The gate and our own probe see to duplicates; the kernel's takes a second (RFC 4862 §5.4).
                flags=_IFA_F_NODAD if placement.family is socket.AF_INET6 else 0,
            )


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Have errors name what they are about."""
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), what) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, what) from error


def open_watch() -> socket.socket:
    """A socket, not blocking, that becomes readable whenever addresses change."""
    watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    watch.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    return watch


def drain(watch: socket.socket) -> None:
    """Take what is in the socket; what it says is asked again, so that nothing is missed when it overflows."""
    while True:
        try:
            watch.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
