"""When which binding is pinged: in a slot of its own, once in each interval of cluster time, whoever leads.

A slot's number is the cluster time at which it begins, in units of SLOT. A binding's slots are those that leave the
same remainder by the interval: a hash of AOR and contact id, so that bindings are spread evenly, and every node agrees.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

SLOT = 20
"""Milliseconds of one slot."""

CATCH_UP = 8
"""How many times as fast as usual pings go, at most, that are overdue after a failover."""

_FREED = 50
"""Slots that are freed in one step: a few ms for a million bindings."""


class Schedule:
    """The AORs by their bindings' slots, with what they answered last; all times are in ms of cluster time.

    Each binding has one slot in an `interval`. It goes on from `since`, up to where an earlier leader is known to have
    pinged, but from less than an interval ago.
    """

    def __init__(self, interval: int, since: int, now: int) -> None:
        self.slots = max(interval // SLOT, 1)
        # To each AOR the slot in which the last ping was sent that it answered, None yet.
        self._aors: list[dict[str, int | None]] = [{} for _ in range(self.slots)]
        self._next = since // SLOT
        self._rest: list[str] = []  # of the slot before _next
        self._keep_up(now)

    @property
    def until(self) -> int:
        """The cluster time up to which all slots have been handed out."""
        return (self._next - bool(self._rest)) * SLOT

    def remainder(self, aor: str, contact_id: int) -> int:
        """The remainder that a binding's slots leave."""
        return crc32(f"{contact_id} {aor}".encode("utf-8", "surrogateescape")) % self.slots

    def add(self, aor: str, contact_id: int) -> None:
        """Let a binding have its slots."""
        self._aors[self.remainder(aor, contact_id)].setdefault(aor)

    def answered(self, aor: str, remainder: int, slot: int) -> None:
        """The ping that a binding of this remainder was sent in a slot has been answered."""
        self._aors[remainder][aor] = slot

    def last_answered(self, aor: str, contact_id: int) -> int | None:
        """When the last ping was sent that a binding has answered; None if it hasn't yet.

        Bindings of one AOR that have their slots in common, one pair in `slots`, have this in common, too.
        """
        slot = self._aors[self.remainder(aor, contact_id)].get(aor)
        return None if slot is None else slot * SLOT

    def discard(self, aor: str, slot: int) -> None:
        """Let no binding of an AOR have this slot any more."""
        self._aors[slot % self.slots].pop(aor, None)

    def due(self, now: int, limit: int) -> list[tuple[int, list[str]]]:
        """The slots that have come and the AORs in them, up to `limit`: each slot with each of its AORs comes once.

        An AOR that is added to a slot while that is handed out waits for the next interval.
        """
        self._keep_up(now)
        found = []
        for _ in range(CATCH_UP):
            if not self._rest:
                if self._next > now // SLOT:
                    break
                self._rest = list(self._aors[self._next % self.slots])
                self._next += 1
            found.append((self._next - 1, self._rest[:limit]))
            limit -= len(self._rest)
            self._rest = [] if limit >= 0 else self._rest[limit:]
            if limit <= 0:
                break
        return found

    def skip(self, now: int) -> None:
        """Pass over what is due."""
        self._next, self._rest = now // SLOT + 1, []

    def dismantle(self) -> Iterator[None]:
        """Free what it holds, a little with each step."""
        while self._aors:
            del self._aors[-_FREED:]
            yield

    def _keep_up(self, now: int) -> None:
        """Leave out what is overdue by so much that it will soon come again, before the rest has caught up."""
        oldest = now // SLOT + 1 - self.slots + self.slots // CATCH_UP
        if self._next < oldest:
            self._next, self._rest = oldest, []
