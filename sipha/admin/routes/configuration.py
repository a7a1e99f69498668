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

    @routes.get("/v1/log-level", role=Role.READ)
    def get_log_level(self) -> views.LogLevel:
        """The level of this node's log."""
        return views.LogLevel(self._node.log_level())

    @routes.put("/v1/log-level", role=Role.OPERATE)
    def put_log_level(self, body: views.LogLevel) -> views.LogLevel:
        """Give this node's log another level until the configuration is loaded again, or the node started."""
        self._node.set_log_level(body.level)
        return body
