"""SIP and other URIs (RFC 3261 §19.1): parsing, comparison and the canonical form of an address-of-record."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from sipha.errors import MalformedMessage
from sipha.sip.flow import Address

Param = tuple[str, str | None]

# So that no input takes more than linear time, a class that could match where the next item does is possessive, and no
# two alternatives begin alike. (Groups are not possessive: Python before 3.11.5 goes on where their last try failed.)
_SIP_URI = re.compile(
    r"(sips?):"
    r"(?:((?:[^@:<>\"\s\x00-\x1f%]++|%[0-9a-f]{2})+)(?::((?:[^@:<>\"\s%]++|%[0-9a-f]{2})*))?@)?"
    r"([a-z0-9._-]++|\[[0-9a-f:.]++\])(?::([0-9]{1,5}))?"
    r"((?:;[^;?@<>\"\s]++)*)"
    r"(?:\?([^@<>\"\s]*+))?\Z",
    re.IGNORECASE | re.ASCII,
)
# What most URIs are: what it takes, the pattern above takes apart in the same way, and slower.
_PLAIN_URI = re.compile(
    r"(sips?):(?:([A-Za-z0-9\-_.+]++)@)?([a-z0-9.\-]++)(?::([0-9]{1,5}))?"
    r"((?:;[A-Za-z0-9\-_.]++(?:=[A-Za-z0-9\-_.]++)?)*)\Z"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}\Z")
_OTHER_URI = re.compile(r"([a-z][a-z0-9+.-]*+):([^<>\"\s]++)\Z", re.IGNORECASE | re.ASCII)
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNSAFE_IN_USER = re.compile(r"[^A-Za-z0-9\-_.!~*'()&=+$,;?/]")
_RESERVED = frozenset(";/?:@&=+$,")
# "A user, ttl, or method uri-parameter appearing in only one URI never matches, even if it contains the default
# value. A URI that includes an maddr parameter will not match a URI that contains no maddr parameter." (§19.1.4)
# Of transport it says the same only for the default value; its examples say "can resolve to different transports".
_NEVER_IGNORED = frozenset(("user", "ttl", "method", "maddr", "transport"))

_LONGEST_LITERAL = 64  # IPv6 that ends in IPv4, a zone, and brackets

_DEFAULT_PORTS = {"TLS": 5061, "WS": 80, "WSS": 443}


class Comparable(NamedTuple):
    """What RFC 3261 §19.1.4 compares of a URI: parts that must be equal, and parameters that must if in both."""

    parts: tuple[object, ...]
    params: dict[str, str]

    def equivalent(self, other: Comparable) -> bool:
        """Return True if the URIs are equal, which is not transitive."""
        if self.parts != other.parts:
            return False
        theirs = other.params
        for name, value in self.params.items():  # noqa: SIM110  a generator takes twice the time
            if theirs.get(name, value) != value:
                return False
        return True


class SipUri(NamedTuple):
    """A sip: or sips: URI, its parts as they were written save scheme and host, which are in lower case.

    `user` is still escaped. `host` is a name, an IPv4 literal, or an IPv6 literal in brackets. `headers` is what
    follows the question mark.
    """

    scheme: str
    user: str | None
    password: str | None
    host: str
    port: int | None
    params: tuple[Param, ...] = ()
    headers: str = ""

    def param(self, name: str) -> str | None:
        """Return the value of a URI parameter; None if it is absent or has none."""
        for key, value in self.params:
            if key == name or key.lower() == name:
                return value
        return None

    def has_param(self, name: str) -> bool:
        """Return True if the URI parameter is there, with a value or without."""
        return bool(self.params) and any(key.lower() == name for key, _ in self.params)

    def with_params(self, *params: Param) -> SipUri:
        """Return the URI with these parameters, which replace those of the same name."""
        rest = self.without_params(*(name for name, _ in params))
        return rest._replace(params=rest.params + params)

    def without_params(self, *names: str) -> SipUri:
        """Return the URI without the parameters of these names (lower case)."""
        return self._replace(params=tuple(param for param in self.params if param[0].lower() not in names))

    @property
    def transport(self) -> str:
        """The transport that the URI asks for, as a Via spells it: UDP unless it says otherwise, TLS for sips."""
        transport = ((self.param("transport") if self.params else None) or "udp").upper()
        if self.scheme == "sips":
            return {"UDP": "TLS", "TCP": "TLS", "WS": "WSS"}.get(transport, transport)
        return transport

    @property
    def address(self) -> Address | None:
        """Where the URI leads (RFC 3263 §4) if maddr, or else the host, is an IP literal; None if it is a name."""
        host = ip_literal(self.param("maddr") or self.host)
        if host is None:
            return None
        return host, self.port or default_port(self.transport)

    @property
    def comparable(self) -> Comparable:
        """What is compared of the URI."""
        params = {name.lower(): _comparable(value or "").lower() for name, value in self.params}
        strict = tuple(sorted(param for param in params.items() if param[0] in _NEVER_IGNORED))
        for name, _ in strict:
            del params[name]
        user = None if self.user is None else _comparable(self.user)
        password = None if self.password is None else _comparable(self.password)
        # "URI header components are never ignored. Any present header component MUST be present in both URIs and match"
        headers = _comparable_headers(self.headers) if self.headers else ()
        return Comparable(
            (self.scheme, user, password, _comparable_host(self.host), self.port, strict, headers), params
        )

    def aor(self, *, case_sensitive: bool = True) -> str:
        """Return the address-of-record (§10.3 step 5): sip:user@domain, nothing escaped that need not be."""
        host = _comparable_host(self.host)
        user = self.user
        if user is None:
            return "sip:" + host
        if not case_sensitive or _UNSAFE_IN_USER.search(user):
            plain = _unescaped(user)
            user = _UNSAFE_IN_USER.sub(_escape, plain if case_sensitive else plain.lower())
        return f"sip:{user}@{host}"

    def __str__(self) -> str:
        """Return the URI's text."""
        text = self.scheme + ":"
        if self.user is not None:
            text += self.user if self.password is None else f"{self.user}:{self.password}"
            text += "@"
        text += self.host
        if self.port is not None:
            text += f":{self.port}"
        for name, value in self.params:
            text += ";" + name if value is None else f";{name}={value}"
        return f"{text}?{self.headers}" if self.headers else text


class OtherUri(NamedTuple):
    """A URI of another scheme (tel:, urn: …): the scheme in lower case, and the rest as it was written."""

    scheme: str
    rest: str

    @property
    def comparable(self) -> Comparable:
        """What is compared of the URI: its text (RFC 3986 §6.2.1)."""
        return Comparable((self.scheme, self.rest), {})

    def __str__(self) -> str:
        """Return the URI's text."""
        return f"{self.scheme}:{self.rest}"


Uri = SipUri | OtherUri


def parse_uri(text: str) -> Uri:
    """Parse a URI; MalformedMessage if it is none."""
    match = _PLAIN_URI.match(text)
    if match is not None:
        scheme, user, host, port_text, params_text = match.groups()
        return SipUri(scheme, user, None, host, _port(port_text) if port_text else None, _params(params_text))
    match = _SIP_URI.match(text)
    if match is None:
        return _other_uri(text)
    scheme, user, password, host, port_text, params_text, headers = match.groups()
    port = None if port_text is None else _port(port_text)
    return SipUri(scheme.lower(), user, password, host.lower(), port, _params(params_text), headers or "")


def default_port(transport: str) -> int:
    """Return the port of a transport where none is given (RFC 3261 §19.1.2, RFC 7118 §5.2)."""
    return _DEFAULT_PORTS.get(transport, 5060)


def ip_literal(host: str) -> str | None:
    """Return the IP address that `host` is, without brackets and in its shortest form; None if it is a name."""
    if ":" not in host:
        return host if _IPV4.match(host) else None
    # What is remembered must not be as long as a datagram.
    return _ipv6_literal(host) if len(host) <= _LONGEST_LITERAL else None


@lru_cache(maxsize=4096)
def _ipv6_literal(host: str) -> str | None:
    try:
        return str(IPv6Address(host[1:-1] if host.startswith("[") and host.endswith("]") else host))
    except AddressValueError:
        return None


def _other_uri(text: str) -> OtherUri:
    match = _OTHER_URI.match(text)
    if match is None or match[1].lower() in {"sip", "sips"}:
        raise MalformedMessage(f"not a URI: {text[:80]!r}")
    return OtherUri(match[1].lower(), match[2])


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port <= 65535:
        raise MalformedMessage(f"a URI's port is {text}, not between 1 and 65535")
    return port


def _params(text: str) -> tuple[Param, ...]:
    if not text:
        return ()
    params: list[Param] = []
    for part in text[1:].split(";"):
        name, equals, value = part.partition("=")
        params.append((name, value if equals else None))
    return tuple(params)


def _comparable_host(host: str) -> str:
    # RFC 5954 §4.2: IPv6 addresses are compared as addresses, not as text.
    if host.startswith("["):
        literal = ip_literal(host)
        return host if literal is None else f"[{literal}]"
    return host


def _comparable(text: str) -> str:
    # "Characters other than those in the "reserved" set (see RFC 2396) are equivalent to their "%" HEX HEX encoding."
    def decode(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character.isascii() and character not in _RESERVED else match[0].upper()

    if "%" in text:
        text = _ESCAPED.sub(decode, text)
    return text if text.isascii() else "".join(c if c.isascii() else _percent(c) for c in text)


def _comparable_headers(headers: str) -> tuple[tuple[str, str], ...]:
    pairs = (part.partition("=") for part in headers.split("&") if part)
    return tuple(sorted((_comparable(name).lower(), _comparable(value)) for name, _, value in pairs))


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _escape(match: re.Match[str]) -> str:
    return _percent(match[0])


def _percent(text: str) -> str:
    return "".join(f"%{octet:02X}" for octet in text.encode("utf-8", "surrogateescape"))
