"""The cluster-wide settings that operators change at run time: names and values, both text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sipha.state.entries import PutSetting
from sipha.state.multiset import digest
from sipha.state.outcomes import Done
from sipha.state.table import Digested

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, str]).decode


PREFERRED = "preferred"
"""The setting that names the node which is to lead whenever it can."""

_ON = "on"


def standby(node: str, *, on: bool) -> PutSetting:
    """The setting that says whether a node is in standby: it leads only to hand leadership on."""
    return PutSetting(_standby(node), _ON if on else "")


class Settings:
    """The settings by name."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self.hash = 0

    def get(self, name: str, default: str = "") -> str:
        """The value of a setting, or `default` while it isn't set."""
        return self._values.get(name, default)

    @property
    def preferred(self) -> str:
        """The node that is to lead whenever it can; empty if it may be any."""
        return self.get(PREFERRED)

    def in_standby(self, node: str) -> bool:
        """True if an operator has put the node in standby."""
        return self.get(_standby(node)) == _ON

    def items(self) -> list[tuple[str, str]]:
        """All settings, by name."""
        return sorted(self._values.items())

    def put(self, record: PutSetting) -> Done:
        """Set a setting, or remove it if the value is empty."""
        before = self._values.get(record.name, "")
        if before == record.value:
            return Done(0)
        change = _digest((record.name, record.value)) if record.value else 0
        if before:
            change -= _digest((record.name, before))
        if record.value:
            self._values[record.name] = record.value
        else:
            del self._values[record.name]
        self.hash += change
        return Done(1)

    def freeze(self) -> list[Digested]:
        """The settings as they are now, by name, for a snapshot."""
        return [(_encode(item), _digest(item)) for item in self.items()]

    def load(self, records: Iterable[bytes]) -> None:
        """Add what a snapshot holds; raises one of UNDECODABLE."""
        self._values |= map(_decode, records)
        self.hash = sum(map(_digest, self._values.items()))


def _standby(node: str) -> str:
    return f"standby/{node}"


def _digest(item: tuple[str, str]) -> int:
    return digest(_encode(("setting", *item)))
