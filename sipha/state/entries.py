"""The entries of the log: one `Batch` per log entry, holding the records that arrived since the last one.

Each record is a class that knows both directions through msgspec's msgpack. Records are arrays with a tag. Bounds are
checked when a record is decoded, not when it is made: a record outside them is an Invalid outcome on every node.

The schema is the version of the records and of what `apply` makes of them: whatever changes an outcome is a new one.
An entry is applied under the schema in its own header, by this release as by the one that wrote it. The leader writes
the schema that is active (`Machine.schema`). RaiseSchema makes a later one active; it stands in an entry of that later
schema, so that a release which doesn't know it stops there (UnknownSchema) and skips nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sipha.errors import SiphaError

SCHEMA = 5
"""The latest schema that this release knows.

1: the records up to Barrier. 2: PutMembers and RaiseSchema too; a REGISTER may remove what isn't there, however late.
3: RemoveUnreachable too. 4: ImportBinding too. 5: Refresh too.
"""

REFRESH_SCHEMA = 5
"""The first schema that knows Refresh."""

_Number = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Thousandths = Annotated[int, Meta(ge=0, le=1000)]
_Index = Annotated[int, Meta(ge=0, lt=1 << 62)]
_Time = Annotated[int, Meta(ge=0, lt=1 << 50)]
_Text = Annotated[str, Meta(min_length=1)]
_Domain = Annotated[str, Meta(pattern=r"^[^@\s]+\Z")]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{32,128}\Z")]
_Secret = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Schema = Annotated[int, Meta(ge=2, le=0xFFFF)]


class UnknownSchema(SiphaError):
    """The log or a snapshot is of a later schema than this release knows; nothing of it was applied."""

    def __init__(self, schema: int) -> None:
        super().__init__(
            f"the log is of schema {schema}, and this release of sipha knows none after {SCHEMA}: install the release "
            "that the other nodes run"
        )
        self.schema = schema


class Policy(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The registrar's limits under which a batch is applied; the same on every node because they are in its header.

    Expiry bounds are in seconds; `max_contacts` and `max_expires` 0 mean no limit. `full` says what happens to a
    REGISTER beyond `max_contacts`: `replace` the oldest binding, or `refuse` the REGISTER. `one_per_instance` lets a
    device have one binding (pitfalls-sip 5).
    """

    max_contacts: _Number = 12
    full: Literal["replace", "refuse"] = "replace"
    one_per_instance: bool = True
    default_expires: _Number = 3600
    min_expires: _Number = 60
    max_expires: _Number = 7200


class Contact(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One contact of a REGISTER, as the phone asked for it (RFC 3261 §10.2.1).

    `expires` is in seconds: None if neither the contact nor an Expires header says, 0 removes. `jitter` is what the
    leader subtracts from the granted expiry, never below the policy's minimum. `q` is in thousandths, None if absent.
    `instance` is the value of +sip.instance without quotes; `params` are the other contact parameters as written,
    each with its leading semicolon.
    """

    uri: _Text
    expires: _Number | None = None
    q: _Thousandths | None = None
    instance: str = ""
    reg_id: _Number = 0
    params: str = ""
    jitter: _Number = 0


class Register(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="reg"):
    """A REGISTER that passed authentication (RFC 3261 §10.3); atomic, and ordered by `cseq` within `call_id`.

    `wildcard` is `Contact: *`, and then there are no contacts. `received` is the URI that requests are sent to
    (`sip:192.0.2.1:5060;transport=tcp`), `socket` the local one they are sent from (`udp:192.0.2.10:5060`), `flow` the
    stream connection (empty for UDP). `path` is the Path vector, `methods` the Allow header's tokens joined by commas.
    `flags`, `cflags`, `attr` and `kv_store` (JSON) are kept for whoever brings them along from another registrar.
    """

    aor: _Text
    call_id: str
    cseq: _Number
    contacts: tuple[Contact, ...] = ()
    wildcard: bool = False
    received: str = ""
    socket: str = ""
    flow: str = ""
    path: tuple[str, ...] = ()
    user_agent: str = ""
    methods: str = ""
    outbound: bool = False
    flags: _Number = 0
    cflags: _Number = 0
    attr: str = ""
    kv_store: str = ""


class Refresh(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="ref"):
    """A REGISTER that says nothing new but its CSeq, and for how long: most of them, in a quarter of the bytes.

    The leader makes it of a Register that plainly refreshes the only binding of its AOR. All else is as in that binding
    at `version`; if that isn't what the AOR has any more, the Register is needed. `expires` and `jitter` are the
    contact's.
    """

    aor: _Text
    version: _Index
    cseq: _Number
    expires: _Number | None = None
    jitter: _Number = 0


class RemoveBindings(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="rm"):
    """An operator removes the bindings of an AOR: all of them, or the one whose contact URI is `contact`."""

    aor: str
    contact: str = ""


class Expire(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="exp"):
    """The leader removes bindings that ran out: (AOR, contact id, version seen); a refreshed one stays (design §3)."""

    bindings: tuple[tuple[str, int, int], ...]


class RemoveUnreachable(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="lost"):
    """The leader removes a binding that has left its pings unanswered; one refreshed since `version` stays (§1.4)."""

    aor: str
    contact_id: int
    version: int


class ImportBinding(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="imp"):
    """A binding that another registrar has granted, as the REGISTER that made it there.

    `register` has one contact, whose `expires` is what is left of what was granted, whatever the policy would grant.
    """

    register: Register


class PutAccount(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="acc+"):
    """Create or replace an account; `ha1` maps the digest algorithm to the hex of H(auth_name:realm:password).

    `username@domain` is the identity, `auth_name` what the phone authenticates as (it may differ from the username).
    """

    username: _Text
    domain: _Domain
    auth_name: _Text
    realm: str
    ha1: dict[str, _Hex]
    create_only: bool = False
    replace_only: bool = False


class DeleteAccount(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="acc-"):
    """Delete an account and leave its bindings to expire."""

    username: str
    domain: str


class PutKey(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="key+"):
    """Add a shared secret (32 bytes) that becomes the current one; earlier ones stay valid for verification."""

    secret: _Secret


class PutSetting(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="set"):
    """Set a cluster-wide setting; an empty value removes it."""

    name: _Text
    value: str


class Barrier(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="bar"):
    """Changes nothing: once it is applied, all that was committed before `term` began is applied too."""

    term: int
    node: str


class Member(msgspec.Struct, frozen=True, gc=False, array_like=True, order=True):
    """A node of the cluster, reached by the others at `address` (`host:port`).

    A voter serves phones; a witness votes and stores the log, and never has the virtual address; a learner stores the
    log and doesn't vote yet.
    """

    name: _Name
    address: _Text
    role: Literal["voter", "witness", "learner"]


class PutMembers(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="mem"):
    """The members of the cluster from now on, all of them; two of one name, or none that votes, is a ValueError."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        """Check what no later entry could mend."""
        if len({member.name for member in self.members}) < len(self.members):
            raise ValueError("two members of one name")
        if all(member.role == "learner" for member in self.members):
            raise ValueError("no member that votes")


class RaiseSchema(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="raise"):
    """Make the schema of this entry's own header, which `schema` repeats, the active one."""

    schema: _Schema


Record = (
    Register
    | RemoveBindings
    | Expire
    | PutAccount
    | DeleteAccount
    | PutKey
    | PutSetting
    | Barrier
    | PutMembers
    | RaiseSchema
    | RemoveUnreachable
    | ImportBinding
    | Refresh
)


class Batch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One entry of the log: the records, and in the header what would otherwise differ between nodes.

    `time` is the cluster time in milliseconds (design §3).
    """

    schema: int
    time: _Time
    policy: Policy
    records: tuple[Record, ...]


class _Header(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What every schema has in common: the number of the schema comes first."""

    schema: int


class _Sealed(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A batch whose records are still bytes."""

    schema: int
    time: _Time
    policy: Policy
    records: list[msgspec.Raw]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_header_decoder = msgspec.msgpack.Decoder(_Header)
_sealed_decoder = msgspec.msgpack.Decoder(_Sealed)
_record_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are not an entry."""


def encode(batch: Batch) -> bytes:
    """The bytes of a batch, as they stand in the log; raises UnicodeEncodeError for a text that isn't UTF-8."""
    return _encoder.encode(batch)


def decode(data: bytes) -> Batch:
    """The batch that `encode` made; raises UnknownSchema, or one of UNDECODABLE."""
    try:
        batch = _decoder.decode(data)
    except UNDECODABLE:
        check_schema(_header_decoder.decode(data).schema)
        raise
    check_schema(batch.schema)
    return batch


def decode_singly(data: bytes) -> tuple[Batch, list[Record | None]]:
    """The header of a batch, without records, and its records one by one: None for one that can't be decoded.

    Raises UnknownSchema, or one of UNDECODABLE if the header itself can't be decoded.
    """
    sealed = _sealed_decoder.decode(data)
    check_schema(sealed.schema)
    return Batch(sealed.schema, sealed.time, sealed.policy, ()), [_decode_record(raw) for raw in sealed.records]


def check_schema(schema: int) -> None:
    """Raise UnknownSchema for one that this release doesn't know."""
    if schema > SCHEMA:
        raise UnknownSchema(schema)


def _decode_record(raw: msgspec.Raw) -> Record | None:
    try:
        return _record_decoder.decode(raw)
    except UNDECODABLE:
        return None
