"""The replicated state machine: what the entries of the log, applied in order, have made of the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sipha.state.changes import (
    AccountDeleted,
    AccountPut,
    Change,
    Changes,
    KeyAdded,
    MembersPut,
    SchemaRaised,
    SettingPut,
    TermBegun,
)
from sipha.state.entries import (
    REFRESH_SCHEMA,
    UNDECODABLE,
    Barrier,
    DeleteAccount,
    Expire,
    ImportBinding,
    PutAccount,
    PutKey,
    PutMembers,
    PutSetting,
    RaiseSchema,
    Record,
    Register,
    RemoveBindings,
    RemoveUnreachable,
    UnknownSchema,
    decode,
    decode_singly,
)
from sipha.state.outcomes import Conflict, Done, Invalid, NotFound, Outcome, Outdated, Registered, Rejected
from sipha.state.snapshot import Frozen, Loaded
from sipha.state.table import DamagedMemory, FrozenTable
from sipha.state.tables import Tables

if TYPE_CHECKING:
    from sipha.state.interfaces import IObserver

__all__ = [
    "Conflict",
    "DamagedMemory",
    "Done",
    "Invalid",
    "Machine",
    "NotFound",
    "Outcome",
    "Outdated",
    "Registered",
    "Rejected",
    "UnknownSchema",
]


class Machine(Tables):
    """The state, and how the log changes it.

    `location`, `accounts`, `keys` and `settings` are for reading; `adopt` puts new ones in their places.
    """

    def __init__(self) -> None:
        super().__init__()
        self._applying = False
        self._changes: Changes | None = None
        self.observer: IObserver | None = None
        """Told what the entries have changed: each node's own business."""

    def apply(self, index: int, entry: bytes) -> list[Outcome]:
        """Apply the entry at a log index and return one outcome for each record.

        Total and deterministic. What can't be decoded, a record or the whole entry, is an Invalid outcome and changes
        nothing. An entry at or before `index` was applied already: it has no outcomes.

        Raises UnknownSchema, having changed nothing, until a release that knows the entry's schema is installed. Raises
        DamagedMemory if the state is found to be none, and ever after if an entry was applied in part, as when memory
        ended.
        """
        if index <= self.index:
            return []
        self._check_whole()
        records: list[Record | None] | tuple[Record, ...]
        try:
            batch = decode(entry)
            records = batch.records
        except UNDECODABLE:
            try:
                batch, records = decode_singly(entry)
            except UNDECODABLE:
                self.index = index
                return [Invalid("not an entry")]
        if batch.schema < 1:
            self.index = index
            return [Invalid(f"there is no schema {batch.schema}")] * len(records)
        self._applying = True
        time, observer = max(self.time, batch.time), self.observer
        changes = self._changes = None if observer is None else Changes(refreshes=observer.refreshes)
        self.location.begin(index, time, batch.policy, batch.schema, changes)
        outcomes = self._apply(records, batch.schema)
        self.time, self.policy, self.index = time, batch.policy, index
        self._applying = False
        if observer is not None and changes is not None and changes.made:
            observer.applied(index, time, changes.made)
        return outcomes

    def freeze(self, term: int, cluster_id: str) -> Frozen:
        """A snapshot of the state as it is now; `term` is that of the entry at `index`."""
        self._check_whole()
        return Frozen(self, term, cluster_id)

    def freeze_bindings(self) -> FrozenTable[str, Any]:
        """The bindings as they are now, for `location.listed`; `close` it when done."""
        self._check_whole()
        return self.location.freeze()

    def adopt(self, loaded: Loaded) -> Iterator[None]:
        """Put the state of a snapshot in the place of this one, which each step of what is returned frees in part."""
        old = Tables()
        old.take(self)
        self.take(loaded.tables)
        self.location.observer = bindings_observer = old.location.observer
        if bindings_observer is not None:
            bindings_observer.replaced()
        self._applying = False
        if self.observer is not None:
            self.observer.adopted(self.index)
        return old.dismantle()

    def scrub(self) -> Iterator[None]:
        """Check all records against the hash, some hundred with each step, while entries may go on being applied.

        Raises DamagedMemory.
        """
        frozen = self.freeze(0, "")
        try:
            for _ in frozen:
                yield
        finally:
            freed = frozen.close()
        yield from freed

    def _check_whole(self) -> None:
        if self._applying:
            raise DamagedMemory(f"the entry after {self.index} was applied in part")

    def _apply(self, records: Sequence[Record | None], schema: int) -> list[Outcome]:
        """Apply each record wholly, or not at all: all that may fail is done before anything is changed."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(records):
            try:
                if schema >= REFRESH_SCHEMA:
                    self.location.apply_plain(records, outcomes)
                if len(outcomes) < len(records):
                    outcomes.append(self._change(records[len(outcomes)], schema))
            except (MemoryError, DamagedMemory):  # this node's own trouble
                raise
            except Exception as error:  # noqa: BLE001  the same on every node, and no reason to skip the records after it
                outcomes.append(Invalid(f"can't be applied: {error!r}"))
        return outcomes

    def _change(self, record: Record | None, schema: int) -> Outcome:
        match record:
            case Register():
                return self.location.register(record)
            case Expire():
                return self.location.expire(record)
            case RemoveBindings():
                return self.location.remove(record)
            case PutAccount():
                created = self.accounts.get(record.username, record.domain) is None
                identity = f"{record.username}@{record.domain}"
                return self._made(self.accounts.put(record), AccountPut(identity, created))
            case DeleteAccount():
                return self._made(self.accounts.delete(record), AccountDeleted(f"{record.username}@{record.domain}"))
            case PutKey():
                return self._made(self.keys.put(record), KeyAdded())
            case PutSetting():
                return self._made(self.settings.put(record), SettingPut(record.name, record.value))
            case Barrier():
                self._tell(TermBegun(record.term, record.node))
                return Done(0)
            case _:
                return self._change_since(record, schema)

    def _change_since(self, record: Record | None, schema: int) -> Outcome:
        """Apply a record that the first schema didn't know."""
        match record:
            case RemoveUnreachable() if schema >= 3:
                return self.location.remove_unreachable(record)
            case ImportBinding() if schema >= 4:
                return self.location.bring(record)
            case PutMembers() if schema >= 2:
                return self._made(self._put_members(record), MembersPut(tuple(sorted(record.members))))
            case RaiseSchema() if schema >= 2:
                return self._made(self._raise_schema(record, schema), SchemaRaised(record.schema))
            case _:
                return Invalid("not a record of this schema")

    def _made(self, outcome: Outcome, change: Change) -> Outcome:
        """Tell of a change, if the outcome says that it was made."""
        if isinstance(outcome, Done) and outcome.count:
            self._tell(change)
        return outcome

    def _tell(self, change: Change) -> None:
        if self._changes is not None:
            self._changes.made.append(change)

    def _put_members(self, record: PutMembers) -> Done:
        before, self.members = self.members, tuple(sorted(record.members))
        return Done(int(self.members != before))

    def _raise_schema(self, record: RaiseSchema, schema: int) -> Done | Invalid:
        if record.schema != schema:
            return Invalid(f"schema {record.schema} is raised in an entry of schema {schema}")
        before, self.schema = self.schema, max(self.schema, schema)
        return Done(self.schema - before)
