"""The admins of the other nodes, asked by this one."""

from __future__ import annotations

from typing import Final

import msgspec
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from sipha.admin.access import FORWARDED_BY, caller_of, vouch
from sipha.admin.client import Answer, Unreachable, exchange
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.views import FaultReply

LEADER: Final = "leader"
"""Stands for the name of the node that leads."""

FORWARD_DEADLINE = 5.0
"""Seconds that another node has for its answer; longer than the leader waits for a majority itself."""


class Elsewhere:
    """The other nodes, as `node` knows them, each by its name or as LEADER."""

    def __init__(self, reactor: IReactorTime, node: INode, http: HTTPClient) -> None:
        self._reactor = reactor
        self._node = node
        self._http = http

    def is_here(self, name: str) -> bool:
        """Return True if `name` is this node."""
        return name == self._node.status().node or (name == LEADER and self._node.leads_log())

    async def forward(self, request: Request, name: str, path: str, body: msgspec.Struct | None) -> bytes:
        """Let another node answer a request: what was understood of it goes there, not what came."""
        method = request.method.decode("ascii")
        try:
            answer = await self.ask(request, name, method, path, body)
        except Unreachable as error:
            raise Refusal(503, _unanswered(error, method), retry_after=1) from error
        request.setResponseCode(answer.status)
        for retry_after in answer.headers.getRawHeaders("Retry-After", []):
            request.setHeader("Retry-After", retry_after)
        for header, values in answer.headers.getAllRawHeaders():
            if header.startswith(b"Sipha-"):
                request.setHeader(header, values[0])
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Cache-Control", "no-store")
        return answer.content

    async def command(self, request: Request, method: str, path: str, body: msgspec.Struct) -> None:
        """Have the leader do something on behalf of a request; raises Refusal."""
        try:
            answer = await self.ask(request, LEADER, method, path, body)
        except Unreachable as error:
            raise Refusal(503, _unanswered(error, method), retry_after=1) from error
        if answer.status >= 400:
            try:
                fault = msgspec.json.decode(answer.content, type=FaultReply).error
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Refusal(502, f"the leader answered {answer.status}, but not as sipha's admin does") from error
            raise Refusal(answer.status, fault.detail)

    async def ask(
        self, request: Request, name: str, method: str, path: str, body: msgspec.Struct | None = None
    ) -> Answer:
        """Ask another node on behalf of a request; raises Refusal, and Unreachable if no answer comes."""
        if request.getHeader(FORWARDED_BY.encode()) is not None:
            raise Refusal(503, "the leader has just changed", retry_after=1)
        who, url = self._find(name)
        try:
            answer = await exchange(
                self._http,
                self._reactor,
                method,
                url + path,
                content=b"" if body is None else msgspec.json.encode(body),
                headers=vouch(self._node.status().node, caller_of(request)),
                deadline=FORWARD_DEADLINE,
            )
        except Unreachable as error:
            raise Unreachable(f"{who} {error}") from error
        if answer.status == 401:
            raise Refusal(
                409,
                f"{who} doesn't know this node by a certificate under which it would take its word: ask that node "
                "itself",
            )
        return answer

    def _find(self, name: str) -> tuple[str, str]:
        """Whom a name means, as the beginning of what is said of it, and its URL; raises Refusal."""
        status = self._node.status()
        named = status.leader if name == LEADER else name
        if named is None or named == status.node:
            raise Refusal(503, "no node leads at present", retry_after=1)
        if name != LEADER and all(peer.name != name for peer in status.peers):
            raise Refusal(404, f"this node knows no node {name}")
        who = f"{named} leads, and" if name == LEADER else f"{named} is to answer, and"
        url = self._node.admin_of(named)
        if url is None:
            raise Refusal(
                409,
                f"{who} neither cluster.admin_port nor its admin in [[cluster.peers]] says here where it takes what is "
                "handed on: ask that node itself",
            )
        return who, url


def _unanswered(error: Unreachable, method: str) -> str:
    return f"{error}; {'' if method == 'GET' else 'the change may still be made, or '}ask that node itself"
