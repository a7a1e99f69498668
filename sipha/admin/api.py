"""The admin's HTTP API, in JSON (docs/admin-api.md).

Any node reads its own table. A write goes to the log, and its answer waits until it is applied; which node is asked
doesn't matter. What only the leader can do is forwarded there, once, by a node that doesn't lead.
"""

from __future__ import annotations

from inspect import isawaitable
from urllib.parse import urlencode

import msgspec
from klein import Klein
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from sipha.admin import access, routes
from sipha.admin.access import Role
from sipha.admin.elsewhere import LEADER, Elsewhere
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal, read_body, read_query, refuse, reply
from sipha.admin.openapi import Document
from sipha.admin.outflow import Outflow
from sipha.admin.queries import ANYWHERE, Read
from sipha.admin.reads import Reads
from sipha.admin.route import Group, Place, Route, Stream
from sipha.auth.domain import Domains
from sipha.errors import SiphaError, Unavailable

MAX_STREAMS = 4
"""The long answers at a time: each takes some ms of a turn of the reactor, and keeps what is changed meanwhile."""


class Api:
    """The routes, for a node and its domains, and those of `more` groups.

    `http` carries what is forwarded to the leader.
    """

    def __init__(self, reactor: IReactorTime, node: INode, domains: Domains, http: HTTPClient, *more: Group) -> None:
        self._reactor = reactor
        self._node = node
        self._elsewhere = Elsewhere(reactor, node, http)
        self._reads = Reads(reactor, node, self._elsewhere)
        self._log = Logger(namespace="sipha.admin")
        self._streams = 0
        self._app = Klein()
        self.groups = (*routes.groups(reactor, node, domains, self._elsewhere), *more)
        document = Document(self.groups)
        self.groups += (document,)
        for group in self.groups:
            for route in group.routes:
                self._add(group, route)
        self._app.handle_errors(Exception)(self._failed)

    @property
    def open_paths(self) -> frozenset[bytes]:
        """The paths, without variables, that whoever can't say who he is may read, too."""
        routes = (route for group in self.groups for route in group.routes)
        return frozenset(route.path.encode() for route in routes if route.role is Role.NONE and not route.segments)

    def resource(self) -> IResource:
        """The resource that serves the routes; admin/site.py stands before it."""
        return self._app.resource()

    def _add(self, group: Group, route: Route) -> None:
        async def serve(request: Request, **segments: str) -> bytes | None:
            return await self._serve(request, route, group, segments)

        self._app.route(route.path, methods=[route.method], endpoint=f"{route.method} {route.path}")(serve)

    async def _serve(self, request: Request, route: Route, group: Group, segments: dict[str, str]) -> bytes | None:
        """Answer a request to a route."""
        access.check(request, route.role)
        query = read_query(request, route.query)
        body = read_body(request, route.body)
        if not self._is_place(route.place):
            return await self._elsewhere.forward(request, LEADER, route.fill(segments), body)
        if isinstance(query, ANYWHERE) and query.node and not self._elsewhere.is_here(query.node):
            rest = urlencode(msgspec.structs.replace(query, node="").parameters())
            path = f"{route.fill(segments)}?{rest}" if rest else route.fill(segments)
            return await self._elsewhere.forward(request, query.node, path, body)
        if isinstance(query, Read):
            await self._reads.prepare(request, query)
        given = {"query": query, "body": body, "request": request, **segments}
        answer = route.respond(group, **{name: given[name] for name in route.parameters if name in given})
        if isawaitable(answer):
            answer = await answer
        status = route.status(answer)
        request.setResponseCode(status)
        match answer:
            case Stream():
                await self._stream(request, route.answers[status], answer)
                return None
            case bytes():
                request.setHeader("Content-Type", route.answers[status])
                request.setHeader("Cache-Control", "no-store")
                return answer
            case None:  # the function has written it
                return None
            case _:
                return reply(request, answer)

    def _is_place(self, place: Place) -> bool:
        return (
            place is Place.ANY
            or (place is Place.LEADER and self._node.leading())
            or (place is Place.LOG_LEADER and self._node.leads_log())
        )

    async def _stream(self, request: Request, media: str, stream: Stream) -> None:
        self._streams += 1
        try:
            if self._streams > MAX_STREAMS:
                raise Refusal(503, f"{MAX_STREAMS} exports or backups are under way here: wait for one", retry_after=5)
            request.setHeader("Content-Type", media)
            request.setHeader("Cache-Control", "no-store")
            for name, value in stream.headers.items():
                request.setHeader(name, value)
            if request.method != b"HEAD":
                await Outflow(self._reactor, request, stream.chunks).start()
        finally:
            self._streams -= 1
            stream.close()

    def _failed(self, request: IRequest, failure: Failure) -> bytes:
        match failure.value:
            case Refusal() as refusal:
                return refuse(request, refusal)
            case Unavailable() as error:
                return refuse(request, Refusal(503, error.detail, retry_after=error.retry_after))
            case SiphaError() as error:
                return refuse(request, Refusal(409, str(error)))
            case MethodNotAllowed() as error:
                allow = ", ".join(sorted(error.valid_methods or ()))
                return refuse(request, Refusal(405, f"this resource has {allow} only", allow=allow))
            case HTTPException():
                return refuse(request, Refusal(404, f"there is no such resource; there are {self._resources()}"))
            case _:
                self._log.failure("{method} {path} failed", failure, method=request.method, path=request.path)
                return refuse(request, Refusal(500, "sipha has failed here, which is a bug; its log says how"))

    def _resources(self) -> str:
        """The paths that there are, as far as they say what they are about."""
        found = dict.fromkeys("/".join(route.path.split("/")[:3]) for group in self.groups for route in group.routes)
        return ", ".join(found)
