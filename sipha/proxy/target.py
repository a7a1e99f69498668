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


def target_groups(bindings: Sequence[Binding], method: str) -> list[list[Target]]:
    """Make the target set of an AOR's bindings, by falling q; the targets of a group have the same q (§16.6).

    SipError 405 if the contacts say which methods they allow, and none allows this one.
    """
    if len(bindings) == 1 and not bindings[0].methods:
        return [[_target(bindings[0])]]
    allowing = [binding for binding in bindings if _allows(binding, method)]
    if bindings and not allowing:
        allowed = dict.fromkeys(name for binding in bindings for name in _methods(binding))
        raise SipError(f"no contact allows {method}", status=405, headers=(("Allow", ", ".join(allowed)),))
    allowing.sort(key=lambda binding: -binding.preference)
    groups = groupby(allowing, key=lambda binding: binding.preference)
    return [[_target(binding) for binding in group] for _, group in groups]


def only_target(bindings: Sequence[Binding]) -> Target | None:
    """The target of the only binding, if it takes all methods and is reached directly where it registered from."""
    if len(bindings) != 1:
        return None
    [binding] = bindings
    target = None if binding.methods or binding.path or not binding.received else _target(binding)
    return None if target is None or target.uri[:5].lower() == "sips:" else target


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


def _target(binding: Binding) -> Target:
    return Target(binding.request_uri, binding.path, binding.received, behind_nat=binding.behind_nat)


def _methods(binding: Binding) -> list[str]:
    return [name for method in binding.methods.split(",") if (name := method.strip())]


def _allows(binding: Binding, method: str) -> bool:
    methods = _methods(binding)
    return not methods or method in methods
