"""For how long a SIP server doesn't answer, seen from here."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from sipha.sip.flow import Address

INTERVAL = 0.02
"""Seconds between two requests."""

_OPTIONS = (
    "OPTIONS sip:{server} SIP/2.0\r\n"
    "Via: SIP/2.0/UDP {client};rport;branch=z9hG4bK{call_id}.{number}\r\n"
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
        self._started_at = self._stopped_at = self._answered_at = 0.0
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
        """Ask from now on; raises OSError if nothing can be sent there from here."""
        host, _ = self._server
        self._started_at = self._stopped_at = self._answered_at = self._reactor.seconds()
        self._port = self._reactor.listenUDP(0, self, interface="::" if ":" in host else "")
        self._ask()

    def stop(self) -> None:
        """Ask no more; what is answered later doesn't count."""
        self._stopped_at = self._reactor.seconds()
        if self._call is not None:
            self._call.cancel()
        self._port.stopListening()

    def startProtocol(self) -> None:
        """Hear from nobody else."""
        self._transport.connect(*self._server)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002  it is the server's
        """Take note of an answer."""
        number = self._number(datagram)
        if number in self._unanswered:
            self._unanswered.discard(number)
            now = self._reactor.seconds()
            self._longest = max(self._longest, now - self._answered_at)
            self._answered_at = now

    def connectionRefused(self) -> None:
        """Nobody listens there now; this is what is measured."""

    @property
    def _transport(self) -> Any:
        return self.transport

    def _ask(self) -> None:
        self._call = self._reactor.callLater(INTERVAL, self._ask)
        self.sent += 1
        self._unanswered.add(self.sent)
        local = self._transport.getHost()
        request = _OPTIONS.format(
            server=_authority(*self._server),
            client=_authority(local.host, local.port),
            call_id=self._call_id,
            number=self.sent,
        )
        with suppress(OSError):  # what can't be sent isn't answered
            self._transport.write(request.encode("ascii"))

    def _number(self, datagram: bytes) -> int:
        """Which request it answers, 0 if none."""
        head = datagram.decode("latin-1").lower()
        if not head.startswith("sip/2.0 ") or self._call_id not in head:
            return 0
        _, _, rest = head.partition("\r\ncseq:")
        number = rest.partition("options")[0].strip()
        return int(number) if number.isdigit() else 0


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
