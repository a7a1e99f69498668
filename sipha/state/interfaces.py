"""How the rest of sipha reaches the replicated state; cluster/ provides these, service.py wires them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from sipha.errors import Unavailable
    from sipha.state.accounts import Account
    from sipha.state.changes import Change
    from sipha.state.entries import Record
    from sipha.state.location import Binding
    from sipha.state.machine import Outcome


class ILog(Interface):
    """The replicated log, for who changes the state."""

    def propose(record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Queue a record for the next batch and call `done` once, with what apply returned or why it did not come.

        `done` may be called before `propose` returns (not the leader, queue full) and never raises.
        """

    def cluster_time() -> float:
        """The cluster time now, in seconds; it never goes back."""


class IBatchLog(ILog):
    """The replicated log, for who proposes many records."""

    def propose_all(
        records: Sequence[tuple[Record, Any]], tell: Callable[[list[tuple[Any, Outcome | Unavailable]]], None]
    ) -> None:
        """As `propose`, for records each with what `tell` knows it by: that gets all at once that come together."""


class ILocation(Interface):
    """The location service (RFC 3261 §10), for who reads it."""

    def lookup(aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR, by falling q, then the most recently refreshed first."""

    def bindings(aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR in the order they were made."""


class IBindingsObserver(Interface):
    """Who keeps what was looked up on this node; never raises."""

    def changed(aor: str) -> None:
        """The bindings of an AOR are about to be others."""

    def refreshed(aor: str, expires_at: int, packed: bytes) -> None:
        """The only binding of an AOR expires at another time now, in ms of cluster time, and says nothing else."""

    def replaced() -> None:
        """The table is now that of a snapshot."""


class ICredentials(Interface):
    """The accounts, for who authenticates."""

    def credential(auth_name: str, realm: str) -> Account | None:
        """The account that authenticates as `auth_name` in `realm`."""

    def known(aor: str) -> bool:
        """True if an account has this AOR as its identity."""


class IObserver(Interface):
    """Who follows what the log changes on this node; never raises."""

    refreshes: bool = Attribute("True while plain refreshes are to be told, too.")

    def applied(index: int, time: int, changes: Sequence[Change]) -> None:
        """The entry at a log index was applied, at a cluster time in ms, and has changed this."""

    def adopted(index: int) -> None:
        """The table is now that of a snapshot at this index; what the entries up to there changed isn't told."""
