"""Whether cluster time is what bindings can rely on: it goes on, whoever leads and whatever each node knows of it."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sipha.cluster.wire import AppendEntries, PreVoteGranted, VoteGranted
from tests.cluster_sim.violation import Violation

if TYPE_CHECKING:
    from tests.cluster_sim.elections import Elections
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World

LATE = 2.0
"""Seconds by which a binding may expire early or late (design §1.5)."""

DRIFT = 0.01
"""By how much clocks may differ in rate."""

_ROUNDED = 3
"""Milliseconds that are lost where times are cut to whole ones."""


class Reading(NamedTuple):
    """What a node knows: the time in ms as it follows from a leader of `term`, when the clock shows `at`."""

    term: int
    time: int
    at: float

    def then(self, clock: float) -> float:
        """The time when the clock shows this."""
        return self.time + (clock - self.at) * 1000


class Times:
    """The cluster time of all nodes."""

    def __init__(self, world: World, elections: Elections) -> None:
        self._world = world
        self._elections = elections
        self._readings: dict[str, list[Reading]] = {}  # by candidate: its own, and what voters have told it
        self._begun = 0  # the latest term whose leader has told the time
        self._terms: defaultdict[str, int] = defaultdict(int)  # whose time each node has heard last
        self._powerless: set[str] = set()
        """Those that have lost power, and with it the time, until a leader tells it again."""
        self._least = math.inf  # cluster time less true time in entries by which a phone registered
        self._greatest = -math.inf  # the same at lease holders
        self._still = 0.0  # seconds for which time may have stood still
        self._led = 0.0  # when somebody was last seen to lead

    # What candidates and their voters know

    def asked(self, node: Node) -> None:
        """A node asks whether it could be elected."""
        now = node.now()
        self._readings[node.name] = [Reading(node.time_term(), node.time_at(now), now)]

    def granted(self, node: Node, message: PreVoteGranted) -> None:
        """A node hears that it could be elected, and what the voter knows of the time."""
        readings = self._readings.get(node.name)
        if readings is not None and message.term == node.raft.term + 1 and not node.raft.leads:
            readings.append(Reading(message.time_term, message.time, node.now()))

    def elected(self, node: Node, message: VoteGranted) -> None:
        """A node hears that it has a vote, and what the voter knows of the time."""
        readings = self._readings.get(node.name)
        if readings is not None and message.term == node.raft.term and not node.raft.leads:
            readings.append(Reading(message.time_term, message.time, node.now()))

    def distracted(self, node: Node) -> None:
        """A node stands no more, or begins anew, or was held up while it heard what others know."""
        self._readings.pop(node.name, None)

    def told(self, node: Node, message: AppendEntries) -> None:
        """A leader tells the time: first of all the latest that any of its voters knew (pitfalls-log-vip 12)."""
        if message.term <= self._begun:
            return
        self._begun, clock = message.term, message.sent / 1_000_000
        readings = self._readings.pop(node.name, None)
        if readings and not node.ahead:
            latest = max(reading.term for reading in readings)
            time = max(reading.then(clock) for reading in readings if reading.term == latest)
            if abs(message.time - time) > _ROUNDED:
                raise Violation(f"{node.name} begins at {message.time} ms, and its voters have told it {time:.0f} ms")

    def heard(self, node: Node, message: AppendEntries) -> None:
        """A follower has taken a heartbeat, and knows the time."""
        self._knows(node, message.term)
        if node.time_at(node.now()) < message.time - _ROUNDED:
            raise Violation(f"{node.name} is behind the time that it has just heard")

    def _knows(self, node: Node, term: int) -> None:
        self._terms[node.name] = term
        self._powerless.discard(node.name)

    # What lease holders do with it

    def powerless(self, node: Node) -> None:
        """A node has lost its clock."""
        self._powerless.add(node.name)

    def led(self, node: Node, term: int) -> None:
        """A node is elected: time has stood still if all its voters that knew the latest leader's have lost it."""
        voters = self._elections.voters(node, term)
        latest = max(self._terms[voter] for voter in voters)
        if {voter for voter in voters if self._terms[voter] == latest} <= self._powerless:
            self._still += self._world.events.now - self._led

    def held(self, node: Node) -> None:
        """A node holds a usable lease."""
        now = self._world.events.now
        self._led = now
        if node.frozen:
            return  # it knows the time at which it will go on
        offset = node.time_at(node.time()) / 1000 - now
        self._knows(node, node.raft.term)
        self._greatest = max(self._greatest, offset)
        ahead, behind = offset - self._least, self._greatest - offset
        if ahead > LATE + DRIFT * now:
            raise Violation(f"the time at {node.name} is {ahead:.3f} s ahead of what something was granted by")
        if behind > LATE + DRIFT * now + self._still:
            raise Violation(f"the time at {node.name} is {behind:.3f} s behind what it was")

    def registered(self, time: int, since: float) -> None:
        """A phone has registered, by this time in ms: the binding runs out early if time comes to be ahead of that."""
        self._least = min(self._least, time / 1000 - since)
