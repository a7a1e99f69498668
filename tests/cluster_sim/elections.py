"""Who votes for whom, and who leads: put together from what the nodes say, and compared with what they have on disk."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.cluster_sim.violation import Violation

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node


class Elections:
    """The votes of all terms."""

    def __init__(self) -> None:
        self._votes: dict[tuple[str, int], str] = {}  # by voter and term; the candidate
        self._received: defaultdict[tuple[str, int], set[str]] = defaultdict(set)  # by candidate and term; the voters
        self._leaders: dict[int, str] = {}

    def voted(self, node: Node, term: int, candidate: str) -> None:
        """A node gives its vote, perhaps to itself: one in a term, durably, and only if it remembers all others."""
        if node.forgetful():
            raise Violation(f"{node.name} votes, and has forgotten what it promised before")
        known = self._votes.setdefault((node.name, term), candidate)
        if known != candidate:
            raise Violation(f"{node.name} votes for {candidate} in term {term}, and has voted for {known}")
        if node.ballot() != (term, candidate):
            raise Violation(f"{node.name} votes for {candidate} in term {term}, and its disk says {node.ballot()}")

    def received(self, node: Node, term: int, voter: str) -> None:
        """A candidate hears of a vote for it."""
        self._received[node.name, term].add(voter)

    def wiped(self, node: Node) -> None:
        """A node knows no more whom it voted for."""
        for voter, term in list(self._votes):
            if voter == node.name:
                del self._votes[voter, term]

    def led(self, node: Node, term: int) -> None:
        """A node begins to lead: the only one in its term, and by a majority's votes."""
        other = self._leaders.setdefault(term, node.name)
        if other != node.name:
            raise Violation(f"{node.name} and {other} both lead term {term}")
        voters = self.voters(node, term)
        if not node.is_majority(voters):
            raise Violation(f"{node.name} leads term {term}, and has the votes of {sorted(voters)}")

    def voters(self, node: Node, term: int) -> set[str]:
        """Those whose votes a candidate has."""
        return self._received[node.name, term] | {node.name}

    def leader(self, term: int) -> str | None:
        """Who has led a term."""
        return self._leaders.get(term)
