"""Random faults under load: nothing that was acknowledged is lost, and no two nodes lead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster_sim.simulation import Simulation

Simulate = Callable[..., Simulation]

FAULTS = [
    "crash",
    "crash the leader",
    "crash and restart",
    "restart",
    "restart",
    "freeze",
    "cut off",
    "cut off the leader from one",
    "cut one way",
    "heal",
    "heal",
    "slow",
]


def restart(simulation: Simulation) -> None:
    """Start what is down."""
    for name in simulation.machines:
        if name not in simulation.up:
            simulation.boot(name)


def disturb(simulation: Simulation) -> None:  # noqa: C901, PLR0912  a list of faults
    """One fault, or the end of some."""
    dice, names = simulation.random, list(simulation.machines)
    one, other = dice.sample(names, 2)
    leader = simulation.leader() or one
    match dice.choice(FAULTS):
        case "crash":
            simulation.crash(one)
        case "crash the leader":
            simulation.crash(leader)
        case "crash and restart":
            simulation.crash(one)
            simulation.boot(one)
        case "restart":
            restart(simulation)
        case "freeze":
            simulation.freeze(leader if dice.random() < 0.5 else other, dice.uniform(0.05, 1.5))
        case "cut off":
            for peer in names:
                if peer != one:
                    simulation.cut(one, peer)
                    simulation.cut(peer, one)
        case "cut off the leader from one":
            if other != leader:
                simulation.cut(leader, other)
        case "cut one way":
            simulation.cut(one, other)
        case "heal":
            simulation.heal()
        case "slow":
            simulation.delay = dice.choice([(0.0002, 0.002), (0.001, 0.02), (0.0002, 0.15)])


def work(simulation: Simulation, seconds: float) -> None:
    """Phones register, mostly at the leader, some where they can't."""
    end = simulation.clock.seconds() + seconds
    while simulation.clock.seconds() < end:
        simulation.advance(simulation.random.uniform(0.001, 0.02))
        up = simulation.up
        if up:
            for _ in range(simulation.random.choice([1, 1, 5, 40])):
                stray = simulation.random.random() < 0.02
                leader = None if stray else simulation.leader()
                simulation.propose(leader or simulation.random.choice(up))


@pytest.mark.parametrize("seed", range(24))
def test_cluster_survives_random_faults(simulate: Simulate, seed: int) -> None:
    simulation = simulate(seed, "abcde" if seed % 8 == 7 else "abc", minima=(0.25, 0.5, 0.8) if seed % 2 else (0.25,))
    simulation.congestion = 0.02
    for _ in range(24):
        work(simulation, simulation.random.uniform(0.02, 0.5))
        disturb(simulation)
    simulation.heal()
    simulation.delay = (0.0002, 0.002)
    restart(simulation)
    simulation.advance(4.0)
    work(simulation, 0.5)
    simulation.advance(4.0)
    simulation.check_converged()
    simulation.check_answered()
    assert simulation.acknowledged
