"""What the keepalive needs of the transports; transport/ provides it, service wires it."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import Attribute, Interface

from sipha.sip.flow import Address, Flow


class IPingTransport(Interface):
    """The listeners and connections of this node, for who sends pings."""

    dropped: int = Attribute("How many datagrams have come and were dropped by the kernel, for want of room.")

    def flow(transport: str, remote: Address) -> Flow | None:
        """The flow to an address: its connection, else one to be opened (`connection` 0); None without a listener."""

    def sent_by(flow: Flow) -> str:
        """The `host:port` of the listener behind a flow, as in a Via."""

    def is_local(host: str, port: int, transport: str) -> bool:
        """True if we listen there; the host is an IP literal without brackets."""

    def offer_all(messages: Sequence[tuple[bytes, Flow]]) -> Sequence[bool]:
        """Send each once, outside of a transaction; False for what didn't leave this node, which condemns no flow."""
