from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.cluster import guards
from sipha.cluster.guards import DivergedError, Verified, check_entries, verify
from sipha.cluster.wire import AppendEntries, AppendReply, Entry, ProtocolError
from tests.cluster.ballot import Ballot

OFF = [False, True]


class ListLog:
    def __init__(self, terms: list[int], commit_index: int = 0) -> None:
        self.terms = terms
        self.commit_index = commit_index

    @property
    def last_index(self) -> int:
        return len(self.terms)

    def term_at(self, index: int) -> int | None:
        return self.terms[index - 1] if 1 <= index <= len(self.terms) else None


def append(
    prev: int | None, prev_term: int | None, terms: list[int], *, commit: int = 0, term: int = 9
) -> AppendEntries:
    entries: list[Entry] = [(b"\0", (prev or 0) + offset, of) for offset, of in enumerate(terms, 1)]
    return AppendEntries(term, commit, prev, prev_term, entries, 0, 200, 0)


def library(log: ListLog, message: AppendEntries) -> list[int]:
    """What PySyncObj makes of a log: everything after the previous entry is deleted, then the entries are added."""
    assert message.prev_index is not None
    if log.term_at(message.prev_index) != message.prev_term:
        return log.terms
    return log.terms[: message.prev_index] + [term for _, _, term in message.entries]


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
    ballot.deliver("a", "b")
    ballot.deliver("b", "a")
    leader.tick()
    assert ballot.answers == [None] * 60  # committed by a and b: answered
    ballot.queues["a", "b"].clear()
    leader.receive("b", AppendReply(leader.raft.term, start + 1, reset=True, success=False, sent=0))
    leader.tick()
    ballot.deliver("a", "b", 1)
    ballot.crash("a")
    ballot.elect("b", ["b", "c"])
    lost = [entry for entry in entries if entry not in ballot.tables["b"]]
    assert bool(lost) is off


@pytest.mark.parametrize("off", OFF)
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
    ballot.crash("a")
    follower.raft.put_election(ballot.now + 99)
    term = follower.raft.term
    old, new = [(b"\0one", held - 1, term), (b"\0two", held, term)], (b"\0other", held + 1, term + 1)
    message = AppendEntries(term + 1, 0, held - 2, follower.raft.term_at(held - 2), [*old, new], 0, 200, 0)

    def crash(*_entry: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follower.raft._SyncObj__raftLog, "add", crash)
    with pytest.raises(KeyboardInterrupt):
        follower.receive("c", message)
    ballot.crash("b")
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
    deposed.receive("b", AppendEntries(deposed.raft.term + 1, 50, None, None, [], 0, 200, 0))
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
    follower.receive("c", AppendEntries(term + 1, last + 1, last, term, [], 0, 200, 0))
    follower.tick()
    assert (follower.raft.commit_index > last or follower.raft.last_index == last) is off


TERMS = st.lists(st.integers(1, 4), max_size=12).map(sorted)


@given(TERMS, st.data())
def test_verified_message_gives_the_log_that_raft_asks_for(terms: list[int], data: st.DataObject) -> None:
    """Whatever comes, the library ends with the log that Raft asks for, and deletes nothing to add it again."""
    log = ListLog([0, *terms])
    prev = data.draw(st.integers(1, log.last_index + 1))
    prev_term = data.draw(st.sampled_from([log.term_at(prev) or 0, 1, 5]))
    entries = data.draw(st.lists(st.integers(max(prev_term, 1), 5), max_size=6).map(sorted))
    message = append(prev, prev_term, entries, commit=data.draw(st.integers(0, 20)))
    expected = list(log.terms)
    if log.term_at(prev) == prev_term:
        for index, term in enumerate(entries, prev + 1):
            if log.term_at(index) != term:
                expected = log.terms[:prev] + entries
                break
    verified, matched = verify(message, log)
    assert library(log, verified) == expected
    assert verified.prev_index is not None
    if log.term_at(prev) == prev_term:
        end = prev + len(entries)
        assert verified.commit_index <= end
        acknowledged = matched if matched is not None else verified.prev_index + len(verified.entries)
        assert acknowledged == end
        kept = verified.entries[:1]
        assert not kept or log.term_at(kept[0][1]) != kept[0][2]


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
        [(b"\0", 4, 1)],
        [(b"\0", 3, 1), (b"\0", 3, 1)],
        [(b"\0", 3, 0)],
        [(b"\0", 3, 10)],
    ],
)
def test_entries_that_no_node_sends_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(ProtocolError, match="not our log"):
        check_entries(AppendEntries(9, 0, 2, 1, entries, 0, 200, 0))


@pytest.mark.parametrize(("prev", "prev_term"), [(None, 1), (1, None), (None, None)])
def test_entries_after_nothing_are_refused(prev: int | None, prev_term: int | None) -> None:
    with pytest.raises(ProtocolError, match="not our log"):
        check_entries(AppendEntries(9, 0, prev, prev_term, [(b"\0", 1, 1)], 0, 200, 0))
