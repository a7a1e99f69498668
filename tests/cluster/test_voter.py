from __future__ import annotations

import pytest

from sipha.cluster.guards import DivergedError
from sipha.cluster.raft import Timing
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    LeaseAck,
    Ping,
    PreVote,
    PreVoteGranted,
    ProtocolError,
    RequestVote,
    StaleTerm,
    VoteGranted,
)
from sipha.state.entries import Barrier, Batch, Contact, Policy, Register, encode
from tests.cluster.ballot import Ballot, Convene, append

GRANT = Register("sip:alice@example.com", "call", 1, (Contact("sip:alice@192.0.2.1", 3600),))


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
    leader.receive("c", LeaseAck(leader.raft.term, leader.lease.claim, now))
    ballot.append("a", b"three")
    ballot.settle("ab")
    assert ballot.tables["a"] == [b"one", b"two", b"three"]


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
    ("last", "term"),
    [
        (b"\1", 2),
        (b"\0" + encode(Batch(1, 70_000, Policy(), (Barrier(3, "b"),))), 2),
        (b"\0" + encode(Batch(1, 70_000, Policy(), (Barrier(3, "b"), GRANT))), 3),
        (b"\0" + encode(Batch(1, 70_000, Policy(), (GRANT,))), 3),
    ],
    ids=["no-op", "barrier", "barrier and grant", "grant"],
)
def test_node_knows_after_a_start_the_last_time_that_something_was_granted_by(
    ballot: Ballot, last: bytes, term: int
) -> None:
    """A node that was killed when it began to lead has what begins that term, and the time of an earlier leader."""
    journal = ballot.journals["b"]
    journal.add(b"\0" + encode(Batch(1, 50_000, Policy(), (GRANT,))), 2, 2)
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
