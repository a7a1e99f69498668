"""While its lease lasts, a leader that hears of no majority says so; after that nothing may be sent."""

from __future__ import annotations

import pytest

from sipha.errors import NoQuorum, Unavailable, UnknownOutcome
from sipha.state.outcomes import Outcome, Registered
from tests.cluster_sim.cluster import Cluster, Simulate


class Phone:
    """Registers at the leader each 5 ms, and notes what it hears while the leader may speak."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.leader = cluster.elect()
        self.followers = [name for name in cluster.nodes if name != self.leader]

    def register(self) -> list[Outcome | Unavailable]:
        """Register, and 5 ms later return what has been heard by then."""
        aor = self.cluster.propose(self.leader)
        self.cluster.advance(0.005)
        return self.cluster.answers[aor]

    def register_while_leading(self) -> list[list[Outcome | Unavailable]]:
        """Register until the lease ends; return what was heard before."""
        heard = []
        while self.cluster.leading(self.leader):
            heard.append(self.register())
        return [list(answers) for answers in heard]


@pytest.mark.parametrize("seed", range(20))
def test_leader_refuses_before_its_lease_ends(simulate: Simulate, seed: int) -> None:
    phone = Phone(simulate(seed))
    for follower in phone.followers:
        phone.cluster.nodes[follower].crash()
    heard = phone.register_while_leading()
    assert all(heard), "the lease has ended with proposals unanswered"
    assert [answer for answers in heard for answer in answers if isinstance(answer, UnknownOutcome)]
    assert [answer for answers in heard for answer in answers if isinstance(answer, NoQuorum)]


@pytest.mark.parametrize("seed", range(20))
def test_leader_waits_for_followers_that_are_slow(simulate: Simulate, seed: int) -> None:
    phone = Phone(simulate(seed))
    for follower in phone.followers:
        phone.cluster.nodes[follower].freeze(0.05)
    for _ in range(10):
        phone.register()
    phone.cluster.advance(0.1)
    assert {type(answer) for answers in phone.cluster.answers.values() for answer in answers} == {Registered}


@pytest.mark.parametrize("seed", range(20))
def test_leader_accepts_again_once_a_majority_answers(simulate: Simulate, seed: int) -> None:
    phone = Phone(simulate(seed))
    cluster = phone.cluster
    term = cluster.replica(phone.leader).term
    for follower in phone.followers:
        cluster.net.cut(phone.leader, follower)
    cluster.until(lambda: any(isinstance(answer, NoQuorum) for answer in phone.register()))
    cluster.net.heal()
    cluster.advance(0.06)  # the next heartbeat
    assert cluster.leading(phone.leader)
    assert cluster.replica(phone.leader).term == term
    aor = cluster.propose(phone.leader)
    cluster.advance(0.05)
    assert isinstance(cluster.answers[aor][0], Registered)
    cluster.converge()


@pytest.mark.parametrize("seed", range(20))
def test_leader_that_was_held_up_reads_what_came_before_it_refuses(simulate: Simulate, seed: int) -> None:
    """A long garbage collection, or a busy machine: the followers' answers wait in the sockets."""
    phone = Phone(simulate(seed))
    phone.cluster.advance(0.06)
    phone.cluster.nodes[phone.leader].freeze(0.1)
    phone.cluster.advance(0.1)
    heard = [phone.register() for _ in range(20)]
    assert not any(isinstance(answer, NoQuorum) for answers in heard for answer in answers)
