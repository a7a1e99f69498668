from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.auth.claim import Claim
from sipha.errors import NoQuorum, QueueFull, SipError
from sipha.registrar.interfaces import Verdict
from sipha.state.entries import Contact, Register
from sipha.workers.messages import (
    MAX_FRAME,
    BrokenFrame,
    Datagrams,
    Lease,
    Order,
    Ready,
    Registers,
    Verdicts,
    Word,
    cut,
    decode_order,
    decode_word,
    frame,
    pack,
    unpack,
)

WORDS: list[Word] = [
    Datagrams([(b"\x00\xff", 1, "fe80::1%2", 5060), (b"OPTIONS", 0, "192.0.2.1", 1)]),
    Registers(
        3,
        12.5,
        [
            (
                "0123abcd",
                "192.0.2.1",
                5061,
                Register("sip:alice@sipha.test", "c", 7, (Contact("sip:alice@192.0.2.1", 3600, None, "urn:x"),)),
                Claim("nonce", "alice", 1, 1000),
            ),
            ("ff", "2001:db8::1", 5060, Register("sip:bob@sipha.test", "d", 1), Claim("nonce", "bob", None, 1000)),
        ],
    ),
]


@given(sizes=st.lists(st.integers(1, 40), min_size=1))
def test_messages_are_whole_however_they_come(sizes: list[int]) -> None:
    stream = b"".join(map(frame, WORDS))
    buffer, position = bytearray(), 0
    found: list[Word] = []
    while position < len(stream):
        size = sizes[len(found) % len(sizes)]
        buffer += stream[position : position + size]
        position += size
        found += [decode_word(body) for body in cut(buffer)]
    assert found == WORDS
    assert not buffer


def test_orders_are_read_as_they_were_written() -> None:
    orders: list[Order] = [
        Lease(1.5, 1.25, 1000.0, watched=True),
        Verdicts(2.0, [("a", "Contact: <sip:a@b>\r\n"), ("b", None)]),
    ]
    buffer = bytearray(b"".join(map(frame, orders)))
    assert [decode_order(body) for body in cut(buffer)] == orders


def test_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(BrokenFrame, match=str(MAX_FRAME + 1)):
        list(cut(bytearray((MAX_FRAME + 1).to_bytes(4, "big"))))


def test_word_is_no_order() -> None:
    body = frame(Ready())[4:]
    with pytest.raises(ValueError, match="ready"):
        decode_order(body)


@pytest.mark.parametrize(
    "verdict",
    [
        "Contact: <sip:a@b>;expires=60\r\n",
        "",
        None,
        SipError("no", status=403, reason="Forbidden here", headers=(("Retry-After", "60"),)),
        SipError("ours"),
        QueueFull("full", retry_after=7),
        NoQuorum("nobody answers"),
    ],
)
def test_verdict_is_answered_alike_on_the_other_side(verdict: Verdict) -> None:
    body = frame(Verdicts(0.0, [("tag", pack(verdict))]))[4:]
    order = decode_order(body)
    assert isinstance(order, Verdicts)
    read = unpack(order.verdicts[0][1])
    if not isinstance(verdict, SipError):
        assert read == verdict
        return
    assert isinstance(read, SipError)
    assert (read.response_status, read.reason, read.headers) == (
        verdict.response_status,
        verdict.reason,
        verdict.headers,
    )
    assert isinstance(read, QueueFull) == isinstance(verdict, QueueFull)
    assert getattr(read, "retry_after", None) == getattr(verdict, "retry_after", None)
