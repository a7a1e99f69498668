"""Route header fields: what is removed before a request is targeted, and what is made of the rest (§16.4, §16.6)."""

from __future__ import annotations

from sipha.proxy.responsibility import Responsibility
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.uri import SipUri, Uri

DOUBLE = "r2"
"""The URI parameter that marks the two Record-Routes of one passage."""


def preprocess(request: Request, flow: Flow, ours: Responsibility) -> str:
    """Preprocess the routing information of a request that came by `flow`, in place (RFC 3261 §16.4).

    Returns the user part of the Route that named us: a token, if it was our Record-Route; empty without one.
    """
    user = ""
    if isinstance(uri := request.parsed_uri, SipUri) and uri.params:
        user = _undo_strict_routing(request, uri, ours)
        _strip_maddr(request, flow, ours)
    routes = request.routes if "Route" in request.headers else ()
    if not routes:
        return user
    # "If the first value in the Route header field indicates this proxy, the proxy MUST remove that value from the
    # request."
    top = routes[0].parsed_uri
    if not isinstance(top, SipUri) or ours.domain(top) is None:
        return user
    _pop_route(request)
    if len(routes) > 1 and top.has_param(DOUBLE) and _is_twin(routes[1].parsed_uri, top, ours):
        _pop_route(request)
    return user or top.user or ""


def push(request: Request, routes: tuple[str, ...]) -> None:
    """Put Route values ahead of the existing ones (§16.6 step 6, RFC 3327 §5.3)."""
    for route in reversed(routes):
        request.headers.prepend("Route", route)


def postprocess(request: Request) -> str:
    """Make the request fit for a strict router, if one comes next (§16.6 step 6); returns the URI it is to go to."""
    routes = request.routes if "Route" in request.headers else ()
    if not routes:
        return request.uri
    top = routes[0].parsed_uri
    if isinstance(top, SipUri) and top.has_param("lr"):
        return routes[0].uri
    # "The proxy MUST place the Request-URI into the Route header field as the last value. The proxy MUST then place the
    # first Route header field value into the Request-URI and remove that value from the Route header field."
    request.headers.add("Route", f"<{request.uri}>")
    _pop_route(request)
    request.uri = routes[0].uri
    return request.uri


def _undo_strict_routing(request: Request, uri: SipUri, ours: Responsibility) -> str:
    """Repair what a strict router did: our Record-Route in the Request-URI, the target as the last Route."""
    if not uri.has_param("lr") or not request.routes:
        return ""
    if ours.domain(uri) is None:
        return ""
    # "the proxy MUST replace the Request-URI in the request with the last value from the Route header field, and
    # remove that value from the Route header field."
    rest = request.headers.values("Route")[:-1]
    request.uri = request.routes[-1].uri
    if rest:
        request.headers.set("Route", ", ".join(rest))
    else:
        request.headers.remove("Route")
    return uri.user or ""


def _strip_maddr(request: Request, flow: Flow, ours: Responsibility) -> None:
    uri = request.parsed_uri
    if not isinstance(uri, SipUri) or not (maddr := uri.param("maddr")):
        return
    # "... and the request was received using the port and transport indicated (explicitly or by default) in the
    # Request-URI, the proxy MUST strip the maddr and any non-default port or transport parameter".
    port = uri.port or (5061 if uri.scheme == "sips" else 5060)
    if uri.transport != flow.transport or port != flow.local[1]:
        return
    host = f"[{maddr}]" if ":" in maddr and not maddr.startswith("[") else maddr
    stripped = uri.without_params("maddr")
    if ours.domain(stripped._replace(host=host.lower())) is not None:
        request.uri = str(stripped.without_params("transport")._replace(port=None))


def _is_twin(uri: Uri, top: SipUri, ours: Responsibility) -> bool:
    return isinstance(uri, SipUri) and uri.has_param(DOUBLE) and uri.user == top.user and ours.domain(uri) is not None


def _pop_route(request: Request) -> None:
    # A field may begin with an empty value, which counts for nothing.
    while not request.headers.pop_value("Route"):
        pass
