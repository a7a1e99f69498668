"""All that the log has decided up to one of its entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from sipha.state.accounts import Accounts
from sipha.state.entries import Member, Policy
from sipha.state.keys import Keys
from sipha.state.location import Location
from sipha.state.multiset import MASK, digest
from sipha.state.settings import Settings
from sipha.state.table import Digested

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Member).decode


class Tables:
    """The state at log index `index` and cluster time `time` (ms), under the `policy` of the last entry.

    `schema` is the active one, which new entries are written in; `members` are the cluster's, by name, none if no entry
    has named them yet.
    """

    def __init__(self) -> None:
        self.index = 0
        self.time = 0
        self.policy = Policy()
        self.schema = 1
        self.members: tuple[Member, ...] = ()
        self._digested: tuple[Member, ...] | None = None  # the members, and the schema, that `_small` is of
        self._digested_schema = 0
        self._small = 0
        self.location = Location()
        self.accounts = Accounts()
        self.keys = Keys()
        self.settings = Settings()

    def hash(self) -> int:
        """The hash of all records in the state, the same on every node that has applied as much: 128 bits."""
        total = self.location.hash + self.accounts.hash + self.keys.hash + self.settings.hash
        if self._digested is not self.members or self._digested_schema != self.schema:
            self._digested, self._digested_schema = self.members, self.schema
            self._small = schema_digest(self.schema) + sum(map(_digest, self.members))
        return (total + self._small) & MASK

    def hash_hex(self) -> str:
        """The hash as 32 hexadecimal digits."""
        return f"{self.hash():032x}"

    def take(self, other: Tables) -> None:
        """Have from now on what the other has."""
        self.index, self.time, self.policy = other.index, other.time, other.policy
        self.schema, self.members = other.schema, other.members
        self.location, self.accounts = other.location, other.accounts
        self.keys, self.settings = other.keys, other.settings

    def freeze_members(self) -> list[Digested]:
        """The members as they are now, for a snapshot."""
        return [(_encode(member), _digest(member)) for member in self.members]

    def load_members(self, records: Iterable[bytes]) -> None:
        """Add what a snapshot holds of members; raises one of UNDECODABLE."""
        self.members += tuple(map(_decode, records))

    def dismantle(self) -> Iterator[None]:
        """Free all, a little with each step; nothing may be read any more."""
        yield from self.location.dismantle()
        yield from self.accounts.dismantle()


def schema_digest(schema: int) -> int:
    """The active schema's part of the hash; none under the first, which knew of no other."""
    return digest(_encode(("schema", schema))) if schema > 1 else 0


def _digest(member: Member) -> int:
    return digest(_encode(("member", member.name, member.address, member.role)))
