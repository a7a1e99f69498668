from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.errors import MalformedMessage
from sipha.sip.uri import _PLAIN_URI, _SIP_URI, OtherUri, SipUri, _ipv6_literal, ip_literal, parse_uri


def sip(text: str) -> SipUri:
    uri = parse_uri(text)
    assert isinstance(uri, SipUri)
    return uri


def test_parse_uri_takes_a_uri_apart() -> None:
    uri = sip("sip:Alice;x=1:se%63ret@Example.COM:5070;transport=TCP;lr;a=b?Subject=x&priority=urgent")
    assert uri.scheme == "sip"
    assert uri.user == "Alice;x=1"
    assert uri.password == "se%63ret"
    assert uri.host == "example.com"
    assert uri.port == 5070
    assert uri.params == (("transport", "TCP"), ("lr", None), ("a", "b"))
    assert uri.headers == "Subject=x&priority=urgent"


@pytest.mark.parametrize(
    "text",
    [
        "sip:example.com",
        "sips:alice@example.com",
        "sip:alice:@example.com",
        "sip:+15551234;phone-context=x@example.com;user=phone",
        "sip:[2001:db8::1]:5060;transport=tcp",
        "sip:alice@[2001:db8::10:5070]",
        "sip:*98#@example.com",
        "sip:alice@example.com;lr?a=b",
        "tel:+1-201-555-0123",
        "urn:service:sos",
    ],
)
def test_str_gives_the_text_back(text: str) -> None:
    assert str(parse_uri(text)) == text


def test_sip_uri_accepts_scheme_and_host_in_any_case() -> None:
    assert str(sip("SIP:Alice@EXAMPLE.com")) == "sip:Alice@example.com"


def test_parse_uri_returns_other_schemes_whole() -> None:
    assert parse_uri("TEL:+1201;phone-context=x") == OtherUri("tel", "+1201;phone-context=x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "sip:",
        "sip:@example.com",
        "sip:alice@",
        "sip:alice@example.com:port",
        "sip:alice@example.com:0",
        "sip:alice@example.com:65536",
        "sip:alice@example.com:123456",
        "sip:2001:db8::10",
        "sip:alice@[2001:db8::1",
        "sip:a b@example.com",
        "sip: alice@example.com",
        "sip:alice@example.com ",
        "sip:alice@example.com;lr ;x",
        "sip:alice@example.com;;lr",
        "sip:alice%4@example.com",
        "sip:alice%zz@example.com",
        "sip:alice@bob@example.com",
        "<sip:alice@example.com>",
        "sip:alice@exam_ple.com\r\nVia: x",
        "sip:alice@exa\xa0mple.com",
        "sip:alice@example.com:٣",
        "1tel:5",
    ],
)
def test_parse_uri_refuses(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_uri(text)


def test_param_finds_names_in_any_case() -> None:
    uri = sip("sip:example.com;Transport=tcp;LR")
    assert uri.param("transport") == "tcp"
    assert uri.param("lr") is None
    assert uri.has_param("lr")
    assert not uri.has_param("ob")


def test_with_and_without_params_change_a_copy() -> None:
    uri = sip("sip:example.com;a=1;lr;B=2")
    assert str(uri.without_params("b", "lr")) == "sip:example.com;a=1"
    assert str(uri.with_params(("a", "9"), ("ob", None))) == "sip:example.com;lr;B=2;a=9;ob"
    assert str(uri) == "sip:example.com;a=1;lr;B=2"


@pytest.mark.parametrize(
    ("text", "transport", "address"),
    [
        ("sip:192.0.2.1", "UDP", ("192.0.2.1", 5060)),
        ("sip:a@192.0.2.1:5070;transport=tcp", "TCP", ("192.0.2.1", 5070)),
        ("sips:a@192.0.2.1", "TLS", ("192.0.2.1", 5061)),
        ("sips:a@192.0.2.1;transport=tcp", "TLS", ("192.0.2.1", 5061)),
        ("sips:a@192.0.2.1;transport=ws", "WSS", ("192.0.2.1", 443)),
        ("sip:a@192.0.2.1;transport=ws", "WS", ("192.0.2.1", 80)),
        ("sip:[2001:DB8::0:1]", "UDP", ("2001:db8::1", 5060)),
        ("sip:a@example.com;maddr=192.0.2.9", "UDP", ("192.0.2.9", 5060)),
        ("sip:a@192.0.2.1;maddr=[2001:db8::9]:", "UDP", None),
        ("sip:a@example.com", "UDP", None),
        ("sip:a@192.0.2.256", "UDP", None),
        ("sip:a@[2001:db8:::192.0.2.1]", "UDP", None),
    ],
)
def test_address_follows_host_maddr_and_transport(text: str, transport: str, address: tuple[str, int] | None) -> None:
    assert sip(text).transport == transport
    assert sip(text).address == address


# RFC 3261 §19.1.4: "The URIs within each of the following sets are equivalent"
EQUIVALENT = [
    ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
    ("sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on"),
    (
        "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
        "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
    ),
    (
        "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
        "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
    ),
    # and, of our own:
    ("sip:[2001:db8::1]", "sip:[2001:DB8:0:0::1]"),
    ("sip:a%3bb@example.com", "sip:a%3Bb@example.com"),
    ("sip:a@example.com;x=%41", "sip:a@example.com;x=a"),
    ("sip:é@example.com", "sip:%C3%A9@example.com"),
    ("tel:+1201", "TEL:+1201"),
]

# "The URIs within each of the following sets are not equivalent"
DIFFERENT = [
    ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
    ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
    ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
    # and, of our own:
    ("sip:alice@example.com", "sips:alice@example.com"),
    ("sip:alice@example.com", "sip:alice:@example.com"),
    ("sip:example.com", "sip:alice@example.com"),
    ("sip:alice@example.com", "sip:alice@example.com;user=phone"),
    ("sip:alice@example.com", "sip:alice@example.com;ttl=1"),
    ("sip:alice@example.com", "sip:alice@example.com;method=INVITE"),
    ("sip:alice@example.com", "sip:alice@example.com;maddr=192.0.2.1"),
    ("sip:a;b@example.com", "sip:a%3Bb@example.com"),
    ("sip:%00@example.com", "sip:%00%00@example.com"),
    ("sip:alice@example.com", "tel:+1201"),
]


@pytest.mark.parametrize(("one", "other"), EQUIVALENT)
def test_equivalent_uris_match_both_ways(one: str, other: str) -> None:
    assert parse_uri(one).comparable.equivalent(parse_uri(other).comparable)
    assert parse_uri(other).comparable.equivalent(parse_uri(one).comparable)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_uris_match_neither_way(one: str, other: str) -> None:
    assert not parse_uri(one).comparable.equivalent(parse_uri(other).comparable)
    assert not parse_uri(other).comparable.equivalent(parse_uri(one).comparable)


def test_equivalence_is_not_transitive() -> None:
    plain, on, off = (sip("sip:carol@chicago.com" + params) for params in ("", ";security=on", ";security=off"))
    assert on.comparable.equivalent(plain.comparable)
    assert plain.comparable.equivalent(off.comparable)
    assert not on.comparable.equivalent(off.comparable)


@pytest.mark.parametrize(
    ("text", "aor"),
    [
        ("sip:alice@Example.COM:5070;transport=tcp?a=b", "sip:alice@example.com"),
        ("sips:alice@example.com", "sip:alice@example.com"),
        ("sip:Alice:secret@example.com", "sip:Alice@example.com"),
        ("sip:%61lice@example.com", "sip:alice@example.com"),
        ("sip:%2B1555@example.com", "sip:+1555@example.com"),
        ("sip:+1555;ext=1@example.com", "sip:+1555;ext=1@example.com"),
        ("sip:a%40b@example.com", "sip:a%40b@example.com"),
        ("sip:a%3ab@example.com", "sip:a%3Ab@example.com"),
        ("sip:null-%00-null@example.com", "sip:null-%00-null@example.com"),
        ("sip:%2541@example.com", "sip:%2541@example.com"),
        ("sip:é@example.com", "sip:%C3%A9@example.com"),
        ("sip:%c3%a9@example.com", "sip:%C3%A9@example.com"),
        ("sip:%ff@example.com", "sip:%FF@example.com"),
        ("sip:example.com", "sip:example.com"),
        ("sip:a@[2001:DB8:0::1]", "sip:a@[2001:db8::1]"),
    ],
)
def test_aor_is_canonical(text: str, aor: str) -> None:
    assert sip(text).aor() == aor
    assert sip(aor).aor() == aor


def test_aor_folds_case_where_the_domain_says_so() -> None:
    assert sip("sip:AL%49CE@Example.com").aor(case_sensitive=False) == "sip:alice@example.com"
    assert sip("sip:ALICE@Example.com").aor() == "sip:ALICE@example.com"


def test_aor_is_unescaped_once_whatever_the_case() -> None:
    for case_sensitive in (True, False):
        assert sip("sip:%2561lice@example.com").aor(case_sensitive=case_sensitive) == "sip:%2561lice@example.com"


def test_ip_literal_remembers_nothing_that_is_too_long_for_one() -> None:
    remembered = _ipv6_literal.cache_info().currsize
    assert ip_literal(":" * 60_000) is None
    assert ip_literal("[" + "1" * 60_000 + "::]") is None
    assert _ipv6_literal.cache_info().currsize == remembered
    assert ip_literal("[FFFF:FFFF:FFFF:FFFF:FFFF:FFFF:255.255.255.255]") == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


@pytest.mark.parametrize(
    "shape",
    [
        "sip:{}@",
        "sip:{}@x y",
        "sip:x{}",
        "sip:x;{} ",
        "sip:x?{} ",
        "sip:%41{}",
        "sip:x:{}",
        "{}",
        "sip:[{}",
    ],
)
@pytest.mark.parametrize("filling", ["a", "%41", ";a", ";a=b", ":", "&a=b", " ", "."])
def test_parse_uri_takes_linear_time(shape: str, filling: str) -> None:
    def seconds(size: int) -> float:
        text = shape.format(filling * (size // len(filling)))
        best = 1.0
        for _ in range(3):
            start = time.process_time()
            with suppress(MalformedMessage):
                parse_uri(text)
            best = min(best, time.process_time() - start)
        return best

    # Sixteen times the length takes sixteen times as long, or 256 times if it were quadratic.
    assert seconds(64_000) < max(100 * seconds(4_000), 0.01)


@pytest.mark.parametrize("params", [";", ";x;", ";x=1;", ";=", ";x=1;=", ";x=1;;y"])
def test_uri_with_a_parameter_without_a_name_is_not_plain(params: str) -> None:
    assert _PLAIN_URI.match("sip:alice@192.0.2.1:5060" + params) is None


@given(st.from_regex(_PLAIN_URI, fullmatch=True))
def test_plain_uri_is_taken_apart_as_any_other(text: str) -> None:
    match = _SIP_URI.match(text)
    assert match is not None
    scheme, user, password, host, port, params, headers = match.groups()
    plain = _PLAIN_URI.match(text)
    assert plain is not None
    assert plain.groups() == (scheme, user, host, port, params)
    assert (password, headers) == (None, None)
