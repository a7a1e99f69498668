"""The admin of the node that leads, asked by that of another one."""

from __future__ import annotations

import msgspec
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from sipha.admin.access import FORWARDED_BY, caller_of, vouch
from sipha.admin.client import Answer, Unreachable, exchange
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.views import FaultReply

FORWARD_DEADLINE = 5.0
"""Seconds that the leader has for its answer; longer than it waits for a majority itself."""


class Leader:
    """The node that leads, as `node` knows it."""

    def __init__(self, reactor: IReactorTime, node: INode, http: HTTPClient) -> None:
        self._reactor = reactor
        self._node = node
        self._http = http

    async def forward(self, request: Request, path: str, body: msgspec.Struct | None) -> bytes:
        """Let the leader answer a request: what was understood of it goes there, not what came."""
        try:
            answer = await self.ask(request, request.method.decode("ascii"), path, body)
        except Unreachable as error:
            raise Refusal(
                503, f"{error}; the change may still be made, or ask that node itself", retry_after=1
            ) from error
        request.setResponseCode(answer.status)
        for retry_after in answer.headers.getRawHeaders("Retry-After", []):
            request.setHeader("Retry-After", retry_after)
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Cache-Control", "no-store")
        return answer.content

    async def command(self, request: Request, method: str, path: str, body: msgspec.Struct) -> None:
        """Have the leader do something on behalf of a request; raises Refusal."""
        try:
            answer = await self.ask(request, method, path, body)
        except Unreachable as error:
            raise Refusal(503, f"{error}; the change may still be made", retry_after=1) from error
        if answer.status >= 400:
            try:
                fault = msgspec.json.decode(answer.content, type=FaultReply).error
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Refusal(502, f"the leader answered {answer.status}, but not as sipha's admin does") from error
            raise Refusal(answer.status, fault.detail)

    async def ask(self, request: Request, method: str, path: str, body: msgspec.Struct | None = None) -> Answer:
        """Ask the leader for something on behalf of a request; raises Refusal, and Unreachable if no answer comes."""
        if request.getHeader(FORWARDED_BY.encode()) is not None:
            raise Refusal(503, "the leader has just changed", retry_after=1)
        status, url = self._node.status(), self._node.leader_admin()
        if status.leader in {None, status.node}:
            raise Refusal(503, "no node leads at present", retry_after=1)
        if url is None:
            raise Refusal(
                409,
                f"{status.leader} leads, and neither cluster.admin_port nor its admin in [[cluster.peers]] says here "
                "where it takes what is handed on: ask that node itself",
            )
        try:
            answer = await exchange(
                self._http,
                self._reactor,
                method,
                url + path,
                content=b"" if body is None else msgspec.json.encode(body),
                headers=vouch(status.node, caller_of(request)),
                deadline=FORWARD_DEADLINE,
            )
        except Unreachable as error:
            raise Unreachable(f"{status.leader} leads, and {error}") from error
        if answer.status == 401:
            raise Refusal(
                409,
                f"{status.leader} leads, and doesn't know this node by a certificate under which it would take its "
                "word: ask that node itself",
            )
        return answer
