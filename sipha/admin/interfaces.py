"""What the admin asks of the node that it runs in; service.py provides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zope.interface import Interface

if TYPE_CHECKING:
    from sipha.admin.views import Status
    from sipha.errors import Unavailable
    from sipha.state.accounts import Account
    from sipha.state.binding import Binding
    from sipha.state.entries import Record
    from sipha.state.outcomes import Outcome


class INode(Interface):
    """A node, for who looks at it and changes its table from outside SIP."""

    def status() -> Status:
        """What the node is, and what it sees of the others."""

    def leading() -> bool:
        """Return True if the node may propose: it leads and its lease is valid."""

    def leader_admin() -> str | None:
        """Return the admin URL of the node that leads, or None if it is this one or unknown."""

    def cluster_time() -> float:
        """Return the cluster time now, in seconds."""

    def aors(after: str, limit: int) -> Sequence[str]:
        """The first `limit` AORs after one, in the order of their text; the bindings of some may have expired."""

    def bindings(aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR."""

    def accounts(after: str, limit: int) -> Sequence[Account]:
        """The first `limit` accounts after an identity `username@domain`, in the order of their identities."""

    def account(username: str, domain: str) -> Account | None:
        """The account `username@domain`."""

    def propose(record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Queue a record for the log and call `done` once, as `ILog.propose` does."""
