"""The endpoint: sockets, clock and timer around the transaction layer, which has none of them.

Every wake-up goes one way: bytes → parse → `layer.receive` → events → the transaction user → `layer.messages_to_send`
→ bytes; then the one timer is armed. The time is read once per wake-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, ClassVar, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha.errors import MalformedMessage, SipError
from sipha.sip.events import Event, RequestReceived
from sipha.sip.flow import Address, Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.overload import Overload, Verdict, mark_of
from sipha.sip.parser import ParseError, parse
from sipha.transport.connection import PING, PONG, Received
from sipha.transport.interfaces import ITransactionUser
from sipha.transport.sockets import Hearing, Sockets
from sipha.transport.udp import TRANSIENT

LONGEST_KEEPALIVE = 8
"""Bytes of the longest datagram that may be nothing but a keepalive."""

TOGETHER = 16
"""So many refusals are sent after one look at the clock: they promise nothing that would need a lease."""

_RESPONSE = b"SIP/2.0 "
_FIRST_LETTER = ord("A")  # of a method: STUN begins with less
_KEEPALIVE_CHARACTERS = b"\r\n\0 "
_LAST_CONTROL = 0x1F
_LINE_END = b"\r\n"


class Tap(Protocol):
    """Looks on at each message that comes or goes; its own failures concern nobody else."""

    def __call__(self, data: bytes, flow: Flow, *, sent: bool) -> object:
        """Take note of a message that was sent over a flow, or received."""


Shortcut = Callable[[bytes, Flow, float], bool]
"""Acts on a datagram that came over a flow, at the time given; False if it has to be parsed."""


class Endpoint:
    """What comes in by `sockets`, and what goes out by them.

    `counters` counts by reason what was dropped or failed. Nothing is sent from `lease_until` on, by `clock`, which
    is read before every message. `tag` makes the To tag of a stateless error response. `before_sending` is called in
    each turn once all events have been acted on. `intercept` is offered each datagram that can't be a request before it
    is parsed, and says whether it has taken it. `overload` says what is refused when datagrams wait too long. `taps`
    are told of each message. `dead` is told which flows have failed.
    """

    log: ClassVar = Logger()

    def __init__(
        self,
        reactor: Any,
        layer: TransactionLayer,
        sockets: Sockets,
        *,
        lease_until: Callable[[], float] = lambda: inf,
        clock: Callable[[], float] = time.monotonic,
        before_sending: Callable[[], None] = lambda: None,
        tag: Callable[[Request], str] | None = None,
        intercept: Callable[[bytes, Flow], bool] = lambda _data, _flow: False,
        overload: Overload | None = None,
        dead: Callable[[list[Flow]], None] = lambda _: None,
    ) -> None:
        self._dead = dead
        self.counters = sockets.counters
        self.taps: list[Tap] = []
        self._reactor = reactor
        self._layer = layer
        self._sockets = sockets
        self._lease_until = lease_until
        self._clock = clock
        self._before_sending = before_sending
        self._tag = tag
        self._intercept = intercept
        self._overload = overload or Overload()
        self._shortcut: Shortcut = _parse_all
        self._user: ITransactionUser | None = None
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0
        self._turning = False

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self, user: ITransactionUser, shortcut: Shortcut | None = None) -> Deferred[bool]:
        """Open the sockets and hand events to `user`; fires with True once they are open, False if stopped first.

        `shortcut` is offered each datagram before it is parsed, and acts at once on requests that need no transaction;
        nothing of a turn that begins without a lease. Fails with OSError if they can't be opened.
        """
        self._user = user
        self._shortcut = shortcut or _parse_all
        hearing = Hearing(self._datagrams_received, self._messages_received, self._failed)
        return self._sockets.open(hearing).addCallbacks(self._opened, self._not_opened)

    def _opened(self, opened: bool) -> bool:
        if opened:
            self._arm(self._reactor.seconds())
        return opened

    def _not_opened(self, failure: Failure) -> Failure:
        self.stop()
        return failure

    def stop(self) -> Deferred[None]:
        """Close the sockets, abort the connections and send nothing more; fires when all of it is gone."""
        self._user = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._sockets.close()

    # -- what others have read ---------------------------------------------------------------------------------------

    def datagrams_received(self, datagrams: list[tuple[bytes, Flow]], *, late: bool) -> None:
        """Act on datagrams that another process has read; `late` are those that are refused for overload."""
        if self._user is None:
            return
        if late:
            now = self._reactor.seconds()
            self._tell_received(datagrams)
            self._turn_away(datagrams, now)
            self.turn(now)
        else:
            self._act(datagrams, overloaded=False)

    def flows_failed(self, flows: list[Flow]) -> None:
        """Take note of flows that another process has found dead."""
        self._failed(flows)

    def receive(self, data: bytes, flow: Flow, now: float) -> None:
        """Act on a datagram before this returns, but for what is to be sent: that is for `turn`.

        Raises MalformedMessage.
        """
        self._layer.receive(parse(data), flow, now)
        self.catch_up(now)

    def seen(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        """Let the taps know of a message that another process has sent or received."""
        if self.taps:
            self._tell(data, flow, sent=sent)

    # -- ways out ---------------------------------------------------------------------------------------------------

    @property
    def dropped(self) -> int:
        """See Sockets."""
        return self._sockets.dropped

    def flow(self, transport: str, remote: Address) -> Flow | None:
        """See Sockets."""
        return self._sockets.flow(transport, remote)

    def sent_by(self, flow: Flow) -> str:
        """See Sockets."""
        return self._sockets.sent_by(flow)

    def is_local(self, host: str, port: int, transport: str | None = None) -> bool:
        """See Sockets."""
        return self._sockets.is_local(host, port, transport)

    def send(self, data: bytes, flow: Flow) -> bool:
        """Send a message outside of a transaction; False if its flow has failed, which the layer is then told."""
        return not self.send_all(((data, flow),))

    def send_all(self, messages: Iterable[tuple[bytes, Flow]]) -> list[Flow]:
        """Send messages outside of transactions; return the flows that have failed, of which the layer is then told."""
        failed = self._send(messages)
        if failed:
            self._reactor.callLater(0, self._failed, failed)
        return failed

    def offer(self, data: bytes, flow: Flow) -> bool:
        """Send once, outside of a transaction; False if it didn't leave this node, which condemns no flow."""
        return self.offer_all(((data, flow),))[0]

    def offer_all(self, messages: Iterable[tuple[bytes, Flow]]) -> list[bool]:
        """The same for many."""
        # As in `_send`: the lease may run out between two of them, and won't end before that.
        until, clock, transmit = self._lease_until() if self._user else 0.0, self._clock, self._transmit
        return [clock() < until and not transmit(data, flow) for data, flow in messages]

    def catch_up(self, now: float) -> None:
        """Hand over all that has come so far: a shortcut calls it before it acts on what must not overtake that."""
        turning, self._turning = self._turning, True  # whoever moves the layer needs no turn of his own
        self._hand_over(now)
        self._turning = turning

    def turn(self, now: float) -> None:
        """Hand over the layer's events, send its messages and arm the timer: after everything that moves the layer."""
        if self._turning or self._user is None:
            return
        self._turning = True
        try:
            self._hand_over(now)
            while failed := self._flush():
                for flow in failed:
                    self._layer.flow_failed(flow, now)
                self._hand_over(now)
        finally:
            self._turning = False
        self._arm(now)

    # -- coming in --------------------------------------------------------------------------------------------------

    def _datagrams_received(self, datagrams: list[tuple[bytes, Flow]], age: float, fill: float) -> None:
        self._act(datagrams, overloaded=self._overload.waited(age, fill))

    def _act(self, datagrams: list[tuple[bytes, Flow]], *, overloaded: bool) -> None:
        now, intercept, judge = self._reactor.seconds(), self._intercept, self._overload.judge
        self._tell_received(datagrams)
        datagrams, refused = self._sift(datagrams, now) if overloaded else (datagrams, [])
        shortcut = self._shortcut if self._clock() < self._lease_until() else _parse_all
        for came, flow in datagrams:
            data = message_of(came)
            if len(data) <= LONGEST_KEEPALIVE and is_keepalive(data):
                self.counters["udp-keepalive"] += 1
                if data == PING:
                    self.offer(PONG, flow)
                continue
            try:
                if (data[0] < _FIRST_LETTER or data.startswith(_RESPONSE)) and intercept(data, flow):
                    continue
                if overloaded and (verdict := judge(data, flow, now)) is not Verdict.SERVED:
                    if verdict is Verdict.REFUSED:
                        refused.append((data, flow))
                    continue
                if shortcut(data, flow, now):
                    self._layer.counters.requests_received += 1
                else:
                    self._layer.receive(parse(data), flow, now)
            except MalformedMessage as error:
                self._refuse(error, _request(error), flow)
            except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
                self._note_mistake("reading a datagram")
        if refused:
            self._turn_away(refused, now)
        self.turn(now)

    def _sift(
        self, datagrams: list[tuple[bytes, Flow]], now: float
    ) -> tuple[list[tuple[bytes, Flow]], list[tuple[bytes, Flow]]]:
        """What goes on, and the REGISTERs that are refused for overload."""
        try:
            return self._overload.sift(datagrams, now)
        except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
            self._note_mistake("sifting datagrams")
            return datagrams, []

    def _messages_received(self, received: list[Received], flow: Flow) -> None:
        now = self._reactor.seconds()
        for message in received:
            if isinstance(message, MalformedMessage):
                self._refuse(message, _request(message), flow)
                continue
            if self.taps:
                self._tell(message.render(), flow, sent=False)
            try:
                self._layer.receive(message, flow, now)
            except MalformedMessage as error:
                self._refuse(error, _request(error), flow)
            except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
                self._note_mistake("reading a message")
        self.turn(now)

    def _failed(self, flows: list[Flow]) -> None:
        if self._user is None:
            return
        now = self._reactor.seconds()
        self._dead(flows)
        for flow in flows:
            self.counters["flow-failed"] += 1
            self._layer.flow_failed(flow, now)
        self.turn(now)

    def _hand_over(self, now: float) -> None:
        while self._user is not None:
            try:
                event = self._layer.next_event()
            except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
                self._note_mistake("a transaction")
                self._reactor.callLater(0, self.turn, now)
                return
            if event is None:
                return
            self._hand_over_one(self._user, event, now)

    def _hand_over_one(self, user: ITransactionUser, event: Event, now: float) -> None:
        try:
            user.event_received(event, now)
        except SipError as error:
            if isinstance(event, RequestReceived):
                self._refuse(error, event.request, event.flow)
            else:
                self.counters["malformed"] += 1
        except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
            self._note_mistake(type(event).__name__)
            if isinstance(event, RequestReceived):
                self._refuse(SipError("a mistake of ours"), event.request, event.flow)

    def _turn_away(self, datagrams: list[tuple[bytes, Flow]], now: float) -> None:
        """Answer requests that are refused for overload, REGISTERs at a glance if possible."""
        try:
            answers = self._overload.refusals(datagrams, now)
        except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
            self._note_mistake("refusing datagrams")
            return
        told = [(answer, flow) for answer, (_, flow) in zip(answers, datagrams, strict=True) if answer is not None]
        if told:
            self._layer.count("REGISTER", 503, len(told))
            self._send(told, TOGETHER)
        for answer, (came, flow) in zip(answers, datagrams, strict=True):
            if answer is None:
                try:
                    self._turn_away_parsed(message_of(came), flow, now)
                except MalformedMessage as error:
                    self._refuse(error, _request(error), flow)
                except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
                    self._note_mistake("refusing a datagram")

    def _turn_away_parsed(self, data: bytes, flow: Flow, now: float) -> None:
        request = parse(data)
        if isinstance(request, Request):
            if self._layer.is_copy(request, flow):
                # A final response would end for its phone what goes on here and further on.
                self._layer.receive(request, flow, now)
                return
            overload = self._overload
            # As in `Overload.refusals`.
            trusted = overload.trusts(flow)
            headers = () if trusted else (("Retry-After", str(overload.retry_after(mark_of(data), now))),)
            self._refuse(SipError("overloaded", status=503, headers=headers), request, flow)

    # -- errors -----------------------------------------------------------------------------------------------------

    def _refuse(self, error: SipError, message: Request | Response | None, flow: Flow) -> None:
        """Answer a request that can't be taken, statelessly; anything else is dropped and counted."""
        if isinstance(message, Request) and message.method != "ACK":
            try:
                self._layer.mark(message, flow)
                response = response_to(
                    message,
                    error.response_status,
                    error.reason,
                    to_tag=self._tag(message) if self._tag is not None else None,
                    headers=error.headers,
                )
                self._layer.reply(response, flow)
            except MalformedMessage:
                self.counters["malformed"] += 1
            else:
                self.counters[f"refused-{error.response_status}"] += 1
        else:
            self.counters["malformed"] += 1

    def _note_mistake(self, where: str) -> None:
        self.counters["mistake"] += 1
        self.log.failure("a mistake of ours in {where}", where=where)

    # -- going out --------------------------------------------------------------------------------------------------

    def _flush(self) -> list[Flow]:
        self._before_sending()
        return self._send(self._layer.messages_to_send()) if self._user else []

    def _send(self, messages: Iterable[tuple[bytes, Flow]], together: int = 1) -> list[Flow]:
        """Send messages, so many at once, while we still may; return the flows that have failed."""
        if self._user is None:
            return [flow for _, flow in messages]
        # The lease may run out between two of them; who could end it before that isn't heard while they are sent.
        until, clock, failed = self._lease_until(), self._clock, list[Flow]()
        messages, place = list(messages), 0
        while place < len(messages):
            if not self.taps and (udp := self._sockets.udp_of(messages[place][1])) is not None:
                place = udp.send_many(messages, place, until, clock, together)
                if place == len(messages):
                    break
            data, flow = messages[place]
            place += 1
            if clock() >= until:
                self.counters["withheld"] += 1
            elif (error := self._transmit(data, flow)) and error not in TRANSIENT:
                failed.append(flow)
        return failed

    def _transmit(self, data: bytes, flow: Flow) -> int:
        """Send, and return 0, or the errno why it was not sent."""
        if self.taps:
            self._tell(data, flow, sent=True)
        return self._sockets.send(data, flow)

    def _tell_received(self, datagrams: list[tuple[bytes, Flow]]) -> None:
        if self.taps:
            for came, flow in datagrams:
                self._tell(message_of(came), flow, sent=False)

    def _tell(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        """Let the taps know of a SIP message that comes or goes: not of a keepalive, nor of STUN."""
        if len(data) > LONGEST_KEEPALIVE and data[0] > _LAST_CONTROL:
            for tap in tuple(self.taps):
                try:
                    tap(data, flow, sent=sent)
                except Exception:  # noqa: BLE001 - who looks on must not stop what he looks at
                    self._note_mistake("a tap")

    # -- the timer --------------------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        if self._user is None:
            return
        at = self._layer.next_timer()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._reactor.callLater(max(0.0, at - now), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        try:
            self._layer.handle_timer(now)
        except Exception:  # noqa: BLE001 - the timers to come must go on
            self._note_mistake("a timer")
        self.turn(now)


def is_keepalive(data: bytes) -> bool:
    """Return True if there is nothing in a datagram."""
    return not data.strip(_KEEPALIVE_CHARACTERS)


def message_of(data: bytes) -> bytes:
    """A datagram without the empty lines that a message may begin with (RFC 3261 §7.5)."""
    return data.lstrip(_LINE_END) or data


def _parse_all(_data: bytes, _flow: Flow, _now: float) -> bool:
    return False


def _request(error: MalformedMessage) -> Request | None:
    return error.request if isinstance(error, ParseError) else None
