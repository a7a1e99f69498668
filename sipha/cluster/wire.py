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

PROTOCOL = 2
"""The version of this module's messages; a node of another version is refused at hello."""

MAX_FRAME = 1 << 20
"""Bytes of the longest message; a longer one ends the connection."""

MAX_HELLO = 512
"""Bytes of the longest first message, from whoever it comes."""

MAX_LEASE = 10_000
"""The longest lease that a heartbeat may state, in milliseconds."""

MAX_NAME = 64
"""Characters in the name of a node or a cluster."""

MAX_REASON = 160
"""Characters of what a node says for people."""

MAX_CHUNK = 64 * 1024
"""Bytes of a snapshot in one message."""

SECRET = 32
"""Bytes of a claim's secret, and of the commitment to it."""

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Term = Annotated[int, Meta(ge=0, lt=1 << 48)]
Time = Annotated[int, Meta(ge=0, lt=1 << 50)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}\Z")]
Secret = Annotated[bytes, Meta(max_length=SECRET)]
Reason = Annotated[str, Meta(max_length=MAX_REASON)]
Entry = tuple[bytes, Count, Count]
"""An entry of the log: command, index, term."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The first message on a connection, from both sides.

    `cluster_id` is empty if the node has never been in a cluster: its disk is blank. `incarnation` names the contents
    of its data directory, `schema` is the latest that its release knows, `priority` its wish to lead, 0 for a witness.
    An amnesiac has lost what it held, and doesn't vote until it has all again. `trouble` is what keeps it from serving
    phones well, empty if nothing does; it is None from a release that knows neither Condition nor Shared, nor may be
    sent them.
    """

    protocol: int
    cluster: Name
    node: Name
    cluster_id: Id
    incarnation: Id
    schema: Count
    priority: Annotated[int, Meta(ge=0, le=1000)]
    amnesiac: bool = False
    trouble: Reason | None = None


class Condition(msgspec.Struct, frozen=True, array_like=True, tag="cond"):
    """What has become of the sender since its Hello: its `trouble` as there, and why it `yields` leadership, if so."""

    trouble: Reason
    yields: Reason = ""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Shows that the sender lives, on a connection that has nothing else to say."""


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag="ae"):
    """The leader's entries, or none: a heartbeat (Raft §5.3).

    `prev_index` is None if the leader's log begins after what the follower needs. `sent` is the leader's own clock in
    microseconds, and comes back in both answers; `lease` is in milliseconds, `time` the cluster time in milliseconds.
    `claim` numbers the leader's claims to the lease within the term, `commitment` is the hash of the claim's secret,
    empty while there is none. To a follower that has lost what it held, `unaided` says that what is committed was
    committed without counting it.
    """

    term: Term
    commit_index: Count
    prev_index: Count | None
    prev_term: Count | None
    entries: list[Entry]
    sent: Count
    lease: Annotated[int, Meta(ge=0, le=MAX_LEASE)]
    time: Time
    claim: Count
    commitment: Secret
    unaided: bool


class LeaseAck(msgspec.Struct, frozen=True, array_like=True, tag="lease"):
    """The follower has given its promise for the heartbeat that was sent at `sent` under this claim."""

    term: Term
    claim: Count
    sent: Count


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """The follower has the leader's log on disk up to `next_index` - 1, or (`reset`) the leader goes on there."""

    term: Term
    next_index: Count
    reset: bool
    success: bool
    sent: Count


class PreVote(msgspec.Struct, frozen=True, array_like=True, tag="pre"):
    """Would you vote for me in `term`? Asked before the term is begun (Raft thesis §9.6).

    `secret` is that of the present leader's claim, if we know that the claim has ended; else it is empty.
    """

    term: Term
    last_index: Count
    last_term: Count
    secret: Secret


class PreVoteGranted(msgspec.Struct, frozen=True, array_like=True, tag="pre+"):
    """I would; `time` is the cluster time in milliseconds as far as I know, from the leader of `time_term`."""

    term: Term
    time: Time
    time_term: Term


class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag="vote"):
    """Vote for me in `term` (Raft §5.2); `secret` as in PreVote."""

    term: Term
    last_index: Count
    last_term: Count
    secret: Secret


class VoteGranted(msgspec.Struct, frozen=True, array_like=True, tag="vote+"):
    """You have my vote in `term`; `time` and `time_term` as in PreVoteGranted, 0 from a release that doesn't tell."""

    term: Term
    time: Time = 0
    time_term: Term = 0


class StaleTerm(msgspec.Struct, frozen=True, array_like=True, tag="stale"):
    """What you sent is of an earlier term than `term`, which is mine."""

    term: Term


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag="go"):
    """Stand at once, the leader's claim with this secret has ended: leadership transfer (Raft thesis §3.10)."""

    term: Term
    secret: Secret


class LastWord(msgspec.Struct, frozen=True, array_like=True, tag="last"):
    """From the guard of `leader`: its claim with this secret has ended, and its address is gone.

    It comes as a datagram, because a guard has neither connections nor a certificate: the secret is its own proof.
    """

    term: Term
    leader: Name
    secret: Secret


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag="snap"):
    """A part of the leader's snapshot at `index`, whose entry has `index_term`; `size` bytes in all."""

    term: Term
    index: Count
    index_term: Count
    size: Count
    offset: Count
    data: Annotated[bytes, Meta(max_length=MAX_CHUNK)]


class SnapshotReply(msgspec.Struct, frozen=True, array_like=True, tag="snap+"):
    """The follower has the snapshot at `index` up to `offset`; installed, it is acknowledged as entries are."""

    term: Term
    index: Count
    offset: Count


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag="hash"):
    """The hash of the sender's table at `index`: 128 bits."""

    index: Count
    hash: Annotated[bytes, Meta(min_length=16, max_length=16)]


class Propose(msgspec.Struct, frozen=True, array_like=True, tag="prop"):
    """A record for the leader to propose; `id` is the sender's own."""

    id: Count
    record: bytes


class ProposalOutcome(msgspec.Struct, frozen=True, array_like=True, tag="prop+"):
    """What became of the record that came as `id`."""

    id: Count
    outcome: bytes


class Shared(msgspec.Struct, frozen=True, array_like=True, tag="share"):
    """What a node tells the others beside the log, under a topic: not acknowledged, and lost if there is no room."""

    topic: Annotated[str, Meta(min_length=1, max_length=16)]
    data: Annotated[list[bytes], Meta(max_length=1 << 16)]


RaftMessage = (
    AppendEntries
    | LeaseAck
    | AppendReply
    | PreVote
    | PreVoteGranted
    | RequestVote
    | VoteGranted
    | StaleTerm
    | TimeoutNow
    | SnapshotChunk
    | SnapshotReply
    | Checkpoint
    | Condition
    | Propose
    | ProposalOutcome
    | Shared
)
Message = Hello | Ping | RaftMessage

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_last_word_decoder = msgspec.msgpack.Decoder(LastWord)
_length = Layout("!I")


class ProtocolError(Exception):
    """The peer sent what no node sends; `kind` names it for the counters."""

    def __init__(
        self, kind: Literal["frame too long", "not a message", "not a last word", "out of place", "not our log"]
    ) -> None:
        super().__init__(kind)
        self.kind = kind


def frame(message: Message) -> bytes:
    """The bytes of a message on the connection."""
    body = _encoder.encode(message)
    return _length.pack(len(body)) + body


def datagram(word: LastWord) -> bytes:
    """The bytes of a last word."""
    return _encoder.encode(word)


def read_datagram(data: bytes) -> LastWord:
    """The last word that `datagram` made; raises ProtocolError."""
    try:
        return _last_word_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("not a last word") from None


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
