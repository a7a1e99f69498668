"""Who stands, and whom a voter votes for."""

from __future__ import annotations

import pytest

from sipha.cluster import raft
from sipha.cluster.lease import commit_to
from sipha.cluster.wire import (
    PreVote,
    PreVoteGranted,
    RequestVote,
    TimeoutNow,
    VoteGranted,
)
from tests.cluster.ballot import Ballot, Convene, append

SECRET = b"the secret of claim 1"


# Pre-vote and stickiness


def test_voter_that_hears_no_leader_doesnt_raise_its_term_alone(ballot: Ballot) -> None:
    term = ballot.elect("a").raft.term
    follower = ballot.voters["c"]
    for _ in range(100):
        ballot.now += 0.1
        follower.tick()
        ballot.queues.clear()
    assert follower.raft.term == term


def test_voter_refuses_to_vote_while_it_hears_a_leader(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    follower, term = ballot.voters["b"], leader.raft.term
    last = follower.raft.last_index
    ballot.now += 0.01
    for voter in (leader, follower):
        voter.receive("c", PreVote(term + 1, last + 9, term, b""))
        voter.receive("c", RequestVote(term + 1, last + 9, term, b""))
        assert voter.raft.term == term
    assert not ballot.queues["a", "c"]
    assert not ballot.queues["b", "c"]
    assert leader.counters == follower.counters == {"pre-votes refused": 1, "votes refused": 1}


@pytest.mark.parametrize("stated", [200, 640])
def test_voter_keeps_still_as_long_as_the_heartbeat_stated(ballot: Ballot, stated: int) -> None:
    """A leader that was configured with a longer lease than ours is safe (and so is one that is ours)."""
    follower = ballot.voters["b"]
    follower.receive("a", append(5, lease=stated))
    heard = ballot.now
    ballot.queues.clear()
    ballot.now = heard + stated / 1000 * 1.09
    follower.raft.put_election(0)
    follower.tick()
    follower.receive("c", PreVote(6, 99, 5, b""))
    follower.receive("c", RequestVote(6, 99, 5, b""))
    assert not any(ballot.queues.values())
    ballot.now = heard + stated / 1000 * 1.11
    follower.receive("c", PreVote(6, 99, 5, b""))
    follower.receive("c", RequestVote(6, 99, 5, b""))
    assert isinstance(ballot.queues["b", "c"].popleft(), PreVoteGranted)
    assert [vote.term for vote in ballot.under_way("b", "c", VoteGranted)] == [6]


def test_voter_doesnt_stand_unasked_when_its_election_falls_due_while_it_ticks(ballot: Ballot) -> None:
    """The library reads the clock after we did, and would stand without a pre-vote, against what we promised."""
    voter = ballot.voters["b"]
    voter.receive("a", append(5, lease=640))
    ballot.queues.clear()
    voter.raft.put_election(ballot.now + 0.0005)
    raft.use_clock(lambda: ballot.now + 0.001)
    voter.tick()
    assert voter.raft.term == 5
    assert not any(ballot.queues.values())
    assert voter.raft.election_due(ballot.now + 0.001)


def test_voter_keeps_still_after_a_start(ballot: Ballot) -> None:
    """It doesn't know any more whom it promised what, only for how long at most."""
    ballot.voters["b"].receive("a", append(5, lease=640, commitment=commit_to(SECRET)))
    ballot.crash("b", power_lost=True)
    follower = ballot.boot("b")
    follower.receive("c", RequestVote(6, 99, 5, SECRET))
    follower.raft.put_election(0)
    follower.tick()
    assert not ballot.queues["b", "c"]
    ballot.now += 0.71
    follower.receive("c", RequestVote(6, 99, 5, b""))
    assert [vote.term for vote in ballot.under_way("b", "c", VoteGranted)] == [6]


def test_leader_doesnt_grant_a_pre_vote_while_its_claim_lasts(ballot: Ballot) -> None:
    """Its lease may have run out for a moment: the majority's acknowledgements are under way."""
    leader = ballot.elect("a")
    ballot.now = leader.lease.until + 0.01
    question = PreVote(leader.raft.term + 1, 99, leader.raft.term, b"")
    leader.receive("b", question)
    assert not ballot.under_way("a", "b", PreVoteGranted)
    leader.lease.end()
    leader.receive("b", question)
    assert ballot.under_way("a", "b", PreVoteGranted)


def test_pre_vote_is_refused_to_whoever_has_less_of_the_log(ballot: Ballot) -> None:
    ballot.elect("a")
    voter = ballot.voters["b"]
    ballot.now += 1
    last, term = voter.raft.last_index, voter.raft.term
    voter.receive("c", PreVote(term + 1, last - 1, term, b""))
    voter.receive("c", PreVote(term + 1, last + 9, term - 1, b""))
    assert not ballot.queues["b", "c"]
    voter.receive("c", PreVote(term + 1, last, term, b""))
    assert ballot.under_way("b", "c", PreVoteGranted)


def test_voter_doesnt_stand_when_a_leader_was_heard_since_it_asked(ballot: Ballot) -> None:
    voter = ballot.voters["b"]
    ballot.now += 1
    voter.tick()
    assert ballot.queues["b", "c"][0] == PreVote(1, 1, 0, b"")
    voter.receive("a", append(0))
    voter.receive("c", PreVoteGranted(1, 0, 0))
    assert voter.raft.term == 0


# Votes


def test_candidate_counts_voters_and_not_votes(convene: Convene) -> None:
    ballot = convene("abcde")
    candidate = ballot.voters["a"]
    ballot.now += 2
    candidate.tick()
    for peer in "bc":
        candidate.receive(peer, PreVoteGranted(1, 0, 0))
    assert candidate.raft.term == 1
    for _ in range(3):
        candidate.receive("b", VoteGranted(1))
    assert not candidate.raft.leads
    candidate.receive("c", VoteGranted(1))
    assert candidate.raft.leads


def test_vote_of_an_earlier_term_doesnt_let_another_count_twice(convene: Convene) -> None:
    ballot = convene("abcde")
    candidate = ballot.voters["a"]
    for _ in range(2):
        candidate.stand(b"")
    assert candidate.raft.term == 2
    candidate.receive("b", VoteGranted(2))
    candidate.receive("c", VoteGranted(1))
    candidate.receive("b", VoteGranted(2))
    assert not candidate.raft.leads


def test_candidate_counts_voters_only(convene: Convene) -> None:
    ballot = convene("abc", learners="d")
    candidate = ballot.voters["a"]
    ballot.now += 2
    candidate.tick()
    candidate.receive("d", PreVoteGranted(1, 0, 0))
    candidate.receive("e", PreVoteGranted(1, 0, 0))
    assert candidate.raft.term == 0
    candidate.receive("b", PreVoteGranted(1, 0, 0))
    assert candidate.raft.term == 1
    candidate.receive("d", VoteGranted(1))
    candidate.receive("e", VoteGranted(1))
    assert not candidate.raft.leads
    candidate.receive("b", VoteGranted(1))
    assert candidate.raft.leads


def test_one_voter_granting_a_pre_vote_twice_is_one(convene: Convene) -> None:
    ballot = convene("abcde")
    candidate = ballot.voters["a"]
    ballot.now += 2
    candidate.tick()
    for _ in range(3):
        candidate.receive("b", PreVoteGranted(1, 0, 0))
    assert candidate.raft.term == 0


def test_pre_vote_of_an_earlier_question_doesnt_count(ballot: Ballot) -> None:
    candidate = ballot.voters["a"]
    ballot.now += 2
    candidate.tick()
    candidate.raft.step_down(4)
    candidate.receive("b", PreVoteGranted(1, 0, 0))
    candidate.receive("c", PreVoteGranted(5, 0, 0))
    assert candidate.raft.term == 4


def test_election_ends_and_votes_that_come_later_dont_count(ballot: Ballot) -> None:
    """Whoever gave one may have lost its memory of it meanwhile."""
    candidate = ballot.voters["a"]
    candidate.stand(b"")
    assert ballot.under_way("a", "b", RequestVote)
    candidate.raft.put_election(ballot.now - 0.01)
    candidate.tick()
    assert not candidate.raft.stands
    candidate.receive("b", VoteGranted(candidate.raft.term))
    assert not candidate.raft.leads


def test_vote_is_given_once_in_a_term_whatever_happens(ballot: Ballot) -> None:
    voter = ballot.voters["b"]
    voter.receive("a", RequestVote(3, 1, 0, b""))
    assert [vote.term for vote in ballot.under_way("b", "a", VoteGranted)] == [3]
    ballot.crash("b", power_lost=True)
    voter = ballot.boot("b")
    voter.receive("c", RequestVote(3, 9, 2, b""))
    assert not ballot.under_way("b", "c", VoteGranted)
    voter.receive("c", RequestVote(4, 9, 2, b""))
    assert [vote.term for vote in ballot.under_way("b", "c", VoteGranted)] == [4]


def test_learner_votes_and_doesnt_stand(convene: Convene) -> None:
    """A candidate may know already that it is a voter (thesis §4.2.2); whoever doesn't, doesn't count its vote."""
    ballot = convene("abc", learners="d")
    learner = ballot.voters["d"]
    ballot.now += 5
    learner.tick()
    assert not any(ballot.queues.values())
    assert learner.raft.term == 0
    learner.receive("b", PreVote(1, 1, 0, b""))
    learner.receive("b", RequestVote(1, 1, 0, b""))
    assert [type(message) for message in ballot.queues["d", "b"]] == [PreVoteGranted, VoteGranted]
    learner.receive("a", append(5, commitment=commit_to(SECRET)))
    learner.receive("a", TimeoutNow(5, SECRET))
    assert learner.raft.term == 5


@pytest.mark.parametrize("others", ["bc", ""])
def test_node_that_may_not_vote_neither_votes_nor_stands(convene: Convene, others: str) -> None:
    """An amnesiac, or one whose disk is blank: it may have forgotten a vote, or lack what is committed."""
    ballot = convene("a" + others)
    node = ballot.voters["a"]
    node.may_vote = False
    ballot.now += 5
    node.tick()
    node.receive("c", PreVote(1, 99, 0, b""))
    node.receive("c", RequestVote(1, 99, 0, b""))
    assert not any(ballot.queues.values())
    assert (node.raft.term, node.raft.leads) == (0, False)
    assert node.counters == {"pre-votes refused": 1, "votes refused": 1}


def test_node_that_may_not_vote_isnt_handed_leadership(ballot: Ballot) -> None:
    node = ballot.voters["b"]
    node.receive("a", append(5, commitment=commit_to(SECRET)))
    node.may_vote = False
    node.receive("a", TimeoutNow(5, SECRET))
    assert node.raft.term == 5
