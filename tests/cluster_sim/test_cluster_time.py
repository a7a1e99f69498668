"""What a binding was granted holds, whoever leads and whatever each node knows of the time."""

from __future__ import annotations

import pytest

from tests.cluster_sim.cluster import Cluster, Simulate


@pytest.mark.parametrize("seed", range(40))
def test_no_binding_is_cut_short_when_nodes_that_restart_elect_each_other(simulate: Simulate, seed: int) -> None:
    """The third one has counted on, alone: if they don't hear of that in time, it falls back with them."""
    cluster = simulate(seed)
    survivor = cluster.elect()
    cluster.propose(survivor)
    cluster.advance(0.3)
    restarted = [name for name in "abc" if name != survivor]
    for name in restarted:
        cluster.nodes[name].lose_power()
    cluster.advance(5.0)
    for name in restarted:
        cluster.nodes[name].boot()
    granted = cluster.propose(cluster.elect())
    start = cluster.events.now
    cluster.advance(0.5)
    assert granted in cluster.acknowledged
    for name in (*restarted, survivor):
        replica = cluster.replica(name)
        (binding,) = replica.bindings(granted)
        left = binding.expires_at / 1000 - cluster.nodes[name].cluster_time()
        assert left == pytest.approx(7200 - (cluster.events.now - start), abs=1)


@pytest.mark.parametrize("idle", [60.0, pytest.param(1200.0, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_cluster_time_goes_on_through_takeovers_of_an_idle_cluster(cluster: Cluster, idle: float) -> None:
    start, real = cluster.nodes[cluster.elect()].cluster_time(), cluster.events.now
    for _ in range(3):
        cluster.advance(idle)
        old = cluster.elect()
        cluster.nodes[old].crash()
        cluster.until(cluster.leader)
        cluster.nodes[old].boot()
    elapsed, really = cluster.nodes[cluster.elect()].cluster_time() - start, cluster.events.now - real
    assert elapsed == pytest.approx(really, rel=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_node_that_lost_power_before_it_granted_anything_goes_on_from_an_earlier_leaders_time(
    simulate: Simulate, seed: int
) -> None:
    """It had only begun a term, by a barrier on its disk, and the earlier leader's clock has gone on."""
    cluster = simulate(seed)
    first = cluster.elect()
    cluster.propose(first)
    cluster.advance(0.5)
    start, real = cluster.nodes[first].cluster_time(), cluster.events.now
    cluster.nodes[first].crash()
    others = [cluster.nodes[name] for name in "abc" if name != first]
    cluster.until(lambda: any(node.raft.leads for node in others))
    (begun,) = (node for node in others if node.raft.leads)
    cluster.until(lambda: begun.durable() == begun.raft.last_index)
    for node in others:
        node.lose_power()
    cluster.advance(20.0)
    for node in (begun, cluster.nodes[first]):
        node.boot()
    elapsed, really = cluster.nodes[cluster.elect()].cluster_time() - start, cluster.events.now - real
    assert elapsed == pytest.approx(really, abs=1)


@pytest.mark.parametrize("seed", range(5))
def test_time_is_caught_up_with_if_nobody_has_granted_by_less(simulate: Simulate, seed: int) -> None:
    """Two that lost power elect each other, and then one of them the third, which has counted on."""
    cluster = simulate(seed)
    survivor = cluster.elect()
    cluster.propose(survivor)
    cluster.advance(0.5)
    start, real = cluster.nodes[survivor].cluster_time(), cluster.events.now
    cluster.nodes[survivor].crash()
    others = [cluster.nodes[name] for name in "abc" if name != survivor]
    for node in others:
        node.lose_power()
    cluster.advance(20.0)
    for node in others:
        node.boot()
    leader = cluster.elect()
    for node in others:
        node.crash()
    for name in (leader, survivor):
        cluster.nodes[name].boot()
    elapsed, really = cluster.nodes[cluster.elect()].cluster_time() - start, cluster.events.now - real
    assert elapsed == pytest.approx(really, abs=1)


def test_time_stands_still_only_while_all_nodes_are_down(cluster: Cluster) -> None:
    cluster.advance(100.0)
    cluster.propose(cluster.elect())
    cluster.advance(0.5)
    time = cluster.nodes[cluster.elect()].cluster_time()
    for name in "abc":
        cluster.nodes[name].lose_power()
    cluster.advance(50.0)
    for name in "abc":
        cluster.nodes[name].boot()
    cluster.advance(3.0)
    cluster.converge()
    assert -1.5 < cluster.nodes[cluster.elect()].cluster_time() - time < 5


def test_bindings_that_ran_out_are_removed_by_the_leader_alone(cluster: Cluster) -> None:
    first = cluster.elect()
    aors = [cluster.propose(first, expires=60) for _ in range(1200)]
    cluster.advance(57.0)
    assert all(cluster.replica(name).machine.location.bindings(aors[0], 0) for name in "abc")
    cluster.nodes[cluster.elect()].crash()
    cluster.advance(4.0)
    for node in (cluster.nodes[name] for name in cluster.up):
        now = int(node.cluster_time() * 1000)
        assert not any(node.replica.machine.location.lookup(aor, now) for aor in aors)
    cluster.advance(5.0)
    for name in cluster.up:
        assert len(cluster.replica(name).machine.location) == 1
