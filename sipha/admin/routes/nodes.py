"""The members of the cluster, and who leads."""

from __future__ import annotations

from sipha.admin import views
from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.queries import At
from sipha.admin.route import Place, Routes

_REFUSALS = (409, 503)


class NodeRoutes:
    """The members, as a node knows them."""

    routes = Routes("nodes")

    def __init__(self, node: INode) -> None:
        self._node = node

    @routes.get("/v1/nodes", role=Role.READ, query=At)
    def list_nodes(self) -> views.Nodes:
        """The members of the cluster, and who would lead if leadership were handed on."""
        return views.Nodes(tuple(self._node.nodes()), self._node.successor())

    @routes.post("/v1/nodes", role=Role.ADMIN, status=201, errors=_REFUSALS, place=Place.LEADER)
    async def add_node(self, body: views.NewNode) -> views.NewNode:
        """Make a node a member; it votes once it has caught up."""
        try:
            await self._node.add_node(body.name, body.address)
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        return body

    @routes.delete("/v1/nodes/<name>", role=Role.ADMIN, errors=(404, *_REFUSALS), place=Place.LEADER)
    async def remove_node(self, name: str) -> views.Removed:
        """Make a node no member any more."""
        await self._node.remove_node(name)
        return views.Removed(1)

    @routes.post("/v1/nodes/<name>/standby", role=Role.OPERATE, errors=(404, *_REFUSALS), place=Place.LOG_LEADER)
    async def put_in_standby(self, name: str, body: views.Standby) -> views.Duty:
        """Let a node lead no more; it hands leadership on first."""
        leader = await self._node.put_in_standby(name, force=body.force)
        return views.Duty(name, standby=True, leader=leader)

    # A leader that serves no phones can be brought back only by itself.
    @routes.post(
        "/v1/nodes/<name>/online",
        role=Role.OPERATE,
        body=views.Online,
        errors=(404, *_REFUSALS),
        place=Place.LOG_LEADER,
    )
    async def bring_online(self, name: str) -> views.Duty:
        """Let a node lead again."""
        await self._node.bring_online(name)
        return views.Duty(name, standby=False, leader=self._node.status().leader)

    @routes.put("/v1/prefer", role=Role.OPERATE, errors=_REFUSALS, place=Place.LOG_LEADER)
    async def prefer_node(self, body: views.Prefer) -> views.Prefer:
        """Let a node lead whenever it can, or none more than another."""
        await self._node.prefer(body.node)
        return body

    @routes.post("/v1/transfer", role=Role.OPERATE, errors=_REFUSALS, place=Place.LEADER)
    async def transfer_leadership(self, body: views.Transfer) -> views.Leader:
        """Hand leadership to a voter, or to any that is up to date."""
        return views.Leader(await self._node.transfer(body.to))
