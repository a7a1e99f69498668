"""For how long a SIP server doesn't answer, seen from here."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater

from sipha.sip.flow import Address

INTERVAL = 0.02
"""Seconds between two requests."""

LATE = 0.2
"""Seconds that the last answers may take."""

_OPTIONS = (
    "OPTIONS sip:{server} SIP/2.0\r\n"
    "Via: SIP/2.0/UDP drill.invalid;rport;branch=z9hG4bK{call_id}.{number}\r\n"
    "Max-Forwards: 1\r\n"
    "From: <sip:drill@drill.invalid>;tag={call_id}\r\n"
    "To: <sip:{server}>\r\n"
    "Call-ID: {call_id}\r\n"
    "CSeq: {number} OPTIONS\r\n"
    "Content-Length: 0\r\n\r\n"
)


class Outage(DatagramProtocol):
    """Sends an OPTIONS each INTERVAL to `server` over UDP, and notes which are answered, whatever the status."""

    def __init__(self, reactor: Any, server: Address) -> None:
        self._reactor = reactor
        self._server = server
        self._call_id = os.urandom(8).hex()
        self._stopped_at = self._answered_at = 0.0
        self._longest = 0.0
        self._port: Any = None
        self._call: IDelayedCall | None = None
        self._unanswered: set[int] = set()
        self.sent = 0
        """How many requests were sent."""

    @property
    def lost(self) -> int:
        """How many were not answered."""
        return len(self._unanswered)

    @property
    def gap(self) -> float:
        """The longest time without an answer, in seconds."""
        return max(self._longest, self._stopped_at - self._answered_at)

    def start(self) -> None:
        """Ask from now on; raises CannotListenError if this machine has no address of the kind."""
        host, _ = self._server
        self._answered_at = self._reactor.seconds()
        self._port = self._reactor.listenUDP(0, self, interface="::" if ":" in host else "")
        self._ask()

    def stop(self) -> Deferred[Any]:
        """Ask no more; fires when what is on its way has had the time to be answered."""
        self._stopped_at = self._reactor.seconds()
        if self._call is not None:
            self._call.cancel()
        return deferLater(self._reactor, LATE, self._port.stopListening)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002  nobody else knows the Call-ID
        """Take note of an answer."""
        number = self._number(datagram)
        if number in self._unanswered:
            self._unanswered.discard(number)
            now = self._reactor.seconds()
            self._longest = max(self._longest, now - self._answered_at)
            self._answered_at = now

    def _ask(self) -> None:
        self._call = self._reactor.callLater(INTERVAL, self._ask)
        self.sent += 1
        self._unanswered.add(self.sent)
        host, port = self._server
        server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        request = _OPTIONS.format(server=server, call_id=self._call_id, number=self.sent)
        # A connected socket would be lost to Twisted when an ICMP error comes for it.
        with suppress(OSError):  # what can't be sent isn't answered
            transport: Any = self.transport
            transport.write(request.encode("ascii"), self._server)

    def _number(self, datagram: bytes) -> int:
        """Which request it answers, 0 if none."""
        head = datagram.decode("latin-1").lower()
        if not head.startswith("sip/2.0 ") or self._call_id not in head:
            return 0
        _, _, rest = head.partition("\r\ncseq:")
        number = rest.partition("options")[0].strip()
        return int(number) if number.isdigit() else 0
