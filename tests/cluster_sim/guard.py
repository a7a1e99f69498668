"""The guard of a node, as the others see it: it holds the address for the daemon, and has the last word on it.

The real one is a process of its own (pitfalls-log-vip 10). Here it is what it promises: renewals carry deadlines; when
they stop, or the daemon dies, the address goes, and only then the peers hear the secret of the claim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sipha.cluster.wire import LastWord, datagram
from tests.cluster_sim.network import Link

if TYPE_CHECKING:
    from tests.cluster_sim.events import Timer
    from tests.cluster_sim.node import Node


class Claim(NamedTuple):
    """What the daemon has told its guard: the last word, and until when it may be held back."""

    term: int
    secret: bytes


class Guard:
    """One per node; it outlives the daemon, and not a power cut. Times are the node's CLOCK_BOOTTIME."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.claim: Claim | None = None
        self.deadline = 0.0
        """Until when the kernel lets anything pass."""
        self.spoken: set[bytes] = set()
        """The secrets of the claims that this guard has ended: the daemon can't have them back."""
        self._watch: Timer | None = None

    def passes(self) -> bool:
        """True if the address is there and its gate is open, now."""
        return self.claim is not None and self.node.time() < self.deadline

    def renew(self, claim: Claim, deadline: float) -> bool:
        """The daemon leads until the deadline at least; False if it comes too late with this claim."""
        if claim.secret in self.spoken:
            return False
        if claim != self.claim:
            self.claim = claim
            self.deadline = 0.0
        if deadline > self.deadline:
            self.deadline = deadline
            self._look_at(deadline)
        return True

    def withdraw(self) -> None:
        """The daemon takes the address away itself."""
        self._stop()
        self.claim = None

    def daemon_died(self) -> None:
        """Kill -9: the guard notices a little later."""
        if self.claim is not None:
            self._stop()
            self._watch = self.world.events.callLater(self.world.dice.uniform(0.001, 0.09), self._speak)

    def power_lost(self) -> None:
        """The guard is gone with the node, without a word."""
        self.withdraw()
        self.spoken.clear()

    def _stop(self) -> None:
        if self._watch is not None and self._watch.active():
            self._watch.cancel()
        self._watch = None

    def _look_at(self, deadline: float) -> None:
        self._stop()
        late = self.world.dice.uniform(0, 0.02)
        self._watch = self.world.events.callLater(max(self.node.until(deadline), 0.0) + late, self._speak)

    def _speak(self) -> None:
        """The address is gone: say so to the peers, however long that takes to reach them."""
        assert self.claim is not None
        claim, self.claim = self.claim, None
        self.spoken.add(claim.secret)
        self.world.invariants.ended(claim.secret)
        self.node.post(self.node.life, self.node.claim_gone, claim.secret)
        word = datagram(LastWord(claim.term, self.node.name, claim.secret))
        for peer in self.world.nodes.values():
            if peer is not self.node and (self.node.name, peer.name) not in self.world.net.cuts:
                late = self.world.dice.choice([0.001, 0.01, 0.1, 3.0]) * self.world.dice.random()
                self.world.events.callLater(late, self._reach, peer, word)

    def _reach(self, peer: Node, word: bytes) -> None:
        peer.receive(peer.life, Link.hear, word)
