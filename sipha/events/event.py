"""One thing that has happened, as JSON tells it: a Struct for each kind.

What the log has changed bears the same id on every node: the index of its entry, and its number in there. What only
concerns a node (its lease, its virtual addresses, its alarms) bears the index up to which that node has applied the log
then, and a name and number of the node's own: so it stands between what came before it and what came after.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple, get_args

import msgspec

from sipha.state import changes
from sipha.state.binding import Binding
from sipha.state.changes import Change, Reason
from sipha.state.entries import Register

MAX_TEXT = 1024
"""Characters of what a phone has written that are told; a message may have 64 KiB of it."""

_LAST = 1 << 32
_ID = re.compile(
    r"(?P<index>[0-9]{1,18})(?:\.(?P<number>[0-9]{1,6})|\.(?P<own>[a-z0-9-]{1,64}-[0-9a-f]{6}\.[0-9]{1,18}))?"
)


class Position(NamedTuple):
    """A place in the order of what happens, by index of the log; a node's own events come after all of the entry."""

    entry: int
    number: int

    @property
    def id(self) -> str:
        """The id of an event of the log that stands here; the index alone behind all of an entry."""
        return str(self.entry) if self.number == _LAST else f"{self.entry}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Where an event of this id stands, or after a plain index: behind all of its entry; raises ValueError."""
        match = _ID.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:40]!r} is not the id of an event, nor an index of the log")
        return cls(int(match["index"]), _LAST if match["number"] is None else int(match["number"]))


def own_position(index: int) -> Position:
    """Where an event stands that only concerns a node which has applied the log up to this index: behind that."""
    return Position(index, _LAST)


class Moment(NamedTuple):
    """When something happened: at or after which entry of the log, at which cluster time in ms, on whose account.

    `wall` is what this node's wall clock showed then, in seconds since 1970.
    """

    entry: int
    time: int
    wall: float
    node: str | None


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where a REGISTER came from; `contact` is the first one that it named, `*` for all."""

    contact: str
    received: str
    user_agent: str
    call_id: str


class Event(msgspec.Struct, frozen=True, gc=False, tag_field="kind"):
    """What all have: `index` is that of the log, `time` cluster time in seconds, `at` the wall time of the node asked.

    `node` led when it came into the log, or it is what it concerns; null if that isn't known.
    """

    kind: ClassVar[str]
    id: str
    index: int
    time: float
    at: str
    node: str | None


class BindingEvent(Event, frozen=True, gc=False):
    """What is told of a binding: `expires` is what was granted, in seconds."""

    aor: str
    contact: str
    received: str
    user_agent: str
    call_id: str
    cseq: int
    behind_nat: bool
    expires: float
    contact_id: str


class BindingAdded(BindingEvent, frozen=True, gc=False, tag="binding-added"):
    """A phone has made a binding."""


class BindingChanged(BindingEvent, frozen=True, gc=False, tag="binding-changed"):
    """A phone has refreshed a binding from elsewhere, by another contact or Call-ID, or as another user agent."""

    before: Origin


class BindingRefreshed(BindingEvent, frozen=True, gc=False, tag="binding-refreshed"):
    """A phone has refreshed a binding; told only to who asks for it, and not kept."""


class BindingRemoved(BindingEvent, frozen=True, gc=False, tag="binding-removed"):
    """A binding is gone; `by` is the REGISTER that has done it, if it was one."""

    reason: Reason
    by: Origin | None


class AccountEvent(Event, frozen=True, gc=False):
    """What is told of an account: `user@domain`, and the AOR that it may register."""

    account: str
    aor: str


class AccountCreated(AccountEvent, frozen=True, gc=False, tag="account-created"):
    """An operator has created an account."""


class AccountChanged(AccountEvent, frozen=True, gc=False, tag="account-changed"):
    """An operator has given an account another password."""


class AccountDeleted(AccountEvent, frozen=True, gc=False, tag="account-deleted"):
    """An operator has deleted an account."""


class KeyAdded(Event, frozen=True, gc=False, tag="key-added"):
    """The nodes share another key for what they make tokens of."""


class SettingChanged(Event, frozen=True, gc=False, tag="setting-changed"):
    """A setting of the cluster has another value, empty if it was removed."""

    name: str
    value: str


class MemberNamed(msgspec.Struct, frozen=True, gc=False):
    """A member of the cluster: `role` is voter, witness or learner."""

    name: str
    address: str
    role: str


class MembersChanged(Event, frozen=True, gc=False, tag="members-changed"):
    """The members of the cluster are these."""

    members: tuple[MemberNamed, ...]


class SchemaRaised(Event, frozen=True, gc=False, tag="schema-raised"):
    """All members understand a later version of the log, which is in use from now on."""

    schema: int


class LeaderElected(Event, frozen=True, gc=False, tag="leader-elected"):
    """The node leads in this term."""

    term: int


class LeaseGained(Event, frozen=True, gc=False, tag="lease-gained"):
    """The node asked may act as the only leader from now on."""


class LeaseLost(Event, frozen=True, gc=False, tag="lease-lost"):
    """It may not any more."""


class VipGained(Event, frozen=True, gc=False, tag="vip-gained"):
    """The node asked has the virtual addresses, and serves phones."""

    addresses: tuple[str, ...]


class VipLost(Event, frozen=True, gc=False, tag="vip-lost"):
    """It serves phones no more."""

    addresses: tuple[str, ...]


class AlarmRaised(Event, frozen=True, gc=False, tag="alarm-raised"):
    """There is something that an operator of the node asked must know."""

    alarm: str


class AlarmCleared(Event, frozen=True, gc=False, tag="alarm-cleared"):
    """It is over."""

    alarm: str


class Gap(Event, frozen=True, gc=False, tag="gap"):
    """What the entries after index `after`, up to that of this event, have changed isn't known to the node asked."""

    after: int
    why: str


AnyEvent = (
    BindingAdded
    | BindingChanged
    | BindingRefreshed
    | BindingRemoved
    | AccountCreated
    | AccountChanged
    | AccountDeleted
    | KeyAdded
    | SettingChanged
    | MembersChanged
    | SchemaRaised
    | LeaderElected
    | LeaseGained
    | LeaseLost
    | VipGained
    | VipLost
    | AlarmRaised
    | AlarmCleared
    | Gap
)

REFRESHED, GAP = "binding-refreshed", "gap"

KINDS = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
"""The kinds of events, by name."""

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def decode(data: bytes) -> AnyEvent:
    """Read an event; raises msgspec.DecodeError, and msgspec.ValidationError for a kind that isn't known here."""
    return _decoder.decode(data)


def kind_of(event: Event) -> str:
    """The name of an event's kind."""
    return str(event.__struct_config__.tag)


Fields = tuple[Any, ...]
"""The first fields of an event, in their order: those that all have, or that all of a binding have."""


def stamp(moment: Moment, event_id: str) -> Fields:
    """What every event has."""
    at = datetime.fromtimestamp(moment.wall, UTC).isoformat(timespec="milliseconds")
    return event_id, moment.entry, moment.time / 1000, at.removesuffix("+00:00") + "Z", moment.node


def event_of(moment: Moment, number: int, change: Change) -> AnyEvent:
    """The event of a change, which is of this number among those of its entry that are no plain refreshes."""
    return _event(change, stamp(moment, f"{moment.entry}.{number}"))


def refreshes_of(moment: Moment, made: Sequence[Change]) -> Iterator[tuple[Position, BindingRefreshed]]:
    """The events of the plain refreshes in an entry, and before which of the others each stands.

    They aren't numbered: each has the id of what it follows, so that who resumes there misses nothing that is kept.
    """
    number = 0
    for change in made:
        if isinstance(change, changes.Refreshed):
            before = own_position(moment.entry - 1) if number == 0 else Position(moment.entry, number - 1)
            fields = *stamp(moment, before.id), *_of_binding(change.binding)
            yield Position(moment.entry, number), BindingRefreshed(*fields)
        else:
            number += 1


def gap(moment: Moment, event_id: str, after: int, why: str) -> Gap:
    """What says that nothing is known of the entries after one index, up to that of the moment."""
    event_id, index, time, at, node = stamp(moment, event_id)
    return Gap(event_id, index, time, at, node, after, why)


def _event(change: Change, fields: Fields) -> AnyEvent:
    kind: Callable[..., AnyEvent]
    rest: Fields
    match change:
        case changes.Refreshed(binding):
            kind, rest = BindingRefreshed, _of_binding(binding)
        case changes.Added():
            kind, rest = BindingAdded, _of_binding(change.binding)
        case changes.Changed(before, binding):
            kind, rest = BindingChanged, (*_of_binding(binding), _origin_of(before))
        case changes.Removed(binding, reason, by):
            kind, rest = BindingRemoved, (*_of_binding(binding), reason, None if by is None else _origin(by))
        case changes.AccountPut(identity, created):
            kind, rest = AccountCreated if created else AccountChanged, (identity, change.aor)
        case changes.AccountDeleted(identity):
            kind, rest = AccountDeleted, (identity, change.aor)
        case changes.KeyAdded():
            kind, rest = KeyAdded, ()
        case changes.SettingPut(name, value):
            kind, rest = SettingChanged, (_cut(name), _cut(value))
        case changes.MembersPut(members):
            named = tuple(MemberNamed(member.name, member.address, member.role) for member in members)
            kind, rest = MembersChanged, (named,)
        case changes.SchemaRaised(schema):
            kind, rest = SchemaRaised, (schema,)
        case changes.TermBegun(term, node):
            kind, rest, fields = LeaderElected, (term,), (*fields[:-1], node)
    return kind(*fields, *rest)


def _of_binding(binding: Binding) -> Fields:
    return (
        binding.aor,
        _cut(binding.contact),
        binding.received,
        _cut(binding.user_agent),
        _cut(binding.call_id),
        binding.cseq,
        binding.behind_nat,
        (binding.expires_at - binding.last_modified) / 1000,
        f"{binding.contact_id:016x}",
    )


def _origin_of(binding: Binding) -> Origin:
    return Origin(_cut(binding.contact), binding.received, _cut(binding.user_agent), _cut(binding.call_id))


def _origin(request: Register) -> Origin:
    contact = request.contacts[0].uri if request.contacts else "*"
    return Origin(_cut(contact), request.received, _cut(request.user_agent), _cut(request.call_id))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
