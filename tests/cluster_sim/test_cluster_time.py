"""What a binding was granted holds, whoever leads and whatever each node knows of the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster_sim.simulation import Simulation

Simulate = Callable[..., Simulation]


@pytest.mark.parametrize("seed", range(40))
def test_no_binding_is_cut_short_when_nodes_that_restart_elect_each_other(simulate: Simulate, seed: int) -> None:
    """The third one has counted on, alone: if they don't hear of that in time, it falls back with them."""
    simulation = simulate(seed)
    simulation.until(simulation.leader)
    simulation.propose(simulation.leader() or "")
    simulation.advance(0.3)
    survivor = simulation.leader() or ""
    restarted = [name for name in "abc" if name != survivor]
    for name in restarted:
        simulation.crash(name)
    simulation.advance(5.0)
    for name in restarted:
        simulation.boot(name)
    simulation.until(simulation.leader)
    granted = simulation.propose(simulation.leader() or "")
    start = simulation.clock.seconds()
    simulation.advance(0.5)
    assert granted in simulation.acknowledged
    for name in (*restarted, survivor):
        replica = simulation.replica(name)
        (binding,) = replica.bindings(granted)
        left = binding.expires_at / 1000 - replica.cluster_time()
        assert left == pytest.approx(7200 - (simulation.clock.seconds() - start), abs=1)
