"""The location table: the bindings of each AOR (RFC 3261 §10), changed by records of the log alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from sipha.state import registration
from sipha.state.binding import Binding, decode
from sipha.state.changes import Changes
from sipha.state.entries import (
    Expire,
    ImportBinding,
    Policy,
    Record,
    Refresh,
    Register,
    RemoveBindings,
    RemoveUnreachable,
)
from sipha.state.expiry import ExpiryBuckets
from sipha.state.multiset import MASK
from sipha.state.outcomes import Conflict, Done, Invalid, NotFound, Outcome, Outdated, Registered, Rejected, registered
from sipha.state.registration import Moment
from sipha.state.row import (
    LATEST,
    LEAD,
    Made,
    Row,
    bindings_of,
    digested,
    first_plain,
    lead,
    load,
    moved,
    outcome_of,
    refresh_plain,
    row_of,
    row_of_one,
    shorten_plain,
    total,
)
from sipha.state.table import DamagedMemory, FrozenTable, Table
from sipha.state.tombstones import LIFETIME, Tombstone, Tombstones

if TYPE_CHECKING:
    from sipha.state.interfaces import IBindingsObserver

__all__ = ["Binding", "Location", "listed", "unpacked"]

_RETRY = 5
"""Seconds after which bindings that ran out are reported again, if they are still there."""

_EXAMINED = 2_000
"""How many due AORs `expired` examines, of which most were refreshed meanwhile: some 3 ms."""

_OUTDATED = Outdated()
_NOTHING = b"\x90"  # in msgpack


class Expired(NamedTuple):
    """Bindings that ran out, as Expire names them; `more` is True if there is more to look at now."""

    bindings: tuple[tuple[str, int, int], ...]
    more: bool


class Location:
    """The bindings by AOR, and the tombstones of those removed.

    `begin` says at which log index and cluster time the records that follow are applied. Times are in ms of cluster
    time. Reading hides bindings that ran out; they stay until an Expire or the AOR's next REGISTER removes them.
    """

    def __init__(self) -> None:
        self._rows: Table[str, Row] = Table()
        self._buckets = ExpiryBuckets()
        self._tombstones = Tombstones()
        self._moment = Moment(0, 0, Policy(), 1, count())
        self._figures = 0, 0, 0, 0, 0  # of the moment and its policy, as the kernels take them
        self._changes: Changes | None = None
        self._high = self._low = 0  # the sums of the halves of the rows' digests
        self.count = 0
        """How many bindings there are, with those that ran out and are not yet removed."""
        self.bound: Callable[[str, int, int], object] | None = None
        """Told the AOR of a binding, its id and its cflags, whenever an entry has made one of that AOR, or has changed
        more of one than how long it lasts: each node's own business."""
        self.observer: IBindingsObserver | None = None
        """Told of each change, before anybody can have heard of it: each node's own business."""

    def __len__(self) -> int:
        """How many AORs have bindings."""
        return len(self._rows)

    @property
    def hash(self) -> int:
        """The sum of the digests of all records."""
        return (total(self._high, self._low) + self._tombstones.hash) & MASK

    # Reading

    def bindings(self, aor: str, now: int) -> Sequence[Binding]:
        """The unexpired bindings of an AOR in the order they were made."""
        row = self._rows.get(aor)
        if row is None:
            return ()
        bindings = bindings_of(row)
        return bindings if lead(row)[2] > now else _unexpired(bindings, now)

    def lookup(self, aor: str, now: int) -> Sequence[Binding]:
        """The unexpired bindings of an AOR, by falling q, then the most recently refreshed first."""
        bindings = self.bindings(aor, now)
        return bindings if len(bindings) < 2 else sorted(bindings, key=_rank, reverse=True)

    def packed(self, aor: str) -> bytes:
        """The bindings of an AOR in msgpack, for `unpacked`."""
        row = self._rows.get(aor)
        return _NOTHING if row is None else row[LEAD:]

    def aors(self, after: str = "", limit: int = 100) -> list[str]:
        """The first `limit` AORs in the table, in order, that come after `after`: the last one is the next cursor."""
        return self._rows.keys_after(after, limit)

    def expired(self, now: int, limit: int) -> Expired:
        """Up to `limit` bindings that ran out; none is reported again for some seconds.

        The work that is done in one call is bounded, too: there may be more although it has found none.
        """
        second = now // 1000
        found: list[tuple[str, int, int]] = []
        examined = 0
        for aor, bucket in self._buckets.due(second, _EXAMINED):
            row = self._rows.get(aor)
            if row is None:
                raise DamagedMemory(f"{aor} is to expire and has no bindings")
            earliest = lead(row)[2]
            if earliest <= now:
                if len(found) >= limit:
                    break
                found += [
                    (aor, binding.contact_id, binding.version)
                    for binding in bindings_of(row)
                    if binding.expires_at <= now
                ]
            self._buckets.remove(aor, bucket)
            later = earliest // 1000 if earliest > now else second + _RETRY
            self._rows.replace(aor, row, moved(row, later))
            self._buckets.add(aor, later)
            examined += 1
        return Expired(tuple(found[:limit]), len(found) >= limit or examined >= _EXAMINED)

    def shortened(self, request: Register) -> Register | Refresh:
        """The shortest record that has the effect of a REGISTER on the bindings as they are now."""
        row = self._rows.get(request.aor)
        if row is None:
            return request
        if shorten_plain is not None:
            return shorten_plain(row, request) or request
        bindings = bindings_of(row)
        return (registration.shortened(request, bindings[0]) if len(bindings) == 1 else None) or request

    # Applying

    def begin(self, index: int, time: int, policy: Policy, schema: int, changes: Changes | None = None) -> None:
        """Say at which log index and time and by what rules the next records are applied; forget what ends.

        What they change goes into `changes`.
        """
        # An id names the entry that made the binding and its place there, so that it is the same on every node.
        self._moment = Moment(index, time, policy, schema, count(index << 20))
        self._figures = index, time, policy.default_expires, policy.min_expires, policy.max_expires
        self._changes = changes
        self._tombstones.prune(time)

    def register(self, request: Register) -> Registered | Rejected | Invalid:
        """Apply a REGISTER as RFC 3261 §10.3 says from step 6 on; equal to what was applied before, it is a repeat."""
        aor, time = request.aor, self._moment.time
        row = self._rows.get(aor)
        stored = () if row is None else bindings_of(row)
        current = stored if row is None or lead(row)[2] > time else _unexpired(stored, time)
        if not request.contacts and not request.wildcard:
            return registered(current, time)
        only: Binding | None = None
        if len(stored) == len(current) == 1:
            only = registration.refresh(request, current[0], self._moment)
        elif not stored:
            only = registration.first(request, self._tombstones.cseq(aor, request.call_id), self._moment)
        if only is not None:
            new = row_of_one(only, _bucket(row))
            outcome = outcome_of(new, time)
            self._store(aor, row, new)
            self.count += 1 - len(stored)
            if self.bound is not None:
                self.bound(aor, only.contact_id, only.cflags)
            if self._changes is not None:
                if current:
                    self._changes.put(current[0], only)
                else:
                    self._changes.made_first(aor, outcome.data)
            return outcome
        return self._register(request, row, stored, current)

    def apply_plain(self, records: Sequence[Record | None], outcomes: list[Outcome]) -> None:
        """Apply those from the one that has no outcome yet to the first that asks for more, and add their outcomes.

        What it raises is about the first that has none then. A Refresh is applied as the REGISTER of which it was made,
        if the AOR still has what that was compared with.
        """
        while True:
            before = len(outcomes)
            self._refresh_plain(records, outcomes)
            self._register_first(records, outcomes)
            if len(outcomes) == len(records):
                return
            if len(outcomes) == before:
                record = records[before]
                if not isinstance(record, Refresh):
                    return
                outcomes.append(self._refresh(record))

    def _refresh_plain(self, records: Sequence[Record | None], outcomes: list[Outcome]) -> None:
        """Have the kernel apply those that come next and are plain refreshes."""
        if refresh_plain is None or (self._changes is not None and self._changes.refreshes):
            return
        rows = self._rows
        first = len(outcomes)
        replaced: list[tuple[str, Row]] | None = [] if rows.is_frozen else None
        try:
            high, low = refresh_plain(rows.shards, records, outcomes, replaced, *self._figures)
        finally:
            if self.observer is not None:
                self._tell_refreshed(self.observer, records[first : len(outcomes)])
        self._high += high
        self._low += low
        if replaced:
            rows.replaced(replaced)

    def _register_first(self, records: Sequence[Record | None], outcomes: list[Outcome]) -> None:
        """Have the kernel apply those that come next and are plainly the first REGISTERs of their AORs."""
        if first_plain is None:
            return
        made: list[Made] = []
        before, rows, buckets = len(outcomes), self._rows, self._buckets
        buried, contact_ids = self._tombstones.shards, self._moment.contact_ids
        try:
            high, low = first_plain(rows.shards, buried, records, outcomes, made, contact_ids, *self._figures)
        finally:
            if self.observer is not None:
                for request, _, _ in made:
                    self.observer.changed(request.aor)
        self._high += high
        self._low += low
        self.count += len(made)
        for request, _, row in made:
            rows.added(request.aor)
            buckets.add(request.aor, lead(row)[3])
        if self.bound is not None:
            for request, contact_id, _ in made:
                self.bound(request.aor, contact_id, request.cflags)
        if self._changes is not None:
            for (request, _, _), outcome in zip(made, outcomes[before:], strict=True):
                if isinstance(outcome, Registered):
                    self._changes.made_first(request.aor, outcome.data)

    def _refresh(self, record: Refresh) -> Registered | Outdated:
        """Apply one."""
        aor, moment = record.aor, self._moment
        row = self._rows.get(aor)
        if row is None:
            return _OUTDATED
        _, _, earliest, bucket = lead(row)
        if earliest <= moment.time:
            return _OUTDATED
        stored = bindings_of(row)
        if len(stored) > 1:
            return _OUTDATED
        binding = registration.refreshed(record, stored[0], moment)
        if binding is None:
            return _OUTDATED
        new = row_of_one(binding, bucket)
        outcome = outcome_of(new, moment.time)
        self._replace(aor, row, new)
        if self.observer is not None:
            self.observer.refreshed(aor, binding.expires_at, new[LEAD:])
        # Whoever is told what is bound has been told of this binding: its id and its flags are as they were.
        if self._changes is not None:
            self._changes.refreshed(binding)
        return outcome

    def _tell_refreshed(self, observer: IBindingsObserver, records: Sequence[Record | None]) -> None:
        """Tell of plain refreshes that were applied, if they weren't outdated."""
        for record in records:
            row = self._rows.get(record.aor) if isinstance(record, Refresh) else None
            if row is not None and isinstance(record, Refresh):
                observer.refreshed(record.aor, lead(row)[2], row[LEAD:])

    def _register(
        self, request: Register, row: Row | None, stored: Sequence[Binding], current: Sequence[Binding]
    ) -> Registered | Rejected | Invalid:
        """Apply a REGISTER that does more than to put one binding; `current` are the bindings that count."""
        aor, time = request.aor, self._moment.time
        removed = self._tombstones.cseq(aor, request.call_id)
        if not request.wildcard:
            made = registration.register(request, current, removed, self._moment)
        elif not request.contacts:
            made = registration.clear(request, current, removed)
        else:
            return Invalid("a wildcard stands alone (RFC 3261 §10.3 step 6)")
        if isinstance(made, Rejected):
            return made
        after = tuple(made.bindings)
        new = row if after == current else row_of(after, _bucket(row))
        outcome = registered(after, time)
        if request.cseq > removed and _removes(request, self._moment.policy):
            self._tombstones.add(aor, request.call_id, request.cseq, time)
        if new is not row:
            if stored:
                self._bury(stored, after)
            self._store(aor, row, new)
            self.count += len(after) - len(stored)
            self._tell_bound(after)
            if self._changes is not None:
                self._changes.removed(stored, current, "expired")
                self._changes.registered(request, current, after, made.dropped)
        return outcome

    def bring(self, record: ImportBinding) -> Done | Conflict | Invalid:
        """Add a binding from elsewhere, unless its phone has one here, or has gone since."""
        request = record.register
        row = self._rows.get(request.aor)
        stored = () if row is None else bindings_of(row)
        current = _unexpired(stored, self._moment.time)
        removed = self._tombstones.cseq(request.aor, request.call_id)
        made = registration.bring(request, current, removed, self._moment)
        if not isinstance(made, Binding):
            return Done(0) if made is None else made
        after = (*current, made)
        self._bury(stored, after)
        self._store(request.aor, row, row_of(after, _bucket(row)))
        self.count += len(after) - len(stored)
        self._tell_bound(after)
        if self._changes is not None:
            self._changes.registered(request, current, after, {})
        return Done(1)

    def remove(self, record: RemoveBindings) -> Done | NotFound:
        """Remove the bindings of an AOR, or the one whose contact is `contact`."""
        time = self._moment.time
        row = self._rows.get(record.aor)
        stored = () if row is None else bindings_of(row)
        current = _unexpired(stored, time)
        after: tuple[Binding, ...] = ()
        if record.contact:
            place = registration.find(current, record.contact)
            after = current if place < 0 else current[:place] + current[place + 1 :]
        if len(after) == len(current):
            return NotFound(f"no such binding of {record.aor}")
        self._reduce(record.aor, row, stored, after)
        if self._changes is not None:
            self._changes.removed(stored, current, "expired")
            self._changes.removed(current, after, "admin")
        return Done(len(current) - len(after))

    def remove_unreachable(self, record: RemoveUnreachable) -> Done:
        """Remove the binding that the record names, unless it was refreshed since."""
        row = self._rows.get(record.aor)
        stored = () if row is None else bindings_of(row)
        after = tuple(
            binding
            for binding in stored
            if binding.contact_id != record.contact_id or binding.version != record.version
        )
        if len(after) < len(stored):
            self._reduce(record.aor, row, stored, after)
            if self._changes is not None:
                self._changes.removed(stored, after, "ping-timeout")
        return Done(len(stored) - len(after))

    def expire(self, record: Expire) -> Done:
        """Remove those of the bindings named that ran out and were not refreshed since (design §3)."""
        time = self._moment.time
        left: dict[str, tuple[Binding, ...]] = {}
        steps: list[tuple[tuple[Binding, ...], tuple[Binding, ...]]] = []
        for aor, contact_id, version in record.bindings:
            stored = left.get(aor)
            if stored is None:
                row = self._rows.get(aor)
                if row is None or lead(row)[2] > time:
                    continue
                stored = bindings_of(row)
            after = tuple(
                binding
                for binding in stored
                if binding.contact_id != contact_id or binding.version != version or binding.expires_at > time
            )
            if len(after) < len(stored):
                left[aor] = after
                steps.append((stored, after))
        rows = [(aor, before := self._rows.get(aor), row_of(after, _bucket(before))) for aor, after in left.items()]
        for stored, after in steps:
            self._bury(stored, after)
            self.count += len(after) - len(stored)
        for aor, before, new in rows:
            self._store(aor, before, new)
        if self._changes is not None:
            for stored, after in steps:
                self._changes.removed(stored, after, "expired")
        return Done(sum(len(stored) - len(after) for stored, after in steps))

    # Copying

    def tombstones(self) -> Iterator[Tombstone]:
        """The tombstones in the order in which they end."""
        return iter(self._tombstones)

    def freeze(self) -> FrozenTable[str, Row]:
        """The bindings of each AOR as they are now, in the order of the AORs, for a snapshot."""
        return self._rows.freeze(digested)

    def freeze_tombstones(self) -> FrozenTable[int, Tombstone]:
        """The tombstones as they are now, for a snapshot."""
        return self._tombstones.freeze()

    def load(self, records: Iterable[bytes]) -> None:
        """Add what a snapshot holds of bindings, in order; raises one of UNDECODABLE or ValueError."""
        rows = []
        for data in records:
            row, aor, number = load(data)
            rows.append((aor, row))
            high, low, _, bucket = lead(row)
            self._buckets.add(aor, bucket)
            self._high += high
            self._low += low
            self.count += number
        self._rows.extend(rows)

    def load_tombstones(self, records: Iterable[bytes]) -> None:
        """Add what a snapshot holds of tombstones; raises one of UNDECODABLE or ValueError."""
        self._tombstones.load(records)

    def dismantle(self) -> Iterator[None]:
        """Free all, a little with each step."""
        yield from self._rows.dismantle()
        yield from self._buckets.dismantle()
        yield from self._tombstones.dismantle()

    def _reduce(self, aor: str, row: Row | None, stored: Sequence[Binding], after: tuple[Binding, ...]) -> None:
        """Leave an AOR with fewer bindings than are stored."""
        new = row_of(after, _bucket(row))
        self._bury(stored, after)
        self._store(aor, row, new)
        self.count += len(after) - len(stored)

    def _tell_bound(self, bindings: Iterable[Binding]) -> None:
        if self.bound is not None:
            for binding in bindings:
                self.bound(binding.aor, binding.contact_id, binding.cflags)

    def _bury(self, before: Sequence[Binding], after: Sequence[Binding]) -> None:
        """Leave a tombstone for each binding that is gone, or is another Call-ID's now."""
        staying = {binding.contact_id: binding.call_id for binding in after}
        time = self._moment.time
        for binding in before:
            # What was sent before a REGISTER that old can't still be on its way.
            if staying.get(binding.contact_id) != binding.call_id and time - binding.last_modified < LIFETIME:
                self._tombstones.add(binding.aor, binding.call_id, binding.cseq, time)

    def _store(self, aor: str, row: Row | None, new: Row | None) -> None:
        """Put the row of an AOR in the place of the one that it has, and say so; None is no row."""
        if self.observer is not None:
            self.observer.changed(aor)
        if row is None:
            if new is not None:
                high, low, _, bucket = lead(new)
                self._rows.add(aor, new)
                self._buckets.add(aor, bucket)
                self._high += high
                self._low += low
            return
        if new is None:
            high, low, _, bucket = lead(row)
            self._rows.remove(aor, row)
            self._buckets.remove(aor, bucket)
            self._high -= high
            self._low -= low
            return
        self._replace(aor, row, new)

    def _replace(self, aor: str, row: Row, new: Row) -> None:
        old_high, old_low, _, old_bucket = lead(row)
        high, low, _, bucket = lead(new)
        if bucket != old_bucket:
            self._buckets.remove(aor, old_bucket)
            self._buckets.add(aor, bucket)
        self._rows.replace(aor, row, new)
        self._high += high - old_high
        self._low += low - old_low


def unpacked(data: bytes, now: int) -> Sequence[Binding] | None:
    """What `lookup` says, by what `packed` gave before; None if a binding has run out that may have been refreshed."""
    bindings = decode(data)
    for binding in bindings:
        if binding.expires_at <= now:
            return None
    return bindings if len(bindings) < 2 else sorted(bindings, key=_rank, reverse=True)


def listed(frozen: FrozenTable[str, Row], now: int) -> Iterator[Sequence[Binding]]:
    """The unexpired bindings of each AOR of a frozen table, in the order of the AORs; raises DamagedMemory."""
    for data, _ in frozen:
        yield _unexpired(decode(data), now)


def _bucket(row: Row | None) -> int:
    return LATEST if row is None else lead(row)[3]


def _unexpired(bindings: tuple[Binding, ...], now: int) -> tuple[Binding, ...]:
    return tuple(binding for binding in bindings if binding.expires_at > now)


def _removes(request: Register, policy: Policy) -> bool:
    for contact in request.contacts:
        if not registration.asked(contact, policy):
            return True
    return request.wildcard


def _rank(binding: Binding) -> tuple[int, int, int]:
    return binding.preference, binding.last_modified, binding.version
