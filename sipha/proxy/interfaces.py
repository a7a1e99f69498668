"""What the proxy needs of the transports; transport/ provides it, service.py wires it."""

from __future__ import annotations

from zope.interface import Interface

from sipha.sip.flow import Address, Flow


class ITransport(Interface):
    """The listeners and connections of this node, for who chooses the way of a request (RFC 3261 §18.1)."""

    def flow(transport: str, remote: Address) -> Flow | None:
        """The flow to an address: an open connection if there is one, else one to be opened (`connection` 0).

        None if nothing listens for that transport and address family: the address can't be reached.
        """

    def sent_by(flow: Flow) -> str:
        """The `host[:port]` by which others reach the listener behind a flow: for our Via and Record-Route."""

    def is_local(host: str, port: int, transport: str) -> bool:
        """True if we listen there; the host is an IP literal in its shortest form, without brackets."""
