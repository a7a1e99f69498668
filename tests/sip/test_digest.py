from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.errors import MalformedMessage
from sipha.sip import digest
from sipha.sip.digest import Credentials, parse_credentials
from sipha.sip.headers import parse_auth_params

VECTORS = json.loads((Path(__file__).parent / "digest_vectors.json").read_text())
USUAL = (
    'Digest username="bob", realm="biloxi.com", nonce="dcd98b", uri="sip:bob@biloxi.com", '
    'response="89eb0059246c02b2f6ee02c7961d5ea3", algorithm=MD5, qop=auth, cnonce="0a4f113b", nc=00000001'
)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_response_is_that_of_the_vector(vector: dict[str, str]) -> None:
    algorithm = vector.get("algorithm", "MD5")
    ha1 = digest.ha1(algorithm, vector["username"], vector["realm"], vector["password"])
    ha2 = digest.ha2(algorithm, vector["method"], vector["uri"])
    got = digest.response(
        algorithm,
        ha1,
        ha2,
        vector["nonce"],
        nc=vector.get("nc", ""),
        cnonce=vector.get("cnonce", ""),
        qop=vector.get("qop", ""),
    )
    assert got == vector["expected"]


def test_sha_512_256_is_the_truncated_hash_with_its_own_start_value() -> None:
    # FIPS 180-4's example for "abc"; RFC 7616's own SHA-512-256 example is known to be wrong.
    expected = "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23"
    assert digest.ALGORITHMS["SHA-512-256"](b"abc") == expected


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", "SHA-512-256"])
def test_session_algorithm_shares_the_stored_hash_but_not_the_response(algorithm: str) -> None:
    session = algorithm + "-sess"
    ha1 = digest.ha1(algorithm, "bob", "realm", "secret")
    assert digest.ha1(session, "bob", "realm", "secret") == ha1
    assert digest.base(session) == algorithm
    given_ = {"nc": "00000001", "cnonce": "c", "qop": "auth"}
    assert digest.response(session, ha1, "x", "n", **given_) != digest.response(algorithm, ha1, "x", "n", **given_)


def test_hashes_of_requests_are_remembered_if_they_are_short() -> None:
    credentials = Credentials("bob", "realm", "n", "sip:" + "x" * 200, "", "SHA-256", "auth", "c", "00000001")
    remembered = digest._cached_ha2.cache_info
    before = remembered().currsize
    for uri in (credentials.uri, credentials.uri * 2):
        assert not digest.proves("", "REGISTER", credentials._replace(uri=uri))
    assert remembered().currsize == before + 1
    assert remembered().maxsize is not None


def test_usual_credentials_are_read() -> None:
    assert parse_credentials(USUAL) == Credentials(
        "bob",
        "biloxi.com",
        "dcd98b",
        "sip:bob@biloxi.com",
        "89eb0059246c02b2f6ee02c7961d5ea3",
        "MD5",
        "auth",
        "0a4f113b",
        "00000001",
    )


def test_unusual_spelling_means_the_same() -> None:
    unusual = (
        'dIGEST  Nc = 00000001 ,CNONCE="0a4f113b",qop="auth",algorithm="md5",opaque="",'
        'response="89eb0059246c02b2f6ee02c7961d5ea3",uri="sip:bob@biloxi.com", x=y,nonce="dcd98b",'
        'realm="bil\\oxi.com",username="bob"'
    )
    assert parse_credentials(unusual) == parse_credentials(USUAL)


def test_credentials_of_another_scheme_are_none_of_ours() -> None:
    assert parse_credentials("NoOneKnowsThisScheme opaque-data=here") is None
    assert parse_credentials("Digestive x=y") is None
    assert parse_credentials("") is None


def test_escaped_quote_is_part_of_the_username() -> None:
    credentials = parse_credentials(USUAL.replace('"bob"', '"b\\"o\\\\b, realm=x"'))
    assert credentials is not None
    assert credentials.username == 'b"o\\b, realm=x'
    assert credentials.realm == "biloxi.com"


@pytest.mark.parametrize("name", ["username", "realm", "nonce", "uri", "response", "algorithm", "qop", "cnonce", "nc"])
def test_parameter_twice_is_refused(name: str) -> None:
    value = dict(part.split("=", 1) for part in USUAL.removeprefix("Digest ").split(", "))[name]
    for other in (value, '"other"', "other"):
        for spelling in (name, name.upper()):
            with pytest.raises(MalformedMessage):
                parse_credentials(f"{USUAL}, {spelling}={other}")
            with pytest.raises(MalformedMessage):
                parse_credentials(USUAL.replace("Digest ", f"Digest {spelling}={other}, "))


@pytest.mark.parametrize("name", ["username", "realm", "nonce", "uri", "response", "cnonce", "nc"])
def test_missing_parameter_is_refused(name: str) -> None:
    parts = [part for part in USUAL.removeprefix("Digest ").split(", ") if not part.startswith(name + "=")]
    with pytest.raises(MalformedMessage):
        parse_credentials("Digest " + ", ".join(parts))


@pytest.mark.parametrize("count", ["", "0x1", "-1", "+1", "1_0", "000000001", "g", "\N{DEVANAGARI DIGIT ONE}"])
def test_nonce_count_must_be_hexadecimal(count: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_credentials(USUAL.replace("nc=00000001", f"nc={count}"))


@pytest.mark.parametrize(
    "value",
    ["Digest ", "Digest x", 'Digest username="bob', "Digest " + '"' * 99, "Digest =, =", "Digest " + "a=b," * 2000],
)
def test_garbage_is_refused(value: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_credentials(value)


@given(st.text(alphabet='abcnu="\\,; \t\r\n\0é\udc80', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        credentials = parse_credentials("Digest " + text)
    except MalformedMessage:
        return
    assert credentials is not None


NAMES = ["username", "realm", "nonce", "uri", "response", "algorithm", "qop", "cnonce", "nc", "opaque"]
PAIRS = st.tuples(st.sampled_from(NAMES), st.sampled_from(["{}", '"{}"']), st.sampled_from(["", "a", "a1=", "auth"]))


@given(st.lists(PAIRS, min_size=5, max_size=12))
def test_both_ways_of_reading_agree(pairs: list[tuple[str, str, str]]) -> None:
    value = "Digest " + ", ".join(f"{name}={form.format(text)}" for name, form, text in pairs)
    try:
        credentials = parse_credentials(value)
    except MalformedMessage:
        return
    assert credentials is not None
    params = parse_auth_params(value)[1]
    assert len(params) == len(pairs)
    assert credentials.username == params["username"]
    assert credentials.response == params["response"]
    assert credentials.qop == params.get("qop", "")
    assert credentials.nc == params.get("nc", "")


def test_challenge_quotes_the_realm() -> None:
    value = digest.challenge('a "b\\', "0011", "SHA-256", stale=True)
    scheme, params = parse_auth_params(value)
    assert scheme == "Digest"
    assert params == {
        "realm": 'a "b\\',
        "nonce": "0011",
        "algorithm": "SHA-256",
        "qop": "auth",
        "stale": "true",
    }
