"""Who looks on at the messages of an AOR (siphactl trace)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from sipha.admin.trace import Traced
from sipha.auth.domain import Domains
from sipha.errors import MalformedMessage, QueueFull
from sipha.sip.flow import Address, Flow
from sipha.sip.message import Request, Response
from sipha.sip.parser import parse
from sipha.transport.endpoint import Tap

TRACES = 8
"""How many may look on at a time: each message is parsed once more for them."""

CALLS = 256
"""Call-IDs of an AOR's messages that are remembered, for those that don't name it: a callee's ACK or BYE."""

_SECRET = re.compile(r'(\bresponse=)"[^"]*"', re.IGNORECASE)


class Tracing:
    """A tap of the endpoint, among the `taps` while somebody looks on."""

    def __init__(self, taps: list[Tap], domains: Domains, wall_time: Callable[[], float]) -> None:
        self._taps = taps
        self._domains = domains
        self._wall_time = wall_time
        self._followers: list[_Follower] = []

    def follow(self, aor: str, take: Callable[[Traced], object]) -> Callable[[], None]:
        """Have `take` told of each message of an AOR until what is returned is called; raises QueueFull."""
        if len(self._followers) >= TRACES:
            raise QueueFull(f"{TRACES} traces are under way here: wait for one")
        follower = _Follower(aor, take)
        self._followers.append(follower)
        if len(self._followers) == 1:
            self._taps.append(self.passed)

        def stop() -> None:
            self._followers.remove(follower)
            if not self._followers:
                self._taps.remove(self.passed)

        return stop

    def passed(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        """Take note of a message."""
        try:
            message = parse(data)
            aors, call_id = set(self._aors(message)), message.call_id
        except MalformedMessage:
            return
        concerned = [follower for follower in self._followers if follower.concerns(aors, call_id)]
        if not concerned:
            return
        traced = Traced(
            datetime.fromtimestamp(self._wall_time(), UTC).isoformat(timespec="milliseconds"),
            sent,
            flow.transport,
            _text(flow.local),
            _text(flow.remote),
            _SECRET.sub(r'\1"…"', data.decode("utf-8", "replace")),
        )
        for follower in concerned:
            follower.take(traced)

    def _aors(self, message: Request | Response) -> Iterator[str]:
        """The AORs of ours that a message names."""
        uris = [message.from_.parsed_uri, message.to.parsed_uri]
        if isinstance(message, Request):
            uris.append(message.parsed_uri)
        for uri in uris:
            located = self._domains.locate(uri)
            if located is not None:
                yield located[1]


class _Follower:
    """Who looks on at one AOR."""

    def __init__(self, aor: str, take: Callable[[Traced], object]) -> None:
        self.take = take
        self._aor = aor
        self._calls: dict[str, None] = {}

    def concerns(self, aors: set[str], call_id: str) -> bool:
        """True for a message that names these AORs, and one of the same call."""
        if self._aor in aors:
            if len(self._calls) >= CALLS:
                del self._calls[next(iter(self._calls))]
            self._calls[call_id] = None
            return True
        return call_id in self._calls


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
