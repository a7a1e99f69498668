from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sipha.cluster import proposals as module
from sipha.cluster.proposals import Proposals, tell_each
from sipha.errors import NotLeader, QueueFull, Unavailable, UnknownOutcome
from sipha.state.entries import SCHEMA, Batch, Policy, Record, Refresh, RemoveBindings, decode, encode
from sipha.state.outcomes import Done, Invalid, Outcome, Outdated

Settle = Callable[[Sequence[Outcome] | None], None]


class Log:
    """Takes entries, and settles them when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.entries: list[tuple[Batch, Settle]] = []
        self.short: dict[Record, Record] = {}
        self.proposals = Proposals(
            lambda: self.now,
            self.encode,
            self.append,
            lambda records: [self.short.get(record, record) for record in records],
        )
        self.outcomes: list[Outcome | Unavailable] = []

    def encode(self, records: tuple[Record, ...]) -> bytes:
        return encode(Batch(SCHEMA, 0, Policy(), records))

    def append(self, entry: bytes, settle: Settle) -> None:
        assert len(entry) <= module.MAX_RECORD
        self.entries.append((decode(entry), settle))

    def propose(self, count: int, size: int = 1) -> None:
        for _ in range(count):
            self.add(RemoveBindings("x" * size), self.outcomes.append)

    def add(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        self.proposals.add([(record, done)], tell_each)

    @property
    def kinds(self) -> set[Any]:
        return set(map(type, self.outcomes))


@pytest.fixture
def log() -> Log:
    return Log()


def test_what_was_proposed_in_one_turn_is_one_entry(log: Log) -> None:
    log.propose(100)
    assert not log.entries
    log.proposals.flush()
    ((batch, settle),) = log.entries
    assert len(batch.records) == 100
    settle([Done(number) for number in range(100)])
    assert log.outcomes == [Done(number) for number in range(100)]
    assert log.proposals.count == 0


def test_proposer_of_many_hears_together_of_those_whose_outcomes_come_together(log: Log) -> None:
    first: list[list[tuple[int, Outcome | Unavailable]]] = []
    second: list[list[tuple[int, Outcome | Unavailable]]] = []
    for number in range(3):
        log.proposals.add([(RemoveBindings("x"), number)], first.append)
        log.proposals.add([(RemoveBindings("x"), number)], second.append)
    log.proposals.flush()
    log.entries[0][1]([Done(number) for number in range(6)])
    assert first == [[(0, Done(0)), (1, Done(2)), (2, Done(4))]]
    assert second == [[(0, Done(1)), (1, Done(3)), (2, Done(5))]]
    log.proposals.add([(RemoveBindings("x"), 3)], first.append)
    log.proposals.add([(RemoveBindings("x"), 4)], first.append)
    log.proposals.withdraw()
    assert [(number, type(refusal)) for number, refusal in first[1]] == [(3, NotLeader), (4, NotLeader)]


def test_failure_of_one_who_is_told_is_not_the_others(log: Log) -> None:
    def fail(_: object) -> None:
        raise RuntimeError

    told: list[object] = []
    log.add(RemoveBindings("x"), fail)
    log.proposals.add([(RemoveBindings("x"), None)], fail)
    log.proposals.add([(RemoveBindings("x"), 1)], told.append)
    log.propose(1)
    log.proposals.flush()
    log.entries[0][1]([Done(1)] * 4)
    assert (told, log.outcomes, log.proposals.count) == ([[(1, Done(1))]], [Done(1)], 0)


def test_proposals_measure_what_the_first_of_an_entry_waited(log: Log) -> None:
    log.propose(1)
    log.now = 0.004
    log.propose(9)
    log.proposals.flush()
    log.now = 0.006
    log.entries[0][1]([Done(0)] * 10)
    assert log.proposals.latencies.sum == pytest.approx(0.006)
    assert dict(log.proposals.latencies.cumulative())["+Inf"] == 1


def test_entry_is_bounded_in_records_and_bytes(log: Log) -> None:
    log.propose(1000, size=1000)
    log.proposals.flush()
    assert all(len(encode(batch)) <= module.MAX_BATCH for batch, _ in log.entries)
    assert len(log.entries) > 1


def test_entry_waits_for_company_while_others_are_under_way(log: Log) -> None:
    for _ in range(module.SEVERAL):
        log.propose(1)
        log.proposals.flush()
    assert [len(batch.records) for batch, _ in log.entries] == [1]  # the others are less than several
    log.propose(1)
    log.proposals.flush()
    assert [len(batch.records) for batch, _ in log.entries] == [1, module.SEVERAL]
    log.propose(module.SEVERAL)
    log.proposals.flush()
    assert len(log.entries) == 2
    log.propose(module.MAX_RECORDS - module.SEVERAL)
    log.proposals.flush()
    assert len(log.entries[2][0].records) == module.MAX_RECORDS


def test_entry_is_made_of_what_waits_once_nothing_is_under_way(log: Log) -> None:
    log.propose(1)
    log.proposals.flush()
    log.propose(2)
    assert not log.proposals.ready
    log.entries[0][1]([Done(0)])
    log.proposals.expire()
    assert log.proposals.ready
    log.proposals.flush()
    assert len(log.entries[1][0].records) == 2


@pytest.mark.parametrize("under_way", [1, 2, 3])
def test_entry_waits_for_company_no_longer_than_it_may(log: Log, under_way: int) -> None:
    for _ in range(under_way):
        log.propose(module.MAX_RECORDS)
        log.proposals.flush()
    log.propose(1)
    log.now = module.COMPANY / 2
    assert not log.proposals.ready
    assert log.proposals.patience == pytest.approx(module.COMPANY / 2)
    log.now = module.COMPANY
    assert log.proposals.ready
    log.proposals.flush()
    assert len(log.entries[under_way][0].records) == 1


def test_several_large_records_are_an_entry_if_no_more_fit(log: Log) -> None:
    log.propose(1, size=module.MAX_BATCH // 2)
    log.proposals.flush()
    log.propose(1, size=module.MAX_BATCH // 2)
    assert log.proposals.ready


def test_what_the_leader_wants_itself_waits_for_no_company(log: Log) -> None:
    for _ in range(3):
        log.proposals.add_internal(RemoveBindings("x"), log.outcomes.append)
    log.proposals.flush()
    assert len(log.entries) == 3


def test_few_entries_are_under_way_at_a_time(log: Log) -> None:
    log.propose(module.MAX_RECORDS * (module.MAX_UNDER_WAY + 3))
    log.proposals.flush()
    assert len(log.entries) == module.MAX_UNDER_WAY
    log.entries[0][1]([Done(0)] * module.MAX_RECORDS)
    log.proposals.expire()
    log.proposals.flush()
    assert len(log.entries) == module.MAX_UNDER_WAY + 1


REMOVAL, SHORT = RemoveBindings("sip:a@x", "sip:a@h"), Refresh("sip:a@x", 1, 1)


@pytest.fixture
def outdated(log: Log) -> Log:
    """A log in which what one record was shortened to was found outdated, and the other of its entry was applied."""
    log.short = {REMOVAL: SHORT}
    log.add(REMOVAL, log.outcomes.append)
    log.propose(1)
    log.proposals.flush()
    ((batch, settle),) = log.entries
    assert batch.records == (SHORT, RemoveBindings("x"))
    settle([Outdated(), Done(1)])
    assert log.outcomes == [Done(1)]
    assert log.proposals.count == 1
    return log


def test_what_was_shortened_in_vain_is_proposed_in_full_before_all_others(outdated: Log) -> None:
    outdated.propose(module.SEVERAL)
    outdated.proposals.expire()
    outdated.proposals.flush()
    _, (first, settle), (second, _) = outdated.entries
    assert (first.records, set(second.records)) == ((REMOVAL,), {RemoveBindings("x")})
    settle([Done(2)])
    assert outdated.outcomes == [Done(1), Done(2)]
    assert outdated.proposals.count == module.SEVERAL


def test_what_was_shortened_in_vain_waits_while_leadership_is_handed_on(outdated: Log) -> None:
    outdated.proposals.hold()
    outdated.proposals.flush()
    assert len(outdated.entries) == 1
    ((record, done, tell),) = outdated.proposals.take_waiting()
    assert record == REMOVAL
    tell([(done, Done(3))])
    assert outdated.outcomes == [Done(1), Done(3)]
    assert outdated.proposals.count == 0


def test_what_was_shortened_in_vain_is_in_no_entry_if_another_leads_by_then(outdated: Log) -> None:
    outdated.proposals.withdraw()
    outdated.proposals.flush()
    assert outdated.kinds == {Done, NotLeader}
    assert (len(outdated.entries), outdated.proposals.count) == (1, 0)


def test_records_that_cant_be_shortened_are_proposed_in_full(log: Log) -> None:
    """What is wrong with the table apply finds out; here it would keep all of the entry from ever being told."""

    def fail(_: object) -> None:
        raise ValueError("a row that isn't one")

    log.proposals._shorten = fail  # type: ignore[assignment]
    log.propose(2)
    log.proposals.flush()
    ((batch, settle),) = log.entries
    assert batch.records == (RemoveBindings("x"), RemoveBindings("x"))
    settle([Done(1), Done(2)])
    assert log.outcomes == [Done(1), Done(2)]


def test_queue_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROPOSALS", 10)
    log.propose(12)
    assert [type(outcome) for outcome in log.outcomes] == [QueueFull] * 2
    log.proposals.flush()
    log.propose(1)
    assert len(log.outcomes) == 3
    log.entries[0][1]([Done(0)] * 10)
    log.propose(1)
    assert len(log.outcomes) == 13


def test_of_many_at_once_as_many_wait_as_there_is_room_for(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROPOSALS", 10)
    told: list[list[tuple[int, Outcome | Unavailable]]] = []
    log.proposals.add([(RemoveBindings("x"), number) for number in range(12)], told.append)
    assert [(number, type(refusal)) for number, refusal in told.pop()] == [(10, QueueFull), (11, QueueFull)]
    assert log.proposals.count == 10
    log.proposals.flush()
    log.entries[0][1]([Done(0)] * 10)
    assert told.pop() == [(number, Done(0)) for number in range(10)]


def test_no_more_come_to_wait_while_others_have_waited_for_an_entry_too_long(log: Log) -> None:
    log.propose(module.MAX_RECORDS * module.MAX_UNDER_WAY + 1)
    log.proposals.flush()
    log.now = module.LONGEST_WAIT
    log.propose(1)
    assert not log.outcomes
    log.now += 0.01
    log.propose(1)
    assert log.kinds == {QueueFull}
    log.proposals.hold()
    log.propose(1)  # leadership is being handed on: who waits has to
    assert len(log.outcomes) == 1
    log.proposals.resume()
    log.entries[0][1]([Done(0)] * module.MAX_RECORDS)
    log.proposals.expire()
    log.proposals.flush()
    log.outcomes.clear()
    log.propose(1)
    assert not log.outcomes


def test_what_the_leader_wants_itself_keeps_nobody_from_waiting(log: Log) -> None:
    for _ in range(module.MAX_UNDER_WAY + 1):
        log.proposals.add_internal(RemoveBindings("x"), log.outcomes.append)
    log.proposals.flush()
    log.now = 2 * module.LONGEST_WAIT
    log.propose(1)
    assert not log.outcomes


def test_proposer_waits_no_longer_than_the_deadline(log: Log) -> None:
    log.propose(2)
    log.proposals.flush()
    log.now = module.DEADLINE - 0.01
    log.proposals.expire()
    assert not log.outcomes
    log.now = module.DEADLINE
    log.proposals.expire()
    assert [type(outcome) for outcome in log.outcomes] == [UnknownOutcome] * 2
    log.entries[0][1]([Done(0)] * 2)  # too late
    assert len(log.outcomes) == 2
    assert log.proposals.count == 0


def test_proposer_whose_record_never_got_into_an_entry_knows_it(log: Log) -> None:
    log.propose(1)
    log.now = module.DEADLINE
    log.proposals.expire()
    assert log.kinds == {QueueFull}


def test_another_leaders_entry_in_the_place_of_ours_is_a_certain_no(log: Log) -> None:
    log.propose(2)
    log.proposals.flush()
    log.entries[0][1](None)
    assert log.kinds == {NotLeader}


def test_withdrawn_proposals_are_uncertain_only_if_they_are_in_the_log(log: Log) -> None:
    log.propose(1)
    log.proposals.flush()
    log.propose(2)
    log.proposals.withdraw()
    assert [type(outcome) for outcome in log.outcomes] == [UnknownOutcome, NotLeader, NotLeader]
    log.entries[0][1]([Done(0)])
    assert len(log.outcomes) == 3


def test_outcomes_that_dont_fit_the_records_are_uncertain(log: Log) -> None:
    log.propose(2)
    log.proposals.flush()
    log.entries[0][1]([])
    assert log.kinds == {UnknownOutcome}
    assert len(log.outcomes) == 2


def test_record_that_cant_be_encoded_is_refused_alone(log: Log) -> None:
    log.propose(3)
    log.add(RemoveBindings("\udcff"), log.outcomes.append)
    log.propose(3)
    log.proposals.flush()
    assert log.kinds == {Invalid}
    assert sum(len(batch.records) for batch, _ in log.entries) == 6


def test_proposer_may_propose_again_when_told(log: Log) -> None:
    log.add(RemoveBindings("a"), lambda _: log.propose(1))
    log.proposals.flush()
    log.entries[0][1]([Done(1)])
    log.proposals.expire()
    log.proposals.flush()
    assert len(log.entries) == 2
    log.add(RemoveBindings("b"), lambda _: log.propose(1))
    log.proposals.withdraw()
    assert log.proposals.count == 1


def test_what_comes_while_leadership_is_handed_on_waits_and_is_not_lost(log: Log) -> None:
    log.propose(2)
    log.proposals.flush()
    log.proposals.hold()
    log.propose(module.SEVERAL)
    log.proposals.flush()
    assert len(log.entries) == 1
    assert log.proposals.count == 2 + module.SEVERAL
    log.proposals.resume()
    log.proposals.flush()
    assert [len(batch.records) for batch, _ in log.entries] == [2, module.SEVERAL]


def test_what_is_held_waits_no_longer_than_the_deadline(log: Log) -> None:
    log.proposals.hold()
    log.propose(1)
    log.now = module.DEADLINE
    log.proposals.expire()
    assert log.kinds == {QueueFull}


def test_entry_is_under_way_until_its_proposers_are_told(log: Log) -> None:
    log.propose(1)
    assert not log.proposals.under_way
    log.proposals.flush()
    log.propose(module.SEVERAL)
    log.proposals.flush()
    assert log.proposals.under_way
    log.entries[0][1]([Done(0)])
    assert log.proposals.under_way
    log.entries[1][1]([Done(0)] * module.SEVERAL)
    assert not log.proposals.under_way


def test_own_records_of_the_cluster_wait_for_as_long_as_it_takes(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier must not be refused because phones have filled the queue."""
    monkeypatch.setattr(module, "MAX_PROPOSALS", 1)
    log.propose(1)
    log.proposals.add_internal(RemoveBindings("barrier"), log.outcomes.append)
    log.now = module.DEADLINE + 1
    log.proposals.expire()
    assert len(log.outcomes) == 1
    log.proposals.flush()
    assert [record.aor for batch, _ in log.entries for record in batch.records] == ["barrier"]  # type: ignore[union-attr]


def test_own_record_of_the_cluster_has_an_entry_of_its_own(log: Log) -> None:
    log.propose(3)
    log.proposals.add_internal(RemoveBindings("barrier"), log.outcomes.append)
    log.propose(3)
    log.proposals.flush()
    log.now = 2 * module.COMPANY
    log.proposals.flush()
    assert [len(batch.records) for batch, _ in log.entries] == [3, 1, 3]


def test_proposer_behind_an_entry_without_a_deadline_waits_no_longer(log: Log) -> None:
    log.proposals.add_internal(RemoveBindings("barrier"), log.outcomes.append)
    log.propose(module.SEVERAL)
    log.proposals.flush()
    log.propose(1)
    log.proposals.hold()
    log.now = module.DEADLINE
    log.proposals.expire()
    assert [type(outcome) for outcome in log.outcomes] == [UnknownOutcome] * module.SEVERAL + [QueueFull]
    log.entries[0][1]([Done(1)])
    assert log.outcomes[-1] == Done(1)


def test_refused_ones_know_whether_their_record_may_yet_be_applied(log: Log) -> None:
    log.propose(1)
    log.proposals.flush()
    log.propose(1)
    log.proposals.refuse_waiting(NotLeader("gone"))
    assert [type(outcome) for outcome in log.outcomes] == [NotLeader]
    assert log.proposals.under_way
    log.propose(1)
    log.proposals.refuse_all(UnknownOutcome("unknown"), NotLeader("gone"))
    assert [type(outcome) for outcome in log.outcomes] == [NotLeader, UnknownOutcome, NotLeader]
    assert log.proposals.count == 0
