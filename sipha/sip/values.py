"""The values of header fields: Via, name-addr, Contact, CSeq, credentials, and their parameters (RFC 3261 §20, §25)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from sipha.errors import MalformedMessage
from sipha.sip.uri import Uri, default_port, parse_uri

# So that no input takes more than linear time, a class that could match where the next item does is possessive, and no
# two alternatives begin alike. (Groups are not possessive: Python before 3.11.5 goes on where their last try failed.)
_TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]++"  # noqa: S105 - the grammar's word
_QUOTED = r'"(?:[^"\\]++|\\.)*"'
_WS = r"[ \t]*+"
_PARAMS = rf'((?:{_WS};{_WS}{_TOKEN}(?:{_WS}={_WS}(?:{_QUOTED}|[^\s;,"<>]*+))?)*){_WS}'
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*+:"
_TOKEN_ONLY = re.compile(_TOKEN + r"\Z")
_NAME_ADDR = re.compile(
    rf'{_WS}(?:"((?:[^"\\]++|\\.)*)"{_WS}|([^"<>,;]*+))<({_SCHEME}[^<>"\s]++)>{_PARAMS}\Z', re.DOTALL | re.ASCII
)
# The same for what most From and To are, with a tag or nothing behind the URI.
_PLAIN_NAME_ADDR = re.compile(rf'<({_SCHEME}[^<>"\s]++)>((?:;tag=([A-Za-z0-9\-.!%*_+`\'~]++))?)\Z', re.ASCII)
# "If the URI contains a comma, question mark or semicolon, the URI MUST be enclosed in angle brackets" (§20.10)
_ADDR_SPEC = re.compile(rf'{_WS}({_SCHEME}[^<>",;?\s]++){_PARAMS}\Z', re.DOTALL | re.ASCII)
_VIA = re.compile(
    rf"{_WS}[Ss][Ii][Pp]{_WS}/{_WS}[0-9]++\.[0-9]++{_WS}/{_WS}({_TOKEN})[ \t]++([A-Za-z0-9._\-]++|\[[0-9A-Fa-f:.]++\])"
    rf"{_WS}(?::{_WS}([0-9]{{1,5}}){_WS})?{_PARAMS}(?:,|\Z)",
    re.DOTALL | re.ASCII,
)
# The same for what most Vias are.
_PLAIN_VIA = re.compile(
    r"SIP/2\.0/([A-Z]+) ([A-Za-z0-9.\-]++)(?::([0-9]{1,5}))?"
    r"((?:;[A-Za-z0-9\-._]++(?:=[A-Za-z0-9\-._:]*+)?)*)\Z"
)
_CSEQ = re.compile(rf"[ \t]*+([0-9]++)[ \t]++({_TOKEN})[ \t]*+\Z")
_PARAM = re.compile(rf';[ \t]*+({_TOKEN})(?:[ \t]*+=[ \t]*+({_QUOTED}|[^\s;,"<>]*+))?', re.DOTALL)
# One contact as most phones write it, which is known to be well-formed without being taken apart.
_PLAIN_CONTACT = re.compile(
    r'(?:"[^"\\]*+" ?)?'
    r"<(sip:(?:[A-Za-z0-9\-_.+]++@)?([A-Za-z0-9.-]++)(?::([1-9][0-9]{0,4}))?"
    r"(?:;[A-Za-z0-9\-_.]++(?:=[A-Za-z0-9\-_.]++)?)*)>"
    r'(?:;expires=([0-9]{1,9}))?(?:;\+sip\.instance="([ !#-\[\]-~]*+)")?\Z'
)
_AUTH_PARAM = re.compile(
    rf'[ \t,]*+({_TOKEN})[ \t]*+=[ \t]*+(?:"((?:[^"\\]++|\\.)*)"|([^\s,"]*+))[ \t]*+(?:,[ \t,]*+|\Z)|(.++)', re.DOTALL
)
_AUTH_NAMES = frozenset(
    ("username", "realm", "nonce", "uri", "response", "algorithm", "cnonce", "opaque", "qop", "nc", "userhash", "stale")
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_MAX_EXPIRES = 2**32 - 1


_UNREAD: Final = "\0"
"""What is remembered of a parameter before it is asked for: no parameter has such a value."""


@dataclass(slots=True)
class Via:
    """A Via value (§20.42): the transport in upper case, the host as written, the parameters with their semicolons.

    Neither is changed once it is made. The branch, for which each message is asked again and again, is looked for once,
    unless who makes it has found it.
    """

    transport: str
    host: str
    port: int | None = None
    params: str = ""
    _branch: str | None = field(default=_UNREAD, repr=False, compare=False)

    def param(self, name: str) -> str | None:
        """Return the value of a parameter (lower case), unquoted; None if it is absent or has none."""
        return find_param(self.params, name)

    def has_param(self, name: str) -> bool:
        """Return True if the parameter is there, with a value or without."""
        return has_param(self.params, name)

    def with_params(self, *params: tuple[str, str | None]) -> Via:
        """Return the Via with these parameters, which replace those of the same name."""
        return Via(self.transport, self.host, self.port, set_params(self.params, *params))

    @property
    def branch(self) -> str | None:
        """The branch parameter: the transaction's identity if it begins with z9hG4bK (§8.1.1.7)."""
        if self._branch is _UNREAD:
            self._branch = find_param(self.params, "branch")
        return self._branch

    @property
    def received(self) -> str | None:
        """The address that the request came from, if the next hop had to say so (§18.2.1); without brackets."""
        received = find_param(self.params, "received")
        return None if received is None else received.strip("[]")

    @property
    def rport(self) -> int | None:
        """The port that the request came from (RFC 3581); None if the parameter is absent or has no value yet."""
        text = find_param(self.params, "rport")
        return int(text) if text and is_number(text) and len(text) <= 5 else None

    @property
    def sent_by(self) -> str:
        """Host and port, the default one filled in, in one spelling: part of the transaction's identity (§17.2.3)."""
        return f"{self.host.lower()}:{self.port or default_port(self.transport)}"

    def __str__(self) -> str:
        """Return the value's text."""
        if self.port is None:
            return f"SIP/2.0/{self.transport} {self.host}{self.params}"
        return f"SIP/2.0/{self.transport} {self.host}:{self.port}{self.params}"


@dataclass(slots=True)
class NameAddr:
    """A name-addr or addr-spec with parameters (§20.10): From, To, Contact …; the display name without its quotes.

    The URI of a Contact may be `*`, for all contacts. None is changed once it is made. Tag and URI are parsed when they
    are asked for, once.
    """

    display: str
    uri: str
    params: str = ""
    _tag: str | None = field(default=_UNREAD, repr=False, compare=False)
    _parsed_uri: Uri | None = field(default=None, init=False, repr=False, compare=False)

    def param(self, name: str) -> str | None:
        """Return the value of a header parameter (lower case), unquoted; None if it is absent or has none."""
        return find_param(self.params, name)

    def has_param(self, name: str) -> bool:
        """Return True if the header parameter is there, with a value or without."""
        return has_param(self.params, name)

    @property
    def tag(self) -> str | None:
        """The tag parameter (§19.3)."""
        if self._tag is _UNREAD:
            self._tag = find_param(self.params, "tag")
        return self._tag

    @property
    def star(self) -> bool:
        """True for `Contact: *` (§10.2.2)."""
        return self.uri == "*"

    @property
    def q(self) -> int | None:
        """The preference in thousandths; MalformedMessage if it is no qvalue."""
        text = self.param("q")
        if text is None:
            return None
        whole, _, decimals = text.partition(".")
        if whole not in {"0", "1"} or len(decimals) > 3 or (decimals and not is_number(decimals)):
            raise MalformedMessage(f"Contact: q is {text[:20]!r}, not a number from 0 to 1 with three decimals")
        q = int(whole + decimals.ljust(3, "0"))
        if q > 1000:
            raise MalformedMessage(f"Contact: q is {text[:20]!r}, above 1")
        return q

    @property
    def expires(self) -> int | None:
        """The expires parameter in seconds (§20.10): 3600 if malformed, at most 2**32-1; None if absent."""
        text = self.param("expires")
        if text is None:
            return 3600 if self.has_param("expires") else None
        return parse_seconds(text)

    @property
    def parsed_uri(self) -> Uri:
        """The URI in its parts; MalformedMessage if it is none."""
        if self._parsed_uri is None:
            self._parsed_uri = parse_uri(self.uri)
        return self._parsed_uri

    def __str__(self) -> str:
        """Return the value's text, the URI in brackets."""
        display = ""
        if self.display:
            display = '"' + self.display.replace("\\", "\\\\").replace('"', '\\"') + '" '
        return f"{display}<{self.uri}>{self.params}"


class PlainContact(NamedTuple):
    """The only Contact value of most REGISTERs: a sip: URI, its host in lower case, and no parameters but these two.

    `port` is None if the URI has none; `expires` is in seconds, `instance` the value of +sip.instance without quotes.
    """

    uri: str
    host: str
    port: int | None
    expires: int | None
    instance: str


class CSeq(NamedTuple):
    """A CSeq value (§20.16)."""

    number: int
    method: str

    def __str__(self) -> str:
        """Return the value's text."""
        return f"{self.number} {self.method}"


def first(group: int) -> str:
    """The part of a pattern that fails if a group of this number has taken part before: what it begins comes once."""
    return f"(?({group})(?!)|)"


def parse_via(text: str, header: str = "Via") -> Via:
    """Parse a Via value, the first if there are more; MalformedMessage, which names `header`, if it is none."""
    match = _PLAIN_VIA.match(text) or _VIA.match(text)
    if match is None:
        raise MalformedMessage(f"{header}: not understood: {text[:80]!r}")
    transport, host, port, params = match.groups()
    number = None
    if port is not None:
        number = int(port)
        if not 0 < number <= 65535:
            raise MalformedMessage(f"{header}: port {port} is not between 1 and 65535")
    return Via(transport.upper(), host, number, params)


def parse_name_addr(text: str, header: str = "address") -> NameAddr:
    """Parse one value of From, To, Route …; MalformedMessage, which names `header`, if it is none."""
    match = _PLAIN_NAME_ADDR.match(text)
    if match is None:
        return NameAddr(*_name_addr(text, header))
    uri, params, tag = match.groups()
    return NameAddr("", uri, params, tag)


def parse_contact(text: str, header: str = "Contact") -> NameAddr:
    """Parse one Contact value; MalformedMessage, which names `header`, if it is none."""
    return NameAddr("", "*", "") if text.strip(" \t") == "*" else NameAddr(*_name_addr(text, header))


@lru_cache(maxsize=16)  # the same REGISTER's is asked for again and again
def plain_contact(text: str) -> PlainContact | None:
    """Parse a Contact field in the spelling of most phones; None says nothing of it but that `parse_contact` is needed.

    Quicker than that, and what it returns is what that makes of the same text.
    """
    match = _PLAIN_CONTACT.match(text)
    if match is None:
        return None
    uri, host, port_text, expires, instance = match.groups()
    port = None if port_text is None else int(port_text)
    if port is not None and port > 65535:
        return None
    return PlainContact(uri, host.lower(), port, None if expires is None else int(expires), instance or "")


def _name_addr(text: str, header: str) -> tuple[str, str, str]:
    match = _NAME_ADDR.match(text)
    if match is not None:
        quoted, unquoted, uri, params = match.groups()
        if quoted is None:
            return unquoted.rstrip(" \t"), uri, params
        return _ESCAPE.sub(r"\1", quoted) if "\\" in quoted else quoted, uri, params
    match = _ADDR_SPEC.match(text)
    if match is None:
        raise MalformedMessage(f"{header}: not understood: {text[:80]!r}")
    return "", match[1], match[2]


def parse_cseq(text: str, header: str = "CSeq") -> CSeq:
    """Parse a CSeq value; MalformedMessage if it is none or "MUST be less than 2**31" (§8.1.1.5) is broken."""
    number, _, method = text.partition(" ")
    if len(number) < 10 and is_number(number) and method.isalpha() and method.isascii():
        return CSeq(int(number), method)
    match = _CSEQ.match(text)
    if match is None:
        raise MalformedMessage(f"{header}: not understood: {text[:80]!r}")
    digits = match[1]
    if len(digits) > 10:
        digits = digits.lstrip("0") or "0"
    if len(digits) > 10 or int(digits) >= 2**31:
        raise MalformedMessage(f"{header}: the number is not less than 2**31")
    return CSeq(int(digits), match[2])


def parse_auth_params(text: str) -> tuple[str, dict[str, str]]:
    """Parse a challenge or credentials (§20.7): the scheme, and the parameters, named in lower case and unquoted."""
    scheme, _, rest = text.strip(" \t").partition(" ")
    simple = _simple_auth_params(rest)
    if simple is not None:
        return scheme, simple
    found = _AUTH_PARAM.findall(rest)
    params = {name.lower(): quoted or plain for name, quoted, plain, _ in found}
    if len(params) != len(found) or "" in params:
        raise MalformedMessage(f"{scheme[:20]} credentials: a parameter is malformed or twice there")
    if "\\" in rest:
        params = {name: _ESCAPE.sub(r"\1", value) for name, value in params.items()}
    return scheme, params


def _simple_auth_params(text: str) -> dict[str, str] | None:
    """Parse parameters as most send them; None if there is a comma, quote or escape in a value, or anything odd."""
    params: dict[str, str] = {}
    quoted = 0
    parts = text.split(",")
    for part in parts:
        name, _, value = part.partition("=")
        if value[:1] == '"':
            if value[-1] != '"':
                return None
            quoted += 1
            value = value[1:-1]
        elif not value or " " in value or "\t" in value:
            return None
        params[name.lstrip(" ")] = value
    if text.count('"') != 2 * quoted or len(params) != len(parts) or "\\" in text:
        return None
    return params if params.keys() <= _AUTH_NAMES else None


def parse_seconds(text: str) -> int:
    """Return delta-seconds: at most 2**32-1; "Malformed values SHOULD be treated as equivalent to 3600" (§20.10)."""
    if not is_number(text):
        return 3600
    return min(int(text), _MAX_EXPIRES) if len(text) <= 20 else _MAX_EXPIRES


def is_number(text: str) -> bool:
    """Return True if the text is 1*DIGIT."""
    return text.isdigit() and text.isascii()


def find_param(params: str, name: str) -> str | None:
    """Return the value, unquoted, of a parameter (lower case) in `;name=value;…`; None if absent or without value."""
    if not params:
        return None
    _, found, rest = params.partition(f";{name}=")
    if found:
        value = rest.partition(";")[0]
        if '"' not in params and " " not in value and "\t" not in value:
            return value
    elif name not in params.lower():
        return None
    for match in _PARAM.finditer(params):
        if match[1].lower() == name:
            text: str | None = match[2]
            if not text or text[0] != '"':
                return text
            return _ESCAPE.sub(r"\1", text[1:-1])
    return None


def has_param(params: str, name: str) -> bool:
    """Return True if `;name` or `;name=value` is among the parameters (name in lower case)."""
    return name in params.lower() and any(match[1].lower() == name for match in _PARAM.finditer(params))


def split_params(params: str) -> list[tuple[str, str | None]]:
    """Return name and value (as written, quotes included) of each of the parameters in `;name=value;…`."""
    return [(match[1], match[2]) for match in _PARAM.finditer(params)]


def set_params(params: str, *new: tuple[str, str | None]) -> str:
    """Return the parameters with these in the place of those of the same name, or else at the end."""
    for name, value in new:
        text = f";{name}" if value is None else f";{name}={value}"
        for match in _PARAM.finditer(params):
            if match[1].lower() == name:
                params = params[: match.start()] + text + params[match.end() :]
                break
        else:
            params += text
    return params


def is_token(text: str) -> bool:
    """Return True if the text is a token (RFC 3261 §25.1)."""
    return _TOKEN_ONLY.match(text) is not None
