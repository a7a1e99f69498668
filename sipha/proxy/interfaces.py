"""What the proxy needs of the transports; transport/ provides it, service.py wires it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zope.interface import Attribute, Interface

from sipha.sip.flow import Address, Flow

if TYPE_CHECKING:
    from sipha.auth.authenticator import Verified
    from sipha.proxy.target import TargetSet, Wanted
    from sipha.sip.message import Request


class ITransport(Interface):
    """The listeners and connections of this node, for who chooses the way of a request (RFC 3261 §18.1)."""

    mark = Attribute("What our Vias bear besides, beginning with a semicolon, so that responses find this process.")

    def flow(transport: str, remote: Address) -> Flow | None:
        """The flow to an address: an open connection if there is one, else one to be opened (`connection` 0).

        None if nothing listens for that transport and address family: the address can't be reached.
        """

    def sent_by(flow: Flow) -> str:
        """The `host[:port]` by which others reach the listener behind a flow: for our Via and Record-Route."""

    def is_local(host: str, port: int, transport: str) -> bool:
        """True if we listen there; the host is an IP literal in its shortest form, without brackets."""


class ITargets(Interface):
    """Where requests go that begin a dialog, or are of none (RFC 3261 §16.5)."""

    def find(
        request: Request,
        flow: Flow,
        wanted: Wanted,
        verified: Verified | None,
        now: float,
        done: Callable[[TargetSet | None, float], None],
    ) -> None:
        """Use up what let a request pass, find its targets, and call `done` once with these, and with the time then.

        `done` gets None if the nonce count had been used before. It may be called before this returns.
        """
