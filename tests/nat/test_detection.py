from __future__ import annotations

from typing import get_args

import pytest

from sipha.nat.detection import DEFAULT, Test, make_detection
from sipha.sip.flow import Flow
from sipha.sip.message import Request, mark_received
from sipha.sip.origin import origin_of
from sipha.sip.parser import parse

VIP = ("198.51.100.10", 5060)
PUBLIC = "203.0.113.7"

DIFF = {"diff-ip-src-via", "diff-ip-src-contact"}
PORTS = {"diff-port-src-via", "diff-port-src-contact"}
PRIVATE = {"private-via", "private-contact"}


def register(
    via: str, contact: str, *, rport: bool = True, transport: str = "UDP", hops: int = 0, sdp: str = ""
) -> Request:
    body = f"v=0\r\no=- 1 1 IN IP4 {sdp}\r\ns=-\r\nc=IN IP4 {sdp}\r\nt=0 0\r\n" if sdp else ""
    lines = [
        "REGISTER sip:sipha.test SIP/2.0",
        f"Via: SIP/2.0/{transport} {via};branch=z9hG4bK1" + (";rport" if rport else ""),
        *(f"Via: SIP/2.0/UDP 192.0.2.{hop};branch=z9hG4bK{hop}" for hop in range(hops)),
        "From: <sip:alice@sipha.test>;tag=1",
        "To: <sip:alice@sipha.test>",
        "Call-ID: a",
        "CSeq: 1 REGISTER",
        *([f"Contact: {contact}"] if contact else []),
        *(["Content-Type: application/sdp"] if sdp else []),
        f"Content-Length: {len(body)}",
    ]
    request = parse(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
    assert isinstance(request, Request)
    return request


def flow(host: str, port: int = 5060, transport: str = "UDP") -> Flow:
    return Flow(transport, VIP, (host, port), 0 if transport == "UDP" else 1)


def found(request: Request, way: Flow) -> set[str]:
    """The names of the tests that find NAT, in a request as the registrar sees it."""
    mark_received(request, way)
    return {name for name in get_args(Test) if make_detection([name])(origin_of(request), way)}


PLAIN = register(f"{PUBLIC}:5060", f"<sip:alice@{PUBLIC}:5060>")
CASES = {
    "a phone on a public address": (PLAIN, flow(PUBLIC), set()),
    "one that leaves the port out": (register(PUBLIC, f"<sip:alice@{PUBLIC}>"), flow(PUBLIC), set()),
    "one that is known by name": (register("phone.test", "<sip:alice@phone.test>"), flow(PUBLIC), set()),
    "one that listens elsewhere than it sends from": (
        register(f"{PUBLIC}:5060", f"<sip:alice@{PUBLIC}:5060>", rport=False),
        flow(PUBLIC, 40000),
        set(),
    ),
    "one over TCP": (
        register(f"{PUBLIC}:5060", f"<sip:alice@{PUBLIC}:5060;transport=tcp>", transport="TCP"),
        flow(PUBLIC, 40000, "TCP"),
        set(),
    ),
    "one with IPv6 in another spelling": (
        register("[2001:DB8:0::7]:5060", "<sip:alice@[2001:db8::7]:5060>"),
        flow("2001:db8::7"),
        set(),
    ),
    "one that is queried for its bindings": (register(f"{PUBLIC}:5060", ""), flow(PUBLIC), set()),
    "one that removes all": (register(f"{PUBLIC}:5060", "*"), flow(PUBLIC), set()),
    "one with a number": (register(f"{PUBLIC}:5060", "<tel:+15551234>"), flow(PUBLIC), set()),
    "one with a contact that is none": (register(f"{PUBLIC}:5060", "<sip:[>"), flow(PUBLIC), set()),
    "a phone behind NAT": (
        register("192.168.1.7:5060", "<sip:alice@192.168.1.7:5060>"),
        flow(PUBLIC, 61000),
        DIFF | PORTS | PRIVATE,
    ),
    "without rport": (
        register("192.168.1.7:5060", "<sip:alice@192.168.1.7:5060>", rport=False),
        flow(PUBLIC, 61000),
        DIFF | PRIVATE,
    ),
    "that took the address from rport into its Contact": (
        register("192.168.1.7:5060", f"<sip:alice@{PUBLIC}:61000>"),
        flow(PUBLIC, 61000),
        {"diff-ip-src-via", "diff-port-src-via", "private-via"},
    ),
    "that took an address from STUN into its Contact": (
        register("10.1.2.3:5060", f"<sip:alice@{PUBLIC}:61002>"),
        flow(PUBLIC, 61000),
        {"diff-ip-src-via", "private-via", *PORTS},
    ),
    "that took an address from STUN, and whose NAT has given it another port": (
        register(f"{PUBLIC}:61002", f"<sip:alice@{PUBLIC}:61002>"),
        flow(PUBLIC, 61000),
        PORTS,
    ),
    "behind two NATs": (
        register(f"{PUBLIC}:5060", f"<sip:alice@{PUBLIC}:5060>"),
        flow("203.0.113.99", 5060),
        DIFF,
    ),
    "behind a carrier's NAT": (
        register("100.64.3.4:5060", "<sip:alice@100.64.3.4:5060>"),
        flow(PUBLIC),
        {*DIFF, *PRIVATE, "carrier-grade-nat"},
    ),
    "behind DS-Lite": (
        register("192.0.0.2:5060", "<sip:alice@192.0.0.2:5060>"),
        flow(PUBLIC),
        {*DIFF, "carrier-grade-nat"},
    ),
    "over TCP": (
        register("192.168.1.7:40000", "<sip:alice@192.168.1.7:40000;transport=tcp>", transport="TCP"),
        flow(PUBLIC, 61000, "TCP"),
        DIFF | PRIVATE,
    ),
    "over a WebSocket": (
        register("df7jal23ls0d.invalid", "<sip:alice@df7jal23ls0d.invalid;transport=ws>", transport="WS"),
        flow(PUBLIC, 61000, "WS"),
        DIFF,
    ),
    "on a site with private addresses, without NAT": (
        register("10.0.0.7:5060", "<sip:alice@10.0.0.7:5060>"),
        flow("10.0.0.7"),
        PRIVATE,
    ),
    "behind an edge": (
        register("192.0.2.9:5060", "<sip:alice@10.0.0.7:5060>", hops=1),
        flow("192.0.2.9"),
        {"private-contact"},
    ),
    "that offers media from a private address": (
        register(f"{PUBLIC}:5060", f"<sip:alice@{PUBLIC}:5060>", sdp="192.168.1.7"),
        flow(PUBLIC),
        {"private-sdp"},
    ),
    "that offers media from a public address": (
        register(f"{PUBLIC}:5060", f"<sip:alice@{PUBLIC}:5060>", sdp=f"{PUBLIC}/127"),
        flow(PUBLIC),
        set(),
    ),
}


@pytest.mark.parametrize(("request_", "way", "names"), CASES.values(), ids=CASES.keys())
def test_each_test_finds_what_its_name_says(request_: Request, way: Flow, names: set[str]) -> None:
    assert found(request_.copy(), way) == names
    assert make_detection(DEFAULT)(origin_of(request_), way) == bool(names & set(DEFAULT))


def test_no_test_finds_no_nat() -> None:
    request, way, _ = CASES["a phone behind NAT"]
    assert not make_detection([])(origin_of(request), way)


def test_forced_rport_finds_no_more_than_before() -> None:
    request, way, _ = CASES["without rport"]
    marked = request.copy()
    mark_received(marked, way, force_rport=True)
    assert (marked.via.rport, marked.via.received) == (61000, PUBLIC)
    assert make_detection(DEFAULT)(origin_of(marked), way)
