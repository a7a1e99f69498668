from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.nat.stun import answer

COOKIE = bytes.fromhex("2112a442")
# RFC 5769: the transaction, and the mapped addresses of its sample responses (§2.2, §2.3).
TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
V4, V4_VALUE = ("192.0.2.1", 32853), "0001a147e112a643"
V6 = ("2001:db8:1234:5678:11:2233:4455:6677", 32853)
V6_VALUE = "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"


def request(*attributes: tuple[int, bytes], kind: int = 1, cookie: bytes = COOKIE) -> bytes:
    body = b"".join(
        number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) % 4)
        for number, value in attributes
    )
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + cookie + TRANSACTION + body


def with_fingerprint(data: bytes) -> bytes:
    data = data[:2] + (len(data) - 20 + 8).to_bytes(2, "big") + data[4:]
    return data + bytes.fromhex("80280004") + (crc32(data) ^ 0x5354554E).to_bytes(4, "big")


@pytest.mark.parametrize(("remote", "value"), [(V4, V4_VALUE), (V6, V6_VALUE)])
def test_phone_is_told_where_it_sends_from(remote: tuple[str, int], value: str) -> None:
    mapped = bytes.fromhex("0020") + (len(value) // 2).to_bytes(2, "big") + bytes.fromhex(value)
    assert answer(request(), remote) == b"\x01\x01" + len(mapped).to_bytes(2, "big") + COOKIE + TRANSACTION + mapped


def test_scope_of_a_link_local_address_is_left_out() -> None:
    assert answer(request(), ("fe80::1%2", 5060)) == answer(request(), ("fe80::1", 5060))


def test_attributes_that_ask_for_nothing_are_passed_over() -> None:
    plain = answer(request(), V4)
    assert answer(request((0x8022, b"phone"), (0x0006, b"user"), (0x0008, bytes(20))), V4) == plain
    assert answer(with_fingerprint(request((0x8022, b"phone"))), V4) == plain


def test_attribute_that_must_be_understood_and_is_not_is_refused() -> None:
    refusal = answer(request((0x0003, bytes(4)), (0x7FFF, b"x")), V4)
    assert refusal is not None
    assert refusal[:2] == b"\x01\x11"
    assert refusal[8:20] == TRANSACTION
    assert int.from_bytes(refusal[2:4], "big") == len(refusal) - 20
    assert b"\0\0\x04\x14Unknown Attribute" in refusal
    assert refusal.endswith(bytes.fromhex("000a00040003" + "7fff"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        request()[:-1],
        request() + b"\0\0\0\0",
        request(kind=0x0011),
        request(kind=0x0101),
        request(kind=0x0003),
        request(cookie=bytes(4)),
        request((0x8022, b"phone"))[:-4],
        request()[:2] + b"\0\4" + request()[4:] + b"\x80\x22\xff\xff",
        with_fingerprint(request())[:-1] + b"\0",
        request((0x8028, bytes(4)), (0x8022, b"")),
    ],
)
def test_what_is_no_binding_request_gets_no_answer(data: bytes) -> None:
    assert answer(data, V4) is None


@given(st.binary(max_size=60))
def test_no_attributes_raise(body: bytes) -> None:
    whole = body[: len(body) // 4 * 4]
    answer(request()[:2] + len(whole).to_bytes(2, "big") + COOKIE + TRANSACTION + whole, V4)
    answer(body, V4)
