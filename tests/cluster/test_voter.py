from __future__ import annotations

import pytest

from sipha.cluster import raft
from sipha.cluster.raft import Timing
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    PreVote,
    PreVoteGranted,
    RequestVote,
    StaleTerm,
    VoteGranted,
)
from tests.cluster.ballot import Ballot, Convene


def test_voters_elect_one_and_apply_in_order(ballot: Ballot) -> None:
    ballot.elect("a")
    ballot.append("a", b"one", b"two")
    ballot.settle()
    ballot.now += 0.1  # the next heartbeat tells the commit index
    ballot.settle()
    assert set(map(tuple, ballot.tables.values())) == {(b"one", b"two")}
    assert [ballot.voters[name].leader for name in "abc"] == ["a", "a", "a"]


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
        voter.receive("c", PreVote(term + 1, last + 9, term))
        voter.receive("c", RequestVote(term + 1, last + 9, term))
        assert voter.raft.term == term
    assert not ballot.queues["a", "c"]
    assert not ballot.queues["b", "c"]
    assert follower.counters == {"pre-votes refused": 1, "votes refused": 1}


@pytest.mark.parametrize("stated", [200, 640])
def test_voter_keeps_still_as_long_as_the_heartbeat_stated(ballot: Ballot, stated: int) -> None:
    """A leader that was configured with a longer lease than ours is safe (and so is one that is ours)."""
    follower = ballot.voters["b"]
    follower.receive("a", AppendEntries(5, 0, 1, 0, [], 0, stated, 0))
    heard = ballot.now
    ballot.queues.clear()
    ballot.now = heard + stated / 1000 * 1.09
    follower.raft.put_election(0)
    follower.tick()
    follower.receive("c", RequestVote(6, 99, 5))
    assert not any(ballot.queues.values())
    ballot.now = heard + stated / 1000 * 1.11
    follower.receive("c", RequestVote(6, 99, 5))
    assert ballot.queues["b", "c"].pop() == VoteGranted(6)


def test_voter_doesnt_stand_unasked_when_its_election_falls_due_while_it_ticks(ballot: Ballot) -> None:
    """The library reads the clock after we did, and would stand without a pre-vote, against what we promised."""
    voter = ballot.voters["b"]
    voter.receive("a", AppendEntries(5, 0, 1, 0, [], 0, 640, 0))
    ballot.queues.clear()
    voter.raft.put_election(ballot.now + 0.0005)
    raft.use_clock(lambda: ballot.now + 0.001)
    voter.tick()
    assert voter.raft.term == 5
    assert not any(ballot.queues.values())
    assert voter.raft.election_due(ballot.now + 0.001)


def test_voter_keeps_still_after_a_start(ballot: Ballot) -> None:
    """It doesn't know any more whom it promised what, only for how long at most."""
    ballot.voters["b"].receive("a", AppendEntries(5, 0, 1, 0, [], 0, 640, 0))
    ballot.crash("b")
    follower = ballot.boot("b")
    follower.receive("c", RequestVote(6, 99, 5))
    assert not ballot.queues["b", "c"]
    ballot.now += 0.71
    follower.receive("c", RequestVote(6, 99, 5))
    assert ballot.queues["b", "c"].pop() == VoteGranted(6)


def test_voter_doesnt_stand_when_a_leader_was_heard_since_it_asked(ballot: Ballot) -> None:
    voter = ballot.voters["b"]
    ballot.now += 1
    voter.tick()
    assert ballot.queues["b", "c"][0] == PreVote(1, 1, 0)
    voter.receive("a", AppendEntries(0, 0, 1, 0, [], 0, 200, 0))
    voter.receive("c", PreVoteGranted(1, 0))
    assert voter.raft.term == 0


def test_candidate_counts_voters_and_not_votes(convene: Convene) -> None:
    ballot = convene("abcde")
    candidate = ballot.voters["a"]
    ballot.now += 2
    candidate.tick()
    for peer in "bc":
        candidate.receive(peer, PreVoteGranted(1, 0))
    assert candidate.raft.term == 1
    for _ in range(3):
        candidate.receive("b", VoteGranted(1))
    assert not candidate.raft.leads
    candidate.receive("c", VoteGranted(1))
    assert candidate.raft.leads


def test_one_voter_granting_a_pre_vote_twice_is_one(convene: Convene) -> None:
    ballot = convene("abcde")
    candidate = ballot.voters["a"]
    ballot.now += 2
    candidate.tick()
    for _ in range(3):
        candidate.receive("b", PreVoteGranted(1, 0))
    assert candidate.raft.term == 0


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
    until = leader.lease.until
    sent = int((ballot.now + 5) * 1_000_000)
    leader.receive("b", AppendReply(leader.raft.term, leader.raft.last_index + 1, False, True, sent))
    assert leader.lease.until == until


def test_leader_doesnt_send_again_what_is_under_way(ballot: Ballot) -> None:
    """The library lets an older answer move its next index back."""
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    leader.tick()
    ballot.append("a", b"two")
    leader.tick()
    ballot.queues["a", "c"].clear()
    ballot.deliver("a", "b", 1)
    ballot.deliver("b", "a", 1)
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
            ballot.deliver(peer, "b")
    ballot.now += 0.06
    ballot.settle()
    assert ballot.tables["a"] == ballot.tables["b"]
    assert len(ballot.tables["a"]) == 1 + 30 + 12
    assert sent < 60


def test_leader_of_an_earlier_term_is_told_and_follows(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    later = ballot.voters["b"]
    later.raft.step_down(leader.raft.term + 5)
    ballot.now += 0.06
    leader.tick()
    ballot.deliver("a", "b")
    assert ballot.queues["b", "a"][0] == StaleTerm(later.raft.term)
    ballot.deliver("b", "a")
    assert not leader.raft.leads
    assert leader.raft.term == later.raft.term
    assert leader.lease.until == 0


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


def test_lone_voter_leads_at_once_and_for_ever(convene: Convene) -> None:
    ballot = convene("a")
    voter = ballot.elect("a")
    ballot.append("a", b"one")
    voter.tick()
    assert ballot.tables["a"] == [b"one"]
    assert voter.lease.valid(ballot.now + 1e9)


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


def test_cluster_time_goes_on_at_the_followers(ballot: Ballot) -> None:
    """An idle cluster's time doesn't stand still: heartbeats carry it."""
    leader = ballot.elect("a")
    leader._time.advance(50_000, ballot.now)
    for _ in range(40):
        ballot.now += 0.1
        ballot.settle(rounds=2)
    assert ballot.voters["b"]._time.now(ballot.now) == pytest.approx(leader._time.now(ballot.now), abs=100)
    assert leader._time.now(ballot.now) >= 54_000
