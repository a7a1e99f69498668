"""What the daemon and its workers say to each other: typed messages in length-capped frames.

A frame is its length (4 bytes, big endian) and one message in msgpack, an array that begins with the message's tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout
from typing import Literal

import msgspec

from sipha.auth.authenticator import Ceded as CededNonce
from sipha.auth.claim import Claim
from sipha.auth.domain import Domain
from sipha.errors import QueueFull, SipError, SiphaError, Unavailable
from sipha.journal import Level
from sipha.nat.detection import Test
from sipha.proxy.shadow import Key
from sipha.proxy.target import Target
from sipha.registrar.interfaces import Verdict
from sipha.sip.flow import Address
from sipha.sip.overload import Priority, Tally
from sipha.state.entries import Policy, PutAccount, Register

MAX_FRAME = 1 << 24
"""Bytes of the longest message."""


class RegistrarSettings(msgspec.Struct, frozen=True, array_like=True):
    """Of `sipha.registrar.record.RegistrarSettings` what concerns a worker; networks are texts."""

    policy: Policy
    min_expires_policy: Literal["reject", "raise"]
    expires_jitter: int
    edges: tuple[str, ...]


class Settings(msgspec.Struct, frozen=True, array_like=True, tag="settings"):
    """What is to be gone by from now on.

    `addresses` stand for the first of the domains; `detect` finds NAT; `peers` are networks of those that are trusted.
    """

    domains: tuple[Domain, ...]
    addresses: tuple[str, ...]
    registrar: RegistrarSettings
    nonce_lifetime: int
    detect: tuple[Test, ...]
    peers: tuple[str, ...]
    allow_inbound: bool
    max_breadth: int
    emergency_numbers: tuple[str, ...]


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """The first message: where the sockets that the worker was given listen, in order.

    It makes nonces of `term` as the `maker` of that number, as no other has done `since` a second of cluster time, and
    its Vias bear `mark`. `own` are the transports and addresses that mean us; `timers` are those of transactions
    (`sipha.sip.timers.Timers`).
    """

    listeners: tuple[Address, ...]
    own: tuple[tuple[str, str, int], ...]
    term: int
    maker: int
    since: int
    mark: str
    timers: tuple[float, float, float, float, float]
    settings: Settings


class Keys(msgspec.Struct, frozen=True, array_like=True, tag="keys"):
    """The log's keys, oldest first."""

    ring: dict[int, bytes]


class Accounts(msgspec.Struct, frozen=True, array_like=True, tag="accounts"):
    """Accounts that there are no more, by identity, and then those that are new or others.

    `version` is that of the table; the workers name it with what they have verified.
    """

    deleted: list[str]
    put: list[PutAccount]
    version: int


class Complete(msgspec.Struct, frozen=True, array_like=True, tag="complete"):
    """All accounts were told."""


class Read(msgspec.Struct, frozen=True, array_like=True, tag="read"):
    """Read the sockets from now on; the daemon doesn't any more, and holds these calls, by their callers' Vias."""

    held: list[Key]


class Lease(msgspec.Struct, frozen=True, array_like=True, tag="lease"):
    """Phones may be heard and answered until `until`, a time of CLOCK_BOOTTIME in seconds; at `at` it was `time`.

    That is cluster time in seconds. A worker passes all datagrams on while somebody looks on at them (`watched`).
    """

    until: float
    at: float
    time: float
    watched: bool


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A SipError; `retry_after` is that of an Unavailable, which was raised because the queue is `full`, or not."""

    detail: str
    status: int
    reason: str | None
    headers: tuple[tuple[str, str], ...]
    retry_after: int | None
    full: bool


class Verdicts(msgspec.Struct, frozen=True, array_like=True, tag="verdicts"):
    """What REGISTERs have come to, each by the tag that it was handed over with; `until` as in Lease."""

    until: float
    verdicts: list[tuple[str, str | Refusal | None]]


class Answers(msgspec.Struct, frozen=True, array_like=True, tag="answers"):
    """What requests come to, each by the tag of its question.

    Their targets were `found`; they are `refused`; they are to be `challenged`, because what their credentials use up
    had been used before; or they are for the daemon to forward (`elsewhere`), and nothing was used up. `until` as in
    Lease.
    """

    until: float
    found: list[tuple[int, tuple[tuple[Target, ...], ...]]]
    refused: list[tuple[int, Refusal]]
    challenged: list[int]
    elsewhere: list[int]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The worker knows all accounts and has a lease: it is about to read."""


class Questions(msgspec.Struct, frozen=True, array_like=True, tag="questions"):
    """Requests that may be forwarded, as far as accounts of this `version` tell.

    Each is a tag, the AOR, Request-URI and method; the identity of the account that has proved who sends it, which may
    be empty; what its credentials use up, if the worker doesn't do that; and by what the call is known to its caller.
    """

    version: int
    questions: list[tuple[int, str, str, str, str, Claim | None, Key | None]]


class Ceded(msgspec.Struct, frozen=True, array_like=True, tag="ceded"):
    """Nonces of the worker whose counts are the daemon's to use up from now on (`sipha.auth.window`)."""

    ceded: list[CededNonce]


class Shadowed(msgspec.Struct, frozen=True, array_like=True, tag="shadowed"):
    """Records for the other nodes, of calls that the worker holds (`sipha.proxy.shadow`)."""

    records: list[bytes]


class Seen(msgspec.Struct, frozen=True, array_like=True, tag="seen"):
    """Messages that the worker has sent, or received and kept, for who looks on.

    Each is the message, the index of the listener, host and port, and whether it was sent.
    """

    messages: list[tuple[bytes, int, str, int, bool]]


class Registers(msgspec.Struct, frozen=True, array_like=True, tag="registers"):
    """REGISTERs whose senders are known by accounts of this `version`, received at a time of CLOCK_BOOTTIME.

    Each is the tag of its response, host and port that it came from, its record, and what its credentials use up, if
    the worker hasn't done that.
    """

    version: int
    received: float
    registers: list[tuple[str, str, int, Register, Claim | None]]


class Datagrams(msgspec.Struct, frozen=True, array_like=True, tag="datagrams"):
    """Datagrams that the other is to act on: the index of the listener that each came to, and host and port.

    The daemon gets what a worker has no use for, and a worker what belongs to the calls that it holds. `late` ones have
    waited too long: they are to be refused, unless that is forbidden.
    """

    datagrams: list[tuple[bytes, int, str, int]]
    late: bool = False


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """Flows that are dead, as ICMP says: the index of the listener, and host and port."""

    flows: list[tuple[int, str, int]]


class Report(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """The answer to a Lease: which accounts the worker has, and what it has done since the last one.

    `counts` are by `room/name`. So many `transactions` there are now. `invited` is what it took to answer INVITEs with
    100: how often by the bounds of `sipha.histogram`, and the sum in seconds. `shed` and `behind` are what was refused
    for overload (`sipha.sip.overload`), while what was read last had waited for `wait` seconds.
    """

    version: int
    counts: dict[str, int]
    transactions: int
    invited: tuple[list[int], float]
    shed: dict[Priority, Tally]
    behind: int
    wait: float


class Said(msgspec.Struct, frozen=True, array_like=True, tag="said"):
    """A line for the log."""

    level: Level
    text: str


Order = Start | Settings | Keys | Accounts | Complete | Read | Lease | Verdicts | Answers | Datagrams | Failed
"""What the daemon says."""

Word = Ready | Registers | Questions | Ceded | Datagrams | Shadowed | Seen | Failed | Report | Said
"""What a worker says."""

_encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_word = msgspec.msgpack.Decoder(Word).decode
_length = Layout("!I")


class Elsewhere(SiphaError):
    """A request that the daemon is to forward: nothing was done about it, and nothing used up."""


class BrokenFrame(SiphaError):
    """What came is no frame."""


def frame(message: Order | Word) -> bytes:
    """The bytes of a message on the link; raises ValueError or TypeError if it can't be encoded."""
    body = _encode(message)
    return _length.pack(len(body)) + body


def cut(buffer: bytearray) -> Iterator[bytes]:
    """Take the whole frames from a buffer, and yield what is in them; raises BrokenFrame."""
    position = 0
    try:
        while len(buffer) - position >= _length.size:
            (size,) = _length.unpack_from(buffer, position)
            if size > MAX_FRAME:
                raise BrokenFrame(f"a frame of {size} bytes")
            end = position + _length.size + size
            if len(buffer) < end:
                break
            body = bytes(buffer[position + _length.size : end])
            position = end
            yield body
    finally:
        del buffer[:position]


def pack(verdict: Verdict) -> str | Refusal | None:
    """A verdict as it goes over the link."""
    if not isinstance(verdict, SipError):
        return verdict
    return refusal_of(verdict)


def refusal_of(verdict: SipError) -> Refusal:
    """A SipError as it goes over the link."""
    return Refusal(
        verdict.detail,
        verdict.response_status,
        verdict.reason,
        verdict.headers,
        verdict.retry_after if isinstance(verdict, Unavailable) else None,
        isinstance(verdict, QueueFull),
    )


def unpack(verdict: str | Refusal | None) -> Verdict:
    """The verdict that `pack` was given; see `refused`."""
    return refused(verdict) if isinstance(verdict, Refusal) else verdict


def refused(verdict: Refusal) -> SipError:
    """The SipError that `refusal_of` was given, an Unavailable as one of its kind that is answered alike."""
    if verdict.retry_after is not None:
        return (QueueFull if verdict.full else Unavailable)(verdict.detail, retry_after=verdict.retry_after)
    return SipError(verdict.detail, status=verdict.status, reason=verdict.reason, headers=verdict.headers)
