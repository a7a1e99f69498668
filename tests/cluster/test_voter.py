from __future__ import annotations

import pytest

from sipha.cluster import raft
from sipha.cluster.guards import DivergedError
from sipha.cluster.lease import commit_to
from sipha.cluster.raft import Timing
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    LastWord,
    LeaseAck,
    Ping,
    PreVote,
    PreVoteGranted,
    ProtocolError,
    RequestVote,
    StaleTerm,
    TimeoutNow,
    VoteGranted,
)
from sipha.state.entries import Batch, Policy, encode
from tests.cluster.ballot import Ballot, Convene, append

SECRET = b"the secret of claim 1"
OTHER = b"the secret of claim 2"


def test_voters_elect_one_and_apply_in_order(ballot: Ballot) -> None:
    ballot.elect("a")
    ballot.append("a", b"one", b"two")
    ballot.settle()
    ballot.now += 0.1  # the next heartbeat tells the commit index
    ballot.settle()
    assert set(map(tuple, ballot.tables.values())) == {(b"one", b"two")}
    assert [ballot.voters[name].leader for name in "abc"] == ["a", "a", "a"]


def test_message_that_is_no_voters_business_is_refused(ballot: Ballot) -> None:
    with pytest.raises(ProtocolError, match="out of place"):
        ballot.voters["a"].receive("b", Ping())  # type: ignore[arg-type]


def test_two_leaders_of_one_term_are_refused(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    with pytest.raises(DivergedError, match="and so do we"):
        leader.receive("b", append(leader.raft.term))
    assert leader.raft.leads


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
        candidate.receive("b", VoteGranted(1, 0, 0))
    assert not candidate.raft.leads
    candidate.receive("c", VoteGranted(1, 0, 0))
    assert candidate.raft.leads


def test_vote_of_an_earlier_term_doesnt_let_another_count_twice(convene: Convene) -> None:
    ballot = convene("abcde")
    candidate = ballot.voters["a"]
    for _ in range(2):
        candidate.stand(b"")
    assert candidate.raft.term == 2
    candidate.receive("b", VoteGranted(2, 0, 0))
    candidate.receive("c", VoteGranted(1, 0, 0))
    candidate.receive("b", VoteGranted(2, 0, 0))
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
    candidate.receive("d", VoteGranted(1, 0, 0))
    candidate.receive("e", VoteGranted(1, 0, 0))
    assert not candidate.raft.leads
    candidate.receive("b", VoteGranted(1, 0, 0))
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
    candidate.receive("b", VoteGranted(candidate.raft.term, 0, 0))
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


# Claims


@pytest.fixture
def promising(ballot: Ballot) -> Ballot:
    """B follows a in term 5, and has promised to for 200 ms under claim 1."""
    ballot.voters["b"].receive("a", append(5, commitment=commit_to(SECRET)))
    ballot.queues.clear()
    return ballot


def test_voter_stands_at_once_when_it_is_handed_leadership(promising: Ballot) -> None:
    """Its request shows the others the secret, so that they vote in spite of what they promised."""
    voter, other = promising.voters["b"], promising.voters["c"]
    other.receive("a", append(5, commitment=commit_to(SECRET)))
    voter.receive("a", TimeoutNow(5, SECRET))
    assert voter.raft.term == 6
    assert promising.queues["b", "c"].pop() == RequestVote(6, 1, 0, SECRET)
    other.receive("b", RequestVote(6, 1, 0, SECRET))
    assert [vote.term for vote in promising.under_way("c", "b", VoteGranted)] == [6]


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ("a", TimeoutNow(5, b"a guess")),
        ("a", TimeoutNow(5, b"")),
        ("a", TimeoutNow(4, SECRET)),
        ("a", TimeoutNow(6, SECRET)),
        ("c", TimeoutNow(5, SECRET)),
    ],
)
def test_leadership_is_taken_only_from_the_leader_and_for_its_secret(
    promising: Ballot, peer: str, message: TimeoutNow
) -> None:
    voter = promising.voters["b"]
    voter.receive(peer, message)
    assert voter.raft.term == 5
    assert voter._promise.binds(promising.now)
    assert voter.counters == {"transfers refused": 1}


def test_last_word_lets_a_follower_stand_soon(promising: Ballot) -> None:
    voter, heard = promising.voters["b"], promising.now
    voter.receive("c", LastWord(5, "a", SECRET))
    assert not voter._promise.binds(promising.now)
    while voter.raft.term == 5 and not promising.under_way("b", "c", PreVote):
        promising.now += 0.005
        voter.tick()
    assert promising.now - heard <= 0.06
    assert promising.queues["b", "c"][0] == PreVote(6, 1, 0, SECRET)


@pytest.mark.parametrize(
    "word", [LastWord(5, "a", b"a guess"), LastWord(4, "a", SECRET), LastWord(5, "c", SECRET), LastWord(5, "a", b"")]
)
def test_last_word_on_anything_but_the_leaders_claim_changes_nothing(promising: Ballot, word: LastWord) -> None:
    voter = promising.voters["b"]
    voter.receive("a", word)
    assert voter._promise.binds(promising.now)
    assert not voter.counters


@pytest.mark.parametrize("message", [TimeoutNow(5, SECRET), LastWord(5, "a", SECRET)])
def test_secret_of_claim_1_that_comes_late_is_refused_by_all_who_heard_of_claim_2(
    promising: Ballot, message: TimeoutNow | LastWord
) -> None:
    voter = promising.voters["b"]
    voter.receive("a", append(5, claim=2, commitment=commit_to(OTHER)))
    voter.receive("a", message)
    assert voter.raft.term == 5
    assert voter._promise.binds(promising.now)
    voter.receive("c", PreVote(6, 99, 5, SECRET))
    voter.receive("c", RequestVote(6, 99, 5, SECRET))
    assert not promising.queues["b", "c"]


def test_heartbeat_of_claim_1_that_comes_after_claim_2_began_changes_nothing(promising: Ballot) -> None:
    voter = promising.voters["b"]
    voter.receive("a", append(5, claim=2, commitment=commit_to(OTHER)))
    until = voter._promise.until
    promising.now += 0.05
    promising.queues.clear()
    voter.receive("a", append(5, claim=1, commitment=commit_to(SECRET)))
    assert voter._promise.until == until
    voter.receive("a", TimeoutNow(5, SECRET))
    assert voter.raft.term == 5


@pytest.mark.parametrize("claim", [1, 2])
def test_no_promise_is_acknowledged_that_was_not_given(promising: Ballot, claim: int) -> None:
    """The secret is known: a heartbeat of a daemon that doesn't know of its own last word must not revive the lease."""
    voter = promising.voters["b"]
    voter.receive("c", LastWord(5, "a", SECRET))
    promising.now += 0.05
    promising.queues.clear()
    voter.receive("a", append(5, claim=claim, commitment=commit_to(SECRET) if claim == 1 else commit_to(OTHER)))
    assert bool(promising.under_way("b", "a", LeaseAck)) == voter._promise.binds(promising.now) == (claim == 2)


def test_heartbeat_without_a_commitment_gives_no_promise(ballot: Ballot) -> None:
    voter = ballot.voters["b"]
    voter.receive("a", append(5, commitment=b""))
    assert voter.raft.leader == "a"
    assert not voter._promise.binds(ballot.now)
    voter.receive("c", RequestVote(6, 1, 0, b""))
    assert ballot.under_way("b", "c", VoteGranted)


def test_heartbeats_of_an_ended_claim_have_no_commitment(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    first = leader.lease.commitment
    ballot.heartbeat("a")
    assert ballot.queues["a", "b"][-1].commitment == first  # type: ignore[union-attr]
    secret = leader.lease.end()
    assert commit_to(secret) == first
    ballot.heartbeat("a")
    assert ballot.queues["a", "b"][-1].commitment == b""  # type: ignore[union-attr]


def test_promise_is_durable_before_it_is_acknowledged(ballot: Ballot) -> None:
    ballot.voters["b"].receive("a", append(5, lease=640))
    assert ballot.under_way("b", "a", LeaseAck)
    ballot.crash("b", power_lost=True)
    assert ballot.boot("b")._promise.until == pytest.approx(ballot.now + 0.64 * 1.1)


def test_later_term_is_durable_before_its_leaders_lease_is_acknowledged(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarted in the earlier term, the node would acknowledge the deposed leader's lease as well."""
    terms: list[int] = []
    voter = ballot.voters["b"]
    send = voter._send

    def look(peer: str, message: object) -> bool:
        if isinstance(message, LeaseAck):
            terms.append(ballot.journals["b"].getCurrentTerm())
        return send(peer, message)  # type: ignore[arg-type]

    monkeypatch.setattr(voter, "_send", look)
    voter.receive("a", append(5))
    assert terms == [5]


# The lease


def test_lease_counts_from_when_the_heartbeat_was_sent(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.queues.clear()
    ballot.heartbeat("a")
    sent = ballot.now
    ballot.now += 0.1
    ballot.deliver("a", "b")
    ballot.now += 0.1
    ballot.deliver("b", "a")
    assert leader.lease.until == pytest.approx(sent + leader.lease.duration, abs=1e-5)


@pytest.mark.parametrize("change", [{"claim": -1}, {"claim": 1}, {"sent": 5_000_000}])
def test_acknowledgement_of_another_claim_or_from_the_future_doesnt_count(
    ballot: Ballot, change: dict[str, int]
) -> None:
    leader = ballot.elect("a")
    ballot.queues.clear()
    ballot.now += 0.1
    now, until = int(ballot.now * 1_000_000), leader.lease.until
    ack = {"claim": leader.lease.claim, "sent": now}
    leader.receive("b", LeaseAck(**{name: value + change.get(name, 0) for name, value in ack.items()}))
    assert leader.lease.until == until
    leader.receive("b", LeaseAck(**ack))
    assert leader.lease.until > until


def test_claims_have_other_numbers_in_later_terms(ballot: Ballot) -> None:
    """So an acknowledgement that was long on its way counts for none of them."""
    leader = ballot.elect("a")
    claim = leader.lease.claim
    leader.raft.step_down(leader.raft.term + 1)
    ballot.now += 10
    ballot.elect("a")
    assert leader.lease.claim > claim


def test_acknowledgement_of_an_ended_claim_doesnt_count(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.queues.clear()
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    leader.lease.end()
    leader.lease.begin()
    ballot.deliver("b", "a")
    assert not leader.lease.valid(ballot.now)


def test_lease_that_has_run_out_unnoticed_begins_another_claim(ballot: Ballot) -> None:
    """Held up for long, the leader doesn't know what its guard has said meanwhile."""
    leader = ballot.elect("a")
    claim, secret = leader.lease.claim, leader.lease.secret
    ballot.now = leader.lease.until + 0.01
    leader.tick()
    assert leader.raft.leads
    assert leader.lease.claim == claim + 1
    assert leader.lease.secret not in {secret, b""}


def test_acknowledgement_of_a_learner_doesnt_count(convene: Convene) -> None:
    ballot = convene("abc", learners="de")
    leader = ballot.elect("a")
    ballot.now += 0.1
    ack, until = LeaseAck(leader.lease.claim, int(ballot.now * 1_000_000)), leader.lease.until
    for peer in "de":
        leader.receive(peer, ack)
    assert leader.lease.until == until
    leader.receive("b", ack)
    assert leader.lease.until > until


# What is on disk


def stalled(ballot: Ballot, name: str) -> None:
    """Let a node's disk take its time, from now on."""
    ballot.disks[name].delay = (0.01, 0.01)


def test_follower_acknowledges_what_is_on_disk_and_the_rest_when_that_is(ballot: Ballot) -> None:
    leader, follower = ballot.elect("a"), ballot.voters["b"]
    ballot.queues.clear()
    before = follower.raft.last_index
    stalled(ballot, "b")
    ballot.append("a", b"one", b"two")
    leader.tick()
    ballot.deliver("a", "b")
    assert follower.raft.last_index == before + 2
    follower.tick()  # the disk begins
    ballot.now += 0.006
    assert {reply.next_index for reply in ballot.under_way("b", "a", AppendReply)} <= {before + 1}
    for _ in range(5):
        ballot.now += 0.01
    again = ballot.under_way("b", "a", AppendReply)[-1]
    assert (again.next_index, again.success) == (before + 3, True)
    assert ballot.journals["b"].durable == before + 2


def test_heartbeat_is_answered_while_the_disk_is_slow(ballot: Ballot) -> None:
    """Held back, the acknowledgement of the lease would make each stall of a disk an election."""
    leader, follower = ballot.elect("a"), ballot.voters["b"]
    ballot.queues.clear()
    ballot.disks["b"].delay = (5.0, 5.0)
    before = follower.raft.last_index
    ballot.append("a", b"one")
    leader.tick()
    ballot.deliver("a", "b")
    follower.tick()
    for _ in range(20):
        ballot.queues["b", "a"].clear()
        ballot.heartbeat("a")
        ballot.deliver("a", "b")
        assert ballot.under_way("b", "a", LeaseAck)
        assert {reply.next_index for reply in ballot.under_way("b", "a", AppendReply)} <= {before + 1}
        ballot.deliver("b", "a")
        follower.tick()
        assert leader.lease.valid(ballot.now)
    assert leader.raft.commit_index == before


@pytest.mark.parametrize(("prev", "prev_term"), [(1, 0), (9, 5)])
def test_repeated_acknowledgement_is_not_for_the_leader_of_another_term(
    ballot: Ballot, prev: int, prev_term: int
) -> None:
    """It has not said up to where the log is its own."""
    follower = ballot.voters["b"]
    stalled(ballot, "b")
    follower.receive("a", append(5, entries=[(b"\0one", 2, 5)]))
    follower.tick()
    follower.receive("c", append(6, prev, prev_term))
    ballot.queues.clear()
    for _ in range(5):
        ballot.now += 0.01
    assert ballot.journals["b"].durable == 2
    assert not ballot.queues["b", "a"]
    assert {reply.next_index for reply in ballot.under_way("b", "c", AppendReply)} <= {2}


def test_leader_counts_only_what_it_has_on_disk_itself(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    before = leader.raft.commit_index
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"one")
    leader.tick()
    for _ in range(5):
        for peer in "bc":
            ballot.deliver("a", peer)
            ballot.voters[peer].tick()
        ballot.now += 0.001
        for peer in "bc":
            ballot.deliver(peer, "a")
        leader.tick()
    assert {journal.durable for name, journal in ballot.journals.items() if name != "a"} == {before + 1}
    assert (leader.raft.commit_index, leader.raft.match("b")) == (before, before)
    for _ in range(4):
        ballot.now += 0.5
    leader.tick()
    assert (leader.raft.commit_index, leader.raft.match("b")) == (before + 1, before + 1)
    assert ballot.tables["a"] == [b"one"]


def test_leader_counts_no_more_than_the_group_that_is_on_disk(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    before = leader.raft.last_index
    ballot.disks["a"].delay = (0.5, 0.5)
    for entry in (b"one", b"two"):
        ballot.append("a", entry)
        leader.tick()
    ballot.deliver("a", "b")
    ballot.voters["b"].tick()
    ballot.now += 0.001
    ballot.deliver("b", "a")
    while ballot.journals["a"].durable == before:
        ballot.now += 0.1
    assert ballot.journals["a"].durable == leader.raft.match("b") == before + 1
    for _ in range(4):
        ballot.now += 0.5
    assert leader.raft.match("b") == before + 2


@pytest.mark.parametrize("slow", [False, True])
def test_acknowledgement_of_less_doesnt_undo_one_of_more(ballot: Ballot, *, slow: bool) -> None:
    """Of two answers the earlier may come later; also while the leader's own disk is at it."""
    leader = ballot.elect("a")
    if slow:
        ballot.disks["a"].delay = (0.2, 0.2)
    ballot.append("a", b"one", b"two")
    leader.tick()
    last, now = leader.raft.last_index, int(ballot.now * 1_000_000)
    if not slow:
        ballot.now += 0.001
    for next_index in (last + 1, last):
        leader.receive("b", AppendReply(leader.raft.term, next_index, reset=False, success=True, sent=now))
    for _ in range(4):
        ballot.now += 0.2
    assert leader.raft.match("b") == last


def test_peer_on_a_new_connection_counts_from_zero(ballot: Ballot) -> None:
    """Its disk may have been changed for a blank one meanwhile."""
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    assert leader.raft.match("b") == leader.raft.last_index
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"two")
    leader.tick()
    ballot.deliver("a", "b")
    ballot.voters["b"].tick()
    ballot.now += 0.001
    ballot.deliver("b", "a")
    leader.greeted("b", forgetful=False)
    assert leader.raft.match("b") == 0
    for _ in range(4):
        ballot.now += 0.5  # what b said before is not counted now either
    assert leader.raft.match("b") == 0
    assert leader.raft.commit_index == leader.raft.last_index - 1


def test_what_a_follower_acknowledged_survives_a_power_cut(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    for number in range(20):
        ballot.append("a", b"%d" % number)
        ballot.disks["b"].delay = (0.0, 0.02 * (number % 3))
        leader.tick()
        ballot.deliver("a", "b")
        ballot.voters["b"].tick()
        ballot.now += 0.01
        ballot.deliver("b", "a")
        leader.tick()
    acknowledged = leader.raft.match("b")
    assert acknowledged > 15
    ballot.crash("b", power_lost=True)
    assert ballot.boot("b").raft.last_index >= acknowledged


def test_lone_voter_leads_at_once_and_for_ever(convene: Convene) -> None:
    ballot = convene("a")
    voter = ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    assert ballot.tables["a"] == [b"one"]
    assert voter.lease.valid(ballot.now + 1e9)


def test_lone_voter_waits_for_its_own_disk(convene: Convene) -> None:
    """Nobody else's acknowledgement is needed: its disk is the majority."""
    ballot = convene("a")
    voter = ballot.elect("a")
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"one")
    for _ in range(10):
        voter.tick()
        ballot.now += 0.01
    assert ballot.tables["a"] == []
    for _ in range(4):
        ballot.now += 0.5
        voter.tick()
    assert ballot.tables["a"] == [b"one"]


def test_lone_voter_commits_nothing_that_isnt_on_disk_when_it_is_elected(convene: Convene) -> None:
    ballot = convene("a")
    ballot.disks["a"].delay = (0.5, 0.5)
    voter = ballot.voters["a"]
    ballot.now += 2
    voter.tick()
    assert voter.raft.leads
    assert voter.raft.commit_index <= ballot.journals["a"].durable


# Replies


def test_leader_ignores_replies_of_another_term(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    leader.tick()
    ballot.queues.clear()
    before, until = leader.raft.commit_index, leader.lease.until
    ballot.now += 0.1
    sent = int(ballot.now * 1_000_000)
    leader.receive("b", AppendReply(leader.raft.term - 1, leader.raft.last_index + 1, False, True, sent))
    leader.tick()
    assert (leader.raft.commit_index, leader.lease.until) == (before, until)
    assert leader.counters == {"stale replies": 1}


def test_leader_ignores_a_reply_from_the_future(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    leader.tick()
    ballot.now += 0.01
    match, sent = leader.raft.match("b"), int((ballot.now + 5) * 1_000_000)
    leader.receive("b", AppendReply(leader.raft.term, leader.raft.last_index + 1, False, True, sent))
    assert leader.raft.match("b") == match < leader.raft.last_index == ballot.journals["a"].durable


def test_leader_goes_back_once_for_all_that_was_under_way(ballot: Ballot) -> None:
    """Each message that a follower can't take is answered so; to send all again for each would be to do so for ever."""
    leader = ballot.elect("a")
    ballot.append("a", b"one", b"two")
    ballot.settle()
    sent = int(ballot.now * 1_000_000)
    ballot.now += 0.01
    again = []
    for _ in range(3):
        leader.receive("b", AppendReply(leader.raft.term, 2, reset=True, success=False, sent=sent))
        ballot.now += 0.001
        ballot.queues["a", "b"].clear()
        leader.tick()
        again.append(sum(len(message.entries) for message in ballot.under_way("a", "b", AppendEntries)))
    assert again == [leader.raft.last_index - 1, 0, 0]


def test_entries_that_no_node_sends_are_refused(ballot: Ballot) -> None:
    voter = ballot.voters["b"]
    with pytest.raises(ProtocolError, match="not our log"):
        voter.receive("a", append(5, entries=[(b"\2pickle", 2, 5)]))
    assert (voter.raft.term, voter.raft.last_index) == (0, 1)
    assert not voter._promise.binds(ballot.now)


@pytest.mark.parametrize("beyond", [True, False])
def test_reply_about_entries_that_there_are_not_is_refused(ballot: Ballot, *, beyond: bool) -> None:
    leader = ballot.elect("a")
    next_index = leader.raft.last_index + 2 if beyond else 0
    with pytest.raises(ProtocolError, match="not our log"):
        leader.receive("b", AppendReply(leader.raft.term, next_index, False, True, 0))


def test_leader_follows_when_a_reply_is_of_a_later_term(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    leader.receive("b", AppendReply(leader.raft.term + 3, 1, False, False, 0))
    assert not leader.raft.leads


def test_leader_doesnt_send_again_what_is_under_way(ballot: Ballot) -> None:
    """The library lets an older answer move its next index back."""
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    leader.tick()
    ballot.append("a", b"two")
    leader.tick()
    ballot.queues["a", "c"].clear()
    ballot.deliver("a", "b", 1)
    ballot.deliver("b", "a")
    leader.tick()
    sent = [entry for message in ballot.queues["a", "b"] for entry in getattr(message, "entries", [])]
    assert [command for command, _, _ in sent] == [b"\0two"]


def test_leader_and_follower_agree_after_a_conflict_while_much_is_under_way(ballot: Ballot) -> None:
    """The library goes back one entry per answer, and answers to later messages bring it forward again, for ever."""
    ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    ballot.append("a", *[b"never committed %d" % number for number in range(40)])
    ballot.voters["a"].tick()
    ballot.queues.clear()  # a alone has them
    ballot.voters["a"].raft.disconnected("b")
    ballot.voters["a"].raft.disconnected("c")
    leader = ballot.elect("b", ["b", "c"])
    ballot.append("b", *[bytes([number]) * 100_000 for number in range(30)])
    ballot.settle(["b", "c"])
    ballot.queues.clear()
    sent = 0
    for _ in range(12):
        ballot.append("b", b"meanwhile")
        ballot.now += 0.06
        leader.tick()
        sent += len(ballot.queues["b", "a"])
        ballot.deliver("b", "a")
        ballot.deliver("b", "c")
        for peer in "ac":
            ballot.voters[peer].tick()
        ballot.now += 0.001
        for peer in "ac":
            ballot.deliver(peer, "b")
    ballot.now += 0.06
    ballot.settle()
    ballot.now += 0.06
    ballot.settle(rounds=50)
    assert ballot.tables["a"] == ballot.tables["b"]
    assert len(ballot.tables["a"]) == 1 + 30 + 12
    assert sent < 60


# Terms


def test_leader_of_an_earlier_term_is_told_and_follows(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    later = ballot.voters["b"]
    later.raft.step_down(leader.raft.term + 5)
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    assert ballot.queues["b", "a"][0] == StaleTerm(later.raft.term)
    ballot.deliver("b", "a")
    assert not leader.raft.leads
    assert leader.raft.term == later.raft.term
    assert (leader.lease.until, leader.lease.held) == (0, False)


@pytest.mark.parametrize("kind", [PreVote, RequestVote])
def test_candidate_of_an_earlier_term_is_told(ballot: Ballot, kind: type[PreVote | RequestVote]) -> None:
    voter = ballot.voters["b"]
    voter.raft.step_down(7)
    voter.receive("c", kind(5, 99, 4, b""))
    assert ballot.queues["b", "c"].pop() == StaleTerm(7)


def test_voters_with_different_terms_elect_the_one_with_the_log(ballot: Ballot) -> None:
    """Without the reply to a stale pre-vote, b's longer log and c's later term would block each other."""
    ballot.elect("a")
    ballot.append("a", b"one")
    ballot.voters["a"].tick()
    ballot.queues["a", "c"].clear()
    ballot.deliver("a", "b")
    ballot.crash("a")
    ballot.voters["c"].raft.step_down(40)
    for _ in range(40):
        ballot.now += 0.1
        ballot.settle(["b", "c"], rounds=2)
    assert ballot.voters["b"].raft.leads
    assert ballot.voters["b"].raft.term > 40


def test_follower_stands_soon_after_the_leaders_connection_is_lost(convene: Convene) -> None:
    ballot = convene(timing=Timing(election_min=2.0, election_max=4.0))
    ballot.elect("a")
    follower = ballot.voters["b"]
    ballot.queues.clear()
    follower.disconnected("a")
    promised = follower._promise.until
    assert promised > ballot.now
    assert not follower.raft.election_due(promised)
    assert follower.raft.election_due(promised + 1.01)


def test_leader_that_can_reach_nobody_ceases_to_lead(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    lease_end = leader.lease.until
    assert leader.lease.valid(ballot.now)
    while leader.raft.leads:
        ballot.now += 0.05
        leader.tick()
        assert ballot.now < lease_end + 1
    assert lease_end < ballot.now


def test_leader_that_only_learners_answer_ceases_to_lead(convene: Convene) -> None:
    ballot = convene("abc", learners="d")
    leader = ballot.elect("a")
    start = ballot.now
    while leader.raft.leads:
        ballot.heartbeat("a")
        ballot.deliver("a", "d")
        ballot.deliver("d", "a")
        assert ballot.now < start + 2


# Connections


def test_peer_without_room_gets_its_entries_when_it_has_room_again(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = ballot.elect("a")
    send = leader._send
    monkeypatch.setattr(leader, "_send", lambda peer, message: peer != "b" and send(peer, message))
    ballot.append("a", b"one")
    for _ in range(3):
        leader.tick()
    assert not ballot.queues["a", "b"]
    monkeypatch.undo()
    leader.connected("b")
    ballot.settle()
    ballot.now += 0.1
    ballot.settle()
    assert ballot.tables["b"] == [b"one"]


# Members


def test_entry_needs_a_majority_of_the_voters_that_there_are_now(convene: Convene) -> None:
    ballot = convene("abc", learners="de")
    leader = ballot.elect("a")
    ballot.change_members("abcde")
    ballot.queues.clear()
    ballot.append("a", b"one")
    leader.tick()
    ballot.settle("ab")
    assert ballot.tables["a"] == []
    ballot.settle("ac")
    assert ballot.tables["a"] == [b"one"]


def test_lease_needs_a_majority_of_the_voters_that_there_are_now(convene: Convene) -> None:
    ballot = convene("abc", learners="de")
    leader = ballot.elect("a")
    ballot.queues.clear()
    ballot.heartbeat("a")
    heartbeat = ballot.now
    ballot.settle("ab")
    until = leader.lease.until
    assert until == pytest.approx(heartbeat + leader.lease.duration, abs=1e-5)
    ballot.change_members("abcde")
    assert leader.lease.until < until
    ballot.settle("ac")
    assert leader.lease.until == until
    ballot.heartbeat("a")
    ballot.settle("ab")
    assert leader.lease.until == until
    ballot.change_members("abc")
    assert leader.lease.until > until


def test_lease_that_has_run_out_doesnt_come_back_when_fewer_are_needed(convene: Convene) -> None:
    """Its last word may have been said."""
    ballot = convene("abcd")
    leader = ballot.elect("a")
    ballot.queues.clear()
    claim = leader.lease.claim
    while ballot.now + 0.1 < leader.lease.until:
        ballot.heartbeat("a")
        ballot.settle("ab")
    ballot.now = leader.lease.until + 0.01
    ballot.change_members("abc")
    assert leader.lease.claim > claim or not leader.lease.valid(ballot.now)


def test_learner_gets_the_entries_and_counts_for_nothing(convene: Convene) -> None:
    ballot = convene("abc", learners="d")
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    leader.tick()
    ballot.settle("ad")
    assert ballot.voters["d"].raft.last_index == leader.raft.last_index == leader.raft.match("d")
    assert ballot.tables["a"] == []
    ballot.settle()
    ballot.heartbeat("a")
    ballot.settle()
    assert ballot.tables["a"] == ballot.tables["d"] == [b"one"]


def test_leader_goes_on_when_one_that_acknowledged_is_no_member_any_more(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    for name in "ab":
        ballot.voters[name].set_members("ab", "")
    ballot.append("a", b"two")
    ballot.settle("ab")
    assert ballot.tables["a"] == [b"one", b"two"]
    now = int(ballot.now * 1_000_000)
    leader.receive("c", AppendReply(leader.raft.term, leader.raft.last_index, False, True, now))
    leader.receive("c", LeaseAck(leader.lease.claim, now))
    ballot.append("a", b"three")
    ballot.settle("ab")
    assert ballot.tables["a"] == [b"one", b"two", b"three"]


# Who has forgotten what it held


def test_nothing_that_a_forgetful_peer_says_counts(ballot: Ballot) -> None:
    """What it acknowledges may contradict what its earlier self did."""
    leader = ballot.elect("a")
    ballot.crash("b")
    ballot.disks["b"].wipe()
    ballot.boot("b", forgetful=True)
    until = leader.lease.until
    ballot.append("a", b"one")
    ballot.heartbeat("a")
    ballot.settle("ab")
    assert ballot.voters["b"].raft.last_index == leader.raft.last_index
    assert leader.raft.match("b") == 0
    assert ballot.tables["a"] == []
    assert leader.lease.until == until
    ballot.settle("ac")
    assert ballot.tables["a"] == [b"one"]
    assert leader.lease.until > until


def test_forgetful_peer_is_told_when_something_new_is_committed_without_it(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.append("a", b"known before")
    leader.tick()
    ballot.crash("b")
    ballot.disks["b"].wipe()
    node = ballot.boot("b", forgetful=True)
    ballot.settle()
    ballot.heartbeat("a")
    ballot.settle()
    assert ballot.tables["b"] == [b"known before"]
    assert not node.remembers()
    ballot.append("a", b"new")
    ballot.heartbeat("a")
    ballot.settle("ab")
    assert not node.remembers()
    ballot.settle()
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    assert not node.remembers(), "it is committed, and not applied here"
    ballot.settle()
    assert ballot.tables["b"] == [b"known before", b"new"]
    assert node.remembers()


def test_memory_is_not_complete_by_the_word_of_an_earlier_leader(ballot: Ballot) -> None:
    node = ballot.voters["b"]
    node.receive("a", append(5, entries=[(b"\0one", 2, 5)], commit=2, unaided=True))
    node.tick()
    assert node.remembers()
    node.receive("c", append(6, 2, 5, commit=2))
    assert not node.remembers()


def test_new_leader_lets_a_forgetful_peer_wait_for_an_entry_of_its_own(ballot: Ballot) -> None:
    """What it finds in its log may have been committed with the help of the peer's earlier self."""
    leader, other = ballot.elect("a"), ballot.voters["c"]
    ballot.crash("b")
    ballot.disks["b"].wipe()
    ballot.boot("b", forgetful=True)
    ballot.append("a", b"one")
    leader.tick()
    ballot.settle("ac")
    barrier = other.raft.last_index + 1
    assert other.forgetful["b"] < barrier
    ballot.crash("a")
    ballot.boot("a")
    ballot.elect("c", "ac")
    assert other.forgetful["b"] == barrier


# What else the messages bring


def test_cluster_time_goes_on_at_the_followers(ballot: Ballot) -> None:
    """An idle cluster's time doesn't stand still: heartbeats carry it."""
    leader = ballot.elect("a")
    leader._time.advance(50_000, ballot.now)
    for _ in range(40):
        ballot.now += 0.1
        ballot.settle(rounds=2)
    assert ballot.voters["b"]._time.now(ballot.now) == pytest.approx(leader._time.now(ballot.now), abs=100)
    assert leader._time.now(ballot.now) >= 54_000


@pytest.mark.parametrize(("term", "time"), [(4, 5_000), (5, 70_000), (6, 30_000)])
def test_candidate_goes_on_from_the_time_of_the_latest_leader_that_a_voter_knows(
    ballot: Ballot, term: int, time: int
) -> None:
    """An earlier leader's time counts for nothing: later ones may have granted by less (here ours, of term 5)."""
    candidate = ballot.voters["a"]
    candidate.receive("c", append(5, time=50_000))
    ballot.now += 2.0
    candidate.tick()
    own = candidate._time.now(ballot.now)
    candidate.receive("b", PreVoteGranted(6, time if term != 4 else 90_000, term))
    expected = own if term == 4 else time
    assert candidate._time.now(ballot.now) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("last", "term"), [(b"\1", 2), (b"\0" + encode(Batch(1, 70_000, Policy(), ())), 3)], ids=["no-op", "batch"]
)
def test_node_knows_after_a_start_the_last_time_that_its_log_tells(ballot: Ballot, last: bytes, term: int) -> None:
    """A node that was killed when it began to lead has the no-op of that term, and the time of an earlier leader."""
    journal = ballot.journals["b"]
    journal.add(b"\0" + encode(Batch(1, 50_000, Policy(), ())), 2, 2)
    journal.add(last, 3, 3)
    journal.setCurrentTerm(3, None)
    journal.sync_now()
    ballot.crash("b")
    voter = ballot.boot("b")
    assert voter.time_term == term
    assert voter._time.now(ballot.now) == {2: 50_000, 3: 70_000}[term]


def test_candidate_goes_on_from_the_time_that_a_vote_tells(convene: Convene) -> None:
    """Others may have let it stand, who know less."""
    candidate = convene("abcde").voters["a"]
    candidate.stand(b"")
    candidate.receive("b", VoteGranted(1, 70_000, 0))
    now = candidate._clock()
    assert candidate._time.now(now) == 70_000
    candidate.receive("c", VoteGranted(1, 60_000, 0))
    assert candidate.raft.leads
    candidate.receive("d", VoteGranted(1, 80_000, 0))
    assert candidate._time.now(now) == 70_000


def test_voter_says_whose_time_it_knows(ballot: Ballot) -> None:
    voter = ballot.voters["b"]
    voter.receive("a", append(5, time=50_000))
    ballot.now += 2.0
    voter.receive("c", PreVote(6, 9, 5, b""))
    (grant,) = ballot.under_way("b", "c", PreVoteGranted)
    assert grant.time_term == 5
    assert grant.time == pytest.approx(52_000, abs=1)


def test_follower_takes_over_a_new_leaders_time_even_if_it_is_less(ballot: Ballot) -> None:
    """What that leader grants is granted by its own."""
    voter = ballot.voters["b"]
    voter.receive("a", append(5, time=50_000))
    voter.receive("c", append(6, time=40_000))
    assert voter._time.now(ballot.now) == 40_000
    voter.receive("c", append(6, time=30_000))
    assert voter._time.now(ballot.now) >= 40_000
