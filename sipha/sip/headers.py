"""The header fields of a message as they came, and their comma-separated values (RFC 3261 §7.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sipha.errors import MalformedMessage
from sipha.sip.values import (
    CSeq,
    NameAddr,
    Via,
    find_param,
    has_param,
    is_number,
    is_token,
    parse_auth_params,
    parse_contact,
    parse_cseq,
    parse_name_addr,
    parse_seconds,
    parse_via,
    plain_contact,
    set_params,
    split_params,
)

__all__ = [
    "CSeq", "Headers", "NameAddr", "Via", "canonical_name", "find_param", "has_param", "is_number",
    "is_token", "parse_auth_params", "parse_contact", "parse_cseq", "parse_name_addr", "parse_seconds", "parse_via",
    "plain_contact", "set_params", "split_first", "split_params", "split_values",
]  # fmt: skip

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
    "Accept", "Accept-Encoding", "Accept-Language", "Alert-Info", "Allow", "Authentication-Info", "Authorization",
    "Call-Info", "Content-Disposition", "Content-Language", "CSeq", "Date", "Error-Info", "Expires", "In-Reply-To",
    "Max-Breadth", "Max-Forwards", "MIME-Version", "Min-Expires", "Min-SE", "Organization", "P-Access-Network-Info",
    "P-Asserted-Identity", "P-Preferred-Identity", "Path", "Priority", "Privacy", "Proxy-Authenticate",
    "Proxy-Authorization", "Proxy-Require", "RAck", "Reason", "Record-Route", "Referred-By", "Replaces", "Reply-To",
    "Require", "Retry-After", "Route", "RSeq", "Server", "Service-Route", "Session-ID", "SIP-ETag", "SIP-If-Match",
    "Subscription-State", "Timestamp", "Unsupported", "User-Agent", "Warning", "WWW-Authenticate",
]  # fmt: skip
_KNOWN = frozenset((*_LONG, *_COMPACT.values()))
_CANONICAL = {name: name for name in _KNOWN} | {name.lower(): name for name in _KNOWN} | _COMPACT

# An unterminated quote or bracket reaches to the end of the field, which its own grammar then refuses.
_SEPARATOR = re.compile(r'"(?:[^"\\]++|\\(?:.|\Z))*(?:"|\Z)|<[^>]*+(?:>|\Z)|,', re.DOTALL)


def canonical_name(name: str) -> str:
    """Return the name under which a header field is found: the long form; in lower case if we don't know it."""
    return _CANONICAL.get(name) or _CANONICAL.get(lower := name.lower()) or lower


class Headers:
    """The header fields of a message, in order; names match in any case, and in their compact form.

    The lines are kept as they came, folds included, so that what we don't touch is forwarded byte for byte. If they are
    `unread`, they come with `read`; until then nothing can be asked for but what is remembered, which is that.
    """

    __slots__ = ("_first", "_lines", "_names", "remembered")

    def __init__(self, fields: Iterable[tuple[str, str]] = (), *, unread: dict[str, Any] | None = None) -> None:
        self.remembered: dict[str, Any] = {} if unread is None else unread
        """What `parsed` made of the fields, by canonical name: to look at, not to change."""
        if unread is not None:
            return
        self._lines: list[str] = []
        self._names: list[str] = []  # of each line, canonical
        self._first: dict[str, str] = {}  # canonical name to the first field's value, perhaps with white space around
        if fields:
            for name, value in fields:
                self.add(name, value)

    def read(self, lines: list[str]) -> str | None:
        """Take the lines of a message (without their CRLF), which now belong here; say what is wrong, if anything."""
        # Most messages have headers that we know, spelt as in the RFC: the dictionary is made without a loop.
        fields = [line.split(": ", 1) for line in lines]
        try:
            first = dict(fields)
        except ValueError:
            return self._index(lines)
        if not first.keys() <= _KNOWN:
            return self._index(lines)
        if len(first) == len(lines):
            self._names = list(first)
        else:
            self._names = [name for name, _ in fields]
            fields.reverse()
            first = dict(fields)
        self._lines = lines
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
                if not colon or not is_token(raw_name):
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
        if value is not None:
            return value.strip(" \t")
        if name in _KNOWN or (value := self._first.get(canonical_name(name))) is None:
            return None
        return value.strip(" \t")

    def all(self, name: str) -> list[str]:
        """Return the values of the fields of this name, unfolded, one for each field."""
        if name not in _KNOWN:
            name = canonical_name(name)
        value = self._first.get(name)
        if value is None:
            return []
        if len(self._first) == len(self._names):
            return [value.strip(" \t")]
        return [_value(line) for line, of in zip(self._lines, self._names, strict=True) if of == name]

    def values(self, name: str) -> list[str]:
        """Return the comma-separated values of all fields of this name; commas in quotes and <> don't separate."""
        return [value for field in self.all(name) for value in split_values(field)]

    def names(self) -> list[str]:
        """Return the canonical name of each field, in order."""
        return self._names.copy()

    def __contains__(self, name: str) -> bool:
        """Return True if there is a field of this name."""
        return name in self._first or (name not in _KNOWN and canonical_name(name) in self._first)

    def count(self, name: str) -> int:
        """Return how many fields have this name."""
        return self._names.count(canonical_name(name))

    def repeated(self, names: Iterable[str]) -> str | None:
        """Return the first of these (canonical) names that more than one field has; None if each has at most one."""
        if len(self._first) != len(self._names):
            count = self._names.count
            for name in names:
                if count(name) > 1:
                    return name
        return None

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
        value: T | None = self.remembered.get(name)
        if value is None:
            text = self._first.get(name)
            if not text:
                raise MalformedMessage(f"{name}: missing")
            value = self.remembered[name] = parse(text, name)
        return value

    def parse(self, parsers: Iterable[tuple[str, Callable[[str, str], object]]]) -> None:
        """Let `parsed` have the first field of each of these (canonical) names; MalformedMessage if one is missing."""
        first, parsed = self._first, self.remembered
        for name, parse in parsers:
            text = first.get(name)
            if not text:
                raise MalformedMessage(f"{name}: missing")
            parsed[name] = parse(text, name)

    def parsed_values(self, name: str, parse: Callable[[str, str], T]) -> list[T]:
        """Return what `parse` makes of each of the values of all fields of this (canonical) name; once, as `parsed`."""
        values: list[T] | None = self.remembered.get(name)
        if values is None:
            values = self.remembered[name] = [parse(text, name) for text in self.values(name)]
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
        self.remembered.pop(canonical, None)

    def prepend(self, name: str, value: str) -> None:
        """Put a field before all others."""
        canonical = name if name in _KNOWN else canonical_name(name)
        self._lines.insert(0, f"{name}: {value}")
        self._names.insert(0, canonical)
        self._first[canonical] = value
        self.remembered.pop(canonical, None)

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
        names, lines = self._names, self._lines
        gone = [i for i, of in enumerate(names) if of == canonical and unwanted(_value(lines[i]))]
        for i in reversed(gone):
            del names[i], lines[i]
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
        canonical = name if name in _KNOWN else canonical_name(name)
        old = self._first[canonical]
        if "," in old and (rest := split_first(old)[1]):
            value = f"{value}, {rest}"
        self._lines[self._names.index(canonical)] = f"{name}: {value}"
        self._first[canonical] = value
        if parsed is None:
            self.remembered.pop(canonical, None)
        else:
            self.remembered[canonical] = parsed

    def copy(self) -> Headers:
        """Return headers that can be changed without changing these."""
        return Headers().adopt(self)

    def adopt(self, other: Headers) -> Headers:
        """Become a copy of the other."""
        self._lines = other._lines.copy()
        self._names = other._names.copy()
        self._first = other._first.copy()
        self.remembered = other.remembered.copy()
        return self

    def __repr__(self) -> str:
        """Return the lines."""
        return f"Headers({self._lines!r})"

    def _put(self, at: int, name: str, value: str) -> None:
        self._lines[at] = f"{name}: {value}"
        self._first[self._names[at]] = value
        self.remembered.pop(self._names[at], None)

    def _keep(self, wanted: Callable[[int], bool]) -> None:
        kept = [i for i in range(len(self._names)) if wanted(i)]
        self._lines = [self._lines[i] for i in kept]
        self._names = [self._names[i] for i in kept]

    def _changed(self, canonical: str) -> None:
        self.remembered.pop(canonical, None)
        if canonical in self._names:
            self._first[canonical] = _value(self._lines[self._names.index(canonical)])
        else:
            self._first.pop(canonical, None)


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


def split_first(field: str) -> tuple[str, str]:
    """Split a field into its first value and the rest, which is empty if there is no other."""
    field = field.strip(" \t,")
    if "," in field:
        for match in _SEPARATOR.finditer(field):
            if match[0] == ",":
                return field[: match.start()].rstrip(" \t"), field[match.end() :].lstrip(" \t,")
    return field, ""


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
