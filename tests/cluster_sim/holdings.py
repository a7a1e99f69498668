"""Whether entries that leaders count as held by others are held: put together from what these say and have on disk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sipha.cluster.wire import AppendEntries
from tests.cluster_sim.violation import Violation

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World


class Holdings:
    """What each node has heard of its peers' logs, by the names of the two."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._greeted: dict[tuple[str, str], float] = {}  # when their connection began
        self._said: dict[tuple[str, str], tuple[int, int]] = {}  # of which leader's term, up to which index
        self._counted: dict[tuple[str, str], int] = {}  # what was last seen to be counted, and right
        self._verified: dict[str, tuple[int, int]] = {}  # up to where a node's log is the leader's, of which term

    def started(self, node: Node) -> None:
        """A node begins anew, and has heard nothing."""
        self._verified.pop(node.name, None)
        for heard in (self._said, self._counted):
            for between in [between for between in heard if between[0] == node.name]:
                del heard[between]

    def greeted(self, node: Node, peer: str) -> None:
        """A node has a new connection with a peer, whose disk may be another than it was."""
        self._greeted[node.name, peer] = self._world.events.now
        self._said.pop((node.name, peer), None)
        self._counted.pop((node.name, peer), None)

    def said(self, node: Node, peer: str, term: int, index: int) -> None:
        """A node hears that a peer holds the entries up to an index that the leader of `term` has."""
        before, most = self._said.get((node.name, peer), (0, 0))
        if term >= before:
            self._said[node.name, peer] = term, index if term > before else max(index, most)

    def followed(self, node: Node, message: AppendEntries) -> None:
        """A node has taken a leader's message: it commits no more than this or an earlier one has in common with it."""
        raft = node.raft
        term, verified = self._verified.get(node.name, (0, 0))
        if term != message.term:
            verified = 0
        if message.prev_index is not None:
            end = message.prev_index + len(message.entries)
            if raft.term_at(end) == (message.entries[-1][2] if message.entries else message.prev_term):
                verified = max(verified, end)
        self._verified[node.name] = message.term, verified
        if raft.commit_index > max(verified, node.seen_commit):
            raise Violation(f"{node.name} commits {raft.commit_index}, and knows its leader's log up to {verified}")

    def counted(self, node: Node) -> None:
        """A node leads: what it counts as held by others these have said in its term, and have on disk."""
        raft = node.raft
        for peer in node.other_voters():
            match, between = raft.match(peer), (node.name, peer)
            if not match or self._counted.get(between) == match:
                continue
            term, said = self._said.get(between, (0, 0))
            if term != raft.term or match > said:
                raise Violation(f"{node.name} counts entry {match} as held by {peer}, which has not said so")
            other = self._world.nodes[peer]
            if other.term() == raft.term:
                self._counted[between] = match
                if not self.holds(other, match, raft.term_at(match), node):
                    raise Violation(f"{node.name} counts entry {match} as held by {peer}, which has it not on disk")

    def holds(self, node: Node, index: int, term: int | None, leader: Node) -> bool:
        """Return True if a node holds an entry on disk, or has lost it and the leader can't know of that yet."""
        return node.keeps(index, term, self._greeted.get((leader.name, node.name), -math.inf))
