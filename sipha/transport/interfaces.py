"""What the transports ask of those who use them."""

from __future__ import annotations

from zope.interface import Interface

from sipha.sip.events import Event


class ITransactionUser(Interface):
    """What the endpoint hands the layer's events to: the registrar and the proxy (RFC 3261 §5)."""

    def event_received(event: Event, now: float) -> None:
        """Act on an event. A SipError that is raised for a request becomes its response."""
