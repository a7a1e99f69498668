"""A simulated cluster for tests that tell a story: one fault at a time, phones that nobody has seen before."""

from __future__ import annotations

from collections.abc import Callable

from sipha.cluster.replica import Replica
from sipha.errors import Unavailable
from sipha.state.entries import Contact, Register
from sipha.state.outcomes import Outcome, Registered
from tests.cluster_sim.node import Options
from tests.cluster_sim.world import World

Simulate = Callable[..., "Cluster"]


class Cluster(World):
    """Nodes configured alike; `answers` are what phones have heard, by AOR, `acknowledged` those of 200."""

    def __init__(self, seed: int, names: str = "abc", options: Options | None = None) -> None:
        options = options or Options(log_limit=1 << 20, guarded=False)
        super().__init__(seed, names, options=dict.fromkeys(names, options))
        self.answers: dict[str, list[Outcome | Unavailable]] = {}
        self.acknowledged: set[str] = set()

    def replica(self, name: str) -> Replica:
        """The replica of a node that is up."""
        return self.nodes[name].replica

    def leading(self, name: str) -> bool:
        """What a node says of itself."""
        return self.nodes[name].leads()

    def elect(self) -> str:
        """Let time pass until a node leads, and a little more; return its name."""
        self.until(self.leader)
        self.advance(0.3)
        name = self.leader()
        assert name
        return name

    def propose(self, name: str, expires: int = 7200) -> str:
        """A phone nobody has seen before registers at a node; return its AOR."""
        aor = f"sip:{len(self.answers)}@example.com"
        self.answers[aor] = []

        def done(outcome: Outcome | Unavailable) -> None:
            self.answers[aor].append(outcome)
            if isinstance(outcome, Registered):
                assert [binding.aor for binding in outcome.bindings] == [aor]
                self.acknowledged.add(aor)

        record = Register(aor, aor, 1, (Contact(f"{aor};transport=udp", expires),))
        node = self.nodes[name]
        node.post(node.life, node.propose, record, done)
        return aor

    def converge(self) -> None:
        """Everyone is up and connected: one leads, and all have all that was acknowledged."""
        self.settle()
        for name in self.nodes:
            location = self.replica(name).machine.location
            missing = [aor for aor in self.acknowledged if not location.bindings(aor, 0)]
            assert not missing, f"{name} lacks {len(missing)}"
