from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.auth.domain import Domain, Domains
from sipha.errors import MalformedMessage
from sipha.sip.uri import parse_uri

FIRST = Domain("first.test", "first", aliases=frozenset(("www.first.test",)))
SECOND = Domain("Second.test", "second", case_sensitive=False)
DOMAINS = Domains((FIRST, SECOND), addresses=("192.0.2.10", "[2001:db8::10]"))


@pytest.mark.parametrize(
    ("uri", "domain", "aor"),
    [
        ("sip:alice@first.test", FIRST, "sip:alice@first.test"),
        ("sip:alice@FIRST.test:5070;transport=tcp", FIRST, "sip:alice@first.test"),
        ("sips:alice@first.test", FIRST, "sip:alice@first.test"),
        ("sip:Alice@www.first.test", FIRST, "sip:Alice@first.test"),
        ("sip:%61lice@first.test", FIRST, "sip:alice@first.test"),
        ("sip:Alice@second.TEST", SECOND, "sip:alice@second.test"),
        ("sip:alice@192.0.2.10:5060", FIRST, "sip:alice@first.test"),
        ("sip:alice@[2001:DB8::10]", FIRST, "sip:alice@first.test"),
        ("sip:alice@[2001:db8:0:0::10]:5060", FIRST, "sip:alice@first.test"),
        ("sip:+1-555@first.test;user=phone", FIRST, "sip:+1-555@first.test"),
    ],
)
def test_domains_locate_an_aor(uri: str, domain: Domain, aor: str) -> None:
    assert DOMAINS.locate(parse_uri(uri)) == (domain, aor)
    assert DOMAINS.locate_text(uri) == (domain, aor)


@pytest.mark.parametrize("uri", ["sip:alice@third.test", "sip:first.test", "tel:+1555", "sip:alice@sub.first.test"])
def test_domains_locate_nothing_of_others(uri: str) -> None:
    assert DOMAINS.locate_text(uri) is None


def test_domains_keep_escaped_nul() -> None:
    assert DOMAINS.locate_text("sip:null-%00-null@first.test") == (FIRST, "sip:null-%00-null@first.test")


def test_domains_remember_what_a_request_uri_names() -> None:
    for _ in range(2):
        assert DOMAINS.of("sip:www.first.test;x") is FIRST
        assert DOMAINS.of("sip:third.test") is None
        assert DOMAINS.of("tel:+1555") is None
        with pytest.raises(MalformedMessage):
            DOMAINS.of("sip:2001:db8::10")


USERS = st.text(alphabet="aZ09-_.+!~*'()&=$,;?/%41@: \"", min_size=1, max_size=8)


@given(USERS, st.sampled_from(["first.test", "SECOND.test", "192.0.2.10", "third.test"]))
def test_short_way_to_an_aor_agrees_with_the_long_one(user: str, host: str) -> None:
    text = f"sip:{user}@{host}"
    try:
        expected = DOMAINS.locate(parse_uri(text))
    except MalformedMessage:
        with pytest.raises(MalformedMessage):
            DOMAINS.locate_text(text)
        return
    assert DOMAINS.locate_text(text) == expected
