"""One fault at a time, and what must follow from it in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sipha.cluster.expirer import Expirer
from sipha.cluster.leadership import LeaderServices
from sipha.errors import NoQuorum, NotLeader, UnknownOutcome
from sipha.state.outcomes import Registered
from tests.cluster_sim.simulation import NodeReactor, Simulation

Simulate = Callable[..., Simulation]


@pytest.fixture
def simulation(simulate: Simulate) -> Simulation:
    """Three nodes, one of which leads and has acknowledged a binding."""
    simulation = simulate(7)
    simulation.until(simulation.leader)
    simulation.propose(leader(simulation))
    simulation.advance(0.5)
    assert simulation.acknowledged
    return simulation


def leader(simulation: Simulation) -> str:
    name = simulation.leader()
    assert name
    return name


@pytest.mark.parametrize("seed", range(10))
def test_followers_take_over_soon_from_a_leader_that_is_killed(simulate: Simulate, seed: int) -> None:
    simulation = simulate(seed)
    simulation.until(simulation.leader)
    simulation.advance(0.3)
    killed = leader(simulation)
    simulation.crash(killed)
    start = simulation.clock.seconds()
    simulation.until(simulation.leader)
    assert simulation.clock.seconds() - start < 1.0


@pytest.mark.parametrize("seed", range(10))
def test_followers_take_over_from_a_leader_that_freezes(simulate: Simulate, seed: int) -> None:
    """No connection ends: only the silence tells."""
    simulation = simulate(seed)
    simulation.until(simulation.leader)
    simulation.advance(0.3)
    frozen = leader(simulation)
    simulation.freeze(frozen, 5.0)
    start = simulation.clock.seconds()
    simulation.until(lambda: simulation.leader() not in (None, frozen))
    assert simulation.clock.seconds() - start < 2.0
    simulation.advance(6.0)
    simulation.check_converged()


def test_leader_that_is_cut_off_ceases_before_another_begins(simulation: Simulation) -> None:
    old = leader(simulation)
    for peer in set("abc") - {old}:
        simulation.cut(old, peer)
        simulation.cut(peer, old)
    start = simulation.clock.seconds()
    proposed = simulation.propose(old)
    simulation.until(lambda: not simulation.leading(old))
    ceased = simulation.clock.seconds() - start
    assert 0.1 < ceased < 0.21
    refused = simulation.propose(old)
    assert isinstance(simulation.answers[refused][0], (NoQuorum, NotLeader))
    simulation.until(simulation.leader)
    assert simulation.clock.seconds() - start > ceased
    simulation.advance(2.0)
    assert isinstance(simulation.answers[proposed][0], UnknownOutcome)
    simulation.heal()
    simulation.advance(3.0)
    simulation.check_converged()


def test_leader_stays_when_a_follower_cant_hear_it(simulation: Simulation) -> None:
    """Without pre-vote and stickiness the deaf one would depose it again and again."""
    first = leader(simulation)
    term = simulation.replica(first).term
    deaf = next(name for name in "abc" if name != first)
    simulation.cut(first, deaf)
    for _ in range(100):
        simulation.advance(0.1)
        assert simulation.leading(first)
    assert simulation.replica(first).term == term
    simulation.heal()
    simulation.advance(3.0)
    assert simulation.leading(first)
    simulation.check_converged()


def test_minority_that_returns_doesnt_disturb(simulation: Simulation) -> None:
    first = leader(simulation)
    away = next(name for name in "abc" if name != first)
    for peer in set("abc") - {away}:
        simulation.cut(away, peer)
        simulation.cut(peer, away)
    simulation.advance(20.0)
    term = simulation.replica(first).term
    simulation.heal()
    for _ in range(100):
        simulation.advance(0.05)
        assert simulation.leading(first)
    assert simulation.replica(first).term == term


def test_nothing_is_acknowledged_without_a_majority(simulation: Simulation) -> None:
    first = leader(simulation)
    for peer in set("abc") - {first}:
        simulation.crash(peer)
    proposed = [simulation.propose(first) for _ in range(5)]
    simulation.advance(1.0)  # it gives up, and tells at once
    assert all(simulation.answers[aor] for aor in proposed)
    simulation.advance(10.0)
    assert {type(simulation.answers[aor][0]) for aor in proposed} <= {UnknownOutcome, NoQuorum, NotLeader}
    assert not any(isinstance(simulation.answers[aor][0], Registered) for aor in proposed)
    assert not simulation.leading(first)


def test_cluster_survives_all_of_its_nodes(simulation: Simulation) -> None:
    simulation.advance(100.0)
    simulation.propose(leader(simulation))
    simulation.advance(0.5)
    time = simulation.replica(leader(simulation)).cluster_time()
    for name in "abc":
        simulation.crash(name)
    simulation.advance(5.0)
    for name in "abc":
        simulation.boot(name)
    simulation.advance(3.0)
    simulation.check_converged()
    assert 0 < simulation.replica(leader(simulation)).cluster_time() - time < 4  # it stood still meanwhile


def test_lagging_follower_catches_up_in_pieces_and_may_lead(simulation: Simulation) -> None:
    first = leader(simulation)
    away = next(name for name in "abc" if name != first)
    simulation.crash(away)
    simulation.congestion = 0.2
    for _ in range(200):
        for _ in range(50):
            simulation.propose(first)
        simulation.advance(0.01)
    simulation.boot(away)
    simulation.advance(2.0)
    simulation.check_converged()
    simulation.crash(first)
    simulation.until(simulation.leader)
    assert len(simulation.acknowledged) == 10_001


def test_cluster_time_goes_on_through_takeovers_of_an_idle_cluster(simulation: Simulation) -> None:
    start, real = simulation.replica(leader(simulation)).cluster_time(), simulation.clock.seconds()
    for _ in range(3):
        simulation.advance(60.0)
        old = leader(simulation)
        simulation.crash(old)
        simulation.until(simulation.leader)
        simulation.boot(old)
    elapsed, really = simulation.replica(leader(simulation)).cluster_time() - start, simulation.clock.seconds() - real
    assert elapsed == pytest.approx(really, rel=0.01)


def test_bindings_that_ran_out_are_removed_by_the_leader_alone(simulation: Simulation) -> None:
    for name in "abc":
        machine = simulation.machines[name]
        services = LeaderServices(simulation.replica(name).leadership)
        Expirer(NodeReactor(machine), simulation.replica(name)).setServiceParent(services)
        with machine.running():
            services.startService()
    aors = [simulation.propose(leader(simulation), expires=60) for _ in range(1200)]
    simulation.advance(57.0)
    assert all(simulation.replica(name).lookup(aors[0]) for name in "abc")
    simulation.crash(leader(simulation))
    simulation.advance(4.0)
    assert not any(simulation.replica(name).lookup(aor) for name in simulation.up for aor in aors)
    simulation.advance(5.0)
    for name in simulation.up:
        assert len(simulation.replica(name).machine.location) == 1
    simulation.acknowledged.difference_update(aors)


def test_lone_node_needs_nobody(simulate: Simulate) -> None:
    simulation = simulate(1, "a")
    simulation.until(simulation.leader)
    proposed = simulation.propose("a")
    simulation.advance(0.1)
    assert isinstance(simulation.answers[proposed][0], Registered)
    simulation.advance(100.0)
    assert simulation.leading("a")
    simulation.crash("a")
    simulation.boot("a")
    simulation.advance(2.0)
    simulation.check_converged()
