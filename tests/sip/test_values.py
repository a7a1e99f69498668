from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.errors import MalformedMessage
from sipha.sip import values
from sipha.sip.headers import split_first, split_values
from sipha.sip.uri import SipUri
from sipha.sip.values import (
    CSeq,
    NameAddr,
    Via,
    find_param,
    has_param,
    parse_auth_params,
    parse_contact,
    parse_cseq,
    parse_name_addr,
    parse_via,
    plain_contact,
    set_params,
    split_params,
)


def test_params_are_found_and_set() -> None:
    params = ';Branch = z9;rport;name="a;tag=no \\"q\\"";tag=yes;empty='
    assert find_param(params, "branch") == "z9"
    assert find_param(params, "rport") is None
    assert has_param(params, "rport")
    assert find_param(params, "name") == 'a;tag=no "q"'
    assert find_param(params, "tag") == "yes"
    assert find_param(params, "empty") == ""
    assert find_param(params, "no") is None
    assert not has_param(params, "no")
    assert find_param(";xtag=1;tag=2", "tag") == "2"
    assert find_param(";TAG=2", "tag") == "2"
    assert find_param(";received=2001:db8::1;x", "received") == "2001:db8::1"
    assert set_params(";a=1;rport;b", ("rport", "5"), ("c", None)) == ";a=1;rport=5;b;c"
    assert set_params("", ("tag", "x")) == ";tag=x"
    assert split_params(';a=1;b;c="x;y"') == [("a", "1"), ("b", None), ("c", '"x;y"')]


# -- Via -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "via"),
    [
        ("SIP/2.0/UDP a.example.com", Via("UDP", "a.example.com")),
        ("SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bKx;rport", Via("UDP", "192.0.2.1", 5070, ";branch=z9hG4bKx;rport")),
        ("SIP/2.0/TCP [2001:db8::1]", Via("TCP", "[2001:db8::1]")),
        ("SIP/2.0/TLS [2001:db8::1]:5071;x", Via("TLS", "[2001:db8::1]", 5071, ";x")),
        ("SIP  /   2.0\t/  UDP   host : 5060 ;hidden", Via("UDP", "host", 5060, ";hidden")),
        ("sip/2.0/udp host", Via("UDP", "host")),
        (
            "SIP/2.0/UDP [2001:db8::9]:5060;received=2001:db8::9:255",
            Via("UDP", "[2001:db8::9]", 5060, ";received=2001:db8::9:255"),
        ),
        ("SIP/2.0/UDP first, SIP/2.0/UDP second", Via("UDP", "first")),
    ],
)
def test_parse_via(text: str, via: Via) -> None:
    assert parse_via(text) == via
    assert parse_via(str(via)) == via


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SIP/2.0/UDP",
        "SIP/2.0/UDP ;x",
        "UDP host",
        "SIP/2.0/UDP host:",
        "SIP/2.0/UDP host:0",
        "SIP/2.0/UDP host:65536",
        "SIP/2.0/UDP host:port",
        "SIP/2.0/UDP 2001:db8::1",
        "SIP/2.0/UDP [2001:db8::1",
        "SIP/2.0/UDP host;;",
        "SIP/2.0/UDP host;",
        "SIP/2.0/UDP host x",
        "SIP/2.0/UDP hö.st",
        'SIP/2.0/UDP host;x="',
    ],
)
def test_parse_via_refuses(text: str) -> None:
    with pytest.raises(MalformedMessage, match="Via"):
        parse_via(text)


def test_via_names_the_transaction() -> None:
    assert parse_via("SIP/2.0/UDP Host.Example.com;branch=z9hG4bK1").sent_by == "host.example.com:5060"
    assert parse_via("SIP/2.0/UDP Host.Example.com:5060;branch=z9hG4bK1").sent_by == "host.example.com:5060"
    assert parse_via("SIP/2.0/TLS a").sent_by == "a:5061"
    assert parse_via("SIP/2.0/WSS a").sent_by == "a:443"
    assert parse_via("SIP/2.0/UDP a;branch=z9hG4bK1").branch == "z9hG4bK1"
    assert parse_via("SIP/2.0/UDP a").branch is None


def test_via_says_where_it_came_from() -> None:
    via = parse_via("SIP/2.0/UDP a;rport=4000;received=[2001:db8::1]")
    assert via.rport == 4000
    assert via.received == "2001:db8::1"
    assert parse_via("SIP/2.0/UDP a;rport").rport is None
    assert parse_via("SIP/2.0/UDP a;rport=x").rport is None
    assert parse_via("SIP/2.0/UDP a;rport=99999999").rport is None
    assert str(via.with_params(("rport", "5"))) == "SIP/2.0/UDP a;rport=5;received=[2001:db8::1]"


# -- Addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "display", "uri", "params"),
    [
        ("<sip:a@b>", "", "sip:a@b", ""),
        ("sip:a@b", "", "sip:a@b", ""),
        # "All header field parameters ... are header parameters, not URI parameters" (§20)
        ("sip:a@b;tag=x", "", "sip:a@b", ";tag=x"),
        ("<sip:a@b;lr>;tag=x", "", "sip:a@b;lr", ";tag=x"),
        ("Alice <sip:a@b>", "Alice", "sip:a@b", ""),
        ("caller<sip:a@b>;tag=1", "caller", "sip:a@b", ";tag=1"),
        ("Anna Lee  <sip:a@b>", "Anna Lee", "sip:a@b", ""),
        ("José Müller <sip:a@b>", "José Müller", "sip:a@b", ""),
        ("Bob (home) <sip:a@b>", "Bob (home)", "sip:a@b", ""),
        ('"J Rosenberg \\\\\\""  <sip:a@b>  ;\ttag = 98', 'J Rosenberg \\"', "sip:a@b", ";\ttag = 98"),
        ('"a, <b>; c" <sip:a@b>;x="<;,>"', "a, <b>; c", "sip:a@b", ';x="<;,>"'),
        ('""<sip:a@b>', "", "sip:a@b", ""),
        ("<sip:a@b?Route=%3Cx%3E>", "", "sip:a@b?Route=%3Cx%3E", ""),
        ("isbn:2983792873", "", "isbn:2983792873", ""),
        ("<sip:a@b>;tag=a=b==", "", "sip:a@b", ";tag=a=b=="),
    ],
)
def test_parse_name_addr(text: str, display: str, uri: str, params: str) -> None:
    address = parse_name_addr(text)
    assert (address.display, address.uri) == (display, uri)
    assert address.params.lstrip() == params
    assert parse_name_addr(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "<>",
        "a@b",
        "<a@b>",
        '"Mr. J. User <sip:a@b>',
        '"Watson" < sip:a@b >',
        "Bell, Alexander <sip:a@b>",
        "<sip:a@b",
        "sip:a@b>",
        "<sip:a b@c>",
        "<sip:a@b>;",
        "<sip:a@b>;;x",
        '<sip:a@b>;x="',
        "<sip:a@b> junk",
        "sip:a@b?Route=x",
        "<sip:a@b>, <sip:c@d>",
    ],
)
def test_parse_name_addr_refuses(text: str) -> None:
    with pytest.raises(MalformedMessage, match="From"):
        parse_name_addr(text, "From")


def test_name_addr_shows_its_parts() -> None:
    address = parse_name_addr('"A" <sip:a@B;lr>;Tag=x1;flag')
    assert address.tag == "x1"
    assert address.param("tag") == "x1"
    assert address.has_param("flag")
    assert str(address.parsed_uri) == "sip:a@b;lr"
    assert str(NameAddr('say "hi" \\', "sip:a@b")) == '"say \\"hi\\" \\\\" <sip:a@b>'


def test_contact_shows_its_parameters() -> None:
    contact = parse_contact('<sip:a@b>;q=0.7;expires=60;+sip.instance="<urn:uuid:1>";reg-id=1')
    assert (contact.q, contact.expires) == (700, 60)
    assert contact.param("+sip.instance") == "<urn:uuid:1>"
    assert not contact.star
    assert parse_contact("*").star
    assert parse_contact("sip:a@b").q is None
    assert parse_contact("sip:a@b").expires is None


@pytest.mark.parametrize(
    ("text", "q"), [("1", 1000), ("1.000", 1000), ("0", 0), ("0.5", 500), ("0.05", 50), ("0.005", 5), ("1.", 1000)]
)
def test_contact_reads_q(text: str, q: int) -> None:
    assert parse_contact(f"<sip:a@b>;q={text}").q == q


@pytest.mark.parametrize("text", ["1.001", "2", "-1", "0.0005", "x", "0.x", "\u0660", "", "."])
def test_contact_refuses_q(text: str) -> None:
    with pytest.raises(MalformedMessage, match="q is"):
        _ = parse_contact(f"<sip:a@b>;q={text}").q


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("4294967296", 2**32 - 1), ("9" * 5000, 2**32 - 1), ("x", 3600), ("-1", 3600)]
)
def test_contact_reads_expires(text: str, seconds: int) -> None:
    assert parse_contact(f"<sip:a@b>;expires={text}").expires == seconds


def test_contact_takes_an_expires_without_value_for_malformed() -> None:
    assert parse_contact("<sip:a@b>;expires").expires == 3600


# -- CSeq and credentials --------------------------------------------------------------------------


def test_parse_cseq() -> None:
    assert parse_cseq("0009   INVITE") == CSeq(9, "INVITE")
    assert parse_cseq("2147483647 !x") == CSeq(2**31 - 1, "!x")
    assert parse_cseq("0" * 5000 + "1 BYE") == CSeq(1, "BYE")
    assert str(CSeq(9, "INVITE")) == "9 INVITE"


@pytest.mark.parametrize(
    "text",
    ["", "1", "INVITE", "1INVITE", "-1 INVITE", "1 IN VITE", "1 IN,VITE", "2147483648 X", "9" * 5000 + " X", "٣ X"],
)
def test_parse_cseq_refuses(text: str) -> None:
    with pytest.raises(MalformedMessage, match="CSeq"):
        parse_cseq(text)


@pytest.mark.parametrize(
    ("text", "scheme", "params"),
    [
        (
            'Digest username="bob", realm="a.b", nonce="x==", uri="sip:a.b", nc=00000001, qop=auth',
            "Digest",
            {"username": "bob", "realm": "a.b", "nonce": "x==", "uri": "sip:a.b", "nc": "00000001", "qop": "auth"},
        ),
        ('Digest username="bob",realm="",nc=1', "Digest", {"username": "bob", "realm": "", "nc": "1"}),
        (
            'DIGEST  Username = "b, o=\\"b\\"" ,\tREALM="a" , qop="auth,auth-int"',
            "DIGEST",
            {"username": 'b, o="b"', "realm": "a", "qop": "auth,auth-int"},
        ),
        ('Digest username="a,realm=b", realm="c"', "Digest", {"username": "a,realm=b", "realm": "c"}),
        ("NoOneKnowsThisScheme opaque-data=here", "NoOneKnowsThisScheme", {"opaque-data": "here"}),
        ("Digest", "Digest", {}),
        ('Digest realm="a",', "Digest", {"realm": "a"}),
    ],
)
def test_parse_auth_params(text: str, scheme: str, params: dict[str, str]) -> None:
    assert parse_auth_params(text) == (scheme, params)


@pytest.mark.parametrize(
    "text",
    [
        'Digest realm="a', 'Digest realm="a" nonce="b"', 'Digest realm="a", realm="b"', "Digest realm", "Digest =x",
        'Digest realm="a"b', "Digest realm=a b", 'Digest realm="a", REALM="b"',
    ],
)  # fmt: skip
def test_parse_auth_params_refuses(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_auth_params(text)


@pytest.mark.parametrize(
    "usual",
    ['"A" <sip:alice@192.0.2.1:5060;ob;a=b>;expires=60;+sip.instance="<urn:x>"', "<sip:HOST>;expires=0", "<sip:a@b>"],
)
def test_plain_contact_is_what_parsing_makes_of_it(usual: str) -> None:
    assert plain_contact(usual) is not None
    for at, junk, skip in product(range(len(usual) + 1), ("", *';=,<>"@:. x0'), range(4)):
        text = usual[:at] + junk + usual[at + skip :]
        plain = plain_contact(text)
        if plain is not None:
            contact = parse_contact(text)
            uri = contact.parsed_uri
            assert isinstance(uri, SipUri)
            parsed = contact.uri, uri.host, uri.port, contact.expires, contact.param("+sip.instance") or ""
            assert plain == parsed, text


# -- Time ------------------------------------------------------------------------------------------

SHAPES = [
    "{}",
    "<sip:a@b>{}",
    "<sip:a@b>;x{}",
    "<sip:a@b{}>",
    '"{}',
    '<sip:a@b>;x="{}',
    "SIP/2.0/UDP h{}",
    "SIP/2.0/UDP {}",
    "Digest {}",
]
FILLINGS = [
    "a",
    " ",
    '"',
    '\\"',
    "\\",
    ";",
    ";a",
    ";a=b",
    ';a="b"',
    ",",
    "a,",
    "<",
    "<>",
    '"a"',
    "a=",
    'a="b",',
    "\t=",
    ":",
]
PARSERS: list[Callable[[str], object]] = [
    parse_via, parse_name_addr, parse_contact, parse_cseq, parse_auth_params, split_values, split_first, split_params,
    lambda text: set_params(text, ("zz", "1")), lambda text: find_param(text, "zz"), lambda text: has_param(text, "a"),
    plain_contact.__wrapped__,
]  # fmt: skip


def assert_linear(parser: Callable[[str], object], shape: str) -> None:
    """See a parser take linear time for anything in this shape."""

    def seconds(filling: str, size: int) -> float:
        text = shape.format(filling * (size // len(filling)))
        best = 1.0
        for _ in range(3):
            start = time.process_time()
            with suppress(MalformedMessage):
                parser(text)
            best = min(best, time.process_time() - start)
        return best

    for filling in FILLINGS:
        # Sixteen times the length takes sixteen times as long, or 256 times if it were quadratic.
        assert seconds(filling, 64_000) < max(100 * seconds(filling, 4_000), 0.02), filling


@pytest.mark.parametrize("end", [";", ";x;", ";x=1;", ";=", ";x=1;="])
def test_parameter_without_a_name_is_not_plain(end: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_via("SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx" + end)
    assert values.plain_contact(f"<sip:alice@192.0.2.1:5060;transport=udp{end}>") is None


@given(st.from_regex(values._PLAIN_VIA, fullmatch=True))
def test_plain_via_is_taken_apart_as_any_other(text: str) -> None:
    match, plain = values._VIA.match(text), values._PLAIN_VIA.match(text)
    assert match is not None
    assert plain is not None
    assert plain.groups() == match.groups()


@given(st.one_of(st.from_regex(values._CSEQ, fullmatch=True), st.from_regex(r"[0-9]{1,12} [A-Za-z.]+", fullmatch=True)))
def test_cseq_is_what_its_grammar_says(text: str) -> None:
    match = values._CSEQ.match(text)
    assert match is not None
    if int(match[1]) < 2**31:
        assert parse_cseq(text) == (int(match[1]), match[2])
    else:
        with pytest.raises(MalformedMessage):
            parse_cseq(text)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parsers_take_linear_time(parser: Callable[[str], object], shape: str) -> None:
    assert_linear(parser, shape)
