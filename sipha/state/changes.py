"""What the records of an entry change, for who observes the machine: the same on every node, in the same order.

Each says which AOR it concerns, if any, and can be written in msgpack, as an array with a tag. Of a REGISTER, what is
removed comes before what is made. A refresh that changes nothing but the expiry is plain, and is left out unless the
observer wants it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import msgspec

from sipha.state.binding import Binding, decode
from sipha.state.entries import Member, Register

Reason = Literal["unregistered", "replaced", "evicted", "expired", "ping-timeout", "admin"]
"""Why a binding is gone: its phone has said so, the same device has made another one, the AOR had too many, it ran out,
it left its pings unanswered, or an operator has removed it."""


class Added(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="added"):
    """A binding was made: the only one in `data`, as in a row, where all phones that come back have their first."""

    aor: str
    data: msgspec.Raw

    @property
    def binding(self) -> Binding:
        """The binding."""
        return decode(self.data)[0]

    def __repr__(self) -> str:
        """What it tells, rather than where its bytes are."""
        return f"Added({self.binding!r})"


class Changed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="changed"):
    """A binding was refreshed from elsewhere, by another contact URI or Call-ID, or by another user agent."""

    before: Binding
    binding: Binding

    @property
    def aor(self) -> str:
        """The AOR."""
        return self.binding.aor


class _OfBinding(msgspec.Struct, frozen=True, gc=False, array_like=True):
    binding: Binding

    @property
    def aor(self) -> str:
        """The AOR."""
        return self.binding.aor


class Refreshed(_OfBinding, frozen=True, gc=False, array_like=True, tag="refreshed"):
    """A binding was refreshed, plainly."""


class Removed(_OfBinding, frozen=True, gc=False, array_like=True, tag="removed"):
    """A binding is gone; `by` is the REGISTER that has removed it, None if it was none."""

    reason: Reason
    by: Register | None = None


class _OfAccount(msgspec.Struct, frozen=True, gc=False, array_like=True):
    identity: str

    @property
    def aor(self) -> str:
        """The AOR that the account may register."""
        return f"sip:{self.identity}"


class AccountPut(_OfAccount, frozen=True, gc=False, array_like=True, tag="account-put"):
    """An account was `created`, or got another password."""

    created: bool


class AccountDeleted(_OfAccount, frozen=True, gc=False, array_like=True, tag="account-deleted"):
    """An account was deleted."""


class _OfNobody(msgspec.Struct, frozen=True, gc=False, array_like=True):
    aor: ClassVar[str] = ""


class KeyAdded(_OfNobody, frozen=True, gc=False, array_like=True, tag="key-added"):
    """A shared key was added; which, nobody is told."""


class SettingPut(_OfNobody, frozen=True, gc=False, array_like=True, tag="setting-put"):
    """A setting has another value, empty if it was removed."""

    name: str
    value: str


class MembersPut(_OfNobody, frozen=True, gc=False, array_like=True, tag="members-put"):
    """The members of the cluster are others."""

    members: tuple[Member, ...]


class SchemaRaised(_OfNobody, frozen=True, gc=False, array_like=True, tag="schema-raised"):
    """A later schema is active."""

    schema: int


class TermBegun(_OfNobody, frozen=True, gc=False, array_like=True, tag="term-begun"):
    """A node leads in this term: the entries that follow, until another term begins, are of its making."""

    term: int
    node: str


Change = (
    Added
    | Changed
    | Refreshed
    | Removed
    | AccountPut
    | AccountDeleted
    | KeyAdded
    | SettingPut
    | MembersPut
    | SchemaRaised
    | TermBegun
)


_encode = msgspec.msgpack.Encoder().encode


def added(binding: Binding) -> Added:
    """The change that tells of a binding that was made."""
    return Added(binding.aor, msgspec.Raw(_encode((binding,))))


class Changes:
    """Those of the entry that is being applied, so far; plain refreshes only if they are wanted."""

    __slots__ = ("made", "refreshes")

    def __init__(self, *, refreshes: bool) -> None:
        self.made: list[Change] = []
        self.refreshes = refreshes
        """True if plain refreshes are wanted."""

    def made_first(self, aor: str, data: msgspec.Raw) -> None:
        """The first binding of an AOR was made; `data` is as in Added."""
        self.made.append(Added(aor, data))

    def put(self, before: Binding | None, binding: Binding) -> None:
        """A binding was made, or was refreshed."""
        if before is None:
            self.made.append(added(binding))
        elif (
            before.received != binding.received
            or before.flow != binding.flow
            or before.call_id != binding.call_id
            or before.contact != binding.contact
            or before.user_agent != binding.user_agent
            or before.path != binding.path
        ):
            self.made.append(Changed(before, binding))
        else:
            self.refreshed(binding)

    def refreshed(self, binding: Binding) -> None:
        """A binding was refreshed, plainly."""
        if self.refreshes:
            self.made.append(Refreshed(binding))

    def registered(
        self, request: Register, before: Sequence[Binding], after: Sequence[Binding], dropped: Mapping[int, Reason]
    ) -> None:
        """A REGISTER has made of the unexpired bindings `before` those `after`; `dropped` are those it doesn't name."""
        former = {binding.contact_id: binding for binding in before}
        left = {binding.contact_id for binding in after}
        for binding in before:
            if binding.contact_id not in left:
                self.made.append(Removed(binding, dropped.get(binding.contact_id, "unregistered"), request))
        for binding in after:
            old = former.get(binding.contact_id)
            if old is not binding:
                self.put(old, binding)

    def removed(self, before: Sequence[Binding], after: Sequence[Binding], reason: Reason) -> None:
        """Of the bindings `before`, those `after` are left."""
        if len(before) > len(after):
            left = {binding.contact_id for binding in after}
            self.made += [Removed(binding, reason) for binding in before if binding.contact_id not in left]
