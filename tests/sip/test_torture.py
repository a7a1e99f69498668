"""RFC 4475 and RFC 5118 at the level of the parser: what parses, what is refused, and what can be answered.

The manifests beside the messages say what a registrar and proxy must do with each. Here stands what of that the
parser decides; what a URI, a contact or a Max-Forwards decides is asserted below, where it is asked for.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sipha.errors import MalformedMessage
from sipha.sip.message import Request, response_to
from sipha.sip.parser import ParseError, StreamParser, parse
from sipha.sip.uri import OtherUri, SipUri
from sipha.sip.values import parse_auth_params

TORTURE = Path(__file__).parent / "torture"
SAMPLES = sorted((Path(__file__).parents[2].parent / "shared/sip-torture/messages").glob("*.sip"))

# The status of the refusal, and whether it can be sent; whatever isn't here has to parse.
REFUSED = {
    "badinv01": (400, False),  # the Via itself is broken: nobody knows where an answer should go
    "clerr": (400, True),
    "ncl": (400, True),
    "scalar02": (400, True),
    "scalarlg": (400, False),  # a response is dropped
    "quotbal": (400, True),
    "ltgtruri": (400, True),
    "lwsruri": (400, True),
    "lwsstart": (400, True),  # might be accepted, but "must not forward the extra SP"
    "trws": (400, True),
    "badaspec": (400, True),
    "baddn": (400, True),  # besides, the archive's file lacks the empty line: it may be cut off
    "badvers": (505, True),
    "mismatch01": (400, True),
    "mismatch02": (400, True),
    "bigcode": (400, False),
    "insuf": (400, False),  # without From, To and Call-ID there is nothing to make an answer of
    "multi01": (400, True),
    "mcl01": (400, True),
    "test": (400, False),  # an odd file of the archive: no version, and a line that is no header field
    "ipv6-bad": (400, True),
}


def archive() -> list[Path]:
    return sorted(TORTURE.glob("rfc*/*.dat"))


def message(name: str) -> Request:
    (path,) = TORTURE.glob(f"rfc*/{name}.dat")
    parsed = parse(path.read_bytes())
    assert isinstance(parsed, Request)
    return parsed


def test_the_archive_is_whole() -> None:
    for folder, files in (("rfc4475", 50), ("rfc5118", 12)):
        manifest = json.loads((TORTURE / folder / "manifest.json").read_text())
        assert {f"{entry['name']}.dat" for entry in manifest} == {
            path.name for path in (TORTURE / folder).glob("*.dat")
        }
        assert len(manifest) == files
    assert REFUSED.keys() <= {path.stem for path in archive()}


@pytest.mark.parametrize("path", archive(), ids=lambda path: path.stem)
def test_torture_message_gets_its_verdict(path: Path) -> None:
    data = path.read_bytes()
    if path.stem not in REFUSED:
        assert data.startswith(parse(data).render().partition(b"\r\n")[0])
        return
    with pytest.raises(ParseError) as caught:
        parse(data)
    status, answerable = REFUSED[path.stem]
    assert caught.value.response_status == status
    assert (caught.value.request is not None) == answerable
    if caught.value.request is not None:
        answer = response_to(caught.value.request, status, to_tag="t").render()
        assert answer.startswith(b"SIP/2.0 %d " % status)
        assert answer.endswith(b"\r\nContent-Length: 0\r\n\r\n")


def test_wsinv_is_understood_and_kept() -> None:
    data = (TORTURE / "rfc4475/wsinv.dat").read_bytes()
    wsinv = parse(data)
    assert wsinv.render() == data
    assert wsinv.to.tag == "1918181833n"
    assert wsinv.from_.display == 'J Rosenberg \\"'
    assert wsinv.max_forwards == 68
    assert wsinv.cseq.number == 9
    assert [(via.transport, via.host) for via in wsinv.vias] == [
        ("UDP", "192.0.2.2"),
        ("TCP", "spindle.example.com"),
        ("UDP", "192.168.255.111"),
    ]
    assert wsinv.vias[0].branch == "390skdjuw"
    assert wsinv.headers.get("UnknownHeaderWithUnusualValue") == ";;,,;;,;"
    assert [route.uri for route in wsinv.routes] == ["sip:services.example.com;lr;unknownwith=value;unknown-no-value"]
    (contact,) = wsinv.contacts
    assert contact.display == 'Quoted string ""'
    assert contact.param("newparam") == "newvalue"
    assert contact.has_param("secondparam")
    assert contact.q == 330


def test_intmeth_has_a_method_of_all_token_characters() -> None:
    intmeth = message("intmeth")
    assert intmeth.method == intmeth.cseq.method == "!interesting-Method0123456789_*+`.%indeed'~"
    assert intmeth.from_.display == "token1~` token2'+_ token3*%!.-"
    assert intmeth.from_.param("fromparam''~+*_!.-%") == "\u0440\u0430\u0431\u043e\u0442\u0430\u044e\u0449\u0438\u0439"


def test_escapes_are_compared_and_not_decoded_twice() -> None:
    esc01 = message("esc01")
    assert isinstance(esc01.parsed_uri, SipUri)
    assert esc01.parsed_uri.user == "sips%3Auser%40example.com"
    assert message("esc02").method == "RE%47IST%45R"
    one, other = (contact.parsed_uri for contact in message("escnull").contacts)
    assert isinstance(one, SipUri)
    assert isinstance(other, SipUri)
    assert not one.comparable.equivalent(other.comparable)
    assert (one.aor(), other.aor()) == ("sip:%00@host5.example.com", "sip:%00%00@host5.example.com")


def test_semiuri_keeps_semicolons_in_the_user() -> None:
    uri = message("semiuri").parsed_uri
    assert isinstance(uri, SipUri)
    assert (uri.user, uri.params) == ("user;par=u%40example.net", ())


def test_dblreq_is_one_request() -> None:
    dblreq = message("dblreq")
    assert dblreq.method == "REGISTER"
    assert dblreq.body == b""


def test_dblreq_is_two_requests_in_a_stream() -> None:
    data = (TORTURE / "rfc4475/dblreq.dat").read_bytes()
    parser = StreamParser()
    parser.feed(data)
    taken = (message for message in iter(parser.next, None) if isinstance(message, Request))
    assert next(taken).method == "REGISTER"
    invite = next(taken)
    assert invite.method == "INVITE"
    assert invite.render() in data


def test_longreq_and_transports_keep_their_vias() -> None:
    assert len(message("longreq").vias) == 34
    assert [via.transport for via in message("transports").vias] == ["UDP", "SCTP", "TLS", "UNKNOWN", "TCP"]


def test_mpart01_keeps_its_body() -> None:
    data = (TORTURE / "rfc4475/mpart01.dat").read_bytes()
    assert parse(data).render() == data


def test_contact_parameters_are_told_from_uri_parameters() -> None:
    (outside,) = message("cparam01").contacts
    assert outside.uri == "sip:+19725552222@gw1.example.net"
    assert outside.has_param("unknownparam")
    (inside,) = message("cparam02").contacts
    assert inside.uri == "sip:+19725552222@gw1.example.net;unknownparam"
    assert inside.params == ""


def test_regbadct_is_refused_when_its_contact_is_asked_for() -> None:
    # §20.10 wants brackets around a URI with a question mark; the REGISTER's other headers are sound.
    with pytest.raises(MalformedMessage, match="Contact"):
        _ = message("regbadct").contacts


def test_escaped_headers_are_told_from_the_uri() -> None:
    for uri in (message("escruri").parsed_uri, message("regescrt").contacts[0].parsed_uri):
        assert isinstance(uri, SipUri)
        assert uri.headers.startswith("Route=%3Csip:")
        assert uri.params == ()


def test_foreign_schemes_are_uris() -> None:
    assert message("unkscm").parsed_uri == OtherUri("nobodyknowsthisscheme", "totallyopaquecontent")
    assert message("novelsc").parsed_uri == OtherUri("soap.beep", "//192.0.2.103:3002")
    assert message("unksm2").to.parsed_uri == OtherUri("isbn", "2983792873")


def test_scalars_are_bounded() -> None:
    assert message("zeromf").max_forwards == 0
    assert message("badbranch").via.branch == "z9hG4bK"
    assert message("inv2543").max_forwards is None
    assert message("inv2543").via.branch is None
    assert message("inv2543").from_.tag is None


def test_regaut01_has_credentials_of_an_unknown_scheme() -> None:
    text = message("regaut01").headers.get("Authorization")
    assert text is not None
    assert parse_auth_params(text) == ("NoOneKnowsThisScheme", {"opaque-data": "here"})


def test_ipv6_ports_are_told_from_addresses() -> None:
    for name, host, port in (
        ("ipv6-good", "[2001:db8::10]", None),
        ("port-ambiguous", "[2001:db8::10:5070]", None),
        ("port-unambiguous", "[2001:db8::10]", 5070),
        # The grammar's three colons (RFC 5118 §4.10) parse; what they mean is no address.
        ("ipv6-bug-abnf-3-colons", "[2001:db8:::192.0.2.1]", None),
        ("ipv6-correct-abnf-2-colons", "[2001:db8::192.0.2.1]", None),
    ):
        uri = message(name).parsed_uri
        assert isinstance(uri, SipUri)
        assert (uri.host, uri.port) == (host, port)
        assert (uri.address is None) == (":::" in host)


def test_ipv6_vias_are_understood() -> None:
    assert message("via-received-param-no-delim").via.received == "2001:db8::9:255"
    assert message("via-received-param-with-delim").via.received == "2001:db8::9:255"
    assert len(message("mult-ip-in-header").vias) == 3
    via = message("ipv4-mapped-ipv6").via
    assert (via.host, via.port) == ("[::ffff:192.0.2.10]", 19823)


@pytest.mark.skipif(not SAMPLES, reason="the samples are not part of the repository")
def test_samples_of_real_stacks_never_crash_or_hang() -> None:
    parsed = 0
    for path in SAMPLES:
        data = path.read_bytes()
        start = time.process_time()
        for chunk in (data, data + data, data[: len(data) // 2]):
            parser = StreamParser()
            parser.feed(chunk)
            for _ in range(len(chunk) + 1):
                try:
                    if parser.next() is None:
                        break
                except ParseError:
                    continue
            else:
                pytest.fail(f"{path.name}: the stream doesn't end")
        with suppress(ParseError):
            found = parse(data)
            parsed += 1
            for name in ("vias", "contacts", "routes", "record_routes", "paths", "max_forwards", "expires"):
                with suppress(MalformedMessage):
                    getattr(found, name)
            again = parse(found.render())
            assert again.headers.lines == found.headers.lines
        assert time.process_time() - start < 1
    # Most are sound; a parser that refuses them all would not crash either.
    assert parsed > 0.75 * len(SAMPLES)
