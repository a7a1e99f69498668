"""Which requests come from behind NAT: tests by name, on what a phone says of itself and where it sends from.

A phone behind NAT writes addresses that aren't its own to the outside. One that has learned its outer address, by STUN
or from the rport of an answer, is found by what it forgets to write it into, or by the port.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal, get_args

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.uri import SipUri, default_port, ip_literal

Test = Literal[
    "diff-ip-src-via",
    "private-via",
    "diff-port-src-via",
    "diff-ip-src-contact",
    "private-contact",
    "diff-port-src-contact",
    "private-sdp",
    "carrier-grade-nat",
]
"""The names of the tests, those that cost least first."""

DEFAULT: tuple[Test, ...] = ("diff-ip-src-via", "diff-port-src-via", "diff-ip-src-contact")
"""What finds NAT and nothing else.

The private-… tests would flag every phone of a site that has private addresses, and diff-port-src-contact whoever has
another port for calls than the one that he registers from: where NAT has changed that one, the Via tells as well.
"""

Networks = tuple[IPv4Network | IPv6Network, ...]


def _networks(*texts: str) -> Networks:
    return tuple(map(ip_network, texts))


_CARRIER = _networks("100.64.0.0/10", "192.0.0.0/29")
"""Those between a customer's router and a carrier's NAT (RFC 6598), and of DS-Lite (RFC 6333 §5.7)."""

_PRIVATE = (*_networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7"), _CARRIER[0])
"""RFC 1918, RFC 3927, RFC 4193 and RFC 6598."""


# The one contact as most phones write it; all else is taken apart.
_USUAL_CONTACT = re.compile(
    r"<sip:[A-Za-z0-9\-_.+]++@([0-9.]++)(?::([0-9]{1,5}))?+(?:;(?!transport)[^<>,;]*+)*+>[^,<>]*+\Z"
)


def make_detection(names: Iterable[Test]) -> Callable[[Request, Flow], bool]:
    """Return what tells of a request and the flow that it came by whether any of the tests of these names finds NAT."""
    chosen = frozenset(names)
    tests = tuple(_TESTS[name] for name in get_args(Test) if name in chosen)

    def is_behind_nat(request: Request, flow: Flow) -> bool:
        return any(test(request, flow) for test in tests)

    return is_behind_nat


def _diff_ip_src_via(request: Request, flow: Flow) -> bool:
    host = request.via.host
    source = flow.remote[0]
    return host != source and _differs(host, source)


def _private_via(request: Request, _: Flow) -> bool:
    return _is_in(request.via.host, _PRIVATE)


def _diff_port_src_via(request: Request, flow: Flow) -> bool:
    # The port of a stream is the kernel's choice, and a phone may listen at another port than it sends from: unless it
    # asks for rport, for then it must take the response where it has sent from (RFC 3581 §3).
    via = request.via
    return not flow.reliable and (via.port or default_port(via.transport)) != flow.remote[1] and via.has_param("rport")


def _diff_ip_src_contact(request: Request, flow: Flow) -> bool:
    source = flow.remote[0]
    return any(host != source and _differs(host, source) for host, _ in _contacts(request)) and _is_direct(request)


def _private_contact(request: Request, _: Flow) -> bool:
    return any(_is_in(host, _PRIVATE) for host, _ in _contacts(request))


def _diff_port_src_contact(request: Request, flow: Flow) -> bool:
    if flow.reliable or all(port == flow.remote[1] for _, port in _contacts(request)):
        return False
    return request.via.has_param("rport") and _is_direct(request)


def _private_sdp(request: Request, _: Flow) -> bool:
    return any(_is_in(host, _PRIVATE) for host in _media_hosts(request))


def _carrier_grade_nat(request: Request, _: Flow) -> bool:
    hosts = [request.via.host, *(host for host, _ in _contacts(request)), *_media_hosts(request)]
    return any(_is_in(host, _CARRIER) for host in hosts)


_TESTS: dict[Test, Callable[[Request, Flow], bool]] = {
    "diff-ip-src-via": _diff_ip_src_via,
    "private-via": _private_via,
    "diff-port-src-via": _diff_port_src_via,
    "diff-ip-src-contact": _diff_ip_src_contact,
    "private-contact": _private_contact,
    "diff-port-src-contact": _diff_port_src_contact,
    "private-sdp": _private_sdp,
    "carrier-grade-nat": _carrier_grade_nat,
}


def _is_direct(request: Request) -> bool:
    """Return True if the phone itself sent us the request: a proxy's address says nothing of the phone's."""
    vias = request.headers.all("Via")
    return len(vias) == 1 and "," not in vias[0]


def _differs(host: str, source: str) -> bool:
    """Return True if a host is another address than where the request came from; a name says nothing."""
    literal = ip_literal(host)
    # A name in .invalid is that of a phone that can't be reached but by the flow it made (RFC 7118 §5).
    return host.endswith(".invalid") if literal is None else literal != source.partition("%")[0]


def _is_in(host: str, networks: Networks) -> bool:
    literal = ip_literal(host)
    if literal is None:
        return False
    address = ip_address(literal)
    return any(address in network for network in networks)


def _contacts(request: Request) -> Sequence[tuple[str, int]]:
    """Host and port of each contact that is a SIP URI; it is the registrar's to refuse what can't be understood."""
    fields = request.headers.all("Contact")
    if len(fields) == 1 and (usual := _USUAL_CONTACT.match(fields[0])):
        return ((usual[1], int(usual[2] or 5060)),)
    found = []
    try:
        for contact in request.contacts:
            uri = None if contact.star else contact.parsed_uri
            if isinstance(uri, SipUri):
                found.append((uri.host, uri.port or default_port(uri.transport)))
    except MalformedMessage:
        pass
    return found


def _media_hosts(request: Request) -> Iterator[str]:
    """The hosts of the connection data in a session description (RFC 8866 §5.7)."""
    if not (request.headers.get("Content-Type") or "").lower().startswith("application/sdp"):
        return
    for line in request.body.splitlines():
        if line.startswith((b"c=IN IP4 ", b"c=IN IP6 ")):
            yield line[len("c=IN IP4 ") :].decode("ascii", "replace").partition("/")[0].strip()
