"""Shadows: what the other nodes are told of a call that is being set up, so that it outlives its leader (design §5).

Before an INVITE leaves, the leader shares a record of its response context; another whenever a fork comes further, and
a last one when nothing is left to be done. A node that connects is told of all calls. The records aren't logged and
nobody awaits them: a call whose records are lost is carried on by its branches alone (takeover.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from sipha.proxy.context import ForkState
from sipha.proxy.target import Target
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.token import MAGIC_COOKIE
from sipha.sip.values import Via

MAX_RECORD = 128 * 1024
"""Bytes of the longest record; the call of a longer one has no shadow."""

Key = tuple[str, str]
"""The branch and the sent-by of the caller's Via."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What doesn't change while a call is set up.

    `request` is what each fork starts from, `flow` the one it came by; `at` is the cluster time in seconds. `groups` is
    the target set. `loop`, `users` and `breadth` are those of `Passage` and `ProxiedRequest`.
    """

    request: bytes
    flow: Flow
    at: float
    loop: str
    users: tuple[bytes, bytes]
    breadth: Annotated[int, Meta(ge=0)]
    groups: tuple[Annotated[tuple[Target, ...], Meta(min_length=1)], ...]


class ForkShadow(msgspec.Struct, frozen=True, array_like=True):
    """How far a fork is: its branch, state and deadline (cluster time in seconds), and how it ended.

    With the branch goes what the Via bears behind it. `reasons` are those of its CANCEL, None if it gets none. `status`
    is 0 before the end; `response` is empty if the status is our own finding or a 2xx.
    """

    branch: str
    state: ForkState
    until: int = 0
    reasons: tuple[str, ...] | None = None
    status: Annotated[int, Meta(ge=0, le=699)] = 0
    response: bytes = b""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """A call is about to be forwarded; or its shadow is told anew, by who has taken it over."""

    key: Key
    call: Call
    forks: tuple[ForkShadow, ...]
    cancelled: bool


class Advanced(msgspec.Struct, frozen=True, array_like=True, tag="on"):
    """The forks are so far now, and the caller may have cancelled."""

    key: Key
    forks: tuple[ForkShadow, ...]
    cancelled: bool


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="off"):
    """Nothing is left to be done for a call."""

    key: Key


class Anew(msgspec.Struct, frozen=True, array_like=True, tag="anew"):
    """What was told before is void: all calls that are being set up follow."""


Record = Opened | Advanced | Closed
"""What is told of a call."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record | Anew] = msgspec.msgpack.Decoder(Record | Anew)


@dataclass(slots=True)
class Shadow:
    """A call as it was when we last heard of it, or told of it; `holder` is the other process of ours that has it."""

    call: Call
    forks: tuple[ForkShadow, ...]
    cancelled: bool
    size: int
    forgotten_at: float
    holder: str = ""


@dataclass(slots=True)
class Counters:
    """What has happened since the start: what was told and heard, and what of it came to nothing."""

    shared: int = 0
    unshareable: int = 0
    received: int = 0
    undecodable: int = 0
    evicted: int = 0


class Shadows:
    """The records of our calls that are yet to be shared, and the shadows of the calls of others.

    A shadow that nothing is heard of for `lifetime` seconds is forgotten; so are the oldest beyond `max_count` or
    `max_bytes`.
    """

    def __init__(self, lifetime: float, *, max_count: int = 100_000, max_bytes: int = 256 << 20) -> None:
        self.counters = Counters()
        self.urgent = False
        """True if something is to be shared before anything else is sent."""
        self._lifetime = lifetime
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._unshared: list[bytes] = []
        self._ours: dict[Key, Shadow] = {}
        self._shadows: dict[Key, Shadow] = {}  # by falling age
        self._bytes = 0

    # Our own calls

    def publish(self, record: Record, now: float, *, urgent: bool) -> None:
        """Tell the others of a call of ours, with the next `take_records`.

        Urgent is what has to be elsewhere before anything else is sent; the rest goes with what comes next.
        """
        try:
            data = _encoder.encode(record)
        except UnicodeEncodeError:  # a header with bytes that are no text
            data = b""
        if 0 < len(data) <= MAX_RECORD:
            self._unshared.append(data)
            self.urgent |= urgent
            self.counters.shared += 1
            shadow = self._shadow(record, self._ours.pop(record.key, None), len(data), now)
            if shadow is not None:
                self._ours[record.key] = shadow
        else:
            self.counters.unshareable += 1

    def relay(self, records: Iterable[bytes], holder: str, now: float) -> None:
        """Tell the others what another process of ours has told us of calls that it holds."""
        for data in records:
            record = _decoder.decode(data)
            if not isinstance(record, Anew):
                self._unshared.append(data)
                self.counters.shared += 1
                before = self._ours.pop(record.key, None) or self.take(record.key)
                shadow = self._shadow(record, before, len(data), now)
                if shadow is not None:
                    shadow.holder = holder
                    self._ours[record.key] = shadow

    def holder(self, key: Key) -> str:
        """Which other process of ours holds a call; "" if none does."""
        shadow = self._ours.get(key)
        return "" if shadow is None else shadow.holder

    def keys(self) -> list[Key]:
        """The calls that nobody here has taken over yet."""
        return list(self._shadows)

    def take_records(self) -> list[bytes]:
        """Return what is to be shared."""
        records, self._unshared, self.urgent = self._unshared, [], False
        return records

    @property
    def waiting(self) -> bool:
        """True if there is something to be shared."""
        return bool(self._unshared)

    def records(self) -> Iterator[bytes]:
        """What a node that has heard nothing has to know: the calls as they are when each is told."""
        yield _encoder.encode(Anew())
        for key in (*self._shadows, *self._ours):
            if shadow := self._ours.get(key) or self._shadows.get(key):
                data = _encoder.encode(Opened(key, shadow.call, shadow.forks, shadow.cancelled))
                if len(data) <= MAX_RECORD:
                    yield data

    def cease(self, now: float) -> None:
        """Have our own calls among those of others: we lead no more, and may lead anew, with nothing else left."""
        ours, self._ours = self._ours, {}
        self._leave(ours, now)

    def forsake(self, holder: str, now: float) -> None:
        """Have the calls that a process of ours held among those of others: it has died."""
        left = {key: shadow for key, shadow in self._ours.items() if shadow.holder == holder}
        for key in left:
            del self._ours[key]
        self._leave(left, now)

    # The calls of others

    def received(self, records: Iterable[bytes], now: float) -> None:
        """Take what another node has shared; what can't be read is counted."""
        for data in records:
            self.counters.received += 1
            try:
                record = _decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.counters.undecodable += 1
                continue
            if isinstance(record, Anew):
                self._shadows, self._bytes = {}, 0
                continue
            shadow = self._shadow(record, self.take(record.key), len(data), now)
            if shadow is not None:
                self._keep(record.key, shadow)
        self._expire(now)

    def take(self, key: Key) -> Shadow | None:
        """Return the shadow of a call and keep it no longer."""
        shadow = self._shadows.pop(key, None)
        if shadow is not None:
            self._bytes -= shadow.size
        return shadow

    def first(self, now: float) -> Key | None:
        """Return the key of the shadow that has waited longest, or None if there is none."""
        self._expire(now)
        return next(iter(self._shadows), None)

    def __len__(self) -> int:
        """Return how many shadows there are."""
        return len(self._shadows)

    def _leave(self, calls: dict[Key, Shadow], now: float) -> None:
        for key, shadow in calls.items():
            self.take(key)
            self._keep(key, shadow)
        self._expire(now)

    def _shadow(self, record: Record, before: Shadow | None, size: int, now: float) -> Shadow | None:
        """The shadow of a call after a record; None if there is none."""
        if isinstance(record, Opened):
            return Shadow(record.call, record.forks, record.cancelled, size, now + self._lifetime)
        if isinstance(record, Advanced) and before is not None:
            size += len(before.call.request)
            return Shadow(before.call, record.forks, record.cancelled, size, now + self._lifetime)
        return None

    def _keep(self, key: Key, shadow: Shadow) -> None:
        self._shadows[key] = shadow
        self._bytes += shadow.size

    def _expire(self, now: float) -> None:
        shadows = self._shadows
        while shadows:
            key = next(iter(shadows))
            if shadows[key].forgotten_at > now:
                if len(shadows) <= self._max_count and self._bytes <= self._max_bytes:
                    return
                self.counters.evicted += 1
            self.take(key)


def call_of(request: Request) -> Key | None:
    """Return what the call is known by that a request begins, cancels or acknowledges; None for any other request.

    A client that gives another request the branch of its INVITE sends one that has to do with no call.
    """
    return key_of(request.via) if request.method in {"INVITE", "ACK", "CANCEL"} else None


def key_of(via: Via) -> Key | None:
    """Return what a call is known by, from the Via of its caller; None for a client of RFC 2543."""
    branch = via.branch
    if branch is None or not branch.startswith(MAGIC_COOKIE) or branch == MAGIC_COOKIE:
        return None
    return branch, via.sent_by
