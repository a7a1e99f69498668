"""The methods of OpenSIPS's modules clusterer and nathelper: who serves phones, and whether they are pinged.

A node id is the place of the node among the members by name, from 1 on. The sharing tag is with the node that leads,
whatever a script calls it.
"""

from __future__ import annotations

from typing import Any

from twisted.web.server import Request

from sipha.admin import access, views
from sipha.admin.access import Role
from sipha.admin.elsewhere import Elsewhere
from sipha.admin.interfaces import INode
from sipha.admin.outcomes import turn_pings
from sipha.admin.route import segment
from sipha.admin.rpc import INVALID_PARAMS, Methods, RpcError

CLUSTER = 1
"""The id of the only cluster that there is."""

TAG = "vip"
"""What the sharing tag is called if nobody says otherwise."""

_OK = "OK"


class ClusterMethods:
    """The cluster, as a node knows it."""

    methods = Methods()

    def __init__(self, node: INode, elsewhere: Elsewhere) -> None:
        self._node = node
        self._elsewhere = elsewhere

    @methods.add("clusterer_list", "clusterer:list", role=Role.READ)
    def list_nodes(self) -> dict[str, Any]:
        """The other members, and which of them are connected."""
        own = self._node.status().node
        nodes = [
            {
                "node_id": number,
                "db_id": number,
                "url": f"tcp:{node.address}",
                "link_state": "Up" if node.connected else "Down",
                "state": "Disabled" if node.standby else "Enabled",
                "next_hop": str(number) if node.connected else "none",
                "description": node.name,
            }
            for number, node in self._numbered()
            if node.name != own
        ]
        return {"Clusters": [{"cluster_id": CLUSTER, "Nodes": nodes}]}

    @methods.add("clusterer_list_topology", "clusterer:list_topology", role=Role.READ)
    def list_topology(self) -> dict[str, Any]:
        """Which nodes are connected with this one, itself first."""
        name = self._node.status().node
        own = [number for number, node in self._numbered() if node.name == name]  # none if it is no member
        others = [(number, node) for number, node in self._numbered() if node.name != name]
        connected = [number for number, node in others if node.connected]
        nodes = [
            *({"node_id": number, "Neighbours": connected} for number in own),
            *({"node_id": number, "Neighbours": own if node.connected else []} for number, node in others),
        ]
        return {"Clusters": [{"cluster_id": CLUSTER, "Nodes": nodes}]}

    @methods.add("clusterer_set_status", "clusterer:set_status", role=Role.OPERATE)
    async def set_status(self, request: Request, cluster_id: int, status: int, node: str = "") -> str:
        """Put this node, or the one of this name or id, in standby (0), or let it lead again (1)."""
        _check_cluster(str(cluster_id))
        name = self._named(node)
        if status not in {0, 1}:
            raise RpcError(INVALID_PARAMS, f"Invalid params: status is 0 or 1, not {status}")
        if self._node.leads_log():
            await (self._node.bring_online(name) if status else self._node.put_in_standby(name, force=False))
        elif status:
            await self._elsewhere.command(request, "POST", f"/v1/nodes/{segment(name)}/online", views.Online())
        else:
            await self._elsewhere.command(request, "POST", f"/v1/nodes/{segment(name)}/standby", views.Standby())
        return _OK

    @methods.add("clusterer_list_shtags", "clusterer:list_shtags", role=Role.READ)
    def list_tags(self) -> list[dict[str, Any]]:
        """The sharing tag: active on the node that serves phones."""
        return [{"Tag": TAG, "Cluster": CLUSTER, "State": "active" if self._node.leading() else "backup"}]

    @methods.add("clusterer_shtag_set_active", "clusterer:shtag_set_active", role=Role.OPERATE)
    async def set_active(self, request: Request, tag: str) -> str:
        """Have this node lead; a node that does already, goes on."""
        name, _, cluster = tag.partition("/")
        if not name:
            raise RpcError(INVALID_PARAMS, "Invalid params: tag is written vip/1")
        _check_cluster(cluster)
        own = self._node.status().node
        if not self._node.leading():
            await self._elsewhere.command(request, "POST", "/v1/transfer", views.Transfer(own))
        return _OK

    @methods.add("nh_enable_ping", "nathelper:enable_ping", role=Role.READ)
    async def enable_ping(self, request: Request, status: int | None = None) -> dict[str, int] | str:
        """Whether phones behind NAT are pinged: 0 or 1; to change it needs the role operate."""
        if status is None:
            return {"Status": int(self._node.pings())}
        access.check(request, Role.OPERATE)
        await turn_pings(self._node, on=bool(status))
        return _OK

    def _numbered(self) -> list[tuple[int, views.NodeView]]:
        return list(enumerate(self._node.nodes(), 1))

    def _named(self, node: str) -> str:
        """The name of a member that is given by its name or id; this node's if nothing is given."""
        if not node:
            return self._node.status().node
        for number, member in self._numbered():
            if node in {member.name, str(number)}:
                return member.name
        raise RpcError(404, "Node id not found in cluster")


def _check_cluster(cluster: str) -> None:
    if cluster != str(CLUSTER):
        raise RpcError(404, "Cluster id not found")
