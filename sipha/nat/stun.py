"""STUN on the SIP port: a phone asks for its outer address, and so keeps its NAT open (RFC 5626 §4.4.2, RFC 8489)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from struct import Struct, error
from zlib import crc32

from sipha.sip.flow import Address

_HEADER = Struct("!HHI12s")  # type, length, magic cookie, transaction id (§5)
_ATTRIBUTE = Struct("!HH")
_COOKIE = 0x2112A442
_COOKIE_BYTES = _COOKIE.to_bytes(4, "big")
_REQUEST, _SUCCESS, _ERROR = 0x0001, 0x0101, 0x0111  # of the Binding method
_ERROR_CODE, _UNKNOWN_ATTRIBUTES, _XOR_MAPPED_ADDRESS, _FINGERPRINT = 0x0009, 0x000A, 0x0020, 0x8028
_FINGERPRINT_SIZE = 8
_FINGERPRINT_XOR = 0x5354554E
_COMPREHENSION_OPTIONAL = 0x8000
# MAPPED-ADDRESS, USERNAME, MESSAGE-INTEGRITY, REALM, NONCE, MESSAGE-INTEGRITY-SHA256, PASSWORD-ALGORITHM, USERHASH:
# what RFC 8489 knows. Nobody has to prove who he is in order to be told where he is.
_KNOWN = frozenset((0x0001, 0x0006, 0x0008, _ERROR_CODE, _UNKNOWN_ATTRIBUTES, 0x0014, 0x0015, 0x001C, 0x001D, 0x001E))
_KNOWN |= {_XOR_MAPPED_ADDRESS}


def is_stun(data: bytes) -> bool:
    """Tell STUN from SIP."""
    # "The most significant 2 bits of every STUN message MUST be zeroes." (§5)
    return data[0] < 0x40 and data[4:8] == _COOKIE_BYTES


def answer(data: bytes, remote: Address) -> bytes | None:
    """The response to a Binding request that came from an address; None if it is no such request.

    It is hardly longer than the request, and so of no use to whoever forges the sender's address.
    """
    try:
        kind, length, cookie, transaction = _HEADER.unpack_from(data)
    except error:
        return None
    if kind != _REQUEST or cookie != _COOKIE or length % 4 or length != len(data) - _HEADER.size:
        return None
    unknown = []
    for attribute, start, end in _attributes(data):
        if end > len(data):
            return None
        if attribute == _FINGERPRINT and not _is_fingerprint(data, start, end):
            return None
        if attribute < _COMPREHENSION_OPTIONAL and attribute not in _KNOWN:
            unknown.append(attribute)
    if unknown:
        # "If the request contains one or more unknown comprehension-required attributes, the server replies with an
        # error response with an error code of 420 (Unknown Attribute) and includes an UNKNOWN-ATTRIBUTES attribute in
        # the response that lists the unknown comprehension-required attributes." (§6.3.1)
        listed = b"".join(attribute.to_bytes(2, "big") for attribute in unknown)
        body = _attribute(_ERROR_CODE, b"\0\0\x04\x14Unknown Attribute") + _attribute(_UNKNOWN_ATTRIBUTES, listed)
        return _HEADER.pack(_ERROR, len(body), _COOKIE, transaction) + body
    body = _attribute(_XOR_MAPPED_ADDRESS, _xor_mapped(remote, transaction))
    return _HEADER.pack(_SUCCESS, len(body), _COOKIE, transaction) + body


def _attributes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The attributes: type, and where the value begins and ends."""
    at = _HEADER.size
    while at + _ATTRIBUTE.size <= len(data):
        attribute, length = _ATTRIBUTE.unpack_from(data, at)
        start = at + _ATTRIBUTE.size
        yield attribute, start, start + length
        at = start + length + -length % 4


def _is_fingerprint(data: bytes, start: int, end: int) -> bool:
    """Check the CRC that tells STUN from what only looks like it (§14.7); it is the last attribute."""
    if end - start != 4 or end != len(data):
        return False
    return int.from_bytes(data[start:end], "big") == crc32(data[: end - _FINGERPRINT_SIZE]) ^ _FINGERPRINT_XOR


def _xor_mapped(remote: Address, transaction: bytes) -> bytes:
    """The value of XOR-MAPPED-ADDRESS (§14.2): hidden from NATs that rewrite whatever looks like an address."""
    host, port = remote
    packed = ip_address(host.partition("%")[0]).packed
    mask = _COOKIE_BYTES + transaction
    hidden = bytes(octet ^ masked for octet, masked in zip(packed, mask, strict=False))
    family = 1 if len(packed) == 4 else 2
    return bytes((0, family)) + (port ^ _COOKIE >> 16).to_bytes(2, "big") + hidden


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)
