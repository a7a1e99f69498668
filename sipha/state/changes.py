"""What the records of an entry change, for who observes the machine: the same on every node, in the same order.

Of a REGISTER, what is removed comes before what is made. A refresh that changes nothing but the expiry is plain, and is
left out unless the observer wants it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from sipha.state.binding import Binding
from sipha.state.entries import Member, Register

Reason = Literal["unregistered", "replaced", "evicted", "expired", "ping-timeout", "admin"]
"""Why a binding is gone: its phone has said so, the same device has made another one, the AOR had too many, it ran out,
it left its pings unanswered, or an operator has removed it."""


class Added(msgspec.Struct, frozen=True, gc=False):
    """A binding was made."""

    binding: Binding


class Changed(msgspec.Struct, frozen=True, gc=False):
    """A binding was refreshed from elsewhere, by another contact URI or Call-ID, or by another user agent."""

    before: Binding
    binding: Binding


class Refreshed(msgspec.Struct, frozen=True, gc=False):
    """A binding was refreshed, plainly."""

    binding: Binding


class Removed(msgspec.Struct, frozen=True, gc=False):
    """A binding is gone; `by` is the REGISTER that has removed it, None if it was none."""

    binding: Binding
    reason: Reason
    by: Register | None = None


class AccountPut(msgspec.Struct, frozen=True, gc=False):
    """An account was `created`, or got another password."""

    identity: str
    created: bool


class AccountDeleted(msgspec.Struct, frozen=True, gc=False):
    """An account was deleted."""

    identity: str


class KeyAdded(msgspec.Struct, frozen=True, gc=False):
    """A shared key was added; which, nobody is told."""


class SettingPut(msgspec.Struct, frozen=True, gc=False):
    """A setting has another value, empty if it was removed."""

    name: str
    value: str


class MembersPut(msgspec.Struct, frozen=True, gc=False):
    """The members of the cluster are others."""

    members: tuple[Member, ...]


class SchemaRaised(msgspec.Struct, frozen=True, gc=False):
    """A later schema is active."""

    schema: int


class TermBegun(msgspec.Struct, frozen=True, gc=False):
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


class Changes:
    """Those of the entry that is being applied, so far; plain refreshes only if they are wanted."""

    __slots__ = ("made", "refreshes")

    def __init__(self, *, refreshes: bool) -> None:
        self.made: list[Change] = []
        self.refreshes = refreshes
        """True if plain refreshes are wanted."""

    def put(self, before: Binding | None, binding: Binding) -> None:
        """A binding was made, or was refreshed."""
        if before is None:
            self.made.append(Added(binding))
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
