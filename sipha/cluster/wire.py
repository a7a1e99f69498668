"""What the nodes say to each other: typed messages in length-capped frames.

A frame is its length (4 bytes, big endian) and one message in msgpack, an array that begins with the message's tag.
Only the classes below are decoded, into typed and bounded fields; there is no pickle.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROTOCOL = 1
"""The version of this module's messages; a node of another version is refused at hello."""

MAX_FRAME = 1 << 20
"""Bytes of the longest message; a longer one ends the connection."""

MAX_HELLO = 512
"""Bytes of the longest first message, from whoever it comes."""

MAX_LEASE = 10_000
"""The longest lease that a heartbeat may state, in milliseconds."""

MAX_NAME = 64
"""Characters in the name of a node or a cluster."""

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
Entry = tuple[bytes, Count, Count]
"""An entry of the log: command, index, term."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The first message on a connection, from both sides."""

    protocol: int
    cluster: Name
    node: Name


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Shows that the sender lives, on a connection that has nothing else to say."""


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag="ae"):
    """The leader's entries, or none: a heartbeat (Raft §5.3).

    `prev_index` is None if the leader's log begins after what the follower needs. `sent` is the leader's own clock in
    microseconds, and comes back in the reply; `lease` is in milliseconds, `time` the cluster time in milliseconds.
    """

    term: Count
    commit_index: Count
    prev_index: Count | None
    prev_term: Count | None
    entries: list[Entry]
    sent: Count
    lease: Annotated[int, Meta(ge=0, le=MAX_LEASE)]
    time: Count


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """What the follower holds of the leader's log up to `next_index` - 1, or (`reset`) where the leader goes on."""

    term: Count
    next_index: Count
    reset: bool
    success: bool
    sent: Count


class PreVote(msgspec.Struct, frozen=True, array_like=True, tag="pre"):
    """Would you vote for me in `term`? Asked before the term is begun (Raft thesis §9.6)."""

    term: Count
    last_index: Count
    last_term: Count


class PreVoteGranted(msgspec.Struct, frozen=True, array_like=True, tag="pre+"):
    """I would; `time` is the cluster time in milliseconds as far as I know."""

    term: Count
    time: Count


class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag="vote"):
    """Vote for me in `term` (Raft §5.2)."""

    term: Count
    last_index: Count
    last_term: Count


class VoteGranted(msgspec.Struct, frozen=True, array_like=True, tag="vote+"):
    """You have my vote in `term`."""

    term: Count


class StaleTerm(msgspec.Struct, frozen=True, array_like=True, tag="stale"):
    """What you sent is of an earlier term than `term`, which is mine."""

    term: Count


Message = Hello | Ping | AppendEntries | AppendReply | PreVote | PreVoteGranted | RequestVote | VoteGranted | StaleTerm
RaftMessage = AppendEntries | AppendReply | PreVote | PreVoteGranted | RequestVote | VoteGranted | StaleTerm

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_length = Layout("!I")


class ProtocolError(Exception):
    """The peer sent what no node sends; `kind` names it for the counters."""

    def __init__(self, kind: Literal["frame too long", "not a message", "out of place", "not our log"]) -> None:
        super().__init__(kind)
        self.kind = kind


def frame(message: Message) -> bytes:
    """The bytes of a message on the connection."""
    body = _encoder.encode(message)
    return _length.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages; holds no more than one unfinished frame of at most `limit` bytes."""

    def __init__(self) -> None:
        self.limit = MAX_HELLO
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes; raises ProtocolError. The limit may be raised between two."""
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= _length.size:
                (size,) = _length.unpack_from(buffer, position)
                if size > self.limit:
                    raise ProtocolError("frame too long")
                end = position + _length.size + size
                if len(buffer) < end:
                    break
                body = bytes(buffer[position + _length.size : end])
                position = end
                try:
                    yield _decoder.decode(body)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    raise ProtocolError("not a message") from None
        finally:
            del buffer[:position]
