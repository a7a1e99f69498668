"""What the admin asks of the node that it runs in; service.py provides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from zope.interface import Interface

if TYPE_CHECKING:
    from sipha.admin.views import Status
    from sipha.errors import Unavailable
    from sipha.state.accounts import Account
    from sipha.state.entries import Record
    from sipha.state.location import Binding
    from sipha.state.machine import Outcome


class INode(Interface):
    """A node, for who looks at it and changes its table from outside SIP."""

    def status() -> Status:
        """What the node is, and what it sees of the others."""

    def leading() -> bool:
        """Return True if the node may propose: it leads and its lease is valid."""

    def leader_admin() -> str | None:
        """Return the admin URL of the node that leads, or None if it is this one, unknown or has no admin."""

    def cluster_time() -> float:
        """Return the cluster time now, in seconds."""

    def aors() -> Iterable[str]:
        """The AORs in the table, in any order; all bindings of some may have expired."""

    def bindings(aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR."""

    def accounts() -> Iterable[Account]:
        """All accounts, in any order."""

    def account(username: str, domain: str) -> Account | None:
        """The account `username@domain`."""

    def propose(record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Queue a record for the log and call `done` once, as `ILog.propose` does."""
