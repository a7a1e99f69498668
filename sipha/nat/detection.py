"""Which requests come from behind NAT: tests by name, on what a phone says of itself and where it sends from.

A phone behind NAT writes addresses that aren't its own to the outside. One that has learned its outer address, by STUN
or from the rport of an answer, is found by what it forgets to write it into, or by the port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal, get_args

from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.origin import Origin, origin_of
from sipha.sip.uri import ip_literal

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


def make_detection(names: Iterable[Test]) -> Callable[[Origin, Flow], bool]:
    """Return what tells, of the origin of a request and the flow that it came by, whether any of these finds NAT."""
    chosen = frozenset(names)
    tests = tuple(_TESTS[name] for name in get_args(Test) if name in chosen)

    def is_behind_nat(origin: Origin, flow: Flow) -> bool:
        for test in tests:  # noqa: SIM110  a generator costs more than the tests do
            if test(origin, flow):
                return True
        return False

    return is_behind_nat


def make_force_rport(
    is_behind_nat: Callable[[Origin, Flow], bool], is_server: Callable[[str], bool]
) -> Callable[[Request, Flow], bool]:
    """Return what tells whether a response goes back to where the request came from although nobody asked (RFC 3581).

    Servers, which are known by their addresses, may well listen at another port than they send from.
    """

    def is_to_be_forced(request: Request, flow: Flow) -> bool:
        asked = flow.reliable or ";rport" in request.via.params
        return not asked and is_behind_nat(origin_of(request), flow) and not is_server(flow.remote[0])

    return is_to_be_forced


def _diff_ip_src_via(origin: Origin, flow: Flow) -> bool:
    return _differs(origin.host, flow.remote[0])


def _private_via(origin: Origin, _: Flow) -> bool:
    return _is_in(origin.host, _PRIVATE)


def _diff_port_src_via(origin: Origin, flow: Flow) -> bool:
    # The port of a stream is the kernel's choice, and a phone may listen at another port than it sends from: unless it
    # asks for rport, for then it must take the response where it has sent from (RFC 3581 §3).
    return origin.rport and not flow.reliable and origin.port != flow.remote[1]


def _diff_ip_src_contact(origin: Origin, flow: Flow) -> bool:
    # Of what a proxy has passed on, the source says nothing of the phone.
    source = flow.remote[0]
    return origin.direct and any(_differs(host, source) for host, _ in origin.contacts)


def _private_contact(origin: Origin, _: Flow) -> bool:
    return any(_is_in(host, _PRIVATE) for host, _ in origin.contacts)


def _diff_port_src_contact(origin: Origin, flow: Flow) -> bool:
    if flow.reliable or all(port == flow.remote[1] for _, port in origin.contacts):
        return False
    return origin.rport and origin.direct


def _private_sdp(origin: Origin, _: Flow) -> bool:
    return any(_is_in(host, _PRIVATE) for host in origin.media)


def _carrier_grade_nat(origin: Origin, _: Flow) -> bool:
    hosts = [origin.host, *(host for host, _ in origin.contacts), *origin.media]
    return any(_is_in(host, _CARRIER) for host in hosts)


_TESTS: dict[Test, Callable[[Origin, Flow], bool]] = {
    "diff-ip-src-via": _diff_ip_src_via,
    "private-via": _private_via,
    "diff-port-src-via": _diff_port_src_via,
    "diff-ip-src-contact": _diff_ip_src_contact,
    "private-contact": _private_contact,
    "diff-port-src-contact": _diff_port_src_contact,
    "private-sdp": _private_sdp,
    "carrier-grade-nat": _carrier_grade_nat,
}


def _differs(host: str, source: str) -> bool:
    """Return True if a host is another address than where the request came from; a name says nothing."""
    if host == source:
        return False
    literal = ip_literal(host)
    # A name in .invalid is that of a phone that can't be reached but by the flow it made (RFC 7118 §5).
    return host.endswith(".invalid") if literal is None else literal != source.partition("%")[0]


def _is_in(host: str, networks: Networks) -> bool:
    literal = ip_literal(host)
    if literal is None:
        return False
    address = ip_address(literal)
    return any(address in network for network in networks)
