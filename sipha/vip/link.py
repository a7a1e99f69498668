"""An interface as the guard uses it: it asks there who has an address, announces it, and hears others do so."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from sipha.vip.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    Sighting,
    advertisement,
    arp_announcements,
    arp_probe,
    read_advertisement,
    read_arp,
    solicitation,
)
from sipha.vip.placement import Placement

_ETH_P_ARP = 0x0806
_ETH_P_IPV6 = 0x86DD
_ARPHRD_ETHER = 1
_BROADCAST = b"\xff" * 6
_ICMP6_FILTER = 1
_ALL_NODES = "ff02::1"
_MANY = 64
"""Frames taken before something else gets its turn."""


class Link:
    """An Ethernet interface; on others nobody asks for addresses, and nothing is sent. Raises OSError.

    `sockets` are to be watched: when one is readable, `sightings` says what others claim. What is said of an address
    passes through the kernel's gate; the questions of a probe don't come from it.
    """

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.sockets: tuple[socket.socket, ...] = ()
        try:
            self._index = socket.if_nametoindex(interface)
        except OSError as error:
            raise OSError(error.errno, error.strerror, interface) from None
        self._icmp: socket.socket | None = None
        self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            self._frames.bind((interface, _ETH_P_ARP))
            *_, kind, self._hardware = self._frames.getsockname()
            self._ethernet = kind == _ARPHRD_ETHER
            if self._ethernet:
                self._icmp = _advertisements(interface, self._index)
                self.sockets = (self._frames,) if self._icmp is None else (self._frames, self._icmp)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hear and say nothing more."""
        self._frames.close()
        if self._icmp is not None:
            self._icmp.close()

    def probe(self, placement: Placement) -> None:
        """Ask who has the address."""
        if not self._ethernet:
            return
        if placement.family is socket.AF_INET6:
            destination, packet = solicitation(placement.address)
            self._frames.sendto(packet, (self.interface, _ETH_P_IPV6, 0, 0, destination))
        else:
            self._broadcast(arp_probe(self._hardware, placement.address))

    def announce(self, placement: Placement) -> None:
        """Tell everybody that the address is here."""
        if not self._ethernet:
            return
        if placement.family is not socket.AF_INET6:
            for frame in arp_announcements(self._hardware, placement.address):
                self._broadcast(frame)
        elif self._icmp is not None:
            source = struct.pack("=16sI", socket.inet_pton(socket.AF_INET6, placement.address), self._index)
            self._icmp.sendmsg(
                [advertisement(self._hardware, placement.address)],
                [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)],
                0,
                (_ALL_NODES, 0, 0, self._index),
            )

    def sightings(self) -> Iterator[Sighting]:
        """What others have claimed since the last time."""
        for each in self.sockets:
            read = read_arp if each is self._frames else read_advertisement
            for _ in range(_MANY):
                try:
                    sighting = read(each.recv(1500))
                except OSError as error:
                    if error.errno not in {errno.EAGAIN, errno.ENETDOWN}:  # that is all, or the interface is off
                        raise
                    break
                if sighting is not None and sighting.hardware != self._hardware:
                    yield sighting

    def _broadcast(self, frame: bytes) -> None:
        self._frames.sendto(frame, (self.interface, _ETH_P_ARP, 0, 0, _BROADCAST))


def _advertisements(interface: str, index: int) -> socket.socket | None:
    """A socket for neighbour advertisements alone; None if the machine has no IPv6."""
    try:
        icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    except OSError:
        return None
    blocked = bytearray(b"\xff" * 32)
    word, bit = divmod(NEIGHBOUR_ADVERTISEMENT, 32)
    struct.pack_into("=I", blocked, 4 * word, 0xFFFFFFFF & ~(1 << bit))
    try:
        icmp.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        icmp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        # RFC 4861 §7.1.2: "A node MUST silently discard any received Neighbor Advertisement messages" but with 255.
        icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    except BaseException:
        icmp.close()
        raise
    return icmp
