"""The leader's question to itself, whether its own SIP listeners answer."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall

from sipha.service.health import LONGEST_REST, Health
from sipha.service.sip import SipService
from sipha.sip.flow import Address, Flow
from sipha.sip.message import Response

INTERVAL = 0.3
"""Seconds between two questions."""

MISSES = 3
"""How many questions may stay unanswered, one after the other."""

REST = 60.0
"""Seconds for which a node whose listener didn't answer is unwell, unless it shows as leader that it answers again."""

_KIND = "listener"
_OPTIONS = (
    "OPTIONS sip:{authority} SIP/2.0\r\n"
    "Via: SIP/2.0/UDP {authority};branch=z9hG4bK{call_id}.{number}\r\n"
    "Max-Forwards: 1\r\n"
    "From: <sip:probe@probe.invalid>;tag={call_id}\r\n"
    "To: <sip:{authority}>\r\n"
    "Call-ID: {call_id}\r\n"
    "CSeq: {number} OPTIONS\r\n"
    "Content-Length: 0\r\n\r\n"
)


class SelfProbe(Service):
    """Sends OPTIONS from each virtual address to itself, over UDP, as long as this node leads.

    `number` is that of the last question. The silence of addresses that are `spared` is not held against the node.
    """

    def __init__(self, reactor: Any, sip: SipService, health: Health) -> None:
        self._reactor = reactor
        self._sip = sip
        self._health = health
        self._call_id = ""
        self._unanswered: dict[Address, int] = {}
        self._asking: IDelayedCall | None = None
        self._answered: dict[Address, int] = {}
        self.number = 0
        self.spared: Collection[Address] = ()
        sip.askers.append(self.response_received)

    def startService(self) -> None:
        """Ask from now on."""
        super().startService()
        self._call_id = os.urandom(8).hex()
        self._unanswered = {}
        self._ask()

    def stopService(self) -> None:
        """Ask no more."""
        super().stopService()
        if self._asking is not None:
            self._asking.cancel()

    def response_received(self, response: Response, flow: Flow) -> bool:
        """Take an answer, and return True if it is one to us."""
        if response.headers.get("Call-ID") != self._call_id:
            return False
        self._unanswered[flow.local] = 0
        self._answered[flow.local] = response.cseq.number
        if max(self._unanswered.values()) < MISSES:
            self._health.passed(_KIND)
        return True

    def deaf(self, since: int) -> Sequence[Address]:
        """The addresses that have answered no question after the one of this number."""
        return [address for address in self._addresses() if self._answered.get(address, 0) <= since]

    def _addresses(self) -> Sequence[Address]:
        return [(each.host, each.port) for each in self._sip.addresses if each.transport == "UDP"]

    def _ask(self) -> None:
        self._asking = self._reactor.callLater(INTERVAL, self._ask)
        self.number += 1
        for address in self._addresses():
            self._ask_one(address)

    def _ask_one(self, address: Address) -> None:
        host, port = address
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        unanswered = self._unanswered.get(address, 0)
        # Under overload questions are lost, and so they would be on any node that had these addresses.
        if unanswered >= MISSES and address not in self.spared and not self._sip.overloaded:
            self._health.fault(_KIND, f"the SIP listener on {authority} doesn't answer", REST, LONGEST_REST)
        self._unanswered[address] = unanswered + 1
        question = _OPTIONS.format(authority=authority, call_id=self._call_id, number=self.number)
        self._sip.send(question.encode("ascii"), Flow("UDP", address, address))
