"""The cluster-wide settings that operators change at run time: names and values, both text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sipha.state.entries import PutSetting
from sipha.state.multiset import digest
from sipha.state.outcomes import Done


class Settings:
    """The settings by name."""

    def __init__(self, values: Iterable[tuple[str, str]] = ()) -> None:
        self._values = dict(values)
        self.hash = self.recompute()

    def get(self, name: str, default: str = "") -> str:
        """The value of a setting, or `default` while it isn't set."""
        return self._values.get(name, default)

    def items(self) -> list[tuple[str, str]]:
        """All settings, by name."""
        return sorted(self._values.items())

    def put(self, record: PutSetting) -> Done:
        """Set a setting, or remove it if the value is empty."""
        before = self._values.pop(record.name, None)
        if before is not None:
            self.hash -= _digest((record.name, before))
        if record.value:
            self._values[record.name] = record.value
            self.hash += _digest((record.name, record.value))
        return Done(int(before != (record.value or None)))

    def recompute(self) -> int:
        """The hash taken afresh from the settings."""
        return sum(map(_digest, self._values.items()))


def _digest(item: tuple[str, str]) -> int:
    return digest(msgspec.msgpack.encode(("setting", *item)))
