"""The replicated state machine: what the entries of the log, applied in order, have made of the state."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from sipha.errors import SiphaError
from sipha.state.accounts import Account, Accounts
from sipha.state.entries import (
    SCHEMA,
    UNDECODABLE,
    Barrier,
    Batch,
    DeleteAccount,
    Expire,
    Policy,
    PutAccount,
    PutKey,
    PutSetting,
    Record,
    Register,
    RemoveBindings,
    decode,
    decode_singly,
)
from sipha.state.keys import Keys
from sipha.state.location import Location
from sipha.state.multiset import MASK
from sipha.state.outcomes import Conflict, Done, Invalid, NotFound, Outcome, Registered, Rejected
from sipha.state.settings import Settings
from sipha.state.tombstones import Tombstone

__all__ = [
    "Conflict",
    "DamagedSnapshot",
    "Done",
    "Invalid",
    "Machine",
    "NotFound",
    "Outcome",
    "Registered",
    "Rejected",
]

_SNAPSHOT = 1
"""The version of the snapshot's form."""

_CHECKSUM = 16
"""The bytes of the checksum behind it."""


class DamagedSnapshot(SiphaError):
    """The bytes are not a snapshot that this version can read, or were changed; nothing was restored."""


class _Snapshot(msgspec.Struct, frozen=True, gc=False, array_like=True):
    version: int
    index: int
    time: int
    policy: Policy
    location: list[bytes]
    tombstones: list[Tombstone]
    accounts: list[Account]
    keys: list[tuple[int, bytes]]
    settings: list[tuple[str, str]]
    hash: str


_snapshot_encoder = msgspec.msgpack.Encoder(order="deterministic")
_snapshot_decoder = msgspec.msgpack.Decoder(_Snapshot)


class Machine:
    """The state at log index `index` and cluster time `time` (ms), under the `policy` of the last entry.

    `location`, `accounts`, `keys` and `settings` are for reading; `restore` puts new ones in their places.
    """

    def __init__(self) -> None:
        self.index = 0
        self.time = 0
        self.policy = Policy()
        self.location = Location()
        self.accounts = Accounts()
        self.keys = Keys()
        self.settings = Settings()

    def apply(self, index: int, entry: bytes) -> list[Outcome]:
        """Apply the entry at a log index and return one outcome for each record.

        Total and deterministic; never raises. What can't be decoded, a record or the whole entry, is an Invalid
        outcome and changes nothing. An entry at or before `index` was applied already: it has no outcomes.
        """
        if index <= self.index:
            return []
        self.index = index
        records: list[Record | None] | tuple[Record, ...]
        try:
            batch = decode(entry)
            records = batch.records
        except UNDECODABLE:
            try:
                batch, records = decode_singly(entry)
            except UNDECODABLE:
                return [Invalid("not an entry")]
        if batch.schema != SCHEMA:
            return [Invalid(f"schema {batch.schema}, and this node knows {SCHEMA}")] * len(records)
        self._begin(index, batch)
        return [self._apply(record) for record in records]

    def hash(self) -> int:
        """The hash of all records in the state, the same on every node that has applied as much: 128 bits."""
        return (self.location.hash + self.accounts.hash + self.keys.hash + self.settings.hash) & MASK

    def hash_hex(self) -> str:
        """The hash as 32 hexadecimal digits."""
        return f"{self.hash():032x}"

    def recompute(self) -> int:
        """The hash taken afresh from all records; anything but `hash()` means damaged memory or a bug."""
        parts = (self.location, self.accounts, self.keys, self.settings)
        return sum(part.recompute() for part in parts) & MASK

    def snapshot(self) -> bytes:
        """The whole state as bytes: the same on every node that has applied as much."""
        body = _snapshot_encoder.encode(
            _Snapshot(
                _SNAPSHOT,
                self.index,
                self.time,
                self.policy,
                list(self.location.rows()),
                list(self.location.tombstones()),
                self.accounts.page(limit=len(self.accounts)),
                list(self.keys.ring.items()),
                self.settings.items(),
                self.hash_hex(),
            )
        )
        return body + blake2b(body, digest_size=_CHECKSUM).digest()

    def restore(self, data: bytes) -> None:
        """Put the state of a snapshot in the place of this one; raises DamagedSnapshot."""
        body, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
        if blake2b(body, digest_size=_CHECKSUM).digest() != checksum:
            raise DamagedSnapshot("the snapshot's checksum is wrong")
        try:
            snapshot = _snapshot_decoder.decode(body)
            restored = Machine()
            restored.location = Location(snapshot.location, snapshot.tombstones)
        except UNDECODABLE as error:
            raise DamagedSnapshot(f"not a snapshot: {error}") from error
        restored.accounts = Accounts(snapshot.accounts)
        restored.keys = Keys(snapshot.keys)
        restored.settings = Settings(snapshot.settings)
        if snapshot.version != _SNAPSHOT or snapshot.hash != restored.hash_hex():
            raise DamagedSnapshot(f"version {snapshot.version}, hash {snapshot.hash}, records {restored.hash_hex()}")
        self.index, self.time, self.policy = snapshot.index, snapshot.time, snapshot.policy
        self.location, self.accounts = restored.location, restored.accounts
        self.keys, self.settings = restored.keys, restored.settings

    def _begin(self, index: int, batch: Batch) -> None:
        self.time = max(self.time, batch.time)
        self.policy = batch.policy
        self.location.begin(index, self.time, batch.policy)

    def _apply(self, record: Record | None) -> Outcome:
        match record:
            case Register():
                return self.location.register(record)
            case Expire():
                return self.location.expire(record)
            case RemoveBindings():
                return self.location.remove(record)
            case PutAccount():
                return self.accounts.put(record)
            case DeleteAccount():
                return self.accounts.delete(record)
            case PutKey():
                return self.keys.put(record)
            case PutSetting():
                return self.settings.put(record)
            case Barrier():
                return Done(0)
            case None:
                return Invalid("not a record of this schema")
