"""A cluster of real replicas in one process, under a virtual clock, a simulated network and simulated disks.

Everything is as in the daemon (library, journal, guards, lease, group commit, snapshots) but the reactor, the clock,
the connections and the disk. All chance comes from one seed, so that a run repeats exactly; `trace` is a checksum over
all that happened in it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from zlib import crc32

from sipha.cluster import (
    catchup,
    checkpoint,
    handover,
    journal,
    memory,
    proposals,
    raft,
    snapshots,
    storage,
    voter,
    window,
)
from sipha.state import snapshot
from tests.cluster_sim.events import Events
from tests.cluster_sim.history import History
from tests.cluster_sim.invariants import Invariants
from tests.cluster_sim.network import Net
from tests.cluster_sim.node import Node, Options
from tests.cluster_sim.violation import Violation


class World:
    """The nodes `names`, which have founded a cluster; `spare` ones are blank and off."""

    def __init__(
        self, seed: int, names: str = "abc", *, spare: str = "", options: Mapping[str, Options] | None = None
    ) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.events = Events()
        self.trace = 0
        self.history = History()
        self.dead: list[object] = []
        """The memory of daemons that died: freed while the world lasts, it would tidy up, on their disks."""
        self.founders = names
        self.patience = 0.0
        """Seconds for which nodes may keep still after a start because they don't know what they have promised."""
        self.net = Net(self)
        self.invariants = Invariants(self)
        options = options or {}
        self.nodes = {name: Node(self, name, options.get(name, Options())) for name in names + spare}
        for name in names:
            self.nodes[name].found()
        for name in names:
            self.nodes[name].boot()
        self.net.join(self.nodes)

    def note(self, *what: object) -> None:
        """Let the trace depend on something that happened."""
        self.trace = crc32(repr((self.events.now, *what)).encode(), self.trace)

    @property
    def up(self) -> list[str]:
        """The nodes that run."""
        return [name for name, node in self.nodes.items() if node.up]

    def leader(self) -> str | None:
        """The node that leads and may say so, if there is one."""
        return next((name for name, node in self.nodes.items() if node.leads()), None)

    def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.events.advance(seconds)

    def until(self, condition: Callable[[], object], limit: float = 10.0, otherwise: str = "it isn't so") -> None:
        """Let virtual time pass until something is so."""
        if not self.events.until(condition, limit):
            raise Violation(f"{otherwise} within {limit:g} s")

    def settle(self, limit: float = 8.0) -> None:
        """Nobody asks for anything more: let all nodes come to have the same."""
        self.until(self._settled, limit, "not all have the same")
        self.invariants.settled(self.members(self.leader() or ""))

    def _settled(self) -> bool:
        leader = self.leader()
        return leader is not None and all(node.has_all_of(self.nodes[leader]) for node in self.members(leader))

    def members(self, leader: str) -> list[Node]:
        """The members that a leader sees."""
        return [self.nodes[member.name] for member in self.nodes[leader].replica.membership.members]

    def voters(self) -> frozenset[str]:
        """Those that vote, as the one sees it that has applied most."""
        return max((node for node in self.nodes.values() if node.up), key=lambda node: node.seen_index).voters()

    def partition(self, *groups: Iterable[str]) -> None:
        """Let nothing pass between these groups."""
        for group in groups:
            for other in groups:
                if group is not other:
                    for sender in group:
                        for receiver in other:
                            self.net.cut(sender, receiver)

    def died(self, node: Node) -> None:
        """A node has died in mid-step: somebody starts it again soon."""
        self.events.callLater(self.dice.choice([0.02, 0.3, 2.0]) * self.dice.uniform(0.5, 1.5), node.start)

    def failed(self, node: Node, reason: str) -> None:
        """A node has left the cluster: its disk must be to blame; somebody starts it again."""
        self.note(node.name, "fails", reason)
        if not node.disk_was_bad and not node.harmed:
            raise Violation(f"{node.name} has left the cluster: {reason}")
        self.events.callLater(self.dice.uniform(0.1, 2.0), self._restart, node, node.life)

    def _restart(self, node: Node, life: int) -> None:
        if node.up and node.life == life:
            node.crash()
            node.boot()

    def close(self) -> None:
        """End all nodes."""
        self.events.end()
        for node in self.nodes.values():
            if node.up:
                node.crash()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let all chance in this process come from the seed: the library's timeouts, and what asks the system for bytes."""
    dice = random.Random(f"system {seed}")
    system, module = os.urandom, vars(random)["_urandom"]
    state = random.getstate()
    random.seed(seed)
    os.urandom = vars(random)["_urandom"] = dice.randbytes
    try:
        yield
    finally:
        os.urandom = system
        vars(random)["_urandom"] = module
        random.setstate(state)
        raft.use_clock(raft.clock)


SMALL: dict[ModuleType, dict[str, object]] = {
    journal: {"SEGMENT": 3000, "WINDOW": 1500, "_SLICE": 800, "_GROUP": 2000},
    raft: {"_MAX_APPEND": 1500},  # more than any entry has
    proposals: {"MAX_BATCH": 1200},
    window: {"_COUNT": 16},
    checkpoint: {"STEP": 8},
    catchup: {"MAX_CHUNK": 300, "WINDOW": 1200},
    snapshots: {"_PIECE": 700, "_SYNC": 2000},
    snapshot: {"CHUNK": 256},
    storage: {"_PROGRESS_LIMIT": 600},
    handover: {"HOLD_DOWN": 1.0},
    memory: {"PERIOD": 5.0},
    voter: {"_MOST_UNWRITTEN": 2000},
}
"""What makes files, slices and patience so small that in some seconds everything happens often."""


@contextmanager
def small() -> Iterator[None]:
    """Let everything that grows or waits do so only a little."""
    before = {module: {name: getattr(module, name) for name in values} for module, values in SMALL.items()}
    for module, values in SMALL.items():
        for name, value in values.items():
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, values in before.items():
            for name, value in values.items():
                setattr(module, name, value)
