"""Whether leases are what the protocol says: put together from what leaders claim and what followers promise for it.

A leader's lease lasts as long as a majority's promises for its present claim; and whoever has promised neither votes
nor stands until the lease that counts on it has ended, or its claim (pitfalls-log-vip 1, 9).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sipha.cluster.lease import commit_to
from sipha.cluster.wire import AppendEntries, LeaseAck
from tests.cluster_sim.violation import Violation

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World

DRIFT = 0.01
"""By how much clocks may differ in rate."""


class Heartbeat(NamedTuple):
    """What a leader has told of its claim; a lease that counts from then lasts `seconds`, until `ends` of true time."""

    term: int
    commitment: bytes
    seconds: float
    ends: float


class Leases:
    """All claims and promises."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._heartbeats: dict[
            tuple[str, int, int], Heartbeat
        ] = {}  # by leader, when it was sent by its clock, and claim
        self._promises: dict[str, tuple[tuple[int, int], Heartbeat]] = {}  # each node's last: term and claim, for what
        # By leader, term and claim: the latest heartbeat that each node has acknowledged, by when it was sent.
        self._acknowledged: defaultdict[tuple[str, int, int], dict[str, int]] = defaultdict(dict)
        self._ended: set[bytes] = set()  # the commitments of claims whose secrets were told
        self._shown: defaultdict[tuple[str, int], set[bytes]] = defaultdict(set)  # the same, by who has heard: its life
        self._heard_of: dict[tuple[str, int], bytes] = {}  # the claim that each life of a node acknowledged last
        self._checked: dict[str, tuple[float, frozenset[str]]] = {}  # each leader's lease and other voters
        self._seen: dict[str, tuple[bytes, float]] = {}  # each leader's claim at its last step: secret, end

    def now(self, node: Node) -> float:
        """The true time at which a node does what it does."""
        return self._world.events.now + node.ahead

    # What is said

    def claimed(self, node: Node, message: AppendEntries) -> None:
        """A leader sends a heartbeat."""
        seconds = message.lease / 1000
        ends = self._world.events.now + node.until(message.sent / 1_000_000 + seconds * (1 - DRIFT))
        if message.commitment:  # the last ones of a claim may be sent in the moment in which it ends
            heartbeat = Heartbeat(message.term, message.commitment, seconds, ends)
            self._heartbeats[node.name, message.sent, message.claim] = heartbeat

    def acknowledged(self, node: Node, leader: str, message: LeaseAck) -> None:
        """A follower promises what a heartbeat asks: durably, for a claim that it doesn't know to have ended."""
        heartbeat = self._heartbeats.get((leader, message.sent, message.claim))
        if heartbeat is None or heartbeat.commitment in self._shown[node.name, node.life]:
            raise Violation(f"{node.name} promises {leader} something for a claim that has ended")
        claim, (last, _) = (heartbeat.term, message.claim), self._promises.get(node.name, ((0, 0), None))
        if claim < last:
            raise Violation(f"{node.name} promises something for claim {claim}, and has done so for {last}")
        ballot, promised = node.ballot(), node.promised()
        if ballot is None or ballot[0] < heartbeat.term:
            raise Violation(f"{node.name} promises something in term {heartbeat.term}, and its disk says {ballot}")
        if promised < heartbeat.seconds:
            raise Violation(f"{node.name} promises {heartbeat.seconds} s, and its disk says {promised}")
        self._promises[node.name] = claim, heartbeat
        self._heard_of[node.name, node.life] = heartbeat.commitment
        if not node.forgetful():  # else it may have promised another something as well
            acknowledged = self._acknowledged[leader, *claim]
            acknowledged[node.name] = max(message.sent, acknowledged.get(node.name, 0))

    def ended(self, secret: bytes) -> None:
        """A claim's secret is told."""
        self._ended.add(commit_to(secret))

    def shown(self, node: Node, secret: bytes) -> None:
        """A node hears the secret of a claim, and knows that it has ended if it is the last that it has heard of.

        What it heard of before it was started anew it doesn't know.
        """
        if self._heard_of.get((node.name, node.life)) == commit_to(secret):
            self._shown[node.name, node.life].add(commit_to(secret))

    def voted(self, node: Node) -> None:
        """A node gives its vote, perhaps to itself, and must not break its promise."""
        claim, heartbeat = self._promises.get(node.name, (None, None))
        if heartbeat is not None and heartbeat.commitment not in self._ended and self.now(node) < heartbeat.ends:
            left = heartbeat.ends - self.now(node)
            raise Violation(f"{node.name} votes {left:.3f} s before the end of what it has promised for claim {claim}")

    def wiped(self, node: Node) -> None:
        """A node knows no more what it promised."""
        self._promises.pop(node.name, None)

    # What is so

    def stepped(self, node: Node) -> None:
        """A node that leads has done something: a claim that had run out before must not go on."""
        secret, until = node.claim_secret(), node.lease_until()
        before, end = self._seen.get(node.name, (b"", 0.0))
        if secret and secret == before and 0 < end <= node.time() and until > end:
            raise Violation(f"{node.name} goes on with a claim that has run out")
        self._seen[node.name] = secret, until

    def held(self, node: Node) -> None:
        """A node holds a usable lease: under a claim whose secret nobody knows, as long as a majority's promises."""
        if commit_to(node.claim_secret()) in self._ended:
            raise Violation(f"{node.name} leads under a claim that has ended")
        others, until = node.other_voters(), node.lease_until()
        needed = (len(others) + 1) // 2
        if needed and self._checked.get(node.name) != (until, others):
            self._checked[node.name] = until, others
            acknowledged = self._acknowledged[node.name, *node.claim()]
            sent = sorted((acknowledged.get(other, 0) for other in others), reverse=True)[needed - 1]
            surplus = until - (sent / 1_000_000 + node.timing.lease)
            if surplus > 0.0001:
                raise Violation(f"{node.name} holds its lease {surplus:.3f} s longer than a majority has promised")
