"""What the API shows of the log: where it is, and its latest entries without what must stay secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from sipha.state.entries import (
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
    Refresh,
    Register,
    RemoveBindings,
    RemoveUnreachable,
    UnknownSchema,
    decode_singly,
)

Kind = Literal["records", "members", "empty", "unreadable"]
"""What an entry holds."""

RECORDS = 100
"""The records that are shown of one entry."""


class SnapshotView(msgspec.Struct, frozen=True):
    """A snapshot on the disk: of the table at entry `index`, at cluster time `time` in seconds."""

    index: int
    term: int
    time: float
    bytes: int
    hash: str


class LogView(msgspec.Struct, frozen=True):
    """A node's log: the entries from `first_index` to `last_index`, in `bytes` of files.

    `durable_index` is what is on this node's disk, `commit_index` what a majority has, `applied_index` what is in the
    table. Entries after `readable_after` can be shown: they are in memory.
    """

    term: int
    leader: str | None
    first_index: int
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    readable_after: int
    schema: int
    bytes: int
    snapshot: SnapshotView | None


class RecordView(msgspec.Struct, frozen=True):
    """A record: what it does, about which AOR, account, setting or node, and its other fields.

    Hashes of passwords, and the cluster's keys, are not shown.
    """

    kind: Literal[
        "register",
        "refresh",
        "import-binding",
        "remove-bindings",
        "expire",
        "remove-unreachable",
        "put-account",
        "delete-account",
        "put-key",
        "put-setting",
        "barrier",
        "put-members",
        "raise-schema",
        "unreadable",
    ]
    subject: str = ""
    fields: dict[str, Any] = {}


class EntryView(msgspec.Struct, frozen=True):
    """An entry of the log, in `bytes`; `kind` is unreadable for one of a later release, or a damaged one.

    `time` is the cluster time in its header, in seconds; an empty entry has none. It has `count` records, of which the
    first 100 are shown.
    """

    index: int
    term: int
    kind: Kind
    committed: bool
    bytes: int
    schema: int | None = None
    time: float | None = None
    count: int = 0
    records: tuple[RecordView, ...] = ()


class Entries(msgspec.Struct, frozen=True):
    """Entries, the newest first, and the cursor of the next page, None on the last one."""

    entries: tuple[EntryView, ...]
    cursor: int | None = None


# A field that is added to a record is a secret until it stands here.
_SHOWN: Mapping[type[Record], tuple[Any, str, Sequence[str]]] = {
    Register: (
        "register",
        "aor",
        ("call_id", "cseq", "contacts", "wildcard", "received", "socket", "path", "user_agent", "outbound", "cflags"),
    ),
    Refresh: ("refresh", "aor", ("version", "cseq", "expires", "jitter")),
    RemoveBindings: ("remove-bindings", "aor", ("contact",)),
    Expire: ("expire", "", ("bindings",)),
    RemoveUnreachable: ("remove-unreachable", "aor", ("contact_id", "version")),
    PutAccount: ("put-account", "username", ("domain", "auth_name", "realm", "create_only", "replace_only")),
    DeleteAccount: ("delete-account", "username", ("domain",)),
    PutKey: ("put-key", "", ()),
    PutSetting: ("put-setting", "name", ("value",)),
    Barrier: ("barrier", "node", ("term",)),
    PutMembers: ("put-members", "", ("members",)),
    RaiseSchema: ("raise-schema", "", ("schema",)),
}


def entry_view(index: int, term: int, kind: Kind, entry: bytes, *, committed: bool) -> EntryView:
    """Show an entry; an empty one holds nothing."""
    if kind == "empty":
        return EntryView(index, term, kind, committed, len(entry))
    try:
        batch, records = decode_singly(entry)
    except (*UNDECODABLE, UnknownSchema):
        return EntryView(index, term, "unreadable", committed, len(entry))
    return EntryView(
        index,
        term,
        kind,
        committed,
        len(entry),
        batch.schema,
        batch.time / 1000,
        len(records),
        tuple(map(record_view, records[:RECORDS])),
    )


def record_view(record: Record | None) -> RecordView:
    """Show a record; None is one that can't be decoded."""
    if record is None:
        return RecordView("unreadable")
    if isinstance(record, ImportBinding):
        return msgspec.structs.replace(record_view(record.register), kind="import-binding")
    kind, subject, names = _SHOWN[type(record)]
    fields = {name: _plain(getattr(record, name)) for name in names}
    return RecordView(kind, getattr(record, subject) if subject else "", fields)


def _plain(value: Any) -> Any:
    match value:
        case msgspec.Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case tuple():
            return [_plain(item) for item in value]
        case int() if value >= 1 << 53:  # more than a number in JavaScript holds
            return f"{value:016x}"
        case _:
            return value
