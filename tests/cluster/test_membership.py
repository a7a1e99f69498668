from __future__ import annotations

from typing import Any

import pytest

from sipha.cluster import journal
from sipha.cluster.guards import MEMBERSHIP
from sipha.cluster.membership import MembershipRefused, address_of
from sipha.cluster.wire import AppendEntries, AppendReply, LeaseAck, PreVote, RequestVote, TimeoutNow
from sipha.state.entries import SCHEMA, Batch, Member, Policy, PutMembers, encode
from tests.cluster.assembly import Assemble, Assembly


def roles(assembly: Assembly, name: str) -> dict[str, str]:
    """The members as a node knows them."""
    return {member.name: member.role for member in assembly.replica(name).membership.members}


def add(assembly: Assembly, name: str, at: str = "a") -> list[Any]:
    """Make a node a member; what is returned fills when that is committed."""
    done: list[Any] = []
    assembly.replica(at).membership.add(name, assembly.seat(name).address, done.append)
    return done


def remove(assembly: Assembly, name: str, at: str = "a") -> list[Any]:
    done: list[Any] = []
    assembly.replica(at).membership.remove(name, done.append)
    return done


def quiet(assembly: Assembly, *names: str) -> None:
    """Let what these nodes acknowledge be lost: entries reach them, and nobody knows."""
    assembly.loses = lambda sender, _receiver, message: sender in names and isinstance(message, AppendReply)


VOTERS = dict.fromkeys("abc", "voter")


# A node is added


def test_node_is_a_learner_first_and_a_voter_when_it_has_the_log(assembly: Assembly) -> None:
    assembly.register("a", [f"sip:{number}@example.com" for number in range(20)])
    done, seen = add(assembly, "d"), list[dict[str, str]]()
    assembly.start("d")

    def look() -> bool:
        now = roles(assembly, "a")
        if not seen or seen[-1] != now:
            seen.append(now)
        return now == VOTERS | {"d": "voter"}

    assembly.until(look)
    assert done
    assert seen[-2:] == [VOTERS | {"d": "learner"}, VOTERS | {"d": "voter"}]
    assembly.until(assembly.agree)
    for name in "abcd":
        assembly.until(lambda name=name: roles(assembly, name) == VOTERS | {"d": "voter"})  # type: ignore[misc]
    assert assembly.replica("d").lookup("sip:19@example.com")
    assert assembly.replica("d").status().memory == "whole"


def test_learner_waits_until_it_has_all_that_is_committed(assembly: Assembly) -> None:
    assembly.register("a", ["sip:alice@example.com"])
    add(assembly, "d")
    quiet(assembly, "d")
    assembly.start("d")
    assembly.run(3.0)
    assert roles(assembly, "a") == VOTERS | {"d": "learner"}
    assert assembly.replica("d").status().role == "learner"
    quiet(assembly)
    assembly.until(lambda: roles(assembly, "a")["d"] == "voter")


def test_learner_that_isnt_there_waits(assembly: Assembly) -> None:
    add(assembly, "d")
    assembly.run(5.0)
    assert roles(assembly, "a") == VOTERS | {"d": "learner"}
    assert assembly.leader() == "a"


def test_learner_holds_up_no_lease(assembly: Assembly) -> None:
    add(assembly, "d")
    quiet(assembly, "d")
    assembly.start("d")
    assembly.run(1.0)
    for name in "bc":
        assembly.crash(name)
    assembly.run(0.5)
    assert assembly.replica("a")._raft.leads
    assert assembly.said(LeaseAck, "d")
    assert assembly.leader() is None


def test_learner_neither_votes_nor_stands(assembly: Assembly) -> None:
    add(assembly, "d")
    quiet(assembly, "d")
    assembly.start("d")
    assembly.run(1.0)
    for name in "abc":
        assembly.crash(name)
    assembly.start("a")
    assembly.sent.clear()
    assembly.run(5.0)
    assert assembly.leader() is None
    assert not assembly.said(PreVote, "d")
    assert not assembly.said(RequestVote, "d")


def test_node_that_wishes_not_to_lead_becomes_a_witness(assembly: Assembly) -> None:
    add(assembly, "w")
    assembly.start("w", priority=0)
    assembly.until(lambda: roles(assembly, "a").get("w") == "witness")
    assembly.run(0.1)
    assert "w" in assembly.replica("a").membership.voters
    assert assembly.replica("w").status().role == "follower"


def test_new_voter_is_needed_at_once(assemble: Assemble) -> None:
    """From its entry on, committed or not; the entry itself needs the new majority."""
    assembly = assemble("a")
    assembly.start("a")
    assembly.until(lambda: assembly.leader() == "a")
    add(assembly, "b")
    assembly.start("b")
    assembly.until(lambda: roles(assembly, "a").get("b") == "voter")
    replica = assembly.replica("a")
    index = replica._raft.last_index
    assert replica._raft.commit_index < index
    assert replica._voter.others == {"b"}
    assembly.crash("b")
    assembly.run(0.5)
    assert replica._raft.commit_index < index
    assert assembly.leader() is None, "the lease needs b, too"
    assembly.start("b")
    assembly.until(assembly.leader)
    assembly.until(assembly.agree)


def test_cluster_grows_from_one_to_five(assemble: Assemble) -> None:
    assembly = assemble("a")
    assembly.start("a")
    assembly.until(lambda: assembly.leader() == "a")
    for name in "bcde":
        assembly.register("a", [f"sip:{name}@example.com"])
        done = add(assembly, name)
        assembly.start(name)
        assembly.until(lambda name=name: roles(assembly, "a").get(name) == "voter")  # type: ignore[misc]
        assembly.run(0.1)
        assert done
    for name in "ab":
        assembly.crash(name)
    assembly.register(assembly.wait_for_leader(), ["sip:last@example.com"])
    assembly.until(assembly.agree)
    assert all(replica.lookup("sip:b@example.com") for replica in assembly.running)


# A node is removed


def test_removed_node_is_no_member_and_the_others_go_on(assembly: Assembly) -> None:
    done = remove(assembly, "c")
    assembly.until(lambda: done)
    assembly.run(0.2)
    for name in "ab":
        assert roles(assembly, name) == {"a": "voter", "b": "voter"}
        assert "c" not in assembly.seats[name].line.hellos
    assert assembly.leader() == "a"
    assembly.crash("c")
    assembly.register("a", ["sip:alice@example.com"])
    assembly.crash("b")
    assembly.run(1.0)
    assert assembly.leader() is None, "the majority of two is two"


def test_fewer_are_needed_at_once(assembly: Assembly) -> None:
    assembly.crash("c")
    quiet(assembly, "b")
    remove(assembly, "c")
    assembly.run(0.05)
    replica = assembly.replica("a")
    assert replica._raft.commit_index < replica._raft.last_index
    assert replica._voter.others == {"b"}
    assert replica._lease._others == {"b"}


def test_removed_node_disturbs_nobody(assembly: Assembly) -> None:
    remove(assembly, "c")
    assembly.run(0.2)
    term = assembly.replica("a").term
    assembly.sent.clear()
    for _ in range(100):
        assembly.run(0.1)
        assert assembly.leader() == "a"
    assert assembly.replica("a").term == term
    assert not assembly.said(RequestVote)


def test_node_that_hears_of_its_removal_doesnt_stand(assembly: Assembly) -> None:
    replica, node = assembly.replica("a"), assembly.replica("c")
    rest = tuple(member for member in replica.membership.members if member.name != "c")
    command = bytes([MEMBERSHIP]) + encode(Batch(SCHEMA, 0, Policy(), (PutMembers(rest),)))
    raft = replica._raft
    entry = (command, raft.last_index + 1, raft.term)
    node.inbox.received(
        "a",
        AppendEntries(raft.term, 0, raft.last_index, raft.last_term, [entry], 0, 200, 0, 1, b"commitment", False),
    )
    assert roles(assembly, "c") == {"a": "voter", "b": "voter"}
    assembly.crash("a")
    assembly.sent.clear()
    assembly.run(5.0)
    assert not assembly.said(PreVote, "c")
    assert assembly.said(PreVote, "b", "c")
    assert "this node is no member of the cluster any more" in node.status().alarms


def test_node_that_was_removed_may_be_added_again(assembly: Assembly) -> None:
    remove(assembly, "c")
    assembly.run(0.2)
    assembly.wipe("c")
    assembly.register("a", ["sip:alice@example.com"])
    add(assembly, "c")
    assembly.start("c")
    assembly.until(lambda: roles(assembly, "a") == VOTERS)
    assembly.until(assembly.agree)


def test_learner_may_be_removed_whoever_is_down(assembly: Assembly) -> None:
    add(assembly, "d")
    assembly.run(0.1)
    assembly.crash("c")
    done = remove(assembly, "d")
    assembly.until(lambda: done)
    assembly.run(0.1)
    assert roles(assembly, "b") == VOTERS


# Refusals


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [
        ("b", "192.0.2.200:5070", "b is a member already"),
        ("d", "192.0.2.98:5070", "192.0.2.98:5070 is the address of b"),
        ("no name", "192.0.2.200:5070", "'no name'"),
        ("d" * 65, "192.0.2.200:5070", "d" * 65),
        ("d", "nonsense", "'nonsense' is not an IP address and a port"),
        ("d", "example.com:5070", "not an IP address"),
        ("d", "192.0.2.100:0", "not an IP address and a port"),
        ("d", "192.0.2.100:65536", "not an IP address and a port"),
        ("d", "192.0.2.100", "not an IP address and a port"),
        ("d", ":5070", "not an IP address and a port"),
    ],
)
def test_node_that_cant_be_a_member_is_refused(assembly: Assembly, name: str, address: str, reason: str) -> None:
    last = assembly.replica("a")._raft.last_index
    with pytest.raises(MembershipRefused, match=reason):
        assembly.replica("a").membership.add(name, address, lambda _: None)
    assembly.run(0.1)
    assert assembly.replica("a")._raft.last_index == last
    assert roles(assembly, "a") == VOTERS


@pytest.mark.parametrize(("name", "reason"), [("x", "x is no member"), ("a", "a leads the cluster; hand leadership")])
def test_node_that_cant_be_removed_is_refused(assembly: Assembly, name: str, reason: str) -> None:
    with pytest.raises(MembershipRefused, match=reason):
        remove(assembly, name)


@pytest.mark.parametrize("seconds", [0.0, 0.02, 1.0, 30.0])
def test_removal_is_refused_if_the_others_could_not_decide(assembly: Assembly, seconds: float) -> None:
    """Also if nothing was committed since the other one died, so that it has all."""
    assembly.run(0.2)
    assembly.crash("c")
    assembly.run(seconds)
    with pytest.raises(MembershipRefused, match="without b only 1 of the 2 voters would be there to decide"):
        remove(assembly, "b")
    done = remove(assembly, "c")
    assembly.until(lambda: done)
    assert assembly.leader() == "a"


def test_removal_is_refused_while_the_others_lag(assembly: Assembly) -> None:
    quiet(assembly, "c")
    assembly.register("a", ["sip:alice@example.com"])
    assembly.run(2.0)  # some entry is always on its way; this one is late
    with pytest.raises(MembershipRefused, match="without b only 1 of the 2"):
        remove(assembly, "b")
    quiet(assembly)
    assembly.run(0.2)
    assert remove(assembly, "b") == []
    assembly.run(0.2)
    assert roles(assembly, "c") == {"a": "voter", "c": "voter"}


def test_one_change_is_under_way_at_a_time(assembly: Assembly) -> None:
    """Of two that overlap, majorities without a node in common could each commit one."""
    quiet(assembly, "b", "c")
    add(assembly, "d")
    assembly.run(0.01)
    for change in (add, remove):
        with pytest.raises(MembershipRefused, match="another change of the members is not finished yet"):
            change(assembly, "e" if change is add else "c")
    quiet(assembly)
    assembly.run(0.2)
    assert add(assembly, "e") == []
    assembly.run(0.2)
    assert roles(assembly, "b") == VOTERS | {"d": "learner", "e": "learner"}


def test_two_changes_in_one_turn_are_one_too_many(assembly: Assembly) -> None:
    add(assembly, "d")
    with pytest.raises(MembershipRefused, match="another change of the members is not finished yet"):
        add(assembly, "e")


def test_members_dont_change_before_something_of_the_leaders_term_is_committed(assembly: Assembly) -> None:
    """Raft §6, as corrected: a change that an earlier leader has left may be committed yet."""
    replica = assembly.replica("b")
    assembly.replica("a").transfer("b")
    assembly.until(lambda: assembly.said(TimeoutNow))
    quiet(assembly, "a", "c")
    assembly.until(lambda: replica._raft.leads)
    assembly.run(0.02)
    with pytest.raises(MembershipRefused, match="not finished yet"):
        add(assembly, "d", at="b")
    quiet(assembly)
    assembly.until(replica.leading)
    add(assembly, "d", at="b")


def test_change_is_refused_by_who_doesnt_lead(assembly: Assembly) -> None:
    """The library would never say what became of it."""
    for change in (add, remove):
        with pytest.raises(MembershipRefused):
            change(assembly, "d" if change is add else "c", at="b")


def test_members_dont_change_while_an_earlier_release_takes_part(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly.replica("a").machine, "schema", 1)
    with pytest.raises(MembershipRefused, match="a node of an earlier release is in the cluster"):
        add(assembly, "d")


def test_node_that_is_behind_hears_a_leader_that_it_doesnt_know(assembly: Assembly) -> None:
    """It was added after what the node has of the log."""
    assembly.crash("c")
    add(assembly, "d")
    assembly.start("d")
    assembly.until(lambda: roles(assembly, "a").get("d") == "voter")
    assembly.run(0.5)
    assembly.replica("a").transfer("d")
    assembly.until(assembly.replica("d").leading)
    assembly.register("d", ["sip:alice@example.com"])
    assembly.start("c")
    assert "d" not in roles(assembly, "c")
    assembly.until(lambda: roles(assembly, "c") == VOTERS | {"d": "voter"})
    assembly.until(assembly.agree)


# The latest entry in the log says it, committed or not


def test_cut_off_entry_brings_the_earlier_members_back(assembly: Assembly) -> None:
    assembly.silent = {"a"}
    add(assembly, "d")
    assembly.run(0.05)
    assert roles(assembly, "a") == VOTERS | {"d": "learner"}
    assert "d" in assembly.seats["a"].line.peers
    assembly.until(lambda: assembly.leader() in {"b", "c"})
    assembly.join()
    assembly.until(lambda: roles(assembly, "a") == VOTERS)
    assert "d" not in assembly.seats["a"].line.peers
    assembly.until(assembly.agree)
    assert assembly.replica("a")._voter.others == {"b", "c"}


@pytest.mark.parametrize("leader", ["b", "c"])
def test_cut_off_removal_brings_the_member_back(assembly: Assembly, leader: str) -> None:
    """Also if it is the removed one that leads; and what needs a majority needs it again."""
    assembly.silent = {"a"}
    remove(assembly, "c")
    assembly.run(0.05)
    assert assembly.replica("a")._voter.others == {"b"}
    other = assembly.replica("b" if leader == "c" else "c")
    other._raft.put_election(assembly.clock.seconds() + 5)
    assembly.until(assembly.replica(leader).leading)
    assembly.join()
    assembly.until(lambda: roles(assembly, "a") == VOTERS)
    assert assembly.replica("a")._voter.others == {"b", "c"}
    assembly.until(assembly.agree)


def test_entry_counts_after_a_restart_though_it_isnt_committed(assembly: Assembly) -> None:
    assembly.silent = {"a"}
    add(assembly, "d")
    assembly.run(0.05)
    assembly.crash("a", power_lost=True)
    assembly.start("a")
    assert roles(assembly, "a") == VOTERS | {"d": "learner"}
    assembly.until(lambda: assembly.leader() in {"b", "c"})
    assembly.join()
    assembly.until(lambda: roles(assembly, "a") == VOTERS)


def test_restart_keeps_the_members(assembly: Assembly) -> None:
    add(assembly, "d")
    assembly.start("d")
    assembly.until(lambda: roles(assembly, "a").get("d") == "voter")
    assembly.run(0.2)
    for name in "abcd":
        assembly.crash(name, power_lost=True)
    assembly.start("d")
    assert roles(assembly, "d") == VOTERS | {"d": "voter"}
    assert set(assembly.seats["d"].line.peers) == {"a", "b", "c"}
    assembly.start("ac")
    assembly.until(assembly.leader)


def test_snapshot_keeps_the_members_when_their_entry_is_gone_from_the_log(
    assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    assembly = assemble()
    assembly.start("abc", log_limit=8192)
    assembly.elect("a")
    add(assembly, "d")
    assembly.start("d", log_limit=8192)
    assembly.until(lambda: roles(assembly, "a").get("d") == "voter")
    assembly.register("a", [f"sip:{number}@example.com" for number in range(200)])
    assembly.until(lambda: all(replica._journal.membership is None for replica in assembly.running))
    members = VOTERS | {"d": "voter"}
    assert all(roles(assembly, name) == members for name in "abcd")
    for name in "abcd":
        assembly.crash(name, power_lost=True)
    for name in "abcd":
        assembly.start(name)
        assert roles(assembly, name) == members
        assert assembly.replica(name)._voter.others == set(members) - {name}
    assembly.until(assembly.leader)
    assembly.until(assembly.agree)


def test_node_that_is_sent_a_snapshot_knows_the_members_of_it(
    assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    assembly = assemble()
    assembly.start("abc", log_limit=8192)
    assembly.elect("a")
    assembly.crash("c")
    add(assembly, "d")
    assembly.start("d", log_limit=8192)
    assembly.until(lambda: roles(assembly, "a").get("d") == "voter")
    assembly.register("a", [f"sip:{number}@example.com" for number in range(200)])
    assembly.until(lambda: assembly.replica("a")._raft.first_index > 100)
    assembly.start("c")
    line = assembly.seats["c"].line
    assembly.until(lambda: roles(assembly, "c") == VOTERS | {"d": "voter"})
    assert all("a" in peers for peers in line.talked_to), "it has never hung up on who sends it"
    assembly.until(assembly.agree)


# How it is reached


def test_address_is_of_either_family() -> None:
    assert address_of(Member("a", "192.0.2.1:7000", "voter")) == ("192.0.2.1", 7000)
    assert address_of(Member("b", "[2001:db8::1]:7000", "witness")) == ("2001:db8::1", 7000)
