"""The log."""

from __future__ import annotations

from msgspec import UNSET

from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.log import Entries, LogView
from sipha.admin.queries import Span
from sipha.admin.route import Routes


class LogRoutes:
    """A node's log."""

    routes = Routes("log")

    def __init__(self, node: INode) -> None:
        self._node = node

    @routes.get("/v1/log", role=Role.READ)
    def get_log(self) -> LogView:
        """Where this node's log is: indices, term, snapshot, bytes."""
        return self._node.log()

    @routes.get("/v1/log/entries", role=Role.READ)
    def list_entries(self, query: Span) -> Entries:
        """The latest entries, the newest first, as far as they are in memory, without secrets.

        A page ends early with the entry that makes it 64 KiB.
        """
        log = self._node.log()
        end = log.last_index + 1 if query.cursor is UNSET else query.cursor
        entries = tuple(self._node.entries(end, query.limit))
        more = bool(entries) and entries[-1].index > log.readable_after + 1
        return Entries(entries, entries[-1].index if more else None)
