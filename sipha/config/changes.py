"""What is different between two configurations, and which of it a running node can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from sipha.config import Config
from sipha.toml import Section


class Key(NamedTuple):
    """A key by its path, such as `sip.port`; an array of tables is one key. `live` if a running node takes another."""

    path: str
    live: bool


def keys(section: type[Section] = Config, path: str = "") -> Iterator[Key]:
    """All keys of the configuration."""
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from keys(field.type, f"{path}{field.name}.")
        else:
            yield Key(path + field.name, field.name in section.live)


def compare(old: Config, new: Config) -> tuple[Key, ...]:
    """The keys whose values differ."""
    return tuple(key for key in keys() if _value(old, key.path) != _value(new, key.path))


def _value(config: Section, path: str) -> object:
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
