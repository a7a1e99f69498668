"""The configuration of the node."""

from __future__ import annotations

from sipha.admin import views
from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.route import Routes


class ConfigurationRoutes:
    """What the node does with its configuration file."""

    routes = Routes("configuration")

    def __init__(self, node: INode) -> None:
        self._node = node

    @routes.post("/v1/reload", role=Role.ADMIN, body=views.Reload, errors=(409,))
    async def reload(self) -> views.Reloaded:
        """Load the configuration file again, all of it or nothing; answered once that has passed its probation."""
        return await self._node.reload()
