"""Frames of ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861) about one virtual address, made and read."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_ETHERNET_IPV4 = struct.pack("!HHBB", 1, 0x0800, 6, 4)
_REQUEST, _REPLY = 1, 2
_ANY = bytes(4)
_NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_TARGET_LINK_ADDRESS = 2
_ICMPV6 = 58


class Sighting(NamedTuple):
    """Someone says that an address is his; `hardware` is empty where he doesn't say who he is."""

    address: str
    hardware: bytes

    def __str__(self) -> str:
        """For an operator."""
        return self.hardware.hex(":") or "someone"


def arp_probe(hardware: bytes, address: str) -> bytes:
    """Who has it? Asked without an address of one's own, so that nobody learns anything (RFC 5227 §2.1.1)."""
    return _arp(_REQUEST, hardware, _ANY, bytes(6), socket.inet_aton(address))


def arp_announcements(hardware: bytes, address: str) -> tuple[bytes, bytes]:
    """It is mine: as a request (RFC 5227 §2.3), and as a reply for those who learn from replies alone."""
    ours = socket.inet_aton(address)
    return _arp(_REQUEST, hardware, ours, bytes(6), ours), _arp(_REPLY, hardware, ours, hardware, ours)


def read_arp(frame: bytes) -> Sighting | None:
    """Whose address a packet says it comes from; None for a probe, which claims nothing, and for what isn't ARP."""
    if len(frame) < 28 or frame[:6] != _ETHERNET_IPV4 or frame[14:18] == _ANY:
        return None
    return Sighting(socket.inet_ntoa(frame[14:18]), frame[8:14])


def _arp(operation: int, sender: bytes, source: bytes, receiver: bytes, target: bytes) -> bytes:
    return _ETHERNET_IPV4 + struct.pack("!H6s4s6s4s", operation, sender, source, receiver, target)


def solicitation(address: str) -> tuple[bytes, bytes]:
    """Ask who has the address as duplicate address detection does (RFC 4862 §5.4.2): link destination, IPv6 packet."""
    target = socket.inet_pton(socket.AF_INET6, address)
    group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
    body = struct.pack("!BBHI16s", _NEIGHBOUR_SOLICITATION, 0, 0, 0, target)
    body = body[:2] + checksum(bytes(16) + group + struct.pack("!II", len(body), _ICMPV6) + body) + body[4:]
    header = struct.pack("!IHBB16s16s", 0x60000000, len(body), _ICMPV6, 255, bytes(16), group)
    return b"\x33\x33" + group[12:], header + body


def advertisement(hardware: bytes, address: str) -> bytes:
    """It is mine, whatever you have heard: an unsolicited ICMPv6 message (RFC 4861 §7.2.6) without checksum."""
    return struct.pack(
        "!BBHI16sBB6s",
        NEIGHBOUR_ADVERTISEMENT,
        0,
        0,
        _OVERRIDE,
        socket.inet_pton(socket.AF_INET6, address),
        _TARGET_LINK_ADDRESS,
        1,
        hardware,
    )


def read_advertisement(message: bytes) -> Sighting | None:
    """Whose address an ICMPv6 message advertises."""
    if len(message) < 24 or message[0] != NEIGHBOUR_ADVERTISEMENT:
        return None
    has_link_address = len(message) >= 32 and message[24:26] == bytes((_TARGET_LINK_ADDRESS, 1))
    return Sighting(socket.inet_ntop(socket.AF_INET6, message[8:24]), message[26:32] if has_link_address else b"")


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", 0xFFFF - total)
