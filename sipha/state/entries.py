"""The entries of the log: one `Batch` per log entry, holding the records that arrived since the last one.

Each record is a class that knows both directions through msgspec's msgpack. Records are arrays with a tag: a
field may only be added at the end and with a default, or the schema version rises.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA = 1
"""The version of the records and of what `apply` makes of them."""


class Policy(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The registrar's limits under which a batch is applied; the same on every node because they are in its header.

    Expiry bounds are in seconds. `full` says what happens to a REGISTER beyond `max_contacts`: `replace` the oldest
    binding, or `refuse` the REGISTER. `one_per_instance` lets a device have one binding (pitfalls-sip 5).
    """

    max_contacts: int = 12
    full: Literal["replace", "refuse"] = "replace"
    one_per_instance: bool = True
    default_expires: int = 3600
    min_expires: int = 60
    max_expires: int = 7200


class Contact(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One contact of a REGISTER, as the phone asked for it (RFC 3261 §10.2.1).

    `expires` is in seconds: None if neither the contact nor an Expires header says, 0 removes. `jitter` is what the
    leader subtracts from the granted expiry, never below the policy's minimum. `q` is in thousandths, None if absent.
    `instance` is the value of +sip.instance without quotes; `params` are the other contact parameters as written,
    each with its leading semicolon.
    """

    uri: str
    expires: int | None = None
    q: int | None = None
    instance: str = ""
    reg_id: int = 0
    params: str = ""
    jitter: int = 0


class Register(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="reg"):
    """A REGISTER that passed authentication (RFC 3261 §10.3); atomic, and ordered by `cseq` within `call_id`.

    `wildcard` is `Contact: *`, and then there are no contacts. `received` is the URI that requests are sent to
    (`sip:192.0.2.1:5060;transport=tcp`), `socket` the local one they are sent from (`udp:192.0.2.10:5060`), `flow` the
    stream connection (empty for UDP). `path` is the Path vector, `methods` the Allow header's tokens joined by commas.
    """

    aor: str
    call_id: str
    cseq: int
    contacts: tuple[Contact, ...] = ()
    wildcard: bool = False
    received: str = ""
    socket: str = ""
    flow: str = ""
    path: tuple[str, ...] = ()
    user_agent: str = ""
    methods: str = ""
    outbound: bool = False
    flags: int = 0
    cflags: int = 0
    attr: str = ""


class RemoveBindings(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="rm"):
    """An operator removes the bindings of an AOR: all of them, or the one whose contact URI is `contact`."""

    aor: str
    contact: str = ""


class Expire(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="exp"):
    """The leader removes bindings that ran out: (AOR, contact id, version seen); a refreshed one stays (design §3)."""

    bindings: tuple[tuple[str, int, int], ...]


class PutAccount(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="acc+"):
    """Create or replace an account; `ha1` maps the digest algorithm to the hex of H(auth_name:realm:password).

    `username@domain` is the identity, `auth_name` what the phone authenticates as (it may differ from the username).
    """

    username: str
    domain: str
    auth_name: str
    realm: str
    ha1: dict[str, str]
    create_only: bool = False
    replace_only: bool = False


class DeleteAccount(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="acc-"):
    """Delete an account and leave its bindings to expire."""

    username: str
    domain: str


class PutKey(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="key+"):
    """Add a shared secret (32 bytes) that becomes the current one; earlier ones stay valid for verification."""

    secret: bytes


class PutSetting(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="set"):
    """Set a cluster-wide setting; an empty value removes it."""

    name: str
    value: str


class Barrier(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="bar"):
    """Changes nothing: once it is applied, all that was committed before `term` began is applied too."""

    term: int
    node: str


Record = Register | RemoveBindings | Expire | PutAccount | DeleteAccount | PutKey | PutSetting | Barrier


class Batch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One entry of the log: the records, and in the header what would otherwise differ between nodes.

    `time` is the cluster time in milliseconds (design §3).
    """

    schema: int
    time: int
    policy: Policy
    records: tuple[Record, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode(batch: Batch) -> bytes:
    """The bytes of a batch, as they stand in the log."""
    return _encoder.encode(batch)


def decode(data: bytes) -> Batch:
    """The batch that `encode` made; raises msgspec.DecodeError or msgspec.ValidationError."""
    return _decoder.decode(data)
