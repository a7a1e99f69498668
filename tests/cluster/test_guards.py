from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipha.cluster import guards
from sipha.cluster.guards import MEMBERSHIP, DivergedError, Verified, check_entries, members_of, verify
from sipha.cluster.wire import AppendEntries, AppendReply, Entry, ProtocolError
from sipha.state.entries import SCHEMA, Barrier, Batch, Member, Policy, PutMembers, Record, encode
from tests.cluster.ballot import Ballot
from tests.cluster.ballot import append as message

OFF = [False, pytest.param(True, marks=pytest.mark.interpreted)]
MEMBERS = (Member("a", "192.0.2.1:7000", "voter"), Member("b", "[2001:db8::1]:7000", "witness"))


def entry(kind: int, *records: Record) -> bytes:
    return bytes([kind]) + encode(Batch(SCHEMA, 0, Policy(), records))


class ListLog:
    """A log that begins with entry `first_index`, the base, whose term is `terms[0]`."""

    def __init__(self, terms: list[int], commit_index: int = 0, first_index: int = 1) -> None:
        self.terms = terms
        self.commit_index = commit_index
        self.first_index = first_index

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.terms) - 1

    def term_at(self, index: int) -> int | None:
        return self.terms[index - self.first_index] if self.first_index <= index <= self.last_index else None


def append(prev: int, prev_term: int, terms: list[int], *, commit: int = 0, term: int = 9) -> AppendEntries:
    entries = [(b"\0", prev + offset, of) for offset, of in enumerate(terms, 1)]
    return message(term, prev, prev_term, entries, commit=commit)


def library(log: ListLog, message: AppendEntries) -> list[int]:
    """What PySyncObj makes of a log: everything after the previous entry is deleted, then the entries are added."""
    assert message.prev_index is not None
    if log.term_at(message.prev_index) != message.prev_term:
        return log.terms
    return log.terms[: message.prev_index - log.first_index + 1] + [term for _, _, term in message.entries]


def switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "verify", lambda message, _log: Verified(message))


@pytest.mark.parametrize("off", OFF)
def test_follower_keeps_entries_that_a_majority_was_counted_to_hold(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch, *, off: bool
) -> None:
    """F1: of two requests to go back, the second makes the leader send again, in pieces; then the leader dies."""
    if off:
        switch_off(monkeypatch)
    leader, follower = ballot.elect("a"), ballot.voters["b"]
    start = follower.raft.last_index
    entries = [bytes([number]) * 20_000 for number in range(60)]  # three messages
    ballot.append("a", *entries)
    leader.tick()
    ballot.queues["a", "c"].clear()  # c hears nothing
    for _ in range(60):
        ballot.deliver("a", "b")
        follower.tick()
        ballot.now += 0.001
        ballot.deliver("b", "a")
        leader.tick()
    assert [entry for _, entry in ballot.answers] == entries  # committed by a and b: answered
    ballot.queues["a", "b"].clear()
    sent = int(ballot.now * 1_000_000)
    leader.receive("b", AppendReply(leader.raft.term, start + 1, reset=True, success=False, sent=sent))
    leader.tick()
    ballot.deliver("a", "b", 1)
    ballot.crash("a")
    ballot.elect("b", ["b", "c"])
    ballot.settle(["b", "c"], rounds=60)
    lost = [entry for entry in entries if entry not in ballot.tables["b"]]
    assert bool(lost) is off


@pytest.mark.interpreted
@pytest.mark.parametrize("off", [False, True])
def test_follower_that_crashes_amid_a_conflict_keeps_what_matched(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch, *, off: bool
) -> None:
    """F1 with a conflict: what matches must not be deleted to be added again."""
    if off:
        switch_off(monkeypatch)
    ballot.elect("a")
    ballot.append("a", b"one", b"two")
    ballot.settle()
    follower = ballot.voters["b"]
    held = follower.raft.last_index
    ballot.append("a", b"only at a and b")
    ballot.voters["a"].tick()
    ballot.queues["a", "c"].clear()
    ballot.deliver("a", "b")
    follower.tick()
    ballot.now += 0.001
    assert ballot.journals["b"].durable == held + 1
    ballot.crash("a")
    follower.raft.put_election(ballot.now + 99)
    term = follower.raft.term
    old, new = [(b"\0one", held - 1, term), (b"\0two", held, term)], (b"\0other", held + 1, term + 1)

    def crash(*_entry: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ballot.journals["b"], "add", crash)
    with pytest.raises(KeyboardInterrupt):
        follower.receive("c", message(term + 1, held - 2, follower.raft.term_at(held - 2), [*old, new]))
    ballot.now += 0.001
    ballot.crash("b", power_lost=True)
    lost = ballot.boot("b").raft.last_index < held
    assert lost is off


@pytest.mark.parametrize("off", OFF)
def test_deposed_leader_does_not_commit_its_own_tail(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch, *, off: bool
) -> None:
    """F3: a message that follows no entry says nothing of what the receiver's log holds."""
    if off:
        switch_off(monkeypatch)
    deposed = ballot.elect("a")
    ballot.append("a", b"never committed")
    deposed.tick()
    deposed.receive("b", message(deposed.raft.term + 1, None, None, commit=50))
    deposed.tick()
    assert bool(ballot.answers) is off
    assert (ballot.tables["a"] == [b"never committed"]) is off


@pytest.mark.parametrize("off", OFF)
def test_heartbeat_does_not_commit_a_tail_that_it_has_not_verified(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch, *, off: bool
) -> None:
    if off:
        switch_off(monkeypatch)
    ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    follower = ballot.voters["b"]
    last = follower.raft.last_index
    ballot.append("a", b"only at a and b")
    ballot.voters["a"].tick()
    ballot.deliver("a", "b")
    term = follower.raft.term
    # c leads the next term with an entry of its own in that place, of which b doesn't know yet.
    follower.receive("c", message(term + 1, last, term, commit=last + 1))
    follower.tick()
    assert (follower.raft.commit_index > last or follower.raft.last_index == last) is off


TERMS = st.lists(st.integers(1, 4), max_size=12).map(sorted)


@given(TERMS, st.integers(1, 6), st.data())
def test_verified_message_gives_the_log_that_raft_asks_for(terms: list[int], first: int, data: st.DataObject) -> None:
    """Whatever comes, the library ends with the log that Raft asks for, and deletes nothing to add it again."""
    base = data.draw(st.integers(0, terms[0] if terms else 4))
    log = ListLog([base, *terms], first, first)
    prev = data.draw(st.integers(first, log.last_index + 1))
    prev_term = data.draw(st.sampled_from([log.term_at(prev) or 0, 1, 5])) if prev > first else base
    entries = data.draw(st.lists(st.integers(max(prev_term, 1), 5), max_size=6).map(sorted))
    append_message = append(prev, prev_term, entries, commit=data.draw(st.integers(0, 20)))
    expected = list(log.terms)
    if log.term_at(prev) == prev_term:
        for index, term in enumerate(entries, prev + 1):
            if log.term_at(index) != term:
                expected = log.terms[: prev - first + 1] + entries
                break
    verified, matched = verify(append_message, log)
    assert library(log, verified) == expected
    assert verified.prev_index is not None
    if log.term_at(prev) == prev_term:
        end = prev + len(entries)
        assert verified.commit_index <= end
        acknowledged = matched if matched is not None else verified.prev_index + len(verified.entries)
        assert acknowledged == end
        kept = verified.entries[:1]
        assert not kept or log.term_at(kept[0][1]) != kept[0][2]


# A compacted log: what a snapshot covers is gone from it, and was committed


@given(st.lists(st.integers(1, 4), min_size=1, max_size=14).map(sorted), st.data())
@example([1, 1, 2], None)
def test_message_that_begins_before_the_log_gives_what_the_whole_log_would(
    terms: list[int], data: st.DataObject | None
) -> None:
    """A follower that has forgotten what its snapshot covers ends as one that has forgotten nothing."""
    if data is None:
        first, prev, entries, commit = 3, 1, [1, 2, 2], 9
    else:
        first = data.draw(st.integers(1, len(terms)))
        prev = data.draw(st.integers(1, len(terms)))
        kept = data.draw(st.integers(max(prev, first), len(terms)))  # what a leader has that is elected rightly
        later = data.draw(st.lists(st.integers(terms[kept - 1], 5), max_size=4).map(sorted))
        entries = ([*terms[:kept], *later])[prev : prev + data.draw(st.integers(0, 8))]
        commit = data.draw(st.integers(0, 20))
    whole, short = ListLog(terms, first), ListLog(terms[first - 1 :], first, first)
    append_message = append(prev, terms[prev - 1], entries, commit=commit)
    of_whole, matched_by_whole = verify(append_message, whole)
    verified, matched = verify(append_message, short)
    assert verified.prev_index is not None
    assert verified.prev_index >= first
    assert short.term_at(verified.prev_index) == verified.prev_term
    assert terms[: first - 1] + library(short, verified) == library(whole, of_whole)
    end = matched if matched is not None else verified.prev_index + len(verified.entries)
    end_of_whole = (
        matched_by_whole if matched_by_whole is not None else (of_whole.prev_index or 0) + len(of_whole.entries)
    )
    assert end == max(end_of_whole, first)
    assert max(verified.commit_index, first) == max(of_whole.commit_index, first)


@pytest.mark.parametrize("entries", [0, 2, 4])
def test_message_wholly_before_the_log_changes_nothing_and_is_acknowledged_up_to_the_base(entries: int) -> None:
    log = ListLog([3, 3, 4], 7, 6)  # entries 6, 7 and 8
    verified, matched = verify(append(2, 1, [1, 2, 3, 3][:entries], commit=9), log)
    assert library(log, verified) == log.terms
    assert (verified.entries, verified.commit_index, matched) == ([], 6, 6)


def test_entries_over_the_base_are_taken_from_the_base_on() -> None:
    log = ListLog([3, 3], 7, 6)  # entries 6 and 7
    verified, matched = verify(append(4, 2, [2, 3, 3, 4, 4], commit=8), log)
    assert (verified.prev_index, verified.prev_term, verified.commit_index, matched) == (7, 3, 8, None)
    assert [(index, term) for _, index, term in verified.entries] == [(8, 4), (9, 4)]


def test_leader_that_contradicts_the_base_is_refused() -> None:
    """What a snapshot covers was committed."""
    log = ListLog([3, 3], 6, 6)
    with pytest.raises(DivergedError, match="entry 6"):
        verify(append(4, 2, [2, 4, 4]), log)
    with pytest.raises(DivergedError, match="entry 6"):
        verify(append(6, 2, [4]), log)


def test_conflict_right_behind_the_base_replaces_what_is_not_committed() -> None:
    log = ListLog([3, 3, 3], 6, 6)
    verified, matched = verify(append(4, 2, [2, 3, 4]), log)
    assert library(log, verified) == [3, 4]
    assert matched is None


def test_heartbeat_before_the_log_commits_no_more_than_the_base() -> None:
    log = ListLog([3, 3], 6, 6)
    verified, _ = verify(append(2, 1, [], commit=7), log)
    assert verified.commit_index <= 6


# What no leader does


def test_leader_that_contradicts_a_committed_entry_is_refused() -> None:
    log = ListLog([0, 1, 1, 1], commit_index=3)
    with pytest.raises(DivergedError, match="entry 3"):
        verify(append(2, 1, [2]), log)
    with pytest.raises(DivergedError, match="entry 3"):
        verify(append(3, 2, []), log)


@pytest.mark.parametrize(
    "entries",
    [
        [(b"", 3, 1)],
        [(b"\x02pickle", 3, 1)],
        [(b"\x03pickle", 3, 1)],
        [(b"\xffpickle", 3, 1)],
        [(b"\4", 3, 1)],
        [(b"\4members", 3, 1)],
        [(entry(MEMBERSHIP, Barrier(1, "a")), 3, 1)],
        [(entry(MEMBERSHIP, PutMembers(MEMBERS), PutMembers(MEMBERS)), 3, 1)],
        [(b"\0" + bytes(guards.MAX_COMMAND), 3, 1)],
        [(b"\0", 4, 1)],
        [(b"\0", 3, 1), (b"\0", 3, 1)],
        [(b"\0", 3, 0)],
        [(b"\0", 3, 10)],
    ],
)
def test_entries_that_no_node_sends_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(ProtocolError, match="not our log"):
        check_entries(message(9, 2, 1, entries))


def test_entries_of_the_three_kinds_are_taken() -> None:
    entries = [(b"\0record", 3, 1), (b"\1", 4, 2), (entry(MEMBERSHIP, PutMembers(MEMBERS)), 5, 9)]
    check_entries(message(9, 2, 1, [*entries, (b"\0" + bytes(guards.MAX_COMMAND - 1), 6, 9)]))


def test_members_stand_in_their_entry() -> None:
    assert members_of(entry(MEMBERSHIP, PutMembers(MEMBERS))) == MEMBERS
    with pytest.raises(ValueError, match="a membership entry holds something else"):
        members_of(entry(MEMBERSHIP, Barrier(1, "a")))


@pytest.mark.parametrize(("prev", "prev_term"), [(None, 1), (1, None), (None, None)])
def test_entries_after_nothing_are_refused(prev: int | None, prev_term: int | None) -> None:
    with pytest.raises(ProtocolError, match="not our log"):
        check_entries(message(9, prev, prev_term, [(b"\0", 1, 1)]))
