"""Digest access authentication (RFC 7616, RFC 8760): the arithmetic, credentials and challenges, and nothing kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from hmac import compare_digest
from types import MappingProxyType
from typing import NamedTuple

from sipha.errors import MalformedMessage
from sipha.sip.headers import parse_auth_params

MAX_CREDENTIALS = 4096
"""Credentials longer than this are malformed; it bounds the work of parsing them."""

QOP = "auth"
"""The quality of protection that is offered. auth-int is not: a proxy on the way may change a body (RFC 3261 §22.4)."""

_PARAMETERS = ("username", "realm", "nonce", "uri", "response", "algorithm", "qop", "cnonce", "nc")
_USUAL = re.compile(
    r'(?:username="([^"\\]*+)"|realm="([^"\\]*+)"|nonce="([^"\\]*+)"|uri="([^"\\]*+)"|response="([0-9a-f]*+)"'
    r'|algorithm="?([A-Za-z0-9-]++)"?|qop="?([a-z-]++)"?|cnonce="([^"\\]*+)"|nc="?([0-9a-f]{1,8}+)"?|,[ \t]*+)*\Z'
)
_COUNT = re.compile(r"[0-9a-fA-F]{1,8}", re.ASCII)
_CACHED_LENGTH = 256


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha512_256(data: bytes) -> str:
    return hashlib.new("sha512_256", data).hexdigest()


_HASHES: dict[str, Callable[[bytes], str]] = {"SHA-512-256": _sha512_256, "SHA-256": _sha256, "MD5": _md5}

ALGORITHMS: Mapping[str, Callable[[bytes], str]] = MappingProxyType(
    {name + suffix: _hash for name, _hash in _HASHES.items() for suffix in ("", "-sess")}
)
"""The hash of each algorithm, to lower-case hex; the strongest first, spelt as in a challenge."""

_SPELLING = {name.lower(): name for name in ALGORITHMS}


def base(algorithm: str) -> str:
    """The algorithm whose HA1 an account stores: that of MD5-sess is that of MD5."""
    return algorithm.removesuffix("-sess")


class Credentials(NamedTuple):
    """What an Authorization or Proxy-Authorization header field says, unquoted (RFC 7616 §3.4).

    `qop` and with it `cnonce` and `nc` are empty without qop; `nc` is as written, since it is hashed so.
    """

    username: str
    realm: str
    nonce: str
    uri: str
    response: str
    algorithm: str
    qop: str
    cnonce: str
    nc: str

    @property
    def nonce_count(self) -> int:
        """The nonce count as a number."""
        return int(self.nc, 16)


def parse_credentials(value: str) -> Credentials | None:
    """The digest credentials of a header field, or None if they are of another scheme (RFC 3261 §22.4).

    Raises MalformedMessage for what RFC 7616 §3.4 requires and is not there, and for a parameter given twice: which
    of the two counts must not depend on who reads it. An algorithm or qop that is unknown is kept as it is.
    """
    if value[:7].lower() != "digest ":
        return None
    if len(value) > MAX_CREDENTIALS:
        raise MalformedMessage("Credentials too long")
    match = _USUAL.match(value, 7)
    found = () if match is None else match.groups()
    # There must be an equals sign for each parameter that was found and no other: then none came twice.
    if match is None or value.count("=") != len(found) - found.count(None):
        fields = parse_auth_params(value)[1]
        found = tuple(map(fields.get, _PARAMETERS))
    elif found[5] in ALGORITHMS and all(found):
        return Credentials._make(found)
    username, realm, nonce, uri, response, algorithm, qop, cnonce, nc = found
    if username is None or realm is None or nonce is None or uri is None or response is None:
        raise MalformedMessage("Credentials lack username, realm, nonce, uri or response")
    # RFC 7616 §3.4: cnonce and nc "MUST be specified if a qop parameter is sent".
    if qop and not (cnonce and nc and _COUNT.fullmatch(nc)):
        raise MalformedMessage("Credentials lack cnonce or nc")
    algorithm = algorithm or "MD5"
    algorithm = _SPELLING.get(algorithm.lower(), algorithm)
    return Credentials(username, realm, nonce, uri, response, algorithm, qop or "", cnonce or "", nc or "")


def ha1(algorithm: str, username: str, realm: str, password: str) -> str:
    """H(username:realm:password), the stored form of a password; the same for an algorithm and its -sess."""
    return ALGORITHMS[algorithm](_bytes(f"{username}:{realm}:{password}"))


def ha2(algorithm: str, method: str, uri: str) -> str:
    """H(method:uri), RFC 7616 §3.4.3."""
    return ALGORITHMS[algorithm](_bytes(f"{method}:{uri}"))


def response(algorithm: str, ha1: str, ha2: str, nonce: str, *, nc: str = "", cnonce: str = "", qop: str = "") -> str:
    """The response of RFC 7616 §3.4.1; without qop that of RFC 2069, which has neither nc nor cnonce."""
    hash_ = ALGORITHMS[algorithm]
    if algorithm.endswith("-sess"):
        ha1 = hash_(_bytes(f"{ha1}:{nonce}:{cnonce}"))
    if qop:
        return hash_(_bytes(f"{ha1}:{nonce}:{nc}:{cnonce}:{qop}:{ha2}"))
    return hash_(_bytes(f"{ha1}:{nonce}:{ha2}"))


def proves(ha1: str, method: str, credentials: Credentials) -> bool:
    """Return True if the response in the credentials is that of who knows HA1; it tells nobody where it differs."""
    if credentials.algorithm == "MD5":
        return _proves_by_md5(ha1, method, credentials)
    return proves_by_hashlib(ha1, method, credentials)


def proves_by_hashlib(ha1: str, method: str, credentials: Credentials) -> bool:
    """Do as `proves` does."""
    _, _, nonce, uri, given, algorithm, qop, cnonce, nc = credentials
    asked = (_cached_ha2 if len(method) + len(uri) <= _CACHED_LENGTH else ha2)(algorithm, method, uri)
    expected = response(algorithm, ha1, asked, nonce, nc=nc, cnonce=cnonce, qop=qop)
    return given.isascii() and compare_digest(expected, given)


# Few methods and Request-URIs are in use.
_cached_ha2 = lru_cache(maxsize=4096)(ha2)


def _prover() -> Callable[[str, str, Credentials], bool]:
    try:
        from sipha.sip import _hashes  # noqa: PLC0415  if it has been built
    except ImportError:
        return proves_by_hashlib
    return _hashes.proves


_proves_by_md5 = _prover()


def challenge(realm: str, nonce: str, algorithm: str, *, stale: bool) -> str:
    """The value of a WWW-Authenticate or Proxy-Authenticate header field (RFC 7616 §3.3).

    The realm comes from the configuration; it is quoted all the same.
    """
    return (
        f'Digest realm="{quote(realm)}", nonce="{nonce}", algorithm={algorithm}, '
        f'qop="{QOP}"{", stale=true" if stale else ""}'
    )


def quote(text: str) -> str:
    """Text as it stands between the quotes of a quoted-string (RFC 3261 §25.1)."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
