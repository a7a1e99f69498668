"""Standby, preference and health: who leads, and who decides it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sipha.cluster.candidacy import CandidacyRefused
from sipha.cluster.handover import HOLD_DOWN, REST
from sipha.cluster.kinship import Kinship
from sipha.cluster.replica import Replica
from sipha.cluster.wire import AppendReply, Condition, Hello, PreVote, RaftMessage, TimeoutNow
from sipha.errors import NotLeader
from sipha.state.outcomes import Done
from tests.cluster.assembly import Assemble, Assembly, register
from tests.cluster.test_handover import hand_on, outcome


def put_in_standby(assembly: Assembly, name: str, *, force: bool = False) -> None:
    decide(assembly, "put_in_standby", name, force=force)


def bring_online(assembly: Assembly, name: str) -> None:
    decide(assembly, "bring_online", name)


def has_begun(replica: Replica) -> bool:
    """True if it leads, and its barrier is applied."""
    raft = replica._raft
    return replica.leads_log and raft.term_at(raft.applied_index) == raft.term


def decide(assembly: Assembly, verb: str, *words: str, **options: Any) -> None:
    """Have the leader decide something, and wait until all have heard of it."""
    outcomes: list[object] = []
    assembly.until(lambda: any(has_begun(replica) for replica in assembly.running))
    (leader,) = [replica for replica in assembly.running if replica.leads_log]
    getattr(leader.candidacy, verb)(*words, outcomes.append, **options)
    assembly.until(lambda: outcomes)
    assert isinstance(outcomes[0], Done)
    assembly.until(assembly.agree)


# Standby


def test_leader_that_is_put_in_standby_hands_on_and_serves_until_then(assembly: Assembly) -> None:
    replica, served = assembly.replica("a"), list[bool]()
    replica.candidacy.put_in_standby("a", lambda _: None)
    while not assembly.said(TimeoutNow):
        served.append(replica.leading())
        assembly.run(0.0005)
    assert all(served[:-1])
    assert len(served) > 3
    assert assembly.wait_for_leader() in {"b", "c"}


def test_leader_in_standby_that_nobody_relieves_serves_on(assembly: Assembly) -> None:
    """Its next try finds a claim of its own again."""
    assembly.loses = lambda _sender, _receiver, message: isinstance(message, TimeoutNow)
    put_in_standby(assembly, "a")
    assembly.until(lambda: assembly.said(TimeoutNow))
    assembly.until(assembly.replica("a").leading)
    assembly.loses = lambda _sender, _receiver, _message: False
    assembly.until(lambda: (assembly.leader() or "a") != "a")


def test_node_in_standby_is_passed_over(assembly: Assembly) -> None:
    put_in_standby(assembly, "b")
    handed = hand_on(assembly, None)
    assembly.until(lambda: handed)
    assert handed == ["c"]
    handed = outcome(assembly.replica("c").transfer("b"))
    assert handed == ["b is in standby"]


@pytest.mark.parametrize("seed", range(5))
def test_node_in_standby_stands_after_the_others(assembly: Assembly, seed: int) -> None:
    """So that the death of the leader isn't followed by two moves."""
    assembly.run(0.13 * seed)
    put_in_standby(assembly, "c")
    assembly.crash("a")
    assert assembly.wait_for_leader() == "b"
    assert not assembly.said(PreVote, "c")


def test_node_in_standby_leads_only_to_hand_on(assembly: Assembly) -> None:
    """It alone has all that is acknowledged."""
    put_in_standby(assembly, "b")
    assembly.crash("c")
    assembly.register("a", ["sip:alice@example.com"])
    assembly.crash("a")
    assembly.start("c")
    replica, claimed = assembly.replica("b"), list[bool]()

    def look() -> bool:
        claimed.append(replica.leading() or replica.leadership.held)
        return assembly.leader() == "c"

    assembly.until(look)
    assert not any(claimed)
    assert assembly.replica("c").lookup("sip:alice@example.com")


def test_standby_outlives_restarts(assembly: Assembly) -> None:
    put_in_standby(assembly, "c")
    for name in "abc":
        assembly.stop(name)
    assembly.start("abc")
    assert assembly.wait_for_leader() in {"a", "b"}
    assembly.stop(assembly.wait_for_leader())
    assert assembly.wait_for_leader() in {"a", "b"}
    assembly.until(lambda: assembly.replica("c").candidacy.in_standby("c"))


def test_the_last_that_could_lead_is_not_put_in_standby(assembly: Assembly) -> None:
    put_in_standby(assembly, "b")
    assembly.crash("c")
    assembly.run(0.1)
    with pytest.raises(
        CandidacyRefused, match=r"without a no node could lead: b is in standby; c isn't connected; --force does"
    ):
        put_in_standby(assembly, "a")
    assert assembly.replica("a").leading()


def test_node_that_lags_doesnt_count_as_one_that_could_lead(assemble: Assemble) -> None:
    assembly = assemble("abw")
    assembly.start("ab")
    assembly.start("w", priority=0)
    assembly.elect("a")
    assembly.loses = lambda _sender, receiver, message: receiver == "b" and hasattr(message, "entries")
    assembly.register("a", ["sip:alice@example.com"])
    assembly.run(1.0)
    with pytest.raises(CandidacyRefused, match="b isn't up to date; w is a witness"):
        put_in_standby(assembly, "a")


def test_two_are_not_put_in_standby_at_once(assembly: Assembly) -> None:
    """The second hears of the first before that is in the log."""
    candidacy, outcomes = assembly.replica("a").candidacy, list[object]()
    assembly.crash("c")
    candidacy.put_in_standby("b", outcomes.append)
    with pytest.raises(CandidacyRefused, match="b is in standby"):
        candidacy.put_in_standby("a", outcomes.append)
    assembly.until(lambda: outcomes)
    with pytest.raises(CandidacyRefused, match="b is in standby"):
        candidacy.put_in_standby("a", outcomes.append)
    bring_online(assembly, "b")
    candidacy.put_in_standby("a", outcomes.append)
    assembly.until(lambda: assembly.leader() == "b")


def test_nothing_is_decided_while_leadership_is_handed_on_or_by_a_follower(assembly: Assembly) -> None:
    handed = hand_on(assembly, "b")
    for name in "ab":
        with pytest.raises(NotLeader):
            assembly.replica(name).candidacy.put_in_standby("c", lambda _: None)
    assembly.until(lambda: handed)


def test_all_in_standby_by_force_serve_nobody_until_one_is_brought_back(assembly: Assembly) -> None:
    for name in "cba":
        put_in_standby(assembly, name, force=True)
    assembly.run(5.0)
    assert assembly.leader() is None
    (alarm,) = [alarm for replica in assembly.running for alarm in replica.status().alarms]
    assert alarm.startswith(
        "no node may serve phones: a is in standby; b is in standby; c is in standby; siphactl online"
    )
    bring_online(assembly, "b")
    assembly.until(lambda: assembly.leader() == "b")
    assert not any(replica.status().alarms for replica in assembly.running)


def test_leader_says_that_those_in_standby_are_the_only_ones_left(assembly: Assembly) -> None:
    for name in "ab":
        put_in_standby(assembly, name)
    assembly.until(lambda: assembly.leader() == "c")
    assembly.crash("c")
    assembly.until(lambda: any(replica.status().alarms for replica in assembly.running))
    (alarm,) = [alarm for replica in assembly.running for alarm in replica.status().alarms]
    assert alarm.startswith("no node may serve phones: a is in standby; b is in standby; c isn't connected; ")
    assembly.run(5.0)
    assert assembly.leader() is None
    assembly.start("c")
    assembly.until(lambda: assembly.leader() == "c")
    assert not any(replica.status().alarms for replica in assembly.running)


def test_stranger_is_neither_put_in_standby_nor_preferred(assembly: Assembly) -> None:
    candidacy = assembly.replica("a").candidacy
    with pytest.raises(CandidacyRefused, match="x is no member"):
        candidacy.put_in_standby("x", lambda _: None, force=True)
    with pytest.raises(CandidacyRefused, match="x is no member"):
        candidacy.bring_online("x", lambda _: None)
    with pytest.raises(CandidacyRefused, match="x is no member"):
        candidacy.prefer("x", lambda _: None)


# Preference


def test_preferred_node_is_handed_leadership_once_it_has_been_there_for_long(assembly: Assembly) -> None:
    began = assembly.clock.seconds()
    decide(assembly, "prefer", "c")
    assembly.until(lambda: assembly.leader() == "c", limit=2 * HOLD_DOWN)
    assert HOLD_DOWN <= assembly.clock.seconds() - began < HOLD_DOWN + 1
    term = assembly.replica("c").term
    assembly.run(2 * HOLD_DOWN)
    assert (assembly.leader(), assembly.replica("c").term) == ("c", term)


def test_preference_ends_when_nobody_is_preferred(assembly: Assembly) -> None:
    decide(assembly, "prefer", "c")
    decide(assembly, "prefer", "")
    assembly.run(2 * HOLD_DOWN)
    assert assembly.leader() == "a"


def test_preferred_node_is_handed_leadership_although_it_is_always_a_little_behind(assembly: Assembly) -> None:
    """As the slower of two followers is under load."""
    decide(assembly, "prefer", "c")
    assembly.loses = lambda sender, _receiver, message: (
        sender == "c" and isinstance(message, AppendReply) and assembly.clock.seconds() % 0.2 > 0.05
    )
    began, number = assembly.clock.seconds(), 0
    while assembly.clock.seconds() < began + HOLD_DOWN - 1:
        number += 1
        assembly.propose("a", register(f"sip:{number}@example.com"))
        assembly.run(0.05)
    assembly.loses = lambda _sender, _receiver, _message: False
    assert assembly.until(lambda: assembly.leader() == "c") < 3


def test_witness_is_not_preferred(assemble: Assemble) -> None:
    assembly = assemble("abw")
    assembly.start("ab")
    assembly.start("w", priority=0)
    assembly.elect("a")
    with pytest.raises(CandidacyRefused, match="w is a witness"):
        decide(assembly, "prefer", "w")


def test_preferred_node_that_dies_again_and_again_is_not_handed_leadership_each_time(assembly: Assembly) -> None:
    decide(assembly, "prefer", "c")
    decide(assembly, "put_in_standby", "b")  # so that a alone takes over each time
    took_over: list[float] = []
    for _ in range(3):
        assembly.until(lambda: assembly.leader() == "c", limit=2 * REST)
        took_over.append(assembly.clock.seconds())
        assembly.crash("c")
        assembly.until(lambda: assembly.leader() == "a")
        assembly.start("c")
    first, second, third = took_over
    assert second - first >= REST
    assert third - second >= REST


# Health


def test_unwell_leader_hands_on_at_once_and_says_why(assembly: Assembly) -> None:
    assembly.replica("a").report("the link of eth0 is down")
    took = assembly.until(lambda: (assembly.leader() or "a") != "a")
    assert took < 0.2
    assert assembly.replica("a").status().alarms == (
        "this node is unwell, and leads only if no other can: the link of eth0 is down",
    )
    conditions = assembly.said(Condition, "a", assembly.leader())
    assert Condition("the link of eth0 is down", "it is unwell: the link of eth0 is down") in conditions


def test_leadership_is_handed_to_no_unwell_node(assembly: Assembly) -> None:
    assembly.replica("b").report("it was held up for 2 s")
    assembly.run(0.1)
    assembly.replica("a").report("the link of eth0 is down")
    assembly.until(lambda: (assembly.leader() or "a") != "a")
    assert assembly.leader() == "c"
    handed = outcome(assembly.replica("c").transfer("b"))
    assert handed == ["b is unwell: it was held up for 2 s"]


def test_leader_that_is_well_hands_on_to_no_unwell_node_unless_it_should_not_lead(assembly: Assembly) -> None:
    for name in "bc":
        assembly.replica(name).report("the link of eth0 is down")
    assembly.run(0.1)
    assert hand_on(assembly, None) == ["no other voter is connected, up to date and well"]
    put_in_standby(assembly, "a", force=True)
    assembly.until(lambda: (assembly.leader() or "a") != "a")


def test_leader_stays_if_all_are_unwell_and_yields_to_the_first_that_is_well(assembly: Assembly) -> None:
    for name in "cba":
        assembly.replica(name).report("the link of eth0 is down")
    for _ in range(100):
        assembly.run(0.05)
        assert assembly.leader() == "a"
    assembly.replica("c").report("")
    assert assembly.until(lambda: assembly.leader() == "c") < 0.5


def test_unwell_node_leads_if_no_other_can(assembly: Assembly) -> None:
    assembly.crash("c")
    assembly.replica("b").report("the link of eth0 is down")
    assembly.run(0.1)
    assembly.crash("a")
    assembly.start("c")
    put_aside = assembly.replica("c")
    put_aside.report("it was held up for 2 s")
    assembly.wait_for_leader()


def test_node_says_that_it_is_unwell_to_who_connects_later(assembly: Assembly) -> None:
    assembly.crash("b")
    assembly.replica("a").report("the link of eth0 is down")
    assembly.start("b")
    assembly.until(lambda: "a" in assembly.replica("b")._kinship.kin)
    assert assembly.replica("b")._kinship.trouble("a") == "the link of eth0 is down"


@pytest.mark.interpreted
def test_earlier_release_is_not_sent_what_it_doesnt_know(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    introduce = Kinship.introduce

    def say_hello(kinship: Kinship) -> Hello:
        hello = introduce(kinship)
        return msgspec.structs.replace(hello, trouble=None) if hello.node == "b" else hello

    monkeypatch.setattr(Kinship, "introduce", say_hello)
    assembly.stop("b")
    assembly.start("b")
    assembly.until(lambda: "b" in assembly.replica("a")._kinship.kin)
    assembly.sent.clear()
    assembly.replica("a").report("the link of eth0 is down")
    assembly.run(0.1)
    assert assembly.said(Condition, "a", "c")
    assert not assembly.said(Condition, receiver="b")
    assert assembly.replica("a")._kinship.trouble("b") == ""


def test_longest_trouble_fits_into_a_hello(assembly: Assembly) -> None:
    assembly.replica("b").report("\N{SNOWMAN}" * 1000)
    assembly.run(0.1)
    heard: RaftMessage = assembly.said(Condition, "b", "a")[-1]
    assert heard == Condition("?" * 160)
