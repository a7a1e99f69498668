"""What happens, and what has become of an AOR."""

from __future__ import annotations

from msgspec import UNSET
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from sipha.admin.access import Role
from sipha.admin.events import LAST_EVENT_ID, EventStream, read_kinds
from sipha.admin.history import History, read_history
from sipha.admin.interfaces import INode
from sipha.admin.names import locate
from sipha.admin.queries import Follow, Pages
from sipha.admin.route import Routes
from sipha.auth.domain import Domains


class EventRoutes:
    """The events of a node."""

    routes = Routes("events")

    def __init__(self, reactor: IReactorTime, node: INode, domains: Domains) -> None:
        self._reactor = reactor
        self._node = node
        self._domains = domains

    @routes.get("/v1/events", role=Role.READ, media="text/event-stream", errors=(404, 503))
    async def follow_events(self, request: Request, query: Follow) -> None:
        """What happens, as Server-Sent Events, until the client hangs up."""
        since = request.getHeader(LAST_EVENT_ID) or (None if query.since is UNSET else query.since)
        aor = locate(self._domains, query.aor)[1] if query.aor else ""
        stream = EventStream(self._reactor, request, self._node.feed)
        await stream.start(self._node.cluster_id(), since, read_kinds(query.kinds), aor)

    @routes.get("/v1/history/<path:aor>", role=Role.READ, errors=(404, 503))
    async def get_history(self, aor: str, query: Pages) -> History:
        """What has become of an AOR: who bound and removed it, when, and why, the latest first."""
        return await read_history(self._node, locate(self._domains, aor)[1], query)
