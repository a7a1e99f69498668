"""Header fields as they came, and the values that are made of them when asked (RFC 3261 §7.3, §20, §25)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from sipha.errors import MalformedMessage
from sipha.sip.uri import Uri, default_port, parse_uri

T = TypeVar("T")

_COMPACT = {
    "a": "Accept-Contact",
    "b": "Referred-By",
    "c": "Content-Type",
    "d": "Request-Disposition",
    "e": "Content-Encoding",
    "f": "From",
    "i": "Call-ID",
    "j": "Reject-Contact",
    "k": "Supported",
    "l": "Content-Length",
    "m": "Contact",
    "o": "Event",
    "r": "Refer-To",
    "s": "Subject",
    "t": "To",
    "u": "Allow-Events",
    "v": "Via",
    "x": "Session-Expires",
    "y": "Identity",
}
_LONG = [
    "Accept",
    "Accept-Encoding",
    "Accept-Language",
    "Alert-Info",
    "Allow",
    "Authentication-Info",
    "Authorization",
    "Call-Info",
    "Content-Disposition",
    "Content-Language",
    "CSeq",
    "Date",
    "Error-Info",
    "Expires",
    "In-Reply-To",
    "Max-Breadth",
    "Max-Forwards",
    "MIME-Version",
    "Min-Expires",
    "Min-SE",
    "Organization",
    "P-Access-Network-Info",
    "P-Asserted-Identity",
    "P-Preferred-Identity",
    "Path",
    "Priority",
    "Privacy",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Require",
    "RAck",
    "Reason",
    "Record-Route",
    "Referred-By",
    "Replaces",
    "Reply-To",
    "Require",
    "Retry-After",
    "Route",
    "RSeq",
    "Server",
    "Service-Route",
    "Session-ID",
    "SIP-ETag",
    "SIP-If-Match",
    "Subscription-State",
    "Timestamp",
    "Unsupported",
    "User-Agent",
    "Warning",
    "WWW-Authenticate",
]
_KNOWN = frozenset((*_LONG, *_COMPACT.values()))
_CANONICAL = {name: name for name in _KNOWN} | {name.lower(): name for name in _KNOWN} | _COMPACT

# So that no input takes more than linear time, a class that could match where the next item does is possessive, and no
# two alternatives begin alike. (Groups are not possessive: Python before 3.11.5 forgets to try without them.)
_TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]++"
_QUOTED = r'"(?:[^"\\]++|\\.)*"'
_PARAMS = rf'((?:[ \t]*+;[ \t]*+{_TOKEN}(?:[ \t]*+=[ \t]*+(?:{_QUOTED}|[^\s;,"<>]*+))?)*)[ \t]*+'
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*+:"
_TOKEN_ONLY = re.compile(_TOKEN + r"\Z")
# An unterminated quote or bracket reaches to the end of the field, which its own grammar then refuses.
_SEPARATOR = re.compile(r'"(?:[^"\\]++|\\(?:.|\Z))*(?:"|\Z)|<[^>]*+(?:>|\Z)|,', re.DOTALL)
_NAME_ADDR = re.compile(
    rf'[ \t]*+(?:"((?:[^"\\]++|\\.)*)"[ \t]*+|([^"<>,;]*+))<({_SCHEME}[^<>"\s]++)>{_PARAMS}\Z', re.DOTALL | re.ASCII
)
# "If the URI contains a comma, question mark or semicolon, the URI MUST be enclosed in angle brackets" (§20.10)
_ADDR_SPEC = re.compile(rf'[ \t]*+({_SCHEME}[^<>",;?\s]++){_PARAMS}\Z', re.DOTALL | re.ASCII)
_VIA = re.compile(
    rf"[ \t]*+SIP[ \t]*+/[ \t]*+[0-9]++\.[0-9]++[ \t]*+/[ \t]*+({_TOKEN})[ \t]++([A-Za-z0-9._\-]++|\[[0-9A-Fa-f:.]++\])"
    rf"[ \t]*+(?::[ \t]*+([0-9]{{1,5}})[ \t]*+)?{_PARAMS}(?:,|\Z)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
_CSEQ = re.compile(rf"[ \t]*+([0-9]++)[ \t]++({_TOKEN})[ \t]*+\Z")
_PARAM = re.compile(rf';[ \t]*+({_TOKEN})(?:[ \t]*+=[ \t]*+({_QUOTED}|[^\s;,"<>]*+))?', re.DOTALL)
_AUTH_PARAM = re.compile(
    rf'[ \t,]*+({_TOKEN})[ \t]*+=[ \t]*+(?:"((?:[^"\\]++|\\.)*)"|([^\s,"]*+))[ \t]*+(?:,[ \t,]*+|\Z)|(.++)', re.DOTALL
)
_AUTH_NAMES = frozenset(
    ("username", "realm", "nonce", "uri", "response", "algorithm", "cnonce", "opaque", "qop", "nc", "userhash", "stale")
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_MAX_EXPIRES = 2**32 - 1


def canonical_name(name: str) -> str:
    """Return the name under which a header field is found: the long form; in lower case if we don't know it."""
    return _CANONICAL.get(name) or _CANONICAL.get(lower := name.lower()) or lower


def is_token(text: str) -> bool:
    """Return True if the text is a token (RFC 3261 §25.1)."""
    return _TOKEN_ONLY.match(text) is not None


class Headers:
    """The header fields of a message, in order; names match in any case, and in their compact form.

    The lines are kept as they came, folds included, so that what we don't touch is forwarded byte for byte.
    """

    __slots__ = ("_first", "_lines", "_names", "_parsed")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._lines: list[str] = []
        self._names: list[str] = []  # of each line, canonical
        self._first: dict[str, str] = {}  # canonical name to the first field's value, perhaps with white space around
        self._parsed: dict[str, Any] = {}  # canonical name to what `parsed` made of it
        for name, value in fields:
            self.add(name, value)

    def read(self, lines: list[str]) -> str | None:
        """Take the lines of a message (without their CRLF), which now belong here; say what is wrong, if anything."""
        # Most messages have each header once, spelt as in the RFC: the dictionary is made without a loop.
        try:
            first = dict([line.split(": ", 1) for line in lines])
        except ValueError:
            return self._index(lines)
        if len(first) != len(lines) or not first.keys() <= _KNOWN:
            return self._index(lines)
        self._lines = lines
        self._names = list(first)
        self._first = first
        return None

    def _index(self, lines: list[str]) -> str | None:
        self._lines, self._names, self._first = kept, names, first = [], [], {}
        defect = None
        for line in lines:
            raw_name, colon, value = line.partition(":")
            name = _CANONICAL.get(raw_name)
            if name is None:
                if line.startswith((" ", "\t")) and line is not lines[0]:
                    return self._index(_join_folds(lines))
                raw_name = raw_name.rstrip(" \t")
                if not colon or not _TOKEN_ONLY.match(raw_name):
                    defect = defect or f"not a header field: {line[:80]!r}"
                    continue
                name = canonical_name(raw_name)
            kept.append(line)
            names.append(name)
            if name not in first:
                first[name] = _unfolded(value) if "\r\n" in value else value
        return defect

    def get(self, name: str) -> str | None:
        """Return the value of the first field of this name, unfolded; None if there is none."""
        value = self._first.get(name)
        if value is None:
            value = self._first.get(canonical_name(name))
            if value is None:
                return None
        return value.strip(" \t")

    def all(self, name: str) -> list[str]:
        """Return the values of the fields of this name, unfolded, one for each field."""
        name = canonical_name(name)
        if name not in self._first:
            return []
        if len(self._first) == len(self._names):
            return [self._first[name].strip(" \t")]
        return [_value(line) for line, of in zip(self._lines, self._names, strict=True) if of == name]

    def values(self, name: str) -> list[str]:
        """Return the comma-separated values of all fields of this name; commas in quotes and <> don't separate."""
        return [value for field in self.all(name) for value in split_values(field)]

    def names(self) -> list[str]:
        """Return the canonical name of each field, in order."""
        return self._names.copy()

    def __contains__(self, name: str) -> bool:
        """Return True if there is a field of this name."""
        return name in self._first or canonical_name(name) in self._first

    def count(self, name: str) -> int:
        """Return how many fields have this name."""
        return self._names.count(canonical_name(name))

    @property
    def unique(self) -> bool:
        """True if no name occurs twice."""
        return len(self._first) == len(self._names)

    @property
    def lines(self) -> list[str]:
        """The lines to send, without their CRLF; not to be changed."""
        return self._lines

    def lines_of(self, name: str) -> list[str]:
        """Return the lines of this name as they came."""
        name = canonical_name(name)
        return [line for line, of in zip(self._lines, self._names, strict=True) if of == name]

    def parsed(self, name: str, parse: Callable[[str, str], T]) -> T:
        """Return what `parse` makes of the first field of this (canonical) name; once, until it is changed.

        `parse` is given the value, perhaps with white space around it, and the name. MalformedMessage if it's missing.
        """
        value: T | None = self._parsed.get(name)
        if value is None:
            text = self._first.get(name)
            if not text:
                raise MalformedMessage(f"{name}: missing")
            value = self._parsed[name] = parse(text, name)
        return value

    def parsed_values(self, name: str, parse: Callable[[str, str], T]) -> list[T]:
        """Return what `parse` makes of each of the values of all fields of this (canonical) name; once, as `parsed`."""
        values: list[T] | None = self._parsed.get(name)
        if values is None:
            values = self._parsed[name] = [parse(text, name) for text in self.values(name)]
        return values

    def copy_from(self, other: Headers, wanted: frozenset[str]) -> None:
        """Append the other's fields of these (canonical) names, as they came."""
        for line, name in zip(other._lines, other._names, strict=True):
            if name in wanted:
                self._lines.append(line)
                self._names.append(name)
                self._first.setdefault(name, other._first[name])

    def add(self, name: str, value: str) -> None:
        """Append a field."""
        canonical = canonical_name(name)
        self._lines.append(f"{name}: {value}")
        self._names.append(canonical)
        self._first.setdefault(canonical, value)
        self._parsed.pop(canonical, None)

    def prepend(self, name: str, value: str) -> None:
        """Put a field before all others."""
        canonical = canonical_name(name)
        self._lines.insert(0, f"{name}: {value}")
        self._names.insert(0, canonical)
        self._first[canonical] = value
        self._parsed.pop(canonical, None)

    def set(self, name: str, value: str) -> None:
        """Replace the fields of this name by one, in the place of the first; append it if there is none."""
        canonical = canonical_name(name)
        if canonical not in self._first:
            self.add(name, value)
            return
        at = self._names.index(canonical)
        if len(self._first) != len(self._names):
            self._keep(lambda i: i == at or self._names[i] != canonical)
        self._put(at, name, value)

    def remove(self, name: str) -> None:
        """Remove the fields of this name, if there are any."""
        canonical = canonical_name(name)
        if canonical in self._first:
            self._keep(lambda i: self._names[i] != canonical)
            self._changed(canonical)

    def remove_values(self, name: str, unwanted: Callable[[str], bool]) -> None:
        """Remove the fields of this name whose whole value `unwanted` says so of; the others stay as they came."""
        canonical = canonical_name(name)
        self._keep(lambda i: self._names[i] != canonical or not unwanted(_value(self._lines[i])))
        self._changed(canonical)

    def pop_value(self, name: str) -> str:
        """Remove and return the first comma-separated value of the first field of this name; KeyError if none."""
        canonical = canonical_name(name)
        at = self._names.index(canonical) if canonical in self._first else -1
        if at < 0:
            raise KeyError(name)
        value, rest = split_first(self._first[canonical])
        if rest:
            self._put(at, name, rest)
        else:
            del self._lines[at], self._names[at]
            self._changed(canonical)
        return value

    def replace_value(self, name: str, value: str, parsed: object = None) -> None:
        """Replace the first comma-separated value of the first field of this name; KeyError if there is none.

        `parsed`, if given, is what `parsed` is to return from now on.
        """
        canonical = canonical_name(name)
        old = self._first[canonical]
        if "," in old and (rest := split_first(old)[1]):
            value = f"{value}, {rest}"
        self._put(self._names.index(canonical), name, value)
        if parsed is not None:
            self._parsed[canonical] = parsed

    def copy(self) -> Headers:
        """Return headers that can be changed without changing these."""
        return Headers().adopt(self)

    def adopt(self, other: Headers) -> Headers:
        """Become a copy of the other."""
        self._lines = other._lines.copy()
        self._names = other._names.copy()
        self._first = other._first.copy()
        self._parsed = other._parsed.copy()
        return self

    def __repr__(self) -> str:
        """Return the lines."""
        return f"Headers({self._lines!r})"

    def _put(self, at: int, name: str, value: str) -> None:
        self._lines[at] = f"{name}: {value}"
        self._first[self._names[at]] = value
        self._parsed.pop(self._names[at], None)

    def _keep(self, wanted: Callable[[int], bool]) -> None:
        kept = [i for i in range(len(self._names)) if wanted(i)]
        self._lines = [self._lines[i] for i in kept]
        self._names = [self._names[i] for i in kept]

    def _changed(self, canonical: str) -> None:
        self._parsed.pop(canonical, None)
        if canonical in self._names:
            self._first[canonical] = _value(self._lines[self._names.index(canonical)])
        else:
            self._first.pop(canonical, None)


class Via(NamedTuple):
    """A Via value (§20.42): the transport in upper case, the host as written, the parameters with their semicolons."""

    transport: str
    host: str
    port: int | None = None
    params: str = ""

    def param(self, name: str) -> str | None:
        """Return the value of a parameter (lower case), unquoted; None if it is absent or has none."""
        return find_param(self.params, name)

    def has_param(self, name: str) -> bool:
        """Return True if the parameter is there, with a value or without."""
        return has_param(self.params, name)

    def with_params(self, *params: tuple[str, str | None]) -> Via:
        """Return the Via with these parameters, which replace those of the same name."""
        return self._replace(params=set_params(self.params, *params))

    @property
    def branch(self) -> str | None:
        """The branch parameter: the transaction's identity if it begins with z9hG4bK (§8.1.1.7)."""
        return find_param(self.params, "branch")

    @property
    def received(self) -> str | None:
        """The address that the request came from, if the next hop had to say so (§18.2.1); without brackets."""
        received = find_param(self.params, "received")
        return received if received is None else received.strip("[]")

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
        port = "" if self.port is None else f":{self.port}"
        return f"SIP/2.0/{self.transport} {self.host}{port}{self.params}"


class NameAddr(NamedTuple):
    """A name-addr or addr-spec with parameters (§20.10): From, To, Route …; the display name without its quotes."""

    display: str
    uri: str
    params: str = ""

    def param(self, name: str) -> str | None:
        """Return the value of a header parameter (lower case), unquoted; None if it is absent or has none."""
        return find_param(self.params, name)

    def has_param(self, name: str) -> bool:
        """Return True if the header parameter is there, with a value or without."""
        return has_param(self.params, name)

    @property
    def tag(self) -> str | None:
        """The tag parameter (§19.3)."""
        return find_param(self.params, "tag")

    @property
    def parsed_uri(self) -> Uri:
        """The URI in its parts; MalformedMessage if it is none."""
        return parse_uri(self.uri)

    def __str__(self) -> str:
        """Return the value's text, the URI in brackets."""
        display = ""
        if self.display:
            display = '"' + self.display.replace("\\", "\\\\").replace('"', '\\"') + '" '
        return f"{display}<{self.uri}>{self.params}"


class Contact(NameAddr):
    """A Contact value; the URI is `*` for all contacts."""

    __slots__ = ()

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


class CSeq(NamedTuple):
    """A CSeq value (§20.16)."""

    number: int
    method: str

    def __str__(self) -> str:
        """Return the value's text."""
        return f"{self.number} {self.method}"


def parse_via(text: str, header: str = "Via") -> Via:
    """Parse a Via value, the first if there are more; MalformedMessage, which names `header`, if it is none."""
    match = _VIA.match(text)
    if match is None:
        raise MalformedMessage(f"{header}: not understood: {text[:80]!r}")
    transport, host, port, params = match.groups()
    number = None if port is None else int(port)
    if number is not None and not 0 < number <= 65535:
        raise MalformedMessage(f"{header}: port {port} is not between 1 and 65535")
    return Via(transport.upper(), host, number, params)


def parse_name_addr(text: str, header: str = "address") -> NameAddr:
    """Parse one value of From, To, Route …; MalformedMessage, which names `header`, if it is none."""
    return NameAddr(*_name_addr(text, header))


def parse_contact(text: str, header: str = "Contact") -> Contact:
    """Parse one Contact value; MalformedMessage, which names `header`, if it is none."""
    return Contact("", "*", "") if text.strip(" \t") == "*" else Contact(*_name_addr(text, header))


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


def split_values(field: str) -> list[str]:
    """Split a field at its commas, save those in quotes and in <>; empty values are left out."""
    if "," not in field:
        values = [field]
    elif '"' not in field and "<" not in field:
        values = field.split(",")
    else:
        values = []
        start = 0
        for match in _SEPARATOR.finditer(field):
            if match[0] == ",":
                values.append(field[start : match.start()])
                start = match.end()
        values.append(field[start:])
    return [stripped for value in values if (stripped := value.strip(" \t"))]


def find_param(params: str, name: str) -> str | None:
    """Return the value, unquoted, of a parameter (lower case) in `;name=value;…`; None if absent or without value."""
    if not params or name not in params.lower():
        return None
    if '"' not in params and " " not in params and "\t" not in params:
        _, found, rest = params.partition(f";{name}=")
        if found:
            return rest.partition(";")[0]
    for match in _PARAM.finditer(params):
        if match[1].lower() == name:
            value = match[2]
            if not value or value[0] != '"':
                return value
            return _ESCAPE.sub(r"\1", value[1:-1])
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


def _value(line: str) -> str:
    value = line.partition(":")[2]
    return (_unfolded(value) if "\r\n" in value else value).strip(" \t")


def _join_folds(lines: list[str]) -> list[str]:
    """Join each line that begins with white space to the one before (§7.3.1)."""
    fields = [[lines[0]]]
    for line in lines[1:]:
        if line.startswith((" ", "\t")):
            fields[-1].append(line)
        else:
            fields.append([line])
    return ["\r\n".join(field) for field in fields]


def _unfolded(value: str) -> str:
    return " ".join([part.strip(" \t") for part in value.split("\r\n")])


def split_first(field: str) -> tuple[str, str]:
    """Split a field into its first value and the rest, which is empty if there is no other."""
    field = field.strip(" \t,")
    if "," in field:
        for match in _SEPARATOR.finditer(field):
            if match[0] == ",":
                return field[: match.start()].rstrip(" \t"), field[match.end() :].lstrip(" \t,")
    return field, ""
