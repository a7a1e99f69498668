from __future__ import annotations

import msgspec

from sipha.nat.answers import Answers, Awaited

ALICE, BOB = Awaited(100, 50, "sip:alice@x", 1, 7, False), Awaited(101, 51, "sip:bob@x", 2, 8, True)


def test_ping_is_awaited_until_its_time_is_up() -> None:
    answers = Answers(patience=10)
    answers.await_("a", ALICE)
    answers.await_("b", BOB)
    assert list(answers.overdue(110)) == []
    assert (answers.awaited("a"), answers.awaited("b"), answers.awaited("c")) == (ALICE, BOB, None)
    assert list(answers.overdue(111)) == [ALICE]
    assert (answers.awaited("a"), answers.awaited("b")) == (None, BOB)


def test_ping_that_is_answered_is_not_overdue() -> None:
    answers = Answers(patience=10)
    answers.await_("a", ALICE)
    answers.await_("b", BOB)
    answers.came("a")
    assert list(answers.overdue(200)) == [BOB]
    assert list(answers.overdue(200)) == []


def test_misses_count_in_succession_and_from_the_last_refresh_on() -> None:
    answers = Answers(patience=10)
    refreshed = msgspec.structs.replace(ALICE, version=9)
    assert [answers.miss(ping) for ping in (ALICE, ALICE, refreshed, BOB)] == [1, 2, 1, 1]
    answers.await_("a", refreshed)
    answers.came("a")
    assert answers.miss(refreshed) == 1
    assert answers.miss(BOB) == 2


def test_binding_that_is_gone_is_forgotten() -> None:
    answers = Answers(patience=10)
    answers.miss(ALICE)
    answers.forget_recovered()
    assert answers.miss(ALICE) == 2
    answers.forget_recovered()
    answers.forget_recovered()
    assert answers.miss(ALICE) == 1


def test_nothing_is_awaited_of_what_is_forgotten() -> None:
    answers = Answers(patience=10)
    answers.await_("a", ALICE)
    answers.forget()
    assert answers.awaited("a") is None
    assert list(answers.overdue(200)) == []
