"""User agents that act by themselves, on the proxy's own transaction layer, around a proxy whose node may die."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import inf
from typing import NamedTuple

from sipha.sip.events import (
    AckReceived,
    CancelReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    TimerFired,
    TransactionTimedOut,
)
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import parse
from sipha.sip.timers import Timers
from sipha.sip.transaction import ServerTransaction
from tests.proxy.ladder import VIP, House, Phone

GAP = 0.4
"""Seconds for which no node has the virtual address."""

_branches = count(1)


class Step(NamedTuple):
    """What a phone does some seconds after the INVITE came."""

    after: float
    status: int


class Agent:
    """A user agent at the address of a phone."""

    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self.layer = TransactionLayer(Timers())
        self.log: list[str] = []

    def act(self, event: Event, now: float) -> None:
        raise NotImplementedError

    def turn(self, now: float) -> bool:
        """Take what has come and send what follows; False if that is nothing."""
        inbox = self.phone.received
        while inbox:
            message = inbox.pop(0)
            self.log.append(f"{now:.2f} {message.start_line}")
            self.layer.receive(parse(message.render()), self.phone.flow, now)
        while (event := self.layer.next_event()) is not None:
            self.act(event, now)
        outgoing = self.layer.messages_to_send()
        for data, _ in outgoing:
            self.phone.house.receive(data, Flow("UDP", VIP, self.phone.address))
        return bool(outgoing)


class Caller(Agent):
    """Calls once, and cancels the call after `cancels_after` seconds, if it can by then."""

    def __init__(self, phone: Phone, cancels_after: float | None = None) -> None:
        super().__init__(phone)
        self.cancels_after = cancels_after
        self.finals: list[int] = []
        self.tags: set[str] = set()
        self.timed_out = False
        self.ringing = False
        self.invite = Request("INVITE", "")

    def call(self, uri: str, now: float) -> None:
        phone = self.phone
        branch = f"z9hG4bK-caller-{next(_branches)}"
        self.invite = Request(
            "INVITE",
            uri,
            [
                ("Via", f"SIP/2.0/UDP {phone.via};branch={branch}"),
                ("Max-Forwards", "70"),
                ("From", f"<{phone.aor}>;tag={phone.tag}"),
                ("To", f"<{uri}>"),
                ("Call-ID", branch),
                ("CSeq", "1 INVITE"),
                ("Contact", f"<{phone.contact}>"),
            ],
            b"offer",
        )
        self.layer.start(self.invite, phone.flow, now)
        if self.cancels_after is not None:
            self.layer.set_timer(now + self.cancels_after, "cancel")

    def act(self, event: Event, now: float) -> None:
        match event:
            case ResponseReceived(transaction, response) if transaction.request.method == "INVITE":
                self._responded(response, now)
            case TransactionTimedOut(transaction) if transaction.request.method == "INVITE":
                self.timed_out = True
            case TimerFired(_, "cancel") if not self.finals:
                if self.ringing:
                    self._cancel(now)
                else:
                    self.layer.set_timer(now + 0.1, "cancel")

    def _responded(self, response: Response, now: float) -> None:
        status = response.status
        if status < 200:
            self.ringing = True
        elif status >= 300:
            self.finals.append(status)
        else:
            tag = response.to.tag or ""
            if tag not in self.tags:
                self.tags.add(tag)
                self.finals.append(status)
            routes = [("Route", str(route)) for route in reversed(response.record_routes)]
            ack = Request(
                "ACK", response.contacts[0].uri, [("Via", f"SIP/2.0/UDP {self.phone.via};branch=z9hG4bK-a{now}")]
            )
            for name, value in (*routes, ("Max-Forwards", "70")):
                ack.headers.add(name, value)
            ack.headers.copy_from(response.headers, frozenset(("From", "To", "Call-ID")))
            ack.headers.add("CSeq", "1 ACK")
            self.layer.send(ack, self.phone.flow)

    def _cancel(self, now: float) -> None:
        cancel = Request("CANCEL", self.invite.uri, [("Via", str(self.invite.via)), ("Max-Forwards", "70")])
        cancel.headers.copy_from(self.invite.headers, frozenset(("From", "To", "Call-ID")))
        cancel.headers.add("CSeq", "1 CANCEL")
        self.layer.start(cancel, self.phone.flow, now)


class Callee(Agent):
    """Does what its script says with each INVITE; a 2xx is sent until its ACK comes (RFC 3261 §13.3.1.4)."""

    def __init__(self, phone: Phone, script: Sequence[Step]) -> None:
        super().__init__(phone)
        self.script = script
        self.invites: list[ServerTransaction] = []
        self.cancelled = False
        self.final: int | None = None
        self.acknowledged = False
        self._alerting = False
        self._interval = 0.5

    @property
    def rings(self) -> bool:
        """True once it has said that it is alerting its user, until it says how that ended."""
        return self._alerting and self.final is None

    def act(self, event: Event, now: float) -> None:
        match event:
            case RequestReceived(request, flow) if request.method == "INVITE":
                transaction = self.layer.accept(request, flow, now)
                transaction.context = request
                self.invites.append(transaction)
                for step in self.script:
                    self.layer.set_timer(now + step.after, (transaction, step.status))
            case RequestReceived(request, flow) if request.method == "ACK":
                self.acknowledged = True
            case RequestReceived(request, flow):
                self.layer.reply(response_to(request, 481, to_tag="late"), flow)
            case AckReceived():
                self.acknowledged = True
            case CancelReceived(transaction):
                self.cancelled = True
                self._respond(transaction, 487, now)
            case TimerFired(_, (ServerTransaction() as transaction, int(status))):
                self._respond(transaction, status, now)
            case TimerFired(_, Response() as ok) if not self.acknowledged and self._interval < 32:
                self.layer.send(ok, self.phone.flow)
                self._interval *= 2
                self.layer.set_timer(now + min(self._interval, 4), ok)

    def _respond(self, transaction: ServerTransaction, status: int, now: float) -> None:
        request = transaction.context
        if self.final is not None or not isinstance(request, Request):
            return
        fields = [("Record-Route", value) for value in request.headers.all("Record-Route")]
        fields.append(("Contact", f"<{self.phone.contact}>"))
        response = response_to(request, status, to_tag=f"tag-{self.phone.address[0]}", headers=fields)
        self.layer.respond(transaction, response, now)
        self._alerting |= status > 100
        if status >= 200:
            self.final = status
        if 200 <= status < 300:
            self.layer.set_timer(now + self._interval, response.copy())


class Network:
    """A caller, callees and the proxy, which dies once its fuse has burnt down.

    `next_fuse` is that of the leader after it, which lives on without one; `shadows` is whether it has any.
    """

    def __init__(
        self,
        house: House,
        caller: Caller,
        callees: Sequence[Callee],
        *,
        next_fuse: int | None = None,
        shadows: bool = True,
    ) -> None:
        self.house = house
        self.caller = caller
        self.callees = callees
        self.next_fuse = next_fuse
        self.shadows = shadows
        self.failed_over = False
        self._back_at = 0.0

    def run(self, seconds: float) -> None:
        """Let everything happen that is due within so many seconds."""
        house, agents = self.house, (self.caller, *self.callees)
        end = house.now + seconds
        while True:
            while sum(agent.turn(house.now) for agent in agents):
                pass
            if house.fuse == 0 and not self._back_at:
                self._back_at = house.now + GAP
            times = [agent.layer.next_timer() for agent in agents]
            times.append(self._back_at or house.next_timer())
            due = min((time for time in times if time is not None), default=inf)
            if due > end:
                house.pass_time(end)
                return
            if due > house.now:  # so much that what isn't urgent has been shared
                house.share()
            house.pass_time(due)
            if self._back_at and house.now >= self._back_at:
                self._back_at = 0.0
                self.failed_over = True
                house.begin_to_lead(shadows=self.shadows)
                house.fuse, self.next_fuse = self.next_fuse, None
            house.advance(0)
            for agent in agents:
                agent.layer.handle_timer(house.now)
