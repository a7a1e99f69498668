"""How fresh what a node reads is: the consistency that a read asks for, and what its answer says of it."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.server import Request

from sipha.admin.client import Unreachable
from sipha.admin.elsewhere import LEADER, Elsewhere
from sipha.admin.interfaces import INode, Position
from sipha.admin.messages import INDEX, Refusal
from sipha.admin.queries import Read

CONSISTENCY = "Sipha-Consistency"

HEADERS: Mapping[str, str] = {
    "Sipha-Node": "The node whose table was read.",
    INDEX: "The log index up to which that table had every entry.",
    "Sipha-Time": "The cluster time of the read, in seconds.",
    CONSISTENCY: "linearizable: whatever was acknowledged before the request is in the answer; local: it may not be.",
    "Sipha-Leader-Heard": "How many seconds ago the node had last heard the leader: what was decided since may be "
    "missing. Absent from a linearizable answer, and where no leader is heard.",
}
"""The headers of the answer to a read."""

PATIENCE = 5.0
"""Seconds that a node has for catching up with what the leader had at the time of a linearizable read."""

_PROBE = "/v1/settings"  # the smallest read
_INTERVAL = 0.01


class Reads:
    """The reads of a node."""

    def __init__(self, reactor: IReactorTime, node: INode, elsewhere: Elsewhere) -> None:
        self._reactor = reactor
        self._node = node
        self._elsewhere = elsewhere

    async def prepare(self, request: Request, read: Read) -> None:
        """Wait until the table is as fresh as it must be, and say in the answer how fresh that is; raises Refusal.

        The answer is of the table as it is when this returns, in the same turn of the reactor.
        """
        position = self._node.position()
        linearizable = position.leads
        if read.consistency == "linearizable" and not position.leads:
            position = await self._reach(await self._read_index(request))
            linearizable = True
        for name, value in _headers(position, linearizable=linearizable).items():
            request.setHeader(name, value)

    async def _read_index(self, request: Request) -> int:
        """The index up to which a node that led at some moment of the request had applied the log: Raft's ReadIndex."""
        try:
            answer = await self._elsewhere.ask(request, LEADER, "GET", f"{_PROBE}?consistency=linearizable")
        except Unreachable as error:
            raise Refusal(503, f"{error}; ask for local consistency, or again", retry_after=1) from error
        index, consistency = (answer.headers.getRawHeaders(name, [""])[0] for name in (INDEX, CONSISTENCY))
        if answer.status != 200 or consistency != "linearizable" or not index.isdecimal():
            raise Refusal(503, "the leader has just changed, or no majority answers it", retry_after=1)
        return int(index)

    async def _reach(self, index: int) -> Position:
        until = self._reactor.seconds() + PATIENCE
        while (position := self._node.position()).index < index:
            if self._reactor.seconds() >= until:
                raise Refusal(
                    503,
                    f"this node has the log up to entry {position.index}, and the leader up to {index}: ask for local "
                    "consistency, or another node",
                    retry_after=1,
                )
            await deferLater(self._reactor, _INTERVAL)
        return position


def _headers(position: Position, *, linearizable: bool) -> dict[str, str]:
    headers = {
        "Sipha-Node": position.node,
        INDEX: str(position.index),
        "Sipha-Time": f"{position.time:.3f}",
        CONSISTENCY: "linearizable" if linearizable else "local",
    }
    if not linearizable and position.heard is not None:
        headers["Sipha-Leader-Heard"] = f"{position.heard:.3f}"
    return headers
