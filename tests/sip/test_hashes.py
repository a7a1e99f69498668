"""The hashes in C beside those of hashlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.sip import digest
from sipha.sip.digest import Credentials, proves_by_hashlib
from sipha.sip.token import Tokens, macs_by_hashlib, nonces_by_hashlib
from tests.kernels import kernel

VECTORS = json.loads((Path(__file__).parent / "digest_vectors.json").read_text())
HASHES = kernel("sipha.sip._hashes")

texts = st.binary(max_size=200).map(lambda data: data.decode("utf-8", "surrogateescape"))


def credentials(response: str, **fields: str) -> Credentials:
    given = {"username": "u", "realm": "r", "nonce": "n", "uri": "sip:x", "qop": "auth", "cnonce": "c", "nc": "1"}
    return Credentials(**{"algorithm": "MD5", "response": response, **given, **fields})


def right(ha1: str, method: str, given: Credentials) -> str:
    asked = digest.ha2("MD5", method, given.uri)
    return digest.response("MD5", ha1, asked, given.nonce, nc=given.nc, cnonce=given.cnonce, qop=given.qop)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_kernel_proves_what_the_vector_says(vector: dict[str, str]) -> None:
    if vector.get("algorithm", "MD5") != "MD5":
        pytest.skip("MD5 alone is in C")
    ha1 = digest.ha1("MD5", vector["username"], vector["realm"], vector["password"])
    fields = {name: vector.get(name, "") for name in ("nonce", "uri", "qop", "cnonce", "nc")}
    assert HASHES.proves(ha1, vector["method"], credentials(vector["expected"], **fields)) is True
    assert HASHES.proves(ha1, vector["method"] + "x", credentials(vector["expected"], **fields)) is False


@given(ha1=texts, method=texts, nonce=texts, uri=texts, counted=st.tuples(texts, texts, texts), other=texts)
def test_kernel_proves_what_hashlib_does(  # noqa: PLR0917  what hypothesis draws
    ha1: str, method: str, nonce: str, uri: str, counted: tuple[str, str, str], other: str
) -> None:
    qop, cnonce, nc = counted
    given_ = credentials("", nonce=nonce, uri=uri, qop=qop, cnonce=cnonce, nc=nc)
    expected = right(ha1, method, given_)
    wrong = [expected[:place] + "x" + expected[place + 1 :] for place in range(len(expected))]
    for response in (expected, *wrong, expected.upper(), expected[:-1], expected + "0", expected + "\0", other):
        tried = given_._replace(response=response)
        assert HASHES.proves(ha1, method, tried) is proves_by_hashlib(ha1, method, tried)
    assert HASHES.proves(ha1, method, given_._replace(response=expected))


def test_kernel_makes_the_macs_that_hashlib_makes() -> None:
    message = "".join([chr(33 + place % 90) for place in range(400)])
    for size in range(1, 33):
        key = bytes(range(size))
        in_c, reference = HASHES.macs(key), macs_by_hashlib(key)
        for end in range(len(message)):
            assert in_c(message[:end]) == reference(message[:end])


@given(key=st.binary(min_size=1, max_size=32), text=texts)
def test_kernel_makes_the_macs_that_hashlib_makes_of_any_bytes(key: bytes, text: str) -> None:
    assert HASHES.macs(key)(text) == macs_by_hashlib(key)(text)


@given(
    key=st.binary(min_size=1, max_size=32),
    head=st.text("0123456789abcdef", min_size=26, max_size=26),
    place=st.integers(0, 60),
    piece=texts,
)
def test_kernel_reads_the_nonces_that_hashlib_does(key: bytes, head: str, place: int, piece: str) -> None:
    in_c, reference = HASHES.nonces(key), nonces_by_hashlib(key)
    nonce = head + macs_by_hashlib(key)(head)
    assert in_c(nonce) == reference(nonce) == (int(head[2:10], 16), int(head[10:18], 16))
    for spoilt in (
        piece, nonce[:place], nonce[place:], nonce[:place] + piece + nonce[place:], nonce + piece, nonce + "0",
        nonce[:place] + piece[:1] + nonce[place + 1 :], nonce.upper(), nonce[:-1] + "é",
    ):  # fmt: skip
        assert in_c(spoilt) == reference(spoilt)


def test_kernel_reads_the_nonces_of_tokens() -> None:
    tokens = Tokens({7: b"k" * 32})
    for term, now in ((0, 0), (1, 1000), (2**32 - 1, 2**32 - 1)):
        nonce = tokens.nonce(term, now, 1)
        assert tokens.read_nonce(nonce) == (term, now)
        head = nonce[:26]
        for key in (b"a", b"b"):
            assert HASHES.nonces(b"a")(head + HASHES.macs(key)(head)) == ((term, now) if key == b"a" else None)


def test_kernel_refuses_what_it_is_not_made_for() -> None:
    given_ = credentials("x")
    for arguments in ((), ("a", "b"), (b"a", "b", given_), ("a", b"b", given_), ("a", "b", list(given_))):
        with pytest.raises(TypeError):
            HASHES.proves(*arguments)
    for place in range(len(given_)):
        with pytest.raises(TypeError):
            HASHES.proves("a", "b", (*given_[:place], b"", *given_[place + 1 :]))
    with pytest.raises(TypeError):
        HASHES.proves("a", "b", given_[:-1])
    for key in (b"", bytes(33), "key"):
        with pytest.raises(ValueError, match="key"):
            HASHES.macs(key)
        with pytest.raises(ValueError, match="key"):
            HASHES.nonces(key)
    with pytest.raises(TypeError):
        HASHES.nonces(b"key")(b"")
    with pytest.raises(TypeError):
        HASHES.macs(b"key")(b"")
    assert HASHES.proves("a", "b", credentials("\ud800" * 32)) is proves_by_hashlib(
        "a", "b", credentials("\ud800" * 32)
    )
    for text in ("\ud800", "a\udfff"):  # nothing decodes to these
        with pytest.raises(UnicodeEncodeError):
            HASHES.macs(b"key")(text)
        for name in ("nonce", "uri", "cnonce"):
            with pytest.raises(UnicodeEncodeError):
                HASHES.proves("a", "b", given_._replace(**{name: text}))


def test_kernel_keeps_nothing_of_what_it_has_hashed() -> None:
    key, mac = b"key", HASHES.macs(b"key")
    given_ = credentials("é\udcff", nonce="ü", uri="sip:é", cnonce="ö")
    watched = (key, mac, given_, *given_)
    before = list(map(sys.getrefcount, watched))
    blocks = []
    for _ in range(3):
        blocks.append(sys.getallocatedblocks())
        for _ in range(1000):
            HASHES.macs(key)("é")
            HASHES.nonces(key)("a" * 26 + HASHES.macs(key)("a" * 26))
            mac("a")
            HASHES.proves("ä", "REGISTER", given_)
    assert list(map(sys.getrefcount, watched)) == before
    assert blocks[2] - blocks[1] < 100
