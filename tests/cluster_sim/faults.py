"""What goes wrong: one fault after the other, drawn from a seed.

Each seed draws its own mix of faults from those of its weather, so that some runs are all about one of them. At any
time no more than a minority has lost what its disk had: more than that no replicated log survives.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from sipha.cluster.wire import LeaseAck, RequestVote, VoteGranted
from tests.cluster_sim.network import FAST

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.weather import Weather
    from tests.cluster_sim.world import World

DELAYS = (FAST, (0.001, 0.02), (0.0002, 0.15), (0.02, 0.03))

LAGS = ((0.05, 0.1), (0.1, 0.6), (0.3, 2.0))
"""Seconds that messages take on a way that is slow in one direction."""

STALLS = (0.03, 0.2, 0.5, 1.5)
"""Seconds for which a process is held up in the midst of what it does."""


class Faults:
    """The faults of one run; each is a method that may do nothing if it isn't possible now."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world = world
        self.dice = random.Random(f"{world.seed} faults")
        kinds: list[Callable[[], None]] = [
            self.kill,
            self.kill_majority,
            self.kill_leader,
            self.kill_all,
            self.lose_power,
            self.lose_power_everywhere,
            self.freeze,
            self.freeze_leader,
            self.stall,
            self.die_in_disk,
            self.die_sending,
            self.die_saying,
            self.wipe,
            self.flip,
            self.fill_disk,
            self.fail_sync,
            self.slow_disk,
            self.cut_one_way,
            self.cut_leader_one_way,
            self.isolate,
            self.isolate_leader,
            self.maroon_leader,
            self.split,
            self.reset,
            self.reset_leader,
            self.lag,
            self.lag_leader,
            self.slow_network,
            self.congest,
            self.transfer,
            self.change_members,
            self.change_rate,
        ]
        kinds = [kind for kind in kinds if not weather.faults or kind.__name__ in weather.faults]
        chosen = self.dice.sample(kinds, self.dice.randint(3, min(12, len(kinds))))
        self._kinds = {kind: self.dice.choice([1, 1, 2, 5]) for kind in chosen}
        self._mending = self.dice.choice([0.2, 0.4, 0.6])
        self.world.net.delay = self.dice.choice(weather.delays)
        self.world.net.strays = self.dice.choice(weather.strays)
        self.world.net.repeats = self.dice.choice(weather.repeats)
        self.pace = self.dice.choice(weather.paces)
        """Seconds between two strikes, on average."""
        self.quick = self.dice.random() < 0.5
        """Whether what is down is started again at once."""

    def strike(self) -> None:
        """Let one thing go wrong, or be mended."""
        if self.dice.random() < self._mending:
            self.dice.choice([self.start, self.start, self.heal, self.mend_disks])()
        else:
            (kind,) = self.dice.choices(list(self._kinds), list(self._kinds.values()))
            self.world.note(kind.__name__)
            kind()

    # Mending

    def start(self) -> None:
        """Start one that is down."""
        down = [node for node in self.world.nodes.values() if not node.up and node.wanted]
        if down:
            self.dice.choice(down).boot()

    def heal(self) -> None:
        """Let everything pass again."""
        self.world.net.heal()

    def mend_disks(self) -> None:
        for node in self.world.nodes.values():
            node.mend_disk()

    def end(self) -> None:
        """Mend everything."""
        world = self.world
        world.net.delay, world.net.congestion, world.net.strays, world.net.repeats = FAST, 0.0, 0.0, 0.0
        self.heal()
        self.mend_disks()
        for node in world.nodes.values():
            node.reads_left = -1
            node.live()
            if not node.up and node.wanted:
                node.boot()

    # Processes

    def kill(self) -> None:
        self._down(self._any(), power=False)

    def kill_leader(self) -> None:
        self._down(self._leader(), power=False)

    def kill_majority(self) -> None:
        running = self._running()
        self.dice.shuffle(running)
        for node in running[: len(running) // 2 + 1]:
            self._down(node, power=False)

    def kill_all(self) -> None:
        for node in self._running():
            self._down(node, power=False)

    def lose_power(self) -> None:
        self._down(self._any(), power=True)

    def lose_power_everywhere(self) -> None:
        for node in self._running():
            self._down(node, power=True)

    def freeze(self) -> None:
        self._any().freeze(self.dice.choice([0.05, 0.3, 0.6, 1.2, 3.0]) * self.dice.uniform(0.5, 1.5))

    def freeze_leader(self) -> None:
        """Most often about as long as its lease lasts."""
        node = self._leader()
        node.freeze(self.dice.choice([node.timing.lease, node.timing.lease, 0.6, 1.2]) * self.dice.uniform(0.5, 1.5))

    def stall(self) -> None:
        """Hold a process up after it has read its clock."""
        node = self.dice.choice([self._any(), self._leader()])
        node.stall = self.dice.choice(STALLS) * self.dice.uniform(0.5, 1.5)
        node.reads_left = self.dice.randrange(400)

    def die_in_disk(self) -> None:
        node = self._any()
        node.die_in_disk(self.dice.choice([3, 10, 100]))

    def die_sending(self) -> None:
        self._any().die_sending(self.dice.randrange(self.dice.choice([3, 10, 100])))

    def die_saying(self) -> None:
        """Die as soon as something is said that must not be forgotten."""
        kind = self.dice.choice([VoteGranted, VoteGranted, RequestVote, LeaseAck])
        self._any().die_sending(self.dice.randrange(2), kind)

    # Disks

    def wipe(self) -> None:
        node = self._any()
        if node.wanted and self._may_harm(node):
            node.crash()
            node.wipe()
            self._again(node)

    def flip(self) -> None:
        node = self._any()
        if node.wanted and self._may_harm(node):
            self.dice.choice([node.crash, node.lose_power])()
            node.flip()
            self._again(node)

    def fill_disk(self) -> None:
        self._any().fill_disk()

    def fail_sync(self) -> None:
        self._any().fail_sync()

    def slow_disk(self) -> None:
        self.dice.choice([self._any(), self._leader()]).slow_disk(self.dice.choice([0.01, 0.1, 0.3, 0.6]))

    # Network

    def cut_one_way(self) -> None:
        self.world.net.cut(*self.dice.sample(list(self.world.nodes), 2))

    def cut_leader_one_way(self) -> None:
        leader = self._leader().name
        other = self.dice.choice([name for name in self.world.nodes if name != leader])
        ends = (leader, other)
        self.world.net.cut(*(ends if self.dice.random() < 0.5 else reversed(ends)))

    def isolate(self) -> None:
        self._isolate(self._any())

    def isolate_leader(self) -> None:
        self._isolate(self._leader())

    def maroon_leader(self) -> None:
        """Cut the leader off, start it anew, and let it come back."""
        node, events = self._leader(), self.world.events
        if node.up:
            self._isolate(node)
            late = self.dice.uniform(0.02, 0.3)
            events.callLater(late, node.crash)
            events.callLater(late + 0.02, node.start)
            events.callLater(late + self.dice.uniform(0.5, 1.5), self.heal)

    def split(self) -> None:
        names = list(self.world.nodes)
        self.dice.shuffle(names)
        place = self.dice.randrange(1, len(names))
        self.world.partition(names[:place], names[place:])

    def reset(self) -> None:
        """End a connection, as something between the two may do."""
        self.world.net.reset(*self.dice.sample(list(self.world.nodes), 2))

    def reset_leader(self) -> None:
        """End all connections of the leader."""
        leader = self._leader().name
        for name in self.world.nodes:
            if name != leader:
                self.world.net.reset(leader, name)

    def lag(self) -> None:
        self._lag(*self.dice.sample(list(self.world.nodes), 2))

    def lag_leader(self) -> None:
        leader = self._leader().name
        ends = [leader, self.dice.choice([name for name in self.world.nodes if name != leader])]
        self.dice.shuffle(ends)
        self._lag(*ends)

    def _lag(self, sender: str, receiver: str) -> None:
        self.world.net.lags[sender, receiver] = self.dice.choice(LAGS)

    def slow_network(self) -> None:
        self.world.net.delay = self.dice.choice(DELAYS)

    def congest(self) -> None:
        self.world.net.congestion = self.dice.choice([0.0, 0.05, 0.3])

    # The operator

    def transfer(self) -> None:
        leader = self._leader()
        if leader.leads():
            leader.transfer(self.dice.choice([*(name for name in self.world.nodes if name != leader.name), None]))

    def change_members(self) -> None:
        """One thing after the other, and sometimes before the other is done."""
        leader = self._leader()
        for _ in range(self.dice.choice([1, 2])):
            if leader.leads():
                leader.change_members(self.dice)

    def change_rate(self) -> None:
        self._any().run_at(self.dice.uniform(0.995, 1.005))

    # Whom it hits

    def _any(self) -> Node:
        return self.world.nodes[self.dice.choice(list(self.world.nodes))]

    def _running(self) -> list[Node]:
        return [self.world.nodes[name] for name in self.world.up]

    def _leader(self) -> Node:
        leader = self.world.leader()
        return self._any() if leader is None else self.world.nodes[leader]

    def _isolate(self, node: Node) -> None:
        others = [name for name in self.world.nodes if name != node.name]
        self.world.partition([node.name], others)

    def _may_harm(self, node: Node) -> bool:
        """Return True if this one and those that have lost something before are a minority of the voters."""
        voters = self.world.voters() if self.world.up else frozenset()
        harmed = {other.name for other in self.world.nodes.values() if other.harmed} | {node.name}
        return 2 * len(harmed & voters) < len(voters)

    def _down(self, node: Node, *, power: bool) -> None:
        if node.up:
            node.lose_power() if power else node.crash()
            self._again(node)

    def _again(self, node: Node) -> None:
        """Perhaps somebody starts it again soon."""
        if self.quick or self.dice.random() < 0.3:
            delay = self.dice.choice([0.02, 0.1, 0.5, 2.0]) * self.dice.uniform(0.5, 1.5)
            self.world.events.callLater(delay, node.start)
