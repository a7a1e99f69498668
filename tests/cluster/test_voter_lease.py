"""What a follower promises a leader, for how long, and how that ends early."""

from __future__ import annotations

import pytest

from sipha.cluster.lease import commit_to
from sipha.cluster.wire import (
    AppendReply,
    LastWord,
    LeaseAck,
    PreVote,
    RequestVote,
    TimeoutNow,
    VoteGranted,
)
from tests.cluster.ballot import Ballot, Convene, append

SECRET = b"the secret of claim 1"
OTHER = b"the secret of claim 2"


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
    voter.last_word_heard(LastWord(5, "a", SECRET))
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
    voter.last_word_heard(word)
    assert voter._promise.binds(promising.now)
    assert not voter.counters


@pytest.mark.parametrize("message", [TimeoutNow(5, SECRET), LastWord(5, "a", SECRET)])
def test_secret_of_claim_1_that_comes_late_is_refused_by_all_who_heard_of_claim_2(
    promising: Ballot, message: TimeoutNow | LastWord
) -> None:
    voter = promising.voters["b"]
    voter.receive("a", append(5, claim=2, commitment=commit_to(OTHER)))
    if isinstance(message, LastWord):
        voter.last_word_heard(message)
    else:
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
    voter.last_word_heard(LastWord(5, "a", SECRET))
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


def test_follower_says_of_the_lease_before_what_takes_it_along(ballot: Ballot) -> None:
    """An answer goes to the kernel at once, with all that was written before; by itself the lease's would be later."""
    leader = ballot.elect("a")
    ballot.queues.clear()
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    lease, reply = ballot.queues["b", "a"]
    assert isinstance(lease, LeaseAck)
    assert isinstance(reply, AppendReply)
    assert reply.next_index == leader.raft.last_index + 1


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


@pytest.mark.parametrize("change", [{"term": 1}, {"claim": 1}, {"sent": 5_000_000}])
def test_acknowledgement_of_another_term_or_claim_or_from_the_future_doesnt_count(
    ballot: Ballot, change: dict[str, int]
) -> None:
    leader = ballot.elect("a")
    ballot.queues.clear()
    ballot.now += 0.1
    now, until = int(ballot.now * 1_000_000), leader.lease.until
    ack = {"term": leader.raft.term, "claim": leader.lease.claim, "sent": now}
    leader.receive("b", LeaseAck(**{name: value + change.get(name, 0) for name, value in ack.items()}))
    assert leader.lease.until == until
    leader.receive("b", LeaseAck(**ack))
    assert leader.lease.until > until


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
    ack, until = LeaseAck(leader.raft.term, leader.lease.claim, int(ballot.now * 1_000_000)), leader.lease.until
    for peer in "de":
        leader.receive(peer, ack)
    assert leader.lease.until == until
    leader.receive("b", ack)
    assert leader.lease.until > until
