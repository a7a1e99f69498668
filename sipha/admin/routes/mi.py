"""OpenSIPS's management interface, for the scripts that know it."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from sipha.admin.access import Role
from sipha.admin.elsewhere import Elsewhere
from sipha.admin.interfaces import INode
from sipha.admin.mi.cluster import ClusterMethods
from sipha.admin.mi.core import CoreMethods
from sipha.admin.mi.location import LocationMethods
from sipha.admin.route import Routes, Stream
from sipha.admin.rpc import Dispatcher
from sipha.auth.domain import Domains


class ManagementRoutes:
    """OpenSIPS's management interface, as far as there is something here that it is about."""

    routes = Routes("mi")

    def __init__(self, reactor: IReactorTime, node: INode, domains: Domains, elsewhere: Elsewhere) -> None:
        groups = (LocationMethods(node, domains), ClusterMethods(node, elsewhere))
        self._dispatcher = Dispatcher(reactor, *groups, CoreMethods(node, *groups))

    @routes.post("/mi", role=Role.READ, body="application/json", media="application/json")
    async def call_method(self, request: Request, body: bytes) -> bytes | Stream:
        """JSON-RPC 2.0: a call, or an array of them, of the methods that docs/mi.md names.

        Each method is for a role of its own. Errors of a call are in its answer, whose status is 200.
        """
        return await self._dispatcher.answer(request, body)
