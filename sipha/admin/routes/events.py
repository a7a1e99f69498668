"""What happens, and what has become of an AOR."""

from __future__ import annotations

from functools import partial

from msgspec import UNSET
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from sipha.admin.access import Role
from sipha.admin.events import LAST_EVENT_ID, EventStream, read_kinds
from sipha.admin.history import History, read_history
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.names import locate
from sipha.admin.queries import Follow, Pages
from sipha.admin.route import Routes
from sipha.admin.trace import TraceStream
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

    @routes.get("/v1/trace/<path:aor>", role=Role.ADMIN, media="application/x-ndjson", errors=(404, 409, 503))
    async def trace_aor(self, request: Request, aor: str) -> None:
        """The SIP messages of an AOR as they pass, a line for each: for ten minutes, or 10,000 of them.

        What digests of passwords they bear is left out. Messages pass the leader alone.
        """
        aor = locate(self._domains, aor)[1]
        if not self._node.leading():
            raise Refusal(409, f"messages pass {self._node.status().leader or 'no node now'}: ask that node itself")
        request.setHeader("Content-Type", "application/x-ndjson")
        request.setHeader("Cache-Control", "no-store")
        if request.method != b"HEAD":
            await TraceStream(self._reactor, request).start(partial(self._node.trace, aor))

    @routes.get("/v1/history/<path:aor>", role=Role.READ, errors=(404, 503))
    async def get_history(self, aor: str, query: Pages) -> History:
        """What has become of an AOR: who bound and removed it, when, and why, the latest first."""
        return await read_history(self._node, locate(self._domains, aor)[1], query)
