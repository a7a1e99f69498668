"""The node itself."""

from __future__ import annotations

from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.queries import At
from sipha.admin.route import Routes
from sipha.admin.views import Status


class StatusRoutes:
    """What a node is, and what it sees."""

    routes = Routes("status")

    def __init__(self, node: INode) -> None:
        self._node = node

    @routes.get("/v1/status", role=Role.READ, query=At)
    def get_status(self) -> Status:
        """This node and what it sees: alarms, role, indices, hash of the table, lease, counters, peers."""
        return self._node.status()
