"""The tables of the configuration: what etc/sipha.toml says of each key, and what the types say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec
from msgspec.inspect import (
    BoolType,
    CustomType,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    StrType,
    Type,
    VarTupleType,
    type_info,
)

from sipha.config import Config
from sipha.toml import Section

FILE = Path(__file__).parents[1] / "etc" / "sipha.toml"

_TABLE = re.compile(r"#?(?P<heading>\[+[\w.]+\]+)$")
_KEY = re.compile(r"#?(?P<key>\w+) = (?P<value>(\[.*?\]|\".*?\"|[^#]*?))\s*(#\s*(?P<text>.*))?$")


@dataclass(frozen=True)
class Entry:
    """A key: what it is for, its value in the file, what else it may be.

    `default` is None if it is required; `live` if a reload takes another value.
    """

    name: str
    meaning: str
    written: str
    kind: str
    default: str | None
    live: bool

    @property
    def taken_by(self) -> str:
        """What has a node take another value."""
        return "reload" if self.live else "restart"


@dataclass(frozen=True)
class Table:
    """A table by its heading, `[sip]` or `[[cluster.peers]]`, and what it is for."""

    heading: str
    meaning: str
    entries: tuple[Entry, ...]


@dataclass
class _Text:
    """What the file says of a table, and of each key: its value, and what it is for."""

    meaning: str
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)


def introduction() -> str:
    """What the file says of itself, but for its first line."""
    head = FILE.read_text("utf-8").partition("\n\n")[0]
    return "\n".join(line.lstrip("# ") for line in head.splitlines()[2:])


def tables() -> list[Table]:
    """All of them, in the order of the file; raises KeyError where the file doesn't have a table or key."""
    texts = _texts()
    found = {table.heading: table for table in _tables(Config, texts)}
    return [found[heading] for heading in texts]


def _texts() -> Mapping[str, _Text]:
    """The tables as the file has them. A comment is about what follows; behind a key, indented or not, about that."""
    found: dict[str, _Text] = {}
    table, key = _Text(""), ""
    comment: list[str] = []
    for line in FILE.read_text("utf-8").partition("\n\n")[2].splitlines():
        if match := _TABLE.match(line):
            table = found[match["heading"]] = _Text(" ".join(comment))
        elif match := _KEY.match(line):
            key = match["key"]
            table.keys[key] = match["value"], " ".join([*comment, *filter(None, [match["text"]])])
        elif line.startswith(" "):
            value, text = table.keys[key]
            table.keys[key] = value, f"{text} {line.lstrip('# ')}"
        else:
            comment = [*comment, line.lstrip("# ")] if line else []
            continue
        comment = []
    return found


def _tables(section: type[Section], texts: Mapping[str, _Text], path: str = "") -> Iterator[Table]:
    """The tables that are keys of a section, and those below them."""
    for each in msgspec.structs.fields(section):
        kinds = (each.type, *get_args(each.type))
        below = next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, Section)), None)
        if below is None:
            continue
        single = below is each.type
        heading = f"[[{path}{each.name}]]" if isinstance(type_info(each.type), VarTupleType) else f"[{path}{each.name}]"
        text = texts[heading]
        live = below.live if single else frozenset(below.__struct_fields__ if each.name in section.live else ())
        yield Table(heading, text.meaning, tuple(_entries(below, text, live)))
        yield from _tables(below, texts, f"{path}{each.name}.")


def _entries(section: type[Section], text: _Text, live: Iterable[str]) -> Iterator[Entry]:
    for each in msgspec.structs.fields(section):
        kind = _kind(type_info(each.type))
        if kind:
            written, meaning = text.keys[each.name]
            default = None if each.required else _toml(each.default)
            yield Entry(each.name, meaning, written, kind, default, each.name in live)


def _kind(kind: Type, unit: str = "") -> str:
    """What a value of a type may be, in words; empty for tables."""
    match kind:
        case Metadata():
            return _kind(kind.type, str((kind.extra or {}).get("unit", "")))
        case BoolType():
            return "true or false"
        case IntType() | FloatType():
            return f"{'integer' if isinstance(kind, IntType) else 'number'}, {_bounds(kind)}{unit and f' {unit}'}"
        case LiteralType():
            return _choice([_toml(value) for value in kind.values])
        case StrType():
            return f"string, at most {kind.max_length} characters" if kind.max_length else "string"
        case CustomType():
            sentence = " ".join((inspect.getdoc(kind.cls) or "").partition("\n\n")[0].split()).removesuffix(".")
            return sentence[0].lower() + sentence[1:]
        case VarTupleType():
            item = _kind(kind.item_type)
            return item and f"array; each {item}"
    return ""


def _bounds(kind: IntType | FloatType) -> str:
    least = f"more than {kind.gt}" if kind.gt is not None else str(kind.ge)
    return f"{least}, at most {kind.le}" if kind.gt is not None else f"{least} to {kind.le}"


def _choice(values: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _toml(value: object) -> str:
    """A value as TOML writes it."""
    return repr(value) if isinstance(value, float) else msgspec.json.encode(value, enc_hook=str).decode()
