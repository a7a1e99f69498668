from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.cluster.wire import (
    MAX_CHUNK,
    MAX_FRAME,
    MAX_HELLO,
    MAX_NAME,
    AppendEntries,
    AppendReply,
    Checkpoint,
    Condition,
    FrameReader,
    Hello,
    LastWord,
    LeaseAck,
    Message,
    Ping,
    PreVote,
    PreVoteGranted,
    ProposalOutcome,
    Propose,
    ProtocolError,
    RequestVote,
    Shared,
    SnapshotChunk,
    SnapshotReply,
    StaleTerm,
    TimeoutNow,
    VoteGranted,
    datagram,
    frame,
    read_datagram,
)

ID = "0123456789abcdef" * 2
SECRET = bytes(range(32))
MESSAGES: list[Message] = [
    Hello(2, "sipha", "a", ID, ID[::-1], 2, 100, amnesiac=True),
    Hello(2, "sipha", "a", "", "", 2, 0),
    Hello(2, "sipha", "a", ID, ID, 2, 100, trouble="the link is down"),
    Ping(),
    AppendEntries(3, 2, 1, 0, [(b"\0x", 2, 3), (b"\1", 3, 3)], 12, 200, 99, 4, SECRET, unaided=True),
    AppendEntries(3, 2, None, None, [], 12, 200, 99, 4, b"", unaided=False),
    LeaseAck(3, 4, 12),
    AppendReply(3, 4, reset=False, success=True, sent=12),
    PreVote(3, 2, 1, b""),
    PreVoteGranted(3, 99, 2),
    RequestVote(3, 2, 1, SECRET),
    VoteGranted(3, 99, 2),
    StaleTerm(4),
    TimeoutNow(3, SECRET),
    SnapshotChunk(3, 7, 2, 1 << 30, 1 << 20, b"piece"),
    SnapshotReply(3, 7, 1 << 20),
    Checkpoint(64, bytes(16)),
    Condition("the link is down", "it is unwell"),
    Propose(1, b"record"),
    ProposalOutcome(1, b"outcome"),
    Shared("shadows", [b"one", b""]),
]


def test_last_word_survives_as_a_datagram() -> None:
    word = LastWord(3, "a", SECRET)
    assert read_datagram(datagram(word)) == word


@given(st.binary(max_size=64) | st.sampled_from([frame(StaleTerm(4)), datagram(LastWord(3, "a", SECRET))[:-1]]))
def test_datagram_that_is_no_last_word_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a last word"):
        read_datagram(data)


def test_last_word_is_no_message_of_a_connection() -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        list(reader().feed(frame(LastWord(3, "a", SECRET))))  # type: ignore[arg-type]


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
        ["ae", -1, 0, 1, 0, [], 0, 200, 0, 1, b"", False],
        ["ae", 1 << 63, 0, 1, 0, [], 0, 200, 0, 1, b"", False],
        ["ae", 1, 0, 1, 0, [["text", 2, 1]], 0, 200, 0, 1, b"", False],
        ["ae", 1, 0, 1, 0, [[b"\0", 2.5, 1]], 0, 200, 0, 1, b"", False],
        ["ae", 1, 0, 1, 0, [[b"\0", 2]], 0, 200, 0, 1, b"", False],
        ["ae", 1, 0, 1, 0, [], 0, 10_001, 0, 1, b"", False],
        ["ae", 1, 0, 1, 0, [], float("nan"), 200, 0, 1, b"", False],
        ["ae", 1, 0, 1, 0, [], 0, 200, 0, 1, bytes(33), False],
        ["ae", 1, 0, 1, 0, [], 0, 200, 0, 1, b"", 1],
        ["ae", 1, 0, 1, 0, [], 0, 200, 0],
        ["ack", 1, 2, 1, True, 0],
        ["lease", 1, 1, -1],
        ["hello", 2, "sipha", "a"],
        ["hello", 2, "", "a", ID, ID, 2, 100],
        ["hello", 2, "sipha", "a" * 65, ID, ID, 2, 100],
        ["hello", 2, "sipha", "a", ID + "0", ID, 2, 100],
        ["hello", 2, "sipha", "a", "../etc", ID, 2, 100],
        ["hello", 2, "sipha", "a", ID, ID + "\n", 2, 100],
        ["hello", 2, "sipha", "a", ID, ID, 2, 1001],
        ["vote", "1", 2, 3, b""],
        ["vote", 1 << 48, 2, 3, b""],
        ["pre+", 1, 1 << 50, 0],
        ["vote+", 1, -1, 0],
        ["pre+", 1, 0, 1 << 48],
        ["vote", 1, 2, 3],
        ["vote", 1, 2, 3, bytes(33)],
        ["pre", 1, 2, 3, "text"],
        ["go", 1, bytes(33)],
        ["last", 1, "a" * 65, b""],
        ["snap", 1, 7, 2, 9, 0, bytes(MAX_CHUNK + 1)],
        ["snap", 1, 7, 2, 9, -1, b""],
        ["snap+", 1, 7],
        ["hash", 64, bytes(15)],
        ["hash", 64, bytes(17)],
        ["prop", 1, "text"],
        ["prop+", -1, b""],
    ],
)
def test_other_values_are_not_messages(value: object) -> None:
    body = msgspec.msgpack.encode(value)
    with pytest.raises(ProtocolError, match="not a message"):
        list(reader().feed(len(body).to_bytes(4, "big") + body))


@pytest.mark.parametrize(
    "value",
    [
        ["ae", 1, 0, 1, 0, [[b"\0", 2, 1]], 0, 10_000, 0, 1, bytes(32), False],
        ["ack", 1, 2, True, True, 0],
        ["lease", 1, 1, 0],
        ["hello", 2, "sipha", "a" * 64, ID, "", 2, 1000],
        ["vote", 1, 2, 3, bytes(32)],
        ["snap", 1, 7, 2, 9, 0, bytes(MAX_CHUNK)],
        ["hash", 64, bytes(16)],
    ],
)
def test_values_within_the_bounds_are_messages(value: object) -> None:
    body = msgspec.msgpack.encode(value)
    assert len(list(reader().feed(len(body).to_bytes(4, "big") + body))) == 1


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


def test_every_message_is_among_those_that_are_tested() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))


def test_longest_hello_is_short_enough_for_a_stranger() -> None:
    hello = Hello(2, "é" * MAX_NAME, "é" * MAX_NAME, ID, ID, 2**40, 1000, amnesiac=True)
    assert list(FrameReader().feed(frame(hello))) == [hello]


def test_longest_piece_of_a_snapshot_fits_into_a_frame() -> None:
    chunk = SnapshotChunk(2**47, 2**60, 2**60, 2**60, 2**60, bytes(MAX_CHUNK))
    assert list(reader().feed(frame(chunk))) == [chunk]
