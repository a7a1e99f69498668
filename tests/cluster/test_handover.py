from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.cluster.handover import DRAIN, HOLD_DOWN, UNWELL, Handover, HandoverFailed
from sipha.cluster.leadership import ILeader, Leadership
from sipha.cluster.proposals import Proposals
from sipha.cluster.replica import Replica
from sipha.cluster.wire import AppendEntries, AppendReply, LeaseAck, RaftMessage, RequestVote, TimeoutNow
from sipha.errors import NotLeader, Unavailable
from sipha.state.outcomes import Outcome, Registered
from tests.cluster.assembly import Assemble, Assembly, register
from tests.cluster.ballot import Ballot

MILLISECOND = 0.001

CONFIRM = 0.8
"""Seconds that the other node has to be elected: the longest election timeout."""


def outcome(handed: Deferred[str]) -> list[Any]:
    """What becomes of a transfer: the leader's name, or what was wrong."""
    outcomes: list[Any] = []

    def failed(failure: Failure) -> None:
        failure.trap(HandoverFailed)
        outcomes.append(str(failure.value))

    handed.addCallbacks(outcomes.append, failed)
    return outcomes


def hand_on(assembly: Assembly, to: str | None) -> list[Any]:
    return outcome(assembly.replica("a").transfer(to))


@implementer(ILeader)
class Note:
    """Calls a function when leadership is lost."""

    def __init__(self, told: Callable[[], object]) -> None:
        self.told = told

    def gained(self) -> None:
        pass

    def lost(self) -> Any:
        return self.told()


class Diary:
    """What a leader does that others see, in order."""

    def __init__(self, assembly: Assembly, replica: Replica) -> None:
        self.entries: list[str] = []
        self.assembly = assembly
        self.replica = replica
        assembly.loses = self.see

    def see(self, sender: str, _receiver: str, message: RaftMessage) -> bool:
        if isinstance(message, TimeoutNow):
            lease = self.replica._lease
            state = (self.replica.leading(), self.replica.leadership.held, lease.held, lease.until)
            self.entries.append(f"{sender} says go: {state}")
        return False


# Leadership is handed on


def test_node_knows_until_when_the_one_before_has_served(assembly: Assembly) -> None:
    heartbeat = 0.1
    now = assembly.replica("a").cluster_time()
    assert assembly.replica("a").inbox.served_until == 0
    assert now - heartbeat <= assembly.replica("b").inbox.served_until / 1000 <= now
    lost: list[float] = []
    assembly.replica("a").leadership.observe(Note(lambda: lost.append(assembly.replica("a").cluster_time())))
    hand_on(assembly, "b")
    assembly.until(lambda: assembly.leader() == "b")
    assert lost[0] - MILLISECOND <= assembly.replica("b").inbox.served_until / 1000 <= lost[0], "told on purpose"
    assembly.run(1.0)
    assert assembly.replica("b").inbox.served_until / 1000 <= lost[0]
    assert assembly.replica("a").inbox.served_until / 1000 > lost[0]


def test_leadership_is_handed_on_without_an_elections_wait(assembly: Assembly) -> None:
    term = assembly.replica("a").term
    handed = hand_on(assembly, "b")
    assert assembly.until(assembly.replica("b").leading) < 0.1
    assembly.until(lambda: handed)
    assert handed == ["b"]
    assert assembly.replica("b").term == term + 1
    assert not assembly.replica("a").leading()
    assert assembly.replica("a").leader == "b"


def test_claim_has_ended_before_its_secret_is_told(assembly: Assembly) -> None:
    """Whoever hears it may be elected at once."""
    replica = assembly.replica("a")
    diary, secret = Diary(assembly, replica), replica._lease.secret
    handed = hand_on(assembly, "b")
    assembly.until(lambda: handed)
    assert diary.entries == ["a says go: (False, False, False, 0.0)"]
    (go,) = assembly.said(TimeoutNow)
    assert go.secret == secret


def test_secret_goes_on_to_those_who_vote(assembly: Assembly) -> None:
    """They have promised not to vote; one copy of the word is enough."""
    handed = hand_on(assembly, "b")
    assembly.until(lambda: handed)
    (go,) = assembly.said(TimeoutNow)
    assert {request.secret for request in assembly.said(RequestVote, "b")} == {go.secret}
    assert not assembly.said(TimeoutNow, receiver="c")


@implementer(ILeader)
class Holder:
    """Holds an address, which takes time to go."""

    def __init__(self) -> None:
        self.going: Deferred[None] = Deferred()

    def gained(self) -> None:
        pass

    def lost(self) -> Deferred[None]:
        return self.going


def test_secret_is_told_when_the_address_is_gone(assembly: Assembly) -> None:
    replica, holder = assembly.replica("a"), Holder()
    replica.leadership.observe(holder)
    handed = hand_on(assembly, "b")
    assembly.until(lambda: not replica.leading(), limit=0.1)
    assembly.run(0.1)
    assert not assembly.said(TimeoutNow)
    holder.going.callback(None)
    assembly.until(lambda: assembly.said(TimeoutNow), limit=0.01)
    assembly.until(lambda: handed)
    assert handed == ["b"]


def test_secret_is_told_when_the_kernel_lets_nothing_pass_any_more(assembly: Assembly) -> None:
    """A guard that doesn't answer can't keep the address for longer than the lease that it was told of."""
    replica = assembly.replica("a")
    replica.leadership.observe(Holder())
    until = replica._lease.until
    handed = hand_on(assembly, "b")
    assembly.until(lambda: assembly.said(TimeoutNow), limit=2 * replica._lease.duration)
    assert assembly.clock.seconds() >= until
    assembly.until(lambda: handed)
    assert handed == ["b"]


def test_what_is_under_way_is_finished_first(assembly: Assembly) -> None:
    """While the lease lasts, so that the phones can be answered."""
    replica, told = assembly.replica("a"), list[tuple[type, bool]]()
    assembly.loses = lambda sender, _receiver, message: sender == "c" and isinstance(message, AppendReply)
    for number in range(50):
        replica.propose(
            register(f"sip:{number}@example.com"), lambda each: told.append((type(each), replica.leading()))
        )
    assembly.run(0.0001)
    last = replica._raft.last_index
    handed = hand_on(assembly, "b")
    assembly.until(lambda: handed)
    assert handed == ["b"]
    assert told == [(Registered, True)] * 50
    assert assembly.replica("b")._raft.term_at(last) == assembly.replica("b").term - 1
    assembly.until(assembly.agree)


def test_everything_acknowledged_is_at_the_new_leader(assembly: Assembly) -> None:
    """Under load, to and fro."""
    proposed: list[tuple[str, list[Outcome | Unavailable]]] = []
    for number in range(60):
        leader = assembly.leader()
        if leader is not None:
            aor = f"sip:{number}@example.com"
            proposed.append((aor, assembly.propose(leader, register(aor))))
            if number % 10 == 9:
                outcome(assembly.replica(leader).transfer("b" if leader != "b" else "c"))
        assembly.run(0.01)
    replica = assembly.replica(assembly.wait_for_leader())
    assembly.run(0.2)
    registered = [aor for aor, outcomes in proposed if isinstance(outcomes[0], Registered)]
    assert len(registered) > 40
    assert not [aor for aor in registered if not replica.lookup(aor)]
    assert replica.term > 5


def test_the_one_that_wishes_most_to_lead_is_taken_if_none_is_named(assemble: Assemble) -> None:
    assembly = assemble("abcd")
    assembly.start("ab")
    assembly.start("c", priority=90)
    assembly.start("d", priority=0)
    assembly.elect("a")
    assembly.run(0.1)
    handed = hand_on(assembly, None)
    assembly.until(lambda: handed)
    assert handed == ["b"]


# What comes meanwhile


def test_intake_is_held_and_applied_when_the_transfer_comes_to_nothing(assembly: Assembly) -> None:
    replica = assembly.replica("a")
    assembly.loses = lambda _sender, _receiver, message: isinstance(message, TimeoutNow)
    handed = hand_on(assembly, "b")
    assembly.run(0.01)
    last = replica._raft.last_index
    outcomes = assembly.propose("a", *[register(f"sip:{number}@example.com") for number in range(5)])
    forwarded = assembly.propose("c", register("sip:c@example.com"))
    assembly.run(CONFIRM / 2)
    assert (outcomes, forwarded, handed) == ([], [], [])
    assert replica._raft.last_index == last
    assembly.until(lambda: handed)
    assert "did not take over in time" in handed[0]
    assembly.until(lambda: len(outcomes) == 5 and forwarded, limit=0.5)
    assert {type(each) for each in [*outcomes, *forwarded]} == {Registered}


def test_intake_that_is_held_is_surely_not_applied_when_another_leads(assembly: Assembly) -> None:
    """So the phone's repeat at the new leader is the first of its kind."""
    handed = hand_on(assembly, "b")
    outcomes = assembly.propose("a", register("sip:late@example.com"))
    assembly.until(lambda: handed)
    assert handed == ["b"]
    assembly.run(0.5)
    assert [type(each) for each in outcomes] == [NotLeader]
    assert not assembly.replica("b").lookup("sip:late@example.com")


# It comes to nothing


def test_another_claim_is_begun_when_the_other_doesnt_take_over(assembly: Assembly) -> None:
    replica = assembly.replica("a")
    term, claim, secret = replica.term, replica._lease.claim, replica._lease.secret
    assembly.loses = lambda _sender, _receiver, message: isinstance(message, TimeoutNow)
    handed = hand_on(assembly, "b")
    assembly.run(CONFIRM - 0.01)
    assert not replica.leading()
    assert replica._lease.secret == b""
    assembly.until(lambda: handed)
    assert "b did not take over in time" in handed[0]
    assembly.until(replica.leading, limit=0.1)
    assert (replica.term, replica._lease.claim) == (term, claim + 1)
    assert replica._lease.secret not in {b"", secret}
    assembly.register("a", ["sip:alice@example.com"])


def test_another_claim_is_begun_at_once_when_the_other_is_gone_before_it_is_told(assembly: Assembly) -> None:
    replica, released = assembly.replica("a"), Deferred[None]()
    replica.leadership.observe(Note(lambda: released))
    handed = hand_on(assembly, "b")
    assembly.until(lambda: not replica.leading())
    assembly.hang_up("a", "b")
    released.callback(None)
    assert assembly.until(replica.leading) < CONFIRM / 2
    assert "b did not take over in time" in handed[0]
    assert not assembly.said(TimeoutNow)


@pytest.mark.parametrize("heard", ["b", "c"])
def test_word_of_the_first_claim_that_comes_late_deposes_nobody(assembly: Assembly, heard: str) -> None:
    """Delayed until the second claim leads: who has heard of that doesn't let go of its promise."""
    replica, words = assembly.replica("a"), list[TimeoutNow]()

    def delay(_sender: str, _receiver: str, message: RaftMessage) -> bool:
        if isinstance(message, TimeoutNow):
            words.append(message)
        return isinstance(message, TimeoutNow)

    assembly.loses = delay
    handed = hand_on(assembly, "b")
    assembly.until(lambda: handed)
    assembly.until(replica.leading)
    term = replica.term
    assembly.run(0.1)
    (word,) = words
    other = assembly.replica(heard)
    if heard == "b":
        other.inbox.received("a", word)
    else:
        other.inbox.received("b", RequestVote(term + 1, 1 << 20, term, word.secret))
    for _ in range(200):
        assembly.run(0.005)
        assert replica.leading()
        assert replica.term == term
    assert sum(other.status().counters.values()) == 1


def test_node_that_lags_isnt_handed_leadership_and_the_lease_goes_on(assembly: Assembly) -> None:
    replica = assembly.replica("a")
    claim = replica._lease.claim
    assembly.loses = lambda _sender, receiver, message: receiver == "b" and isinstance(message, AppendEntries)
    assembly.register("a", ["sip:alice@example.com"])
    handed = hand_on(assembly, "b")
    while not handed:
        assembly.run(0.01)
        assert replica.leading()
    assert "b did not take over in time" in handed[0]
    assert replica._lease.claim == claim
    assert not assembly.said(TimeoutNow)
    assembly.register("a", ["sip:bob@example.com"])


def test_node_that_hasnt_heard_of_the_present_claim_isnt_handed_leadership(assembly: Assembly) -> None:
    """It could not tell that this very claim has ended."""
    replica = assembly.replica("a")
    assembly.loses = lambda sender, _receiver, message: sender == "b" and isinstance(message, LeaseAck)
    replica.claim_ended()
    assembly.until(replica.leading)
    claim = replica._lease.claim
    handed = hand_on(assembly, "b")
    assembly.until(lambda: handed)
    assert "b did not take over in time" in handed[0]
    assert not assembly.said(TimeoutNow)
    assert (replica._lease.claim, replica.leading()) == (claim, True)


def test_drain_takes_no_longer_than_its_time(assembly: Assembly) -> None:
    assembly.loses = lambda sender, _receiver, message: sender == "b" and isinstance(message, AppendReply)
    assembly.register("a", ["sip:alice@example.com"])
    handed = hand_on(assembly, "b")
    assert assembly.until(lambda: handed) == pytest.approx(DRAIN, abs=0.05)


def test_another_that_is_elected_meanwhile_is_named(assembly: Assembly) -> None:
    replica = assembly.replica("a")
    handed = hand_on(assembly, "b")
    assembly.loses = lambda _sender, _receiver, message: isinstance(message, TimeoutNow)
    assembly.until(lambda: assembly.said(TimeoutNow))
    (go,) = assembly.said(TimeoutNow)
    assembly.replica("c").inbox.received("a", TimeoutNow(go.term, go.secret))
    assembly.until(assembly.replica("c").leading)
    assembly.until(lambda: handed)
    assert handed == ["c was elected instead of b"]
    assert not replica._handover.under_way


def test_leader_that_loses_its_majority_meanwhile_ends_the_transfer(assembly: Assembly) -> None:
    handed = hand_on(assembly, "b")
    assembly.silent = {"a"}
    outcomes = assembly.propose("a", register("sip:alice@example.com"))
    assembly.until(lambda: handed and outcomes)
    assert not assembly.replica("a")._handover.under_way
    assert not isinstance(outcomes[0], Registered)
    assembly.join()
    assembly.until(assembly.leader)
    assembly.until(assembly.agree)


@pytest.mark.parametrize(("to", "reason"), [("a", "a is no voter"), ("x", "x is no voter"), ("d", "d is no voter")])
def test_leadership_is_handed_to_another_voter_only(assembly: Assembly, to: str, reason: str) -> None:
    assembly.replica("a").membership.add("d", assembly.seat("d").address, lambda _: None)  # never comes: a learner
    assembly.run(0.1)
    handed = hand_on(assembly, to)
    assert len(handed) == 1
    assert reason in handed[0]
    assert assembly.replica("a").leading()
    assert not assembly.replica("a")._handover.under_way


def test_one_transfer_is_under_way_at_a_time(assembly: Assembly) -> None:
    first, second = hand_on(assembly, "b"), hand_on(assembly, "c")
    assert second == ["leadership is being handed to b already"]
    assembly.until(lambda: first)
    assert first == ["b"]


def test_follower_hands_nothing_on(assembly: Assembly) -> None:
    handed = outcome(assembly.replica("b").transfer("c"))
    assert handed == ["b doesn't lead"]


def test_nobody_is_there_to_be_handed_leadership(assembly: Assembly) -> None:
    for name in "bc":
        assembly.crash(name)
    assert hand_on(assembly, None) == ["no other voter is connected, up to date and well"]


# Who should lead


@pytest.fixture
def handover(ballot: Ballot) -> Handover:
    def unused(*_arguments: object) -> Any:
        raise AssertionError

    proposals = Proposals(lambda: ballot.now, unused, unused)
    return Handover(ballot.voters["a"], proposals, unused, Leadership(), unused, CONFIRM)


def test_higher_priority_leads_when_it_has_been_there_for_long(handover: Handover) -> None:
    assert handover.preferred({"b": 200, "c": 100}, 100, 0.0) is None
    assert handover.preferred({"b": 200, "c": 100}, 100, HOLD_DOWN - 0.01) is None
    assert handover.preferred({"b": 200, "c": 100}, 100, HOLD_DOWN) == "b"


def test_equal_and_lower_priorities_never_lead_instead(handover: Handover) -> None:
    for now in (0.0, HOLD_DOWN, 100 * HOLD_DOWN):
        assert handover.preferred({"b": 100, "c": 1, "d": 0}, 100, now) is None


def test_hold_down_begins_anew_when_the_node_was_away(handover: Handover) -> None:
    handover.preferred({"b": 200}, 100, 0.0)
    handover.preferred({}, 100, HOLD_DOWN - 1)
    assert handover.preferred({"b": 200}, 100, HOLD_DOWN) is None
    assert handover.preferred({"b": 200}, 100, 2 * HOLD_DOWN) == "b"


def test_hold_down_begins_anew_in_another_term(handover: Handover, ballot: Ballot) -> None:
    handover.preferred({"b": 200}, 100, 0.0)
    ballot.voters["a"].raft.step_down(7)
    assert handover.preferred({"b": 200}, 100, HOLD_DOWN) is None
    assert handover.preferred({"b": 200}, 100, 2 * HOLD_DOWN) == "b"


def test_highest_of_those_that_have_been_there_for_long_leads(handover: Handover) -> None:
    handover.preferred({"b": 200}, 100, 0.0)
    assert handover.preferred({"b": 200, "c": 300}, 100, HOLD_DOWN) == "b"
    assert handover.preferred({"b": 200, "c": 300}, 100, 2 * HOLD_DOWN) == "c"


def test_node_that_must_not_lead_hands_on_at_once(handover: Handover) -> None:
    assert handover.preferred({"b": 0, "c": 0}, 0, 0.0) is None
    assert handover.preferred({"b": 50, "c": 100}, 0, 0.0) == "c"


def test_unwell_leader_hands_on_at_once_to_who_is_well(handover: Handover) -> None:
    assert handover.preferred({"b": UNWELL, "c": 0}, UNWELL, 0.0) is None
    assert handover.preferred({"b": UNWELL, "c": 100}, UNWELL, 0.0) == "c"


def test_node_that_must_not_lead_hands_on_even_to_an_unwell_one(handover: Handover) -> None:
    assert handover.preferred({"b": UNWELL, "c": 0}, 0, 0.0) == "b"


def test_leader_hands_on_to_a_higher_priority_once_only(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("ab")
    assembly.elect("a")
    assembly.start("c", priority=200)
    began = assembly.clock.seconds()
    assembly.until(lambda: assembly.leader() == "c", limit=2 * HOLD_DOWN)
    assert HOLD_DOWN <= assembly.clock.seconds() - began < HOLD_DOWN + 2
    term = assembly.replica("c").term
    assembly.run(2 * HOLD_DOWN)
    assert (assembly.leader(), assembly.replica("c").term) == ("c", term)


def test_leader_stays_where_it_is_among_equals(assembly: Assembly) -> None:
    term = assembly.replica("a").term
    assembly.run(2 * HOLD_DOWN)
    assert (assembly.leader(), assembly.replica("a").term) == ("a", term)


def test_higher_priority_that_comes_and_goes_is_not_handed_leadership(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("ab")
    assembly.start("c", priority=200)
    assembly.elect("a")
    for _ in range(5):
        assembly.run(HOLD_DOWN * 0.6)
        assembly.sever("c")
        assembly.run(0.5)
        assembly.join()
    assert assembly.leader() == "a"


def test_higher_priority_that_lags_is_not_handed_leadership(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("ab")
    assembly.start("c", priority=200)
    assembly.elect("a")
    assembly.loses = lambda sender, _receiver, message: sender == "c" and isinstance(message, AppendReply)
    assembly.register("a", ["sip:alice@example.com"])
    assembly.run(HOLD_DOWN * 1.5)
    assert assembly.leader() == "a"
    assert not assembly.said(TimeoutNow)


def test_leader_whose_transfer_failed_tries_again_after_the_hold_down(assemble: Assemble) -> None:
    """Each try is a pause for the phones."""
    assembly = assemble()
    assembly.start("ab")
    assembly.start("c", priority=200)
    assembly.elect("a")
    assembly.loses = lambda _sender, _receiver, message: isinstance(message, TimeoutNow)
    assembly.run(1.9 * HOLD_DOWN)
    assert len(assembly.said(TimeoutNow)) == 1
    assembly.run(HOLD_DOWN)
    assert len(assembly.said(TimeoutNow)) == 2
    assert assembly.leader() == "a"


# A witness


def test_witness_leads_only_until_another_is_up_to_date(assemble: Assemble) -> None:
    """A and w commit; a dies; only w has it all: never to lead would wedge a majority that lives."""
    assembly = assemble("abw")
    assembly.start("ab")
    assembly.start("w", priority=0)
    assembly.elect("a")
    assembly.crash("b")
    assembly.register("a", ["sip:alice@example.com"])
    assembly.crash("a")
    assembly.start("b")
    witness, claimed = assembly.replica("w"), list[bool]()

    def look() -> bool:
        claimed.append(witness.leading() or witness.leadership.held)
        return assembly.leader() == "b"

    assembly.until(look)
    assert not any(claimed)
    assert assembly.replica("b").inbox.served_until == 0  # a witness serves nobody
    assert assembly.said(TimeoutNow, "w", "b")
    assert assembly.replica("b").lookup("sip:alice@example.com")


def test_witness_that_leads_alone_never_claims(assemble: Assemble) -> None:
    assembly = assemble("avw")
    assembly.start("vw", priority=0)
    assembly.until(lambda: any(replica._raft.leads for replica in assembly.running))
    for _ in range(300):
        assembly.run(0.01)
        assert assembly.leader() is None
        assert not any(replica.leadership.held for replica in assembly.running)
    (leading,) = [replica for replica in assembly.running if replica._raft.leads]
    assert leading._tenure.term
    assembly.sent.clear()
    assembly.start("a")
    assembly.until(assembly.replica("a").leading)


def test_witness_takes_no_records(assemble: Assemble) -> None:
    assembly = assemble("avw")
    assembly.start("vw", priority=0)
    assembly.until(lambda: any(replica._raft.leads for replica in assembly.running))
    assembly.run(0.5)
    (leading,) = [replica for replica in assembly.running if replica._raft.leads]
    outcomes = assembly.propose(leading.node, register("sip:alice@example.com"))
    assembly.until(lambda: outcomes)
    assert [type(each) for each in outcomes] == [NotLeader]
