"""The events of a node as Server-Sent Events (HTML §9.2): as fast as the client takes them, and never faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.server import Request
from zope.interface import implementer

from sipha.admin.messages import Refusal
from sipha.events.event import KINDS, REFRESHED
from sipha.events.feed import Feed, Overrun, Reader, TooMany

HEARTBEAT = 15.0
"""Seconds between two comments, by which both sides see that the other one is there."""

PATIENCE = 60.0
"""Seconds after which a client that takes nothing is hung up on."""

LAST_EVENT_ID = "Last-Event-ID"
"""The header by which a client that comes back says where it was."""


class Start(msgspec.Struct, frozen=True, tag_field="kind", tag="start"):
    """The first thing that a client is told: who tells, in which cluster, and how far it has applied the log."""

    node: str
    cluster_id: str
    index: int


class Dropped(msgspec.Struct, frozen=True, tag_field="kind", tag="dropped"):
    """The last thing that a client is told that was too slow."""

    detail: str


@implementer(IPushProducer)
class EventStream:
    """Writes what a feed tells to a request; what the client hasn't taken stays in the feed's ring, or is gone."""

    def __init__(self, reactor: IReactorTime, request: Request, feed: Feed) -> None:
        self._reactor = reactor
        self._request = request
        self._feed = feed
        self._reader: Reader | None = None
        self._paused = False
        self._pumping: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._done: Deferred[None] = Deferred(lambda _: self._leave())

    def start(self, cluster_id: str, since: str | None, kinds: frozenset[str], aor: str) -> Deferred[None]:
        """Begin; fires when the client was too slow, and is to be cancelled when it is gone.

        Raises Refusal if nothing can be told.
        """
        try:
            reader = self._reader = self._feed.follow(self._pump, since, kinds, aor)
        except ValueError as error:
            raise Refusal(400, f"since or {LAST_EVENT_ID}: {error}") from error
        except TooMany as error:
            raise Refusal(503, str(error), retry_after=5) from error
        index = self._feed.source.applied()
        self._request.setHeader("Content-Type", "text/event-stream")
        self._request.setHeader("Cache-Control", "no-store")
        if self._request.method == b"HEAD":
            reader.stop()
            self._done.callback(None)
            return self._done
        start = Start(self._feed.source.node, cluster_id, index)
        self._request.write(_message(str(index) if since is None else since, "start", msgspec.json.encode(start)))
        self._request.registerProducer(self, True)
        self._expect(HEARTBEAT)
        self._pump()
        return self._done

    def resumeProducing(self) -> None:
        """Go on."""
        self._paused = False
        self._expect(HEARTBEAT)
        self._pump()

    def pauseProducing(self) -> None:
        """Wait until the client has taken what was written."""
        self._paused = True
        self._expect(PATIENCE)

    def stopProducing(self) -> None:
        """The client is gone."""
        self._leave()

    def _pump(self) -> None:
        """Write what has come, a little in each turn."""
        if self._paused or self._reader is None or self._pumping is not None:
            return
        try:
            items, more = self._reader.take()
        except Overrun as error:
            self._end(Dropped(str(error)))
            return
        if more:
            self._pumping = self._reactor.callLater(0, self._pump_on)
        if items:
            messages = [_message(item.id, item.kind, item.data) for item in items]
            self._request.write(b"".join(messages))  # which may pause us

    def _pump_on(self) -> None:
        self._pumping = None
        self._pump()

    def _expect(self, seconds: float) -> None:
        """Look again after some seconds, whether there is something to say or not."""
        self._cancel()
        self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        if self._paused:
            transport: Any = self._request.transport  # Twisted doesn't say that it is a TCP one
            transport.abortConnection()
        else:
            self._expect(HEARTBEAT)
            self._request.write(b":\n\n")

    def _end(self, last: Dropped) -> None:
        self._leave()
        self._request.write(_message("", "dropped", msgspec.json.encode(last)))
        self._request.unregisterProducer()
        self._done.callback(None)

    def _leave(self) -> None:
        self._cancel()
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def read_kinds(text: str) -> frozenset[str]:
    """The kinds that `text` lists with commas between them; all but plain refreshes if it is empty. Raises Refusal."""
    kinds = frozenset(text.split(",")) if text else frozenset(KINDS) - {REFRESHED}
    if unknown := sorted(kinds.difference(KINDS)):
        raise Refusal(400, f"{unknown[0][:40]!r} is not a kind of event; there are {', '.join(KINDS)}")
    return kinds


class Message(NamedTuple):
    """One event of a stream: its id (empty if it has none), its name, and JSON."""

    id: str
    kind: str
    data: bytes


class Messages:
    """Takes the bytes of a stream, and gives back the events in it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The events that are complete with these bytes; comments are none."""
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        for message in whole:
            fields = dict(line.split(b": ", 1) for line in message.split(b"\n") if b": " in line)
            if b"data" in fields:
                yield Message(fields.get(b"id", b"").decode(), fields.get(b"event", b"").decode(), fields[b"data"])


def _message(event_id: str, kind: str, data: bytes) -> bytes:
    name = f"id: {event_id}\nevent: {kind}\ndata: " if event_id else f"event: {kind}\ndata: "
    return name.encode() + data + b"\n\n"
