"""What becomes of pings: which wait for an answer, and how many in succession a binding has missed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_SLOTS = 1 << 32


class Awaited(NamedTuple):
    """A ping that waits: for a binding as it was when it was sent, straight to the phone or to the edge before it."""

    aor: str
    version: int
    to_edge: bool


class Answers:
    """The pings under way, by slot and contact id, for `patience` slots each; nothing else of them is kept."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._awaited: dict[int, dict[int, Awaited]] = {}
        self._missed: dict[int, tuple[int, int]] = {}  # contact id to the version, and how many in succession
        self._missed_before: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return sum(map(len, self._awaited.values()))

    def await_(self, slot: int, contact_id: int, awaited: Awaited) -> None:
        """A ping was sent."""
        self._awaited.setdefault(slot % _SLOTS, {})[contact_id] = awaited

    def awaited(self, slot: int, contact_id: int) -> Awaited | None:
        """The ping that an answer is for; None if none is awaited any more."""
        return self._awaited.get(slot, {}).get(contact_id)

    def came(self, slot: int, contact_id: int) -> None:
        """The answer to a ping under way has come."""
        del self._awaited[slot][contact_id]
        self._missed.pop(contact_id, None)
        self._missed_before.pop(contact_id, None)

    def overdue(self, slot: int) -> Iterator[tuple[int, int, Awaited]]:
        """Take out the pings whose time is up when `slot` is now: the slot they were sent in, and the contact id."""
        for sent in list(self._awaited):
            age = (slot - sent) % _SLOTS
            if age <= self._patience:
                break
            for contact_id, awaited in self._awaited.pop(sent).items():
                yield slot - age, contact_id, awaited

    def miss(self, contact_id: int, version: int) -> int:
        """Note that a binding has missed an answer, and return how many in succession, since it was refreshed."""
        seen, missed = self._missed.get(contact_id) or self._missed_before.get(contact_id) or (version, 0)
        missed = missed + 1 if seen == version else 1
        self._missed[contact_id] = (version, missed)
        return missed

    def forget_recovered(self) -> None:
        """Forget the bindings that have missed nothing since this was last called: they are gone, or answer again.

        It must be called less often than once in an interval, so that two misses in succession aren't told apart.
        """
        self._missed_before, self._missed = self._missed, {}

    def forget(self) -> None:
        """Wait for nothing that is under way: it isn't known whether it arrived."""
        self._awaited.clear()
