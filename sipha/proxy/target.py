"""Targets: the URIs that a request is forwarded to, and the flow that leads to each (RFC 3261 §16.5, §16.6 step 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from sipha.errors import MalformedMessage, SipError
from sipha.proxy.interfaces import ITransport
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.uri import SipUri, ip_literal, parse_uri
from sipha.state.binding import Binding
from sipha.state.interfaces import ICredentials, ILocation

_SECURE = frozenset({"TLS", "WSS"})
_HIGHEST_PORT = 65535
# What most contacts are, and the registrar's own spelling of where a phone registered from.
_USUAL = re.compile(r"sip:(?:[A-Za-z0-9\-_.+]++@)?([0-9.]++):([0-9]{1,5})(?:;transport=([a-z]++))?\Z")


class Target(NamedTuple):
    """One member of the target set.

    `uri` becomes the Request-URI. `routes` is a Path vector, pushed as Routes. `received` is the URI from which the
    contact registered, which is the only way there for one `behind_nat`; `flow` the way to take, where it is known.
    `unreachable` is the status that a transport failure means upstream: what concerns one user is a 4xx, and not the
    503 of §16.9, which speaks of a server.
    """

    uri: str
    routes: tuple[str, ...] = ()
    received: str = ""
    flow: Flow | None = None
    behind_nat: bool = False
    unreachable: int = 480


class Wanted(NamedTuple):
    """Who is to have a request: an AOR, or None if the `uri`, which is the Request-URI, isn't ours.

    `routed` says that a Route that isn't ours comes first.
    """

    aor: str | None
    uri: str
    method: str
    routed: bool = False

    @property
    def secure(self) -> bool:
        """True if it must not leave but by TLS."""
        return self.uri[:5].lower() == "sips:"


TargetSet = list[list[Target]] | SipError
"""By falling q, the targets of a group having the same; or what the request is answered instead."""


def target_set(wanted: Wanted, location: ILocation, credentials: ICredentials) -> TargetSet:
    """Determine the targets of a request that was admitted (§16.5)."""
    aor = wanted.aor
    if aor is None:
        # Nobody secure to go by concerns this call; that a server can't be reached is the 500 of §16.7 step 6.
        return [[Target(wanted.uri, unreachable=480 if wanted.secure else 500)]]
    bindings = location.lookup(aor)
    if wanted.secure:
        # Else it would leave by a contact that isn't secure: "sips" means TLS up to the last hop (§26.2.2).
        bindings = [binding for binding in bindings if binding.contact[:5].lower() == "sips:"]
    try:
        groups = target_groups(bindings, wanted.method)
    except SipError as error:
        return error
    if groups:
        return groups
    if credentials.known(aor):
        return SipError(f"{aor} has no binding", status=480)
    # "If the Request-URI indicates a resource at this proxy that does not exist, the proxy MUST return a 404".
    return SipError(f"nobody is {aor}", status=404 if wanted.uri[:3].lower() == "sip" else 416)


def target_groups(bindings: Sequence[Binding], method: str) -> list[list[Target]]:
    """Make the target set of an AOR's bindings, by falling q; the targets of a group have the same q (§16.6).

    SipError 405 if the contacts say which methods they allow, and none allows this one.
    """
    if len(bindings) == 1 and not bindings[0].methods:
        return [[target_of(bindings[0])]]
    allowing = [binding for binding in bindings if _allows(binding, method)]
    if bindings and not allowing:
        allowed = dict.fromkeys(name for binding in bindings for name in _methods(binding))
        raise SipError(f"no contact allows {method}", status=405, headers=(("Allow", ", ".join(allowed)),))
    allowing.sort(key=lambda binding: -binding.preference)
    groups = groupby(allowing, key=lambda binding: binding.preference)
    return [[target_of(binding) for binding in group] for _, group in groups]


def target_of(binding: Binding) -> Target:
    """The target that a binding is."""
    return Target(binding.request_uri, binding.path, binding.received, behind_nat=binding.behind_nat)


def plain_target(targets: TargetSet | None) -> Target | None:
    """The only target of a set, if it is reached directly where it registered from; else None."""
    if not isinstance(targets, list) or len(targets) != 1 or len(targets[0]) != 1:
        return None
    [[target]] = targets
    return target if target.received and not target.routes and target.uri[:5].lower() != "sips:" else None


def next_hop(target: Target, request: Request, hop: str, transport: ITransport) -> Flow | None:
    """The flow for a request to a target, or None if none leads there (§16.6 step 7).

    `hop` is the URI of the top Route, or else the Request-URI.
    """
    secure = request.uri[:5].lower() == "sips:"
    if target.flow is not None:
        return None if secure and target.flow.transport not in _SECURE else target.flow
    if target.received and "Route" not in request.headers:
        return flow_of_binding(target, secure=secure, transport=transport)
    return flow_to(hop, secure=secure, transport=transport)


def flow_to(text: str, *, secure: bool, transport: ITransport) -> Flow | None:
    """The flow to where a URI leads; None if it is none of ours to take: host names are not looked up yet (RFC 3263).

    "if the Request-URI specifies a SIPS resource, the proxy MUST follow the procedures of [4] as if the input URI were
    a SIPS URI": `secure`.
    """
    usual = _USUAL.match(text)
    if usual is not None and not secure and (literal := ip_literal(usual[1])) and 0 < int(usual[2]) <= _HIGHEST_PORT:
        return transport.flow((usual[3] or "udp").upper(), (literal, int(usual[2])))
    try:
        uri = parse_uri(text)
    except MalformedMessage:
        return None
    if not isinstance(uri, SipUri) or (address := uri.address) is None:
        return None
    name = uri.transport
    if (secure or uri.scheme == "sips") and name not in _SECURE:
        return None
    return transport.flow(name, address)


def flow_of_binding(target: Target, *, secure: bool, transport: ITransport) -> Flow | None:
    """The flow to a contact: where it registered from, unless its own address is as good.

    A contact whose host isn't the one that it registered from is behind NAT, or elsewhere by someone's wish to have our
    calls sent to a victim; its address is not used.
    """
    received = flow_to(target.received, secure=secure, transport=transport)
    if received is None or received.connection:
        return received
    direct = None if target.behind_nat else flow_to(target.uri, secure=secure, transport=transport)
    if direct is not None and direct.remote[0] == received.remote[0]:
        return direct
    # Nobody can open a connection to a phone behind NAT.
    return None if received.reliable else received


def _methods(binding: Binding) -> list[str]:
    return [name for method in binding.methods.split(",") if (name := method.strip())]


def _allows(binding: Binding, method: str) -> bool:
    methods = _methods(binding)
    return not methods or method in methods
