"""Records wait for company no longer than they may, at the price of one timer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from twisted.internet.task import Clock

from sipha.cluster.company import Company
from sipha.cluster.proposals import COMPANY, MAX_RECORDS, MAX_UNDER_WAY, SEVERAL, Proposals, tell_each
from sipha.errors import Unavailable
from sipha.state.entries import RemoveBindings
from sipha.state.outcomes import Done, Outcome

Settle = Callable[[Sequence[Outcome] | None], None]


class Log:
    """Notes when it is kicked; `entries` are settled when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.entries: list[Settle] = []
        self.kicks: list[float] = []
        self.proposals = Proposals(
            self.clock.seconds, lambda _: b"entry", lambda _, settle: self.entries.append(settle)
        )
        self.company = Company(self.clock, self.proposals, self.kick)

    def kick(self) -> None:
        self.kicks.append(self.clock.seconds() - 1000.0)

    def propose(self, count: int = 1) -> None:
        self.proposals.add([(RemoveBindings("x"), self.hear)] * count, tell_each)
        self.company.expect()

    def hear(self, outcome: Outcome | Unavailable) -> None:
        """Nobody needs it."""


@pytest.fixture
def log() -> Log:
    log = Log()
    log.propose()
    log.proposals.flush()
    log.clock.advance(COMPANY)
    assert not log.kicks
    assert not log.clock.getDelayedCalls()
    return log


def after(log: Log, seconds: float) -> list[float]:
    """Let time pass by tenths of a millisecond; the kicks meanwhile, in seconds from now."""
    start, log.kicks = log.clock.seconds(), []
    for _ in range(round(seconds * 10_000)):
        log.clock.advance(0.0001)
    return [kick + 1000.0 - start for kick in log.kicks]


def test_log_is_kicked_once_a_record_has_waited_for_long_enough(log: Log) -> None:
    log.propose()
    assert after(log, 0.01) == [pytest.approx(COMPANY, abs=0.0002)]
    log.proposals.flush()
    assert len(log.entries) == 2


def test_records_share_a_timer(log: Log) -> None:
    log.propose()
    log.clock.advance(COMPANY / 4)
    for _ in range(SEVERAL - 2):
        log.propose()
    assert len(log.clock.getDelayedCalls()) == 1


def test_record_that_came_later_waits_as_long(log: Log) -> None:
    log.propose()
    assert not after(log, COMPANY / 2)
    log.entries[0]([Done(0)])
    log.proposals.expire()
    log.proposals.flush()  # the first is under way now
    log.propose()
    assert after(log, 0.01) == [pytest.approx(COMPANY, abs=0.0002)]


def test_log_is_not_kicked_for_what_has_gone(log: Log) -> None:
    log.propose()
    log.entries[0]([Done(0)])
    log.proposals.expire()
    log.proposals.flush()
    assert not after(log, 0.01)
    assert not log.clock.getDelayedCalls()


def test_log_is_not_kicked_while_as_many_entries_are_under_way_as_may_be(log: Log) -> None:
    for _ in range(MAX_UNDER_WAY):
        log.propose(MAX_RECORDS)
        log.proposals.flush()
    log.propose()
    assert not after(log, 0.01)
    assert not log.clock.getDelayedCalls()


def test_company_looks_no_more_once_it_is_stopped(log: Log) -> None:
    log.propose()
    log.company.stop()
    log.company.stop()
    assert not after(log, 0.01)
    assert not log.clock.getDelayedCalls()
