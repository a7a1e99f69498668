"""The endpoint: sockets, clock and timer around the transaction layer, which has none of them.

Every wake-up goes one way: bytes → parse → `layer.receive` → events → the transaction user → `layer.messages_to_send`
→ bytes; then the one timer is armed. The time is read once per wake-up.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import Interface

from sipha.errors import MalformedMessage, SipError
from sipha.sip.flow import Address, Flow
from sipha.sip.layer import Event, RequestReceived, TransactionLayer
from sipha.sip.message import Request, Response, mark_received, response_to
from sipha.sip.parser import parse
from sipha.transport.address import canonical, family
from sipha.transport.stream import Received, StreamLimits, Streams
from sipha.transport.udp import TRANSIENT, UdpSocket

RETRY_IN_USE = 0.05
"""Seconds between attempts at an address that another process still has."""

_KEEPALIVE_CHARACTERS = b"\r\n\0 "
_LONGEST_KEEPALIVE = 8


class ITransactionUser(Interface):
    """What the endpoint hands the layer's events to: the registrar and the proxy (RFC 3261 §5)."""

    def event_received(event: Event, now: float) -> None:
        """Act on an event. A SipError that is raised for a request becomes its response."""

    def next_timer() -> float | None:
        """When `handle_timer` is next to be called, if the user has timers of its own."""

    def handle_timer(now: float) -> None:
        """Do what is due."""


class Listener(NamedTuple):
    """Where to listen: the transport as in a Via, an IP literal without brackets, and a port."""

    transport: str
    host: str
    port: int


class Endpoint:
    """The listeners of a node and the connections they have, as one: what comes in and what goes out.

    `counters` counts by reason what was dropped or failed. `tag` makes the To tag of a stateless error response.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        layer: TransactionLayer,
        listeners: Iterable[Listener],
        *,
        tag: Callable[[Request], str] | None = None,
        freebind: bool = False,
        receive_buffer: int = 4 << 20,
        limits: StreamLimits | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._layer = layer
        self._listeners = tuple(listeners)
        self._tag = tag
        self._freebind = freebind
        self._receive_buffer = receive_buffer
        self._limits = limits or StreamLimits()
        self._user: ITransactionUser | None = None
        self._udp: dict[Address, UdpSocket] = {}
        self._streams: dict[str, Streams] = {}
        self._addresses: list[Listener] = []
        self._starting: Deferred[bool] | None = None
        self._retry: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0
        self._turning = False

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self, user: ITransactionUser) -> Deferred[bool]:
        """Open all listeners and hand events to `user`; fires with True when they are open, with False if stopped first.

        An address in use is tried again until it is free. Another error closes what is open and fails with OSError.
        """
        self._user = user
        self._starting = starting = Deferred()
        self._open(list(self._listeners))
        return starting

    def stop(self) -> Deferred[None]:
        """Close the listeners, abort the connections and send nothing more; fires when all of it is gone."""
        self._user = None
        for call in (self._retry, self._timer):
            if call is not None and call.active():
                call.cancel()
        self._retry = self._timer = None
        for udp in self._udp.values():
            udp.close()
        waiting = [streams.stop() for streams in self._streams.values()]
        self._udp, self._streams, self._addresses = {}, {}, []
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.callback(False)
        return _all(waiting)

    @property
    def addresses(self) -> Sequence[Listener]:
        """Where we listen, with the ports that the kernel chose."""
        return tuple(self._addresses)

    # -- ways out ---------------------------------------------------------------------------------------------------

    def flow(self, transport: str, remote: Address) -> Flow | None:
        """The flow to an address: its connection, else one to be opened; None if no listener has its kind."""
        if transport == "UDP":
            for local in self._udp:
                if family(local[0]) is family(remote[0]):
                    return Flow("UDP", local, remote)
            return None
        streams = self._streams.get(transport)
        return None if streams is None else streams.flow(remote)

    def sent_by(self, flow: Flow) -> str:
        """The `host:port` of the listener behind a flow, as in a Via."""
        host, port = flow.local
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def is_local(self, host: str, port: int, transport: str | None = None) -> bool:
        """True if we listen at an address, for one transport or for any."""
        host = canonical(host)
        return any(
            canonical(own.host) == host and own.port == port and transport in (None, own.transport)
            for own in self._addresses
        )

    def send(self, data: bytes, flow: Flow) -> bool:
        """Send a message outside of a transaction; False if its flow has failed, which the layer is then told."""
        sent = self._send(data, flow)
        if not sent:
            self._reactor.callLater(0, self._failed, [flow])
        return sent

    def turn(self, now: float) -> None:
        """Hand over the layer's events, send its messages and arm the timer: after everything that moves the layer."""
        if self._turning:
            return
        self._turning = True
        try:
            self._hand_over(now)
            while failed := [flow for data, flow in self._layer.messages_to_send() if not self._send(data, flow)]:
                for flow in failed:
                    self._layer.flow_failed(flow, now)
                self._hand_over(now)
        finally:
            self._turning = False
        self._arm(now)
