"""What a voter acknowledges and counts: what is on a disk that remembers."""

from __future__ import annotations

import pytest

from sipha.cluster import journal, raft
from sipha.cluster import voter as module
from sipha.cluster.wire import AppendEntries, AppendReply, LeaseAck, RaftMessage
from tests.cluster.ballot import Ballot, Convene, append


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


def test_single_voter_tells_its_learner_while_its_own_disk_hangs(convene: Convene) -> None:
    """Entries at once, and a heartbeat each period: the learner must not wait for a disk that isn't its own."""
    ballot = convene("a", learners="d")
    leader, learner = ballot.elect("a"), ballot.voters["d"]
    ballot.settle()
    ballot.disks["a"].delay = (5.0, 5.0)
    before = leader.raft.last_index
    ballot.append("a", b"one")
    leader.tick()
    ballot.settle()
    assert learner.raft.last_index == before + 1
    assert ballot.journals["a"].durable == leader.raft.commit_index == before
    for _ in range(5):
        ballot.queues["a", "d"].clear()
        ballot.heartbeat("a")
        assert ballot.under_way("a", "d", AppendEntries)
        ballot.deliver("a", "d")
        ballot.deliver("d", "a")
    assert ballot.tables == {"a": [], "d": []}


def test_follower_whose_disk_hangs_holds_no_more_than_it_may_and_gets_the_rest_later(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_UNWRITTEN", 500)
    leader, follower = ballot.elect("a"), ballot.voters["b"]
    ballot.disks["b"].delay = (30.0, 30.0)
    for number in range(40):
        ballot.append("a", b"%100d" % number)
        ballot.now += 0.02
        ballot.settle(rounds=2)
        assert leader.lease.valid(ballot.now)
    assert 500 < ballot.journals["b"].backlog < 1000
    assert follower.counters["entries the disk had no room for"] > 30
    assert "b" not in leader._went_back, "it would send all of that again and again"
    assert len(ballot.tables["a"]) >= 39 > len(ballot.tables["b"])
    ballot.disks["b"].delay = (0.0, 0.0)
    for _ in range(4):
        ballot.now += 30.0
    leader = ballot.elect("a")
    for _ in range(4):
        ballot.heartbeat("a")
        ballot.settle()
    assert ballot.tables["b"] == ballot.tables["a"] == [b"%100d" % number for number in range(40)]
    assert leader.raft.match("b") == leader.raft.last_index


def test_follower_whose_disk_is_slow_isnt_sent_all_again_for_each_entry_that_it_has_taken(
    convene: Convene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_UNWRITTEN", 2000)
    monkeypatch.setattr(journal, "_GROUP", 200)
    monkeypatch.setattr(raft, "_MAX_APPEND", 256)
    ballot = convene("abc")
    leader, sent = ballot.elect("a"), 0

    def send(peer: str, message: RaftMessage) -> bool:
        nonlocal sent
        sent += len(message.entries) if peer == "b" and isinstance(message, AppendEntries) else 0
        return ballot.send("a", peer, message)

    leader._send = send
    ballot.disks["b"].delay = (0.1, 0.1)
    for number in range(100):
        ballot.append("a", b"%100d" % number)
        for _ in range(5):
            ballot.now += 0.01
            ballot.settle(rounds=1)
    assert ballot.voters["b"].counters["entries the disk had no room for"]
    assert ballot.journals["b"].backlog < 2500
    assert leader.raft.match("b") > 40
    assert sent < 300


def test_follower_that_puts_a_snapshot_in_place_of_its_log_hears_a_new_leader(ballot: Ballot) -> None:
    leader, follower = ballot.elect("a"), ballot.voters["b"]
    ballot.append("a", *(b"%d" % number for number in range(30)))
    ballot.settle("ac")
    ballot.heartbeat("a")
    ballot.settle("ac")
    ballot.queues.clear()
    term = leader.raft.term_at(20)
    ballot.crash("a")
    assert term is not None
    ballot.disks["b"].delay = (0.5, 0.5)
    ballot.journals["b"].reset(20, term, lambda _: None)
    follower.raft.install(20)
    ballot.elect("c", "bc")
    for _ in range(100):
        ballot.heartbeat("c")
        ballot.settle("bc", rounds=2)
    assert ballot.journals["b"].durable == ballot.voters["c"].raft.last_index
    assert ballot.tables["b"][-1:] == ballot.tables["c"][-1:] == [b"29"]


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


def stored(ballot: Ballot, peers: str) -> None:
    """Let these have on disk what the leader `a` has sent them, and say so."""
    for peer in peers:
        ballot.deliver("a", peer)
        ballot.voters[peer].tick()
    ballot.now += 0.001
    for peer in peers:
        ballot.deliver(peer, "a")


def test_leader_commits_what_a_majority_of_others_has_on_disk(ballot: Ballot) -> None:
    """Its own disk may lag: it is one of the cluster's as any other (Raft thesis §10.2.1)."""
    leader = ballot.elect("a")
    before = leader.raft.commit_index
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"one")
    leader.tick()
    stored(ballot, "bc")
    leader.tick()
    assert ballot.journals["a"].durable == before
    assert (leader.raft.commit_index, leader.raft.match("b")) == (before + 1, before + 1)
    assert ballot.tables["a"] == [b"one"]


def test_leader_counts_itself_only_up_to_where_its_disk_has_come(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    before = leader.raft.commit_index
    ballot.disks["a"].delay = (0.5, 0.5)
    for entry in (b"one", b"two"):
        ballot.append("a", entry)
        leader.tick()
    stored(ballot, "b")
    leader.tick()
    assert (leader.raft.commit_index, leader.raft.match("b")) == (before, before + 2)
    while ballot.journals["a"].durable == before:
        ballot.now += 0.1
    leader.tick()
    assert ballot.journals["a"].durable == leader.raft.commit_index == before + 1
    for _ in range(4):
        ballot.now += 0.5
    leader.tick()
    assert leader.raft.commit_index == before + 2


def test_leader_of_two_waits_for_its_own_disk(convene: Convene) -> None:
    ballot = convene("ab")
    leader = ballot.elect("a")
    before = leader.raft.commit_index
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"one")
    leader.tick()
    stored(ballot, "b")
    leader.tick()
    assert (leader.raft.commit_index, leader.raft.match("b")) == (before, before + 1)


@pytest.mark.parametrize("change", ["it is blank", "it is no member"])
def test_disk_that_was_counted_counts_no_more_once_it_is_gone(convene: Convene, change: str) -> None:
    """Three of five had the entry, and the leader, whose own disk is slow, has not looked since."""
    ballot = convene("abcde")
    leader = ballot.elect("a")
    before = leader.raft.commit_index
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"one")
    leader.tick()
    stored(ballot, "bcd")
    if change == "it is blank":
        leader.greeted("d", forgetful=False)
    else:
        leader.set_members("abce", "")
    leader.tick()
    assert leader.raft.commit_index == before


def test_entry_that_the_leader_has_committed_without_its_own_disk_survives_a_power_cut(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.disks["a"].delay = (0.5, 0.5)
    ballot.append("a", b"one")
    leader.tick()
    stored(ballot, "bc")
    leader.tick()
    assert ballot.tables["a"] == [b"one"]
    last = leader.raft.last_index
    ballot.crash("a", power_lost=True)
    ballot.disks["a"].delay = (0.0, 0.0)
    again = ballot.boot("a")
    assert again.raft.last_index == last - 1
    ballot.now += 2 * ballot.timing.election_max
    for voter in ballot.voters.values():
        voter.raft.put_election(ballot.now + 1)
    again.raft.put_election(0)
    again.tick()
    ballot.settle()
    assert not again.raft.leads
    ballot.elect("b")
    ballot.heartbeat("b")
    ballot.settle()
    assert ballot.tables["a"] == ballot.tables["b"] == [b"one"]


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


@pytest.mark.parametrize(("seconds", "leads"), [(0.2, True), (60.0, False)])
def test_leader_whose_disk_hangs_lets_another_lead(ballot: Ballot, seconds: float, *, leads: bool) -> None:
    leader = ballot.elect("a")
    ballot.disks["a"].delay = (seconds, seconds)
    for number in range(60):
        ballot.append("a", b"%d" % number)
        ballot.settle(rounds=3)
        ballot.now += 0.05
        if not leader.raft.leads:
            break
    assert leader.raft.leads == leads
    assert leader.counters["leaderships given up as the disk hangs"] == (not leads)


def test_disk_of_a_node_whose_log_was_cut_off_doesnt_count_as_hung(ballot: Ballot) -> None:
    ballot.elect("a")
    ballot.append("a", *[b"only at a"] * 5)
    ballot.settle(["a"])
    ballot.queues.clear()
    ballot.elect("b", ["b", "c"])
    ballot.settle()
    for _ in range(60):
        ballot.now += 0.05
        ballot.settle(rounds=2)
    ballot.elect("a")


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


def test_peer_is_ready_while_it_keeps_up_and_no_longer(ballot: Ballot) -> None:
    """Under load some entry is always on its way to it, and committed without it."""
    leader = ballot.elect("a")
    ballot.heartbeat("a")
    ballot.settle()
    behind = 0
    for number in range(200):
        ballot.append("a", b"%d" % number)
        leader.tick()
        for peer in "cb":  # what b acknowledges comes one entry late
            ballot.deliver(peer, "a")
            leader.tick()
            behind += leader.raft.match("b") < leader.raft.commit_index
            assert leader.is_ready("b")
            ballot.deliver("a", peer)
            ballot.voters[peer].tick()
        ballot.now += 0.01
    assert behind > 100
    for number in range(200):
        ballot.append("a", b"%d" % number)
        leader.tick()
        ballot.deliver("a", "c")
        ballot.deliver("c", "a")
        leader.raft.touch("b")  # it lives, and its disk takes nothing
        ballot.voters["c"].tick()
        ballot.now += 0.01
    assert not leader.is_ready("b")
    assert leader.is_ready("c")


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


def test_leader_has_nothing_to_do_for_an_acknowledgement_that_makes_no_majority(ballot: Ballot) -> None:
    """It is driven for what commits, and not for each that says so."""
    leader = ballot.elect("a")
    ballot.queues.clear()
    for name in "abc":
        ballot.disks[name].delay = (1.0, 1.0)
    ballot.append("a", b"one")
    assert leader.raft.due, "it has to send that"
    leader.tick()
    assert not leader.raft.due
    for name in "bc":
        ballot.deliver("a", name)
        ballot.voters[name].tick()
        ballot.journals[name].sync_now()
    ballot.deliver("b", "a")
    assert not leader.raft.due, "one disk of three"
    ballot.deliver("c", "a")
    assert leader.raft.due
    leader.tick()
    assert leader.raft.commit_index == leader.raft.last_index
    ballot.journals["a"].sync_now()
    assert not leader.raft.due, "its own disk was the last"


def test_promise_that_was_given_in_forgetfulness_counts_no_more_when_that_is_over(ballot: Ballot) -> None:
    """It may come late, when the peer has said on another connection that it has all again."""
    leader = ballot.elect("a")
    leader.greeted("b", forgetful=True)
    leader.greeted("c", forgetful=True)
    ballot.now += leader.lease.duration + 0.01
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    (early,) = ballot.under_way("b", "a", LeaseAck)
    leader.receive("b", early)
    assert not leader.lease.valid(ballot.now)
    ballot.now += 0.01
    leader.greeted("b", forgetful=False)
    leader.receive("b", early)
    assert not leader.lease.valid(ballot.now)
    ballot.queues.clear()
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    ballot.deliver("b", "a")
    assert leader.lease.valid(ballot.now)


@pytest.mark.parametrize("begins_anew", [False, True])
def test_acknowledgement_of_an_earlier_connection_counts_no_more(ballot: Ballot, *, begins_anew: bool) -> None:
    """The peer may have lost meanwhile what it says it has."""
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    leader.tick()
    ballot.deliver("a", "b")
    ballot.voters["b"].tick()
    ballot.journals["b"].sync_now()
    early = ballot.under_way("b", "a", AppendReply)[-1]
    ballot.queues.clear()
    ballot.now += 0.01
    if begins_anew:
        leader.greeted("b", forgetful=False)
    leader.receive("b", early)
    assert leader.raft.match("b") == (0 if begins_anew else leader.raft.last_index)
    ballot.heartbeat("a")
    ballot.deliver("a", "b")
    ballot.deliver("b", "a")
    assert leader.raft.match("b") == leader.raft.last_index, "it says so again"
