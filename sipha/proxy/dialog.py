"""Dialogs, recognised and not remembered: the keyed token in the user part of our Record-Route (design §5).

The token is made over the Call-ID, the caller's tag, and the flow and user of either side. Who shows it in a request
with that Call-ID and that tag takes part in a dialog that was let through when it began; and the token says by which
flow the other side is reached, whatever its Contact says.

What it doesn't prove is that the dialog still lasts: that the two sides know, who answer 481 to what is of none
(§12.2.2). So a token is good for its two sides only, for as long as its key is held.
"""

from __future__ import annotations

from collections.abc import Callable

from sipha.errors import MalformedMessage, SipError
from sipha.proxy.interfaces import ITransport
from sipha.proxy.responsibility import Responsibility
from sipha.proxy.route import DOUBLE
from sipha.proxy.target import Target, flow_to, next_hop
from sipha.sip.flow import Flow
from sipha.sip.headers import Via
from sipha.sip.message import Request
from sipha.sip.token import Hop, RouteToken, Tokens
from sipha.sip.uri import Uri, default_port, parse_uri
from sipha.state.interfaces import ILocation

RECORD_ROUTED = frozenset({"INVITE", "SUBSCRIBE", "REFER", "NOTIFY"})
"""The methods that begin a dialog; NOTIFY does where a SUBSCRIBE forked (RFC 6665 §4.3)."""


def sides(token: str, call_id: str, from_tag: str, to_tag: str, tokens: Tokens) -> RouteToken | None:
    """The sides of a request's dialog, its sender's first; None unless the token proves that it is within one (§12.2).

    A request without To tag begins a dialog, so no token speaks for it: else who may call one number through a
    gateway could call all others, unchallenged, in the name of the first call.
    """
    if not token or not to_tag:
        return None
    if from_caller := tokens.read_route(token, call_id, from_tag):
        return from_caller
    if from_callee := tokens.read_route(token, call_id, to_tag):
        return RouteToken(from_callee.callee, from_callee.caller)
    return None


def record_routes(token: str, incoming: Flow, outgoing: Flow, transport: ITransport) -> tuple[str, ...]:
    """Make the Record-Route values for a request that goes from one flow to another, the topmost first (§16.6 step 4).

    Two values where transport, address family or interface changes, so that either side finds us by its own
    (RFC 5658 §6).
    """
    inside, outside = transport.sent_by(incoming), transport.sent_by(outgoing)
    if inside == outside and incoming.transport == outgoing.transport:
        return (f"<sip:{token}@{inside}{_transport_param(incoming)};lr>",)
    return (
        f"<sip:{token}@{outside}{_transport_param(outgoing)};lr;{DOUBLE}=on>",
        f"<sip:{token}@{inside}{_transport_param(incoming)};lr;{DOUBLE}=on>",
    )


def listening(via: Via, flow: Flow) -> Flow:
    """The flow to where a sender listens: over UDP it may send from another port, if it says nothing of rport.

    Its answers go there, too (§18.2.2, RFC 3581 §4), but no Via leads a dialog to another host.
    """
    if flow.reliable or via.rport is not None:
        return flow
    return flow._replace(remote=(flow.remote[0], via.port or default_port(flow.transport)))


def user_of(side: Hop, routed: Request, tokens: Tokens, ours: Responsibility) -> str | None:
    """The AOR of the other side: the one in the To, if the token bears it out, since anyone could be named there."""
    aor = ours.aor_of(routed.to.uri)
    return aor if aor is not None and tokens.is_user(side.user, aor) else None


def dialog_target(
    routed: Request, side: Hop, user: Callable[[], str | None], transport: ITransport, location: ILocation
) -> Target:
    """The target of a request within a dialog: the flow of the other side, whatever Route and Contact say.

    `user` returns the AOR of that side, proved by `user_of`; None if it is no phone of ours. A further Route names the
    next hop of that side, or is forged: who holds a token reaches nobody else by it. SipError 430 if the flow is a
    connection that is gone, and the other side can't be reached anew.
    """
    flow = transport.flow(side.transport, (side.host, side.port))
    if flow is None or (flow.reliable and not flow.connection):
        flow = _reconnected(routed, user(), transport, location) or _listener(routed, side, transport)
    if flow is None:
        # "If the flow no longer exists, the proxy SHOULD send a 430 (Flow Failed) response" (RFC 5626 §5.3.1).
        raise SipError("the connection to the other side is gone", status=430)
    return Target(routed.uri, flow=flow, unreachable=430)


def _reconnected(routed: Request, aor: str | None, transport: ITransport, location: ILocation) -> Flow | None:
    """The flow by which the contact of a lost connection has registered again, if it has."""
    bindings = location.lookup(aor) if aor else ()
    for binding in bindings:
        # A phone that connects anew may have changed the port in its Contact; alone it is the one all the same.
        if len(bindings) == 1 or _is_contact(binding.contact, routed.parsed_uri):
            target = Target(binding.contact, received=binding.received)
            return next_hop(target, Request(routed.method, binding.contact), binding.contact, transport)
    return None


def _listener(routed: Request, side: Hop, transport: ITransport) -> Flow | None:
    """The flow to where the other side listens, by its Route or Contact; on no host but the one the token names."""
    hop = routed.routes[0].uri if routed.routes else routed.uri
    flow = flow_to(hop, secure=False, transport=transport)
    return flow if flow is not None and flow.remote[0] == side.host else None


def _is_contact(contact: str, wanted: Uri) -> bool:
    try:
        return parse_uri(contact).comparable.equivalent(wanted.comparable)
    except MalformedMessage:
        return False


def _transport_param(flow: Flow) -> str:
    # "The URI SHOULD NOT contain the transport parameter unless the proxy has knowledge [...] that the next downstream
    # element [...] supports that transport": it is the one in use.
    return "" if flow.transport == "UDP" else f";transport={flow.transport.lower()}"
