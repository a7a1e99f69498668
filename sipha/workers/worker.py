"""A worker: a process that reads phones' datagrams, as long as the daemon lives and has the lease.

It has a copy of accounts and keys, which the daemon keeps up to date. It hears and answers phones until the end of the
lease that it was told last, by a clock that both have: if the daemon freezes, it falls silent. When the daemon hangs up
or dies it ends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from zope.interface import implementer

from sipha.sip.flow import Flow
from sipha.sip.token import Tokens
from sipha.state.accounts import Account
from sipha.state.accounts import Accounts as Table
from sipha.state.entries import DeleteAccount
from sipha.state.interfaces import ICredentials
from sipha.transport.address import giving
from sipha.transport.udp import UdpSocket
from sipha.vip.clock import boottime
from sipha.workers.front import Front
from sipha.workers.link import Link
from sipha.workers.mailbox import Letter, Mailbox, Post
from sipha.workers.mark import seat_of
from sipha.workers.messages import (
    Accounts,
    Answers,
    Complete,
    Datagrams,
    Failed,
    Keys,
    Lease,
    Read,
    Ready,
    Said,
    Settings,
    Start,
    Verdicts,
    decode_order,
    unpack,
)


@implementer(ICredentials, ILogObserver)
class Worker:
    """Does what the daemon orders over `link`, with these `sockets`; `ended` is called when there is nothing to do.

    `lookups` is the file of a `sipha.workers.table`. It reads `mailbox`, and writes to those of others by `ends`.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        reactor: Any,
        link: socket.socket,
        lookups: int,
        mailbox: socket.socket,
        ends: Sequence[socket.socket],
        sockets: Sequence[socket.socket],
        ended: Callable[[], None],
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._lookups = lookups
        self._ends = ends
        self._given = sockets
        self._sockets: list[UdpSocket] = []
        self._table = Table()
        self._tokens: Tokens | None = None
        self._front: Front | None = None
        self._complete = False  # all accounts are here
        self._ready = False  # and the daemon knows it
        self._reading = False  # and reads no more
        self._mailbox = Mailbox(reactor, mailbox, self._letter_received)
        self._link = Link(reactor, link, self._ordered, lambda _: ended(), self._drained)

    # ICredentials

    def credential(self, auth_name: str, realm: str) -> Account | None:
        """See ICredentials."""
        return self._table.credential(auth_name, realm)

    def known(self, aor: str) -> bool:
        """See ICredentials."""
        return self._table.known(aor)

    # Orders

    def _ordered(self, body: bytes) -> None:
        """Do what a message says; raises ValueError for one that isn't understood."""
        order, front = decode_order(body), self._front
        if isinstance(order, Start):
            self._start(order)
        elif front is None:
            raise ValueError("the first message must be Start")
        elif isinstance(order, Verdicts | Answers | Datagrams | Failed):
            self._go_on(front, order)
        elif isinstance(order, Lease):
            front.watch(watched=order.watched)
            front.lease(order.until, ahead=order.time - order.at)
            self._attend(front)
            self._link.send(front.report())
            self._link.flush()
        elif isinstance(order, Accounts):
            self._update(order)
            front.version = order.version
        elif isinstance(order, Keys):
            self._tokens = Tokens(order.ring) if order.ring else None
        elif isinstance(order, Settings):
            front.adopt(order)
        elif isinstance(order, Complete):
            self._complete = True
        elif isinstance(order, Read):
            front.calls.leave(order.held, self._clock())
            self._reading = True
            self._attend(front)

    def _go_on(self, front: Front, order: Verdicts | Answers | Datagrams | Failed) -> None:
        """Go on with what phones wait for."""
        if isinstance(order, Verdicts):
            front.lease(order.until)
            front.registry.settle([(tag, unpack(verdict)) for tag, verdict in order.verdicts])
        elif isinstance(order, Answers):
            front.lease(order.until)
            front.answered(order)
        elif isinstance(order, Datagrams):
            front.datagrams_handed(order.datagrams)
        else:
            front.flows_died(order.flows)

    def _start(self, order: Start) -> None:
        own = seat_of(order.mark)
        front = self._front = Front(
            self._reactor,
            order,
            self,
            lambda: self._tokens,
            self._link.send,
            self._link.flush,
            self._clock,
            self._lookups,
            Post({seat: end for seat, end in enumerate(self._ends) if seat != own}),
        )
        self._sockets = [
            UdpSocket(
                self._reactor,
                address,
                self._datagrams_received,
                front.flows_failed,
                front.counters,
                bind=giving(given),
                receive_buffer=None,
            )
            for address, given in zip(order.listeners, self._given, strict=True)
        ]
        front.use(self._sockets)

    def _update(self, order: Accounts) -> None:
        for identity in order.deleted:
            username, _, domain = identity.rpartition("@")
            self._table.delete(DeleteAccount(username, domain))
        for record in order.put:
            self._table.put(record)

    # Phones

    def _datagrams_received(self, datagrams: list[tuple[bytes, Flow]], age: float, fill: float) -> None:
        front = self._front
        if front is not None:
            if not front.leased:  # whoever had to wait for his turn has yet to hear the latest
                self._link.catch_up()
            front.datagrams_received(datagrams, age, fill)
            self._link.flush()
            self._attend(front)

    def _letter_received(self, letter: Letter) -> None:
        front = self._front
        if front is not None:
            if not front.leased:
                self._link.catch_up()
            front.letter_received(letter)
            self._link.flush()
            self._attend(front)

    def _drained(self) -> None:
        if self._front is not None:
            self._attend(self._front)

    def _attend(self, front: Front) -> None:
        """Read the sockets, unless there is no lease, or the daemon can't follow: phones wait in the kernel then."""
        attends = front.leased and not self._link.waiting
        if self._complete and not self._ready and attends:
            self._ready = True
            self._link.send(Ready())
        sources: list[UdpSocket | Mailbox] = [*self._sockets, self._mailbox]
        for source in sources:
            if self._reading and attends:
                source.read()
            else:
                source.rest()

    # ILogObserver

    def __call__(self, event: LogEvent) -> None:
        """Have the daemon log what is said here."""
        level = event.get("log_level", LogLevel.info)
        if level >= LogLevel.info:
            self._link.send(Said(level.name, eventAsText(event, includeTimestamp=False, includeSystem=False)))
        if "log_failure" in event:
            self._link.flush()  # it may be the last that is said
