"""TOML files decoded into msgspec Structs, with messages that tell an operator what to write instead.

A `Section` is a table of the file, a `Text` a string with a syntax of its own. Checks in a Section's `__post_init__`
raise ValueError with a text that begins with the key: `key: what is wrong; what would be right`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

import msgspec

from sipha.errors import ConfigError


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table; a key that it doesn't know is an error.

    A running node takes another value of a key that is `live`; for any other it must be restarted.
    """

    live: ClassVar[frozenset[str]] = frozenset()


SectionT = TypeVar("SectionT", bound=Section)


class Text(str):
    """A string that `parse` has checked and made canonical."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text; raises ValueError saying what would be right."""
        raise NotImplementedError


def read(path: str | Path) -> str:
    """The text of a file; raises ConfigError with one message naming the file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def parse(text: str) -> dict[str, Any]:
    """The document that a text is; raises ValueError naming the line that isn't TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_syntax(str(error), text)) from error


def convert(document: dict[str, Any], section: type[SectionT]) -> SectionT:
    """Decode a document into `section`; raises ValueError naming the first key that is wrong."""
    try:
        return msgspec.convert(document, section, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(_explain(str(error), section, document)) from error


def faults(document: dict[str, Any], section: type[Section]) -> list[str]:
    """All that is wrong in a document, key by key; checks of several keys come last, and where all else is right."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(section)}
    found: list[str] = []
    for key, value in document.items():
        if key not in kinds:
            found.append(_explain(f"Object contains unknown field `{key}`", section, document))
        elif isinstance(value, dict) and _is_section(kinds[key]):
            found += [f"{key}.{fault}" for fault in faults(value, kinds[key])]
        elif isinstance(value, list) and (items := get_args(kinds[key])):
            for number, item in enumerate(value):
                if isinstance(item, dict) and _is_section(items[0]):
                    found += [f"{key}[{number}].{fault}" for fault in faults(item, items[0])]
                else:
                    found += [fault.replace("[0]", f"[{number}]", 1) for fault in _faults_of(key, [item], section)]
        else:
            found += _faults_of(key, value, section)
    found += [
        f"{field.name}: is missing; {_example(section, field.name)}"
        for field in msgspec.structs.fields(section)
        if field.required and field.name not in document
    ]
    if not found:
        try:
            convert(document, section)
        except ValueError as error:
            return [str(error)]
    return found


def _faults_of(key: str, value: object, section: type[Section]) -> list[str]:
    """What is wrong with the value of a key, whatever the other keys say."""
    try:
        msgspec.convert({key: value}, section, dec_hook=_decode)
    except msgspec.ValidationError as error:
        match = _MESSAGE.fullmatch(str(error))
        if match is not None and match["path"]:  # else it speaks of the table
            return [_explain(str(error), section, {key: value})]
    return []


def _decode(kind: type[Text], value: object) -> Text:
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return kind.parse(value)


_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_KEY = re.compile(r"(?P<key>[a-z0-9_.]+): (?P<what>.*)", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WRONG_TYPE = re.compile(r"Expected `([^`]*)`, got `[^`]*`")
_OUT_OF_BOUNDS = re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)")
_CHOICE = re.compile(r"Invalid enum value")

_TOML_TYPES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    dict: "a table",
    list: "an array",
}
_WANTED = {"str": "a string", "bool": "true or false", "int": "an integer", "float": "a number", "object": "a table"}
_SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def _syntax(error: str, text: str) -> str:
    """The line that isn't TOML, and why."""
    what, _, where = error.rpartition(" (at ")
    line = re.match(r"line (\d+), column (\d+)", where)
    if line is None:
        return f"line {text.count(chr(10)) + 1}, at the end of the file: not TOML: {what}"
    return f"line {line[1]}, column {line[2]}: not TOML: {what}"


def _explain(error: str, root: type[Section], document: dict[str, Any]) -> str:
    """What msgspec or a check above says, as an operator reads it: the key, what is wrong, what would be right."""
    match = _MESSAGE.fullmatch(error)
    assert match is not None  # noqa: S101 - the pattern matches any text
    what, path = match["what"], match["path"] or ""
    if ours := _KEY.fullmatch(what):
        return f"{_join(path, ours['key'])}: {ours['what']}"
    section, kind, value = _look_up(path, root, document)
    if unknown := _UNKNOWN.fullmatch(what):
        known = section.__struct_fields__
        close = difflib.get_close_matches(unknown[1], known, 1)
        right = f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(known)}"
        return f"{_join(path, unknown[1])}: is not a known key; {right}"
    if missing := _MISSING.fullmatch(what):
        return f"{_join(path, missing[1])}: is missing; {_example(section, missing[1])}"
    if wrong := _WRONG_TYPE.fullmatch(what):
        wanted = _WANTED.get(wrong[1], "an array")
        return f"{path}: {_written(value)} is {_TOML_TYPES.get(type(value), 'a date or time')}; write {wanted}"
    if bound := _OUT_OF_BOUNDS.fullmatch(what):
        return f"{path}: {_written(value)} is out of bounds; write {_SIGNS[bound[1]]} {bound[2]}"
    if _CHOICE.match(what):
        choices = " or ".join(_written(choice) for choice in get_args(kind))
        return f"{path}: {_written(value)} is not a choice; write {choices}"
    return f"{path}: {what}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _example(section: type[Section], key: str) -> str:
    kind = next(field.type for field in msgspec.structs.fields(section) if field.name == key)
    items = get_args(kind)
    if items and _is_section(items[0]):
        return f"add a table [[{key}]]"
    return f"add a table [{key}]" if _is_section(kind) else f"write {key} = ..."


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _written(value: object) -> str:
    """A value as TOML writes it, shortened."""
    text = str(value) if isinstance(value, float) else msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _steps(path: str) -> Iterator[str | int]:
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        yield int(index) if index else key


def _look_up(path: str, root: type[Section], document: dict[str, Any]) -> tuple[type[Section], Any, Any]:
    """The innermost section on the path, the type at its end, and the value that stands there."""
    section = root
    kind: Any = root
    value: Any = document
    for step in _steps(path):
        if isinstance(step, int):
            kind = get_args(kind)[0]
        else:
            kind = {field.name: field.type for field in msgspec.structs.fields(section)}[step]
        value = value[step]
        if _is_section(kind):
            section = kind
    return section, kind, value
