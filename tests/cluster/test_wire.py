from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.cluster.wire import (
    MAX_FRAME,
    MAX_HELLO,
    AppendEntries,
    AppendReply,
    FrameReader,
    Hello,
    Message,
    Ping,
    PreVote,
    PreVoteGranted,
    ProtocolError,
    RequestVote,
    StaleTerm,
    VoteGranted,
    frame,
)

MESSAGES: list[Message] = [
    Hello(1, "sipha", "a"),
    Ping(),
    AppendEntries(3, 2, 1, 0, [(b"\0x", 2, 3), (b"\1", 3, 3)], 12, 200, 99),
    AppendEntries(3, 2, None, None, [], 12, 200, 99),
    AppendReply(3, 4, reset=False, success=True, sent=12),
    PreVote(3, 2, 1),
    PreVoteGranted(3, 99),
    RequestVote(3, 2, 1),
    VoteGranted(3),
    StaleTerm(4),
]


def reader() -> FrameReader:
    reader = FrameReader()
    reader.limit = MAX_FRAME
    return reader


@given(st.integers(1, 60))
def test_messages_survive_any_cut_of_the_stream(size: int) -> None:
    stream, frames = b"".join(map(frame, MESSAGES)), reader()
    found: list[Message] = []
    for start in range(0, len(stream), size):
        found += frames.feed(stream[start : start + size])
    assert found == MESSAGES


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        {},
        [],
        ["apply_command", b"x"],
        ["ae"],
        ["ae", -1, 0, 1, 0, [], 0, 200, 0],
        ["ae", 1 << 63, 0, 1, 0, [], 0, 200, 0],
        ["ae", 1, 0, 1, 0, [["text", 2, 1]], 0, 200, 0],
        ["ae", 1, 0, 1, 0, [[b"\0", 2.5, 1]], 0, 200, 0],
        ["ae", 1, 0, 1, 0, [[b"\0", 2]], 0, 200, 0],
        ["ae", 1, 0, 1, 0, [], 0, 10_001, 0],
        ["ae", 1, 0, 1, 0, [], float("nan"), 200, 0],
        ["ack", 1, 2, 1, True, 0],
        ["hello", 1, "", "a"],
        ["hello", 1, "sipha", "a" * 65],
        ["vote", "1", 2, 3],
    ],
)
def test_other_values_are_not_messages(value: object) -> None:
    body = msgspec.msgpack.encode(value)
    with pytest.raises(ProtocolError, match="not a message"):
        list(reader().feed(len(body).to_bytes(4, "big") + body))


@given(st.binary(max_size=300))
def test_random_bytes_are_messages_or_an_error(data: bytes) -> None:
    frames = reader()
    try:
        found = list(frames.feed(data))
    except ProtocolError:
        return
    assert sum(len(frame(message)) for message in found) <= len(data)


def test_deep_nesting_is_not_a_message() -> None:
    body = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ProtocolError, match="not a message"):
        list(reader().feed(len(body).to_bytes(4, "big") + body))


def test_length_is_refused_before_the_bytes_come() -> None:
    with pytest.raises(ProtocolError, match="frame too long"):
        list(reader().feed((MAX_FRAME + 1).to_bytes(4, "big")))


def test_stranger_gets_little_room() -> None:
    with pytest.raises(ProtocolError, match="frame too long"):
        list(FrameReader().feed((MAX_HELLO + 1).to_bytes(4, "big")))


def test_reader_holds_no_more_than_the_unfinished_frame() -> None:
    frames = reader()
    data = frame(MESSAGES[2])
    assert len(list(frames.feed(data * 1000 + data[:-1]))) == 1000
    assert len(frames._buffer) == len(data) - 1
