"""One fault at a time, and what must follow from it in time."""

from __future__ import annotations

import pytest

from sipha.cluster.segment import Segment
from sipha.cluster.wire import Entry
from sipha.errors import NoQuorum, NotLeader, UnknownOutcome
from sipha.state.outcomes import Registered
from tests.cluster_sim.cluster import Cluster, Simulate
from tests.cluster_sim.node import Options
from tests.cluster_sim.world import World, seeded, small


@pytest.mark.parametrize("seed", range(10))
def test_followers_take_over_soon_from_a_leader_that_is_killed(simulate: Simulate, seed: int) -> None:
    cluster = simulate(seed)
    cluster.nodes[cluster.elect()].crash()
    start = cluster.events.now
    cluster.until(cluster.leader)
    assert cluster.events.now - start < 1.0


@pytest.mark.parametrize("seed", range(10))
def test_last_word_of_the_guard_spares_the_followers_the_wait(simulate: Simulate, seed: int) -> None:
    cluster = simulate(seed, "abc", Options(election_min=0.8))
    killed = cluster.elect()
    cluster.nodes[killed].crash()
    start = cluster.events.now
    cluster.until(cluster.leader)
    heard = cluster.replica(cluster.leader() or "")._voter.counters["last words"]
    assert cluster.events.now - start < (0.4 if heard else 2.0)


@pytest.mark.parametrize("seed", range(10))
def test_followers_take_over_from_a_leader_that_freezes(simulate: Simulate, seed: int) -> None:
    """No connection ends: only the silence tells."""
    cluster = simulate(seed)
    frozen = cluster.elect()
    cluster.nodes[frozen].freeze(5.0)
    start = cluster.events.now
    cluster.until(lambda: cluster.leader() not in {None, frozen})
    assert cluster.events.now - start < 2.0
    cluster.advance(6.0)
    cluster.converge()


def test_leader_that_is_cut_off_ceases_before_another_begins(cluster: Cluster) -> None:
    old = cluster.elect()
    cluster.partition([old], set("abc") - {old})
    start = cluster.events.now
    proposed = cluster.propose(old)
    cluster.until(lambda: not cluster.leading(old))
    ceased = cluster.events.now - start
    assert 0.1 < ceased < 0.21
    refused = cluster.propose(old)
    assert isinstance(cluster.answers[refused][0], NoQuorum | NotLeader)
    cluster.until(cluster.leader)
    assert cluster.events.now - start > ceased
    cluster.advance(2.0)
    assert isinstance(cluster.answers[proposed][0], UnknownOutcome)
    cluster.net.heal()
    cluster.advance(3.0)
    cluster.converge()


def test_leader_stays_when_a_follower_cant_hear_it(cluster: Cluster) -> None:
    """Without pre-vote and stickiness the deaf one would depose it again and again."""
    first = cluster.elect()
    term = cluster.replica(first).term
    deaf = next(name for name in "abc" if name != first)
    cluster.net.cut(first, deaf)
    for _ in range(100):
        cluster.advance(0.1)
        assert cluster.leading(first)
    assert cluster.replica(first).term == term
    cluster.net.heal()
    cluster.advance(3.0)
    assert cluster.leading(first)
    cluster.converge()


def test_minority_that_returns_doesnt_disturb(cluster: Cluster) -> None:
    first = cluster.elect()
    away = next(name for name in "abc" if name != first)
    cluster.partition([away], set("abc") - {away})
    cluster.advance(20.0)
    term = cluster.replica(first).term
    cluster.net.heal()
    for _ in range(100):
        cluster.advance(0.05)
        assert cluster.leading(first)
    assert cluster.replica(first).term == term


def test_nothing_is_acknowledged_without_a_majority(cluster: Cluster) -> None:
    first = cluster.elect()
    for peer in set("abc") - {first}:
        cluster.nodes[peer].crash()
    proposed = [cluster.propose(first) for _ in range(5)]
    cluster.advance(1.0)  # it gives up, and tells at once
    assert all(cluster.answers[aor] for aor in proposed)
    cluster.advance(10.0)
    assert {type(cluster.answers[aor][0]) for aor in proposed} <= {UnknownOutcome, NoQuorum, NotLeader}
    assert not cluster.leading(first)


@pytest.mark.parametrize("end", ["crash", "lose_power"])
def test_cluster_survives_all_of_its_nodes(cluster: Cluster, end: str) -> None:
    first = cluster.elect()
    for _ in range(300):
        cluster.propose(first)
    cluster.advance(0.5)
    assert len(cluster.acknowledged) == 301
    for name in "abc":
        getattr(cluster.nodes[name], end)()
    cluster.advance(5.0)
    for name in "abc":
        cluster.nodes[name].boot()
    cluster.advance(3.0)
    cluster.converge()


def test_lagging_follower_catches_up_in_pieces_and_may_lead(cluster: Cluster) -> None:
    first = cluster.elect()
    away = next(name for name in "abc" if name != first)
    cluster.nodes[away].crash()
    cluster.net.congestion = 0.2
    for _ in range(200):
        for _ in range(50):
            cluster.propose(first)
        cluster.advance(0.01)
    cluster.nodes[away].boot()
    cluster.advance(3.0)
    cluster.converge()
    cluster.nodes[first].crash()
    cluster.until(cluster.leader)
    assert len(cluster.acknowledged) == 10_001


def test_wiped_node_gets_everything_back_and_votes_again(cluster: Cluster) -> None:
    first = cluster.elect()
    for _ in range(300):
        cluster.propose(first)
    wiped = next(name for name in "abc" if name != first)
    cluster.nodes[wiped].crash()
    cluster.nodes[wiped].wipe()
    cluster.nodes[wiped].boot()
    assert cluster.nodes[wiped].forgetful()
    cluster.until(lambda: not cluster.nodes[wiped].forgetful())
    cluster.converge()
    third = next(name for name in "abc" if name not in {first, wiped})
    cluster.nodes[third].crash()
    cluster.advance(2.0)
    cluster.propose(cluster.elect())
    cluster.advance(0.5)
    assert len(cluster.acknowledged) == 302


def test_node_whose_disk_fails_leaves_and_the_others_go_on(cluster: Cluster) -> None:
    first = cluster.elect()
    cluster.nodes[first].disk.failing = {"sync"}
    cluster.propose(first)
    cluster.until(lambda: cluster.nodes[first].failed, 1.0)
    second = cluster.elect()
    assert second != first
    cluster.propose(second)
    cluster.advance(0.5)
    assert len(cluster.acknowledged) == 2


def test_leadership_is_handed_on_without_a_gap(cluster: Cluster) -> None:
    first = cluster.elect()
    other = next(name for name in "abc" if name != first)
    proposed = [cluster.propose(first) for _ in range(50)]
    cluster.advance(0.001)
    cluster.nodes[first].transfer(other)
    start = cluster.events.now
    cluster.until(lambda: cluster.leader() == other)
    assert cluster.events.now - start < 0.1
    cluster.advance(0.5)
    assert {type(cluster.answers[aor][0]) for aor in proposed} == {Registered}


def test_node_joins_and_another_leaves(simulate: Simulate) -> None:
    cluster = simulate(5, "abcx")
    first = cluster.elect()
    gone = next(name for name in "abcx" if name != first)
    cluster.replica(first).membership.remove(gone, cluster.nodes[gone].removed)
    cluster.advance(5.0)
    assert not cluster.nodes[gone].up
    assert gone not in cluster.voters()
    cluster.nodes[gone].wipe()
    cluster.replica(first).membership.add(gone, cluster.nodes[gone].address, lambda _: None)
    cluster.nodes[gone].wanted = True
    cluster.nodes[gone].boot()
    cluster.until(lambda: gone in cluster.voters())
    cluster.converge()


def test_lone_node_needs_nobody(simulate: Simulate) -> None:
    cluster = simulate(1, "a")
    cluster.elect()
    proposed = cluster.propose("a")
    cluster.advance(0.1)
    assert isinstance(cluster.answers[proposed][0], Registered)
    cluster.advance(100.0)
    assert cluster.leading("a")
    cluster.nodes["a"].crash()
    cluster.nodes["a"].boot()
    cluster.advance(2.0)
    cluster.converge()


def test_record_that_is_cut_short_vouches_for_nothing() -> None:
    """A bit that rots in what only such a record speaks of can't be told from a torn tail."""
    with seeded(1), small():
        world = World(1)
        node = world.nodes["a"]
        segment = Segment.new(1)
        entries: list[Entry] = [(bytes(50), index, 1) for index in (1, 2, 3)]
        for command, _, term in entries:
            segment.add(len(command), term)
        *known, last = [segment.records([entry], 1, entry[1] - 1) for entry in entries]
        whole = segment.header() + b"".join(known)
        node.disk.replace(segment.name, whole + last)
        assert node._vouched()[segment.name] == len(whole)
        node.disk.replace(segment.name, whole + last[:-1])
        assert node._vouched()[segment.name] == len(whole) - len(known[-1])
        world.close()
