from __future__ import annotations

import pytest

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.headers import Headers
from sipha.sip.message import Request, Response, mark_received, response_destination, response_to
from sipha.sip.parser import parse
from sipha.sip.status import REASONS
from sipha.sip.values import CSeq, NameAddr, Via, parse_via

UDP = Flow("UDP", ("192.0.2.10", 5060), ("203.0.113.9", 40123))
TCP = Flow("TCP", ("192.0.2.10", 5060), ("203.0.113.9", 40123), 7)


def request(*lines: str, method: str = "OPTIONS", via: str = "SIP/2.0/UDP host;branch=z9hG4bK1") -> Request:
    headers = Headers()
    fixed = [f"Via: {via}", "f: <sip:a@b>;tag=1", "To:  <sip:c@d>", "Call-ID: x", f"CSeq: 1 {method}"]
    assert headers.read([*fixed, *lines]) is None
    return Request(method, "sip:c@d", headers)


def test_accessors_parse_the_headers() -> None:
    message = request(
        "Via: SIP/2.0/TCP second, SIP/2.0/TLS third",
        "m: <sip:a@1.2.3.4>;q=0.5, *",
        "Route: <sip:r1;lr>, <sip:r2;lr>",
        "Record-Route: <sip:rr;lr>",
        "Path: <sip:p;lr>",
        "Max-Forwards: 0068",
        "Expires: 99999999999",
    )
    assert message.via == Via("UDP", "host", None, ";branch=z9hG4bK1")
    assert [via.transport for via in message.vias] == ["UDP", "TCP", "TLS"]
    assert message.from_ == NameAddr("", "sip:a@b", ";tag=1")
    assert message.to.tag is None
    assert message.call_id == "x"
    assert message.cseq == CSeq(1, "OPTIONS")
    assert [contact.star for contact in message.contacts] == [False, True]
    assert [route.uri for route in message.routes] == ["sip:r1;lr", "sip:r2;lr"]
    assert [route.uri for route in message.record_routes] == ["sip:rr;lr"]
    assert [route.uri for route in message.paths] == ["sip:p;lr"]
    assert message.max_forwards == 68
    assert message.expires == 2**32 - 1
    assert message.from_ is message.from_


def test_accessors_of_absent_headers() -> None:
    message = Request("OPTIONS", "sip:c@d")
    assert not any((message.contacts, message.routes, message.record_routes, message.paths, message.vias))
    assert message.max_forwards is None
    assert message.expires is None
    for name in ("via", "from_", "to", "call_id", "cseq"):
        with pytest.raises(MalformedMessage, match="missing"):
            getattr(message, name)


@pytest.mark.parametrize("text", ["256", "-1", "x", "", "9" * 5000, "٣"])
def test_max_forwards_is_refused_beyond_255(text: str) -> None:
    with pytest.raises(MalformedMessage, match="Max-Forwards"):
        _ = request(f"Max-Forwards: {text}").max_forwards


def test_a_broken_contact_harms_only_who_asks_for_it() -> None:
    message = request("Contact: <sip:a@b>, <nonsense>", "Route: <sip:r;lr>")
    with pytest.raises(MalformedMessage, match="Contact"):
        _ = message.contacts
    assert message.routes[0].uri == "sip:r;lr"
    assert message.to.uri == "sip:c@d"


def test_parsed_uri_follows_the_request_uri() -> None:
    message = request()
    assert str(message.parsed_uri) == "sip:c@d"
    message.uri = "sip:e@f"
    assert str(message.parsed_uri) == "sip:e@f"
    message.uri = "nonsense"
    with pytest.raises(MalformedMessage):
        _ = message.parsed_uri


def test_render_leaves_untouched_headers_alone() -> None:
    data = (
        b"MESSAGE sip:x SIP/2.0\r\nv:SIP/2.0/UDP a;branch=z9hG4bK1\r\n"
        b"via : SIP/2.0/UDP b\r\nSubject: fol\r\n\tded \r\n"
        b'From: "\xff\x00" <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: x\r\n'
        b"CSeq: 0001   MESSAGE\r\nl:  004\r\n\r\n\x00\xff\r\n"
    )
    message = parse(data)
    assert message.render() == data
    message.headers.prepend("Via", "SIP/2.0/UDP top")
    assert message.render() == data.replace(b"v:SIP", b"Via: SIP/2.0/UDP top\r\nv:SIP")


@pytest.mark.parametrize("line", ["Content-Length: 5", "Content-Length: x", "X-Foo: y"])
def test_render_makes_the_content_length_right(line: str) -> None:
    message = request(line)
    message.body = b"abc"
    assert b"\r\nContent-Length: 3\r\n" in message.render()
    assert message.render().count(b"Content-Length") == 1
    assert message.render().endswith(b"\r\n\r\nabc")


def test_copies_change_alone() -> None:
    message = request("Route: <sip:r;lr>")
    copy = message.copy()
    copy.headers.pop_value("Route")
    copy.uri = "sip:e@f"
    assert message.routes[0].uri == "sip:r;lr"
    assert message.uri == "sip:c@d"
    response = Response(200, "OK", [("To", "x")])
    other = response.copy()
    other.headers.remove("To")
    assert response.render() == b"SIP/2.0 200 OK\r\nTo: x\r\nContent-Length: 0\r\n\r\n"


def test_response_has_what_the_request_had() -> None:
    message = request("Via:  SIP/2.0/UDP second", "Timestamp: 54", "Subject: x")
    response = response_to(message, 404, to_tag="t1", headers=(("Server", "sipha"),), body=b"abc")
    assert response.render() == (
        b"SIP/2.0 404 Not Found\r\nVia: SIP/2.0/UDP host;branch=z9hG4bK1\r\nf: <sip:a@b>;tag=1\r\n"
        b"To: <sip:c@d>;tag=t1\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\n"
        b"Via:  SIP/2.0/UDP second\r\nServer: sipha\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert response.to.tag == "t1"


def test_response_100_has_the_timestamp_and_needs_no_tag() -> None:
    response = response_to(request("Timestamp: 54"), 100)
    assert response.headers.get("Timestamp") == "54"
    assert response.to.tag is None
    assert response.reason == "Trying"


def test_response_keeps_a_tag_and_a_to_it_cannot_read() -> None:
    message = request()
    message.headers.set("To", "<sip:c@d>;tag=old")
    assert response_to(message, 200, to_tag="new").headers.get("To") == "<sip:c@d>;tag=old"
    message.headers.set("To", '"broken <sip:c@d>')
    assert response_to(message, 400, to_tag="new").headers.get("To") == '"broken <sip:c@d>'


def test_response_tells_an_unknown_status() -> None:
    assert response_to(request(), 499).start_line == "SIP/2.0 499 Unknown"
    assert response_to(request(), 400, "CSeq: missing").start_line == "SIP/2.0 400 CSeq: missing"
    assert all(100 <= status <= 699 for status in REASONS)


@pytest.mark.parametrize(
    ("via", "marked"),
    [
        ("SIP/2.0/UDP 203.0.113.9;branch=x", "SIP/2.0/UDP 203.0.113.9;branch=x"),
        ("SIP/2.0/UDP 10.0.0.1;branch=x", "SIP/2.0/UDP 10.0.0.1;branch=x;received=203.0.113.9"),
        ("SIP/2.0/UDP host:5070", "SIP/2.0/UDP host:5070;received=203.0.113.9"),
        ("SIP/2.0/UDP 203.0.113.9;rport", "SIP/2.0/UDP 203.0.113.9;rport=40123;received=203.0.113.9"),
        ("SIP/2.0/UDP h;rport;branch=x", "SIP/2.0/UDP h;rport=40123;branch=x;received=203.0.113.9"),
        ("SIP/2.0/UDP h;RPort ;branch=x", "SIP/2.0/UDP h;rport=40123 ;branch=x;received=203.0.113.9"),
        # What the sender claims about itself is not to be believed.
        ("SIP/2.0/UDP h;rport=1;received=1.1.1.1", "SIP/2.0/UDP h;rport=40123;received=203.0.113.9"),
        ("SIP/2.0/UDP h;rport;Received=1.1.1.1", "SIP/2.0/UDP h;rport=40123;received=203.0.113.9"),
        ("SIP/2.0/UDP 203.0.113.9;received=1.1.1.1", "SIP/2.0/UDP 203.0.113.9;received=203.0.113.9"),
        ("SIP/2.0/UDP h;rportx;branch=x", "SIP/2.0/UDP h;rportx;branch=x;received=203.0.113.9"),
    ],
)
def test_mark_received_says_where_the_request_came_from(via: str, marked: str) -> None:
    message = request("Via: SIP/2.0/UDP second", via=via)
    mark_received(message, UDP)
    assert message.headers.all("Via") == [marked, "SIP/2.0/UDP second"]
    assert message.via == parse_via(marked)
    mark_received(message, UDP)
    assert message.headers.all("Via") == [marked, "SIP/2.0/UDP second"]


def test_forced_rport_is_written_for_who_did_not_ask() -> None:
    message = request(via="SIP/2.0/UDP 10.0.0.1:5070;branch=x")
    mark_received(message, UDP, force_rport=True)
    assert message.headers.get("Via") == "SIP/2.0/UDP 10.0.0.1:5070;branch=x;rport=40123;received=203.0.113.9"
    assert response_destination(message.via, UDP) == UDP


def test_mark_received_leaves_other_values_of_the_field() -> None:
    message = request(via="SIP/2.0/UDP h, SIP/2.0/UDP second;rport")
    mark_received(message, UDP)
    assert message.headers.all("Via") == ["SIP/2.0/UDP h;received=203.0.113.9, SIP/2.0/UDP second;rport"]


def test_mark_received_compares_ipv6_as_addresses() -> None:
    flow = UDP._replace(remote=("2001:db8::1", 5060))
    message = request(via="SIP/2.0/UDP [2001:DB8:0::1]")
    mark_received(message, flow)
    assert message.headers.get("Via") == "SIP/2.0/UDP [2001:DB8:0::1]"
    message = request(via="SIP/2.0/UDP [2001:db8::2]")
    mark_received(message, flow)
    assert message.via.received == "2001:db8::1"


@pytest.mark.parametrize(
    ("via", "remote"),
    [
        ("SIP/2.0/UDP 10.0.0.1:5070;received=203.0.113.9;rport=40123", ("203.0.113.9", 40123)),
        ("SIP/2.0/UDP 10.0.0.1:5070;received=203.0.113.9", ("203.0.113.9", 5070)),
        ("SIP/2.0/UDP 10.0.0.1;received=203.0.113.9", ("203.0.113.9", 5060)),
        ("SIP/2.0/UDP 10.0.0.1:5070", ("10.0.0.1", 5070)),
        ("SIP/2.0/UDP 10.0.0.1;rport=40123", ("10.0.0.1", 5060)),
        ("SIP/2.0/UDP 10.0.0.1;maddr=192.0.2.77;received=203.0.113.9", ("203.0.113.9", 5060)),
        ("SIP/2.0/UDP 10.0.0.1:5070;maddr=192.0.2.77", ("10.0.0.1", 5070)),
        ("SIP/2.0/UDP [2001:db8::1]:5070", ("2001:db8::1", 5070)),
        ("SIP/2.0/UDP h;received=[2001:db8::9]", ("2001:db8::9", 5060)),
        ("SIP/2.0/UDP h;received=2001:db8::9;rport=7", ("2001:db8::9", 7)),
        ("SIP/2.0/UDP host.example.com", ("203.0.113.9", 40123)),
        ("SIP/2.0/UDP h;received=nonsense", ("203.0.113.9", 40123)),
    ],
)
def test_responses_go_where_the_via_says(via: str, remote: tuple[str, int]) -> None:
    assert response_destination(parse_via(via), UDP) == UDP._replace(remote=remote)


def test_responses_go_back_on_the_connection() -> None:
    assert response_destination(parse_via("SIP/2.0/TCP 10.0.0.1:5070;maddr=192.0.2.77"), TCP) == TCP
