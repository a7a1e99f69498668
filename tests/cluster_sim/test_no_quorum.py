"""While its lease lasts, a leader that hears of no majority says so; after that nothing may be sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sipha.errors import NoQuorum, Unavailable, UnknownOutcome
from sipha.state.outcomes import Outcome, Registered
from tests.cluster_sim.simulation import Simulation

Simulate = Callable[..., Simulation]


class Phone:
    """Registers at the leader each 5 ms, and notes what it hears while the leader may speak."""

    def __init__(self, simulation: Simulation) -> None:
        simulation.until(simulation.leader)
        simulation.advance(0.3)
        name = simulation.leader()
        assert name
        self.simulation = simulation
        self.leader = name
        self.followers = [each for each in simulation.machines if each != name]

    def register(self) -> list[Outcome | Unavailable]:
        """Register, and 5 ms later return what has been heard by then."""
        aor = self.simulation.propose(self.leader)
        self.simulation.advance(0.005)
        return self.simulation.answers[aor]

    def register_while_leading(self) -> list[list[Outcome | Unavailable]]:
        """Register until the lease ends; return what was heard before."""
        heard = []
        while self.simulation.leading(self.leader):
            heard.append(self.register())
        return [list(answers) for answers in heard]


@pytest.mark.parametrize("seed", range(20))
def test_leader_refuses_before_its_lease_ends(simulate: Simulate, seed: int) -> None:
    phone = Phone(simulate(seed))
    for follower in phone.followers:
        phone.simulation.crash(follower)
    heard = phone.register_while_leading()
    assert all(heard), "the lease has ended with proposals unanswered"
    assert [answer for answers in heard for answer in answers if isinstance(answer, UnknownOutcome)]
    assert [answer for answers in heard for answer in answers if isinstance(answer, NoQuorum)]


@pytest.mark.parametrize("seed", range(20))
def test_leader_waits_for_followers_that_are_slow(simulate: Simulate, seed: int) -> None:
    phone = Phone(simulate(seed))
    for follower in phone.followers:
        phone.simulation.freeze(follower, 0.05)
    for _ in range(10):
        phone.register()
    phone.simulation.advance(0.1)
    assert {type(answer) for answers in phone.simulation.answers.values() for answer in answers} == {Registered}


@pytest.mark.parametrize("seed", range(20))
def test_leader_accepts_again_once_a_majority_answers(simulate: Simulate, seed: int) -> None:
    phone = Phone(simulate(seed))
    simulation = phone.simulation
    term = simulation.replica(phone.leader).term
    for follower in phone.followers:
        simulation.cut(phone.leader, follower)
    simulation.until(lambda: any(isinstance(answer, NoQuorum) for answer in phone.register()))
    simulation.heal()
    simulation.advance(0.03)
    assert simulation.leading(phone.leader)
    assert simulation.replica(phone.leader).term == term
    aor = simulation.propose(phone.leader)
    simulation.advance(0.05)
    assert isinstance(simulation.answers[aor][0], Registered)
    simulation.check_converged()


@pytest.mark.parametrize("seed", range(20))
def test_leader_that_was_held_up_reads_what_came_before_it_refuses(simulate: Simulate, seed: int) -> None:
    """A long garbage collection, or a busy machine: the followers' answers wait in the sockets."""
    phone = Phone(simulate(seed))
    simulation = phone.simulation
    simulation.advance(0.06)
    simulation.freeze(phone.leader, 0.1)
    simulation.advance(0.1)
    heard = [phone.register() for _ in range(20)]
    assert not any(isinstance(answer, NoQuorum) for answers in heard for answer in answers)
