"""A virtual address and where it is placed: on which interface, in which network."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Self

# What the kernel takes for a name (dev_valid_name), and nft as well without quotes of its own.
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._@-]{1,15}")

_EXAMPLE = 'write one such as "192.0.2.10%eth0", or "192.0.2.10%eth0/24" for another network than of the address alone'


class Placement(NamedTuple):
    """An address in canonical form, its interface (empty: none that we know), and the length of its prefix."""

    address: str
    interface: str
    prefix: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `ADDRESS[%INTERFACE[/PREFIX]]`, the notation of RFC 4007 §11; raises ValueError."""
        rest, slash, length = text.partition("/")
        host, percent, interface = rest.partition("%")
        try:
            address = ip_address(host)
        except ValueError:
            raise ValueError(f"{text!r} is not an IP address; {_EXAMPLE}") from None
        if address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
            raise ValueError(f"{text!r} can't be the address of a host; write the virtual address")
        if address.version == 6 and address.is_link_local:
            raise ValueError(f"{text!r} is a link-local address, which is several; write one that phones can reach")
        if percent and not _INTERFACE.fullmatch(interface):
            raise ValueError(f"{text!r} has no name of an interface after its %; {_EXAMPLE}")
        if not slash:
            return cls(str(address), interface, address.max_prefixlen)
        if not percent or not length.isdecimal() or not 1 <= int(length) <= address.max_prefixlen:
            raise ValueError(f"{text!r} has no interface and prefix length; {_EXAMPLE}")
        return cls(str(address), interface, int(length))

    def __str__(self) -> str:
        """The notation that `parse` reads, as short as it can be."""
        prefix = "" if self.prefix == self.literal.max_prefixlen else f"/{self.prefix}"
        return f"{self.address}%{self.interface}{prefix}" if self.interface else self.address

    @property
    def literal(self) -> IPv4Address | IPv6Address:
        """The address as a value."""
        return ip_address(self.address)

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if self.literal.version == 6 else socket.AF_INET
