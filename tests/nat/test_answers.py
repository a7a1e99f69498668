from __future__ import annotations

from sipha.nat.answers import Answers, Awaited

ALICE, BOB = Awaited("sip:alice@x", 7, False), Awaited("sip:bob@x", 8, True)
LAST = (1 << 32) - 1  # the slot after it has the number 0 in a token


def test_ping_is_awaited_until_its_time_is_up() -> None:
    answers = Answers(patience=10)
    answers.await_(100, 1, ALICE)
    answers.await_(101, 2, BOB)
    assert list(answers.overdue(110)) == []
    assert (answers.awaited(100, 1), answers.awaited(101, 2), answers.awaited(100, 2)) == (ALICE, BOB, None)
    assert list(answers.overdue(111)) == [(100, 1, ALICE)]
    assert answers.awaited(100, 1) is None
    assert len(answers) == 1


def test_ping_that_is_answered_is_not_overdue() -> None:
    answers = Answers(patience=10)
    answers.await_(100, 1, ALICE)
    answers.await_(100, 2, BOB)
    answers.came(100, 1)
    assert list(answers.overdue(200)) == [(100, 2, BOB)]


def test_slots_are_known_by_what_a_token_says_of_them() -> None:
    answers = Answers(patience=10)
    answers.await_(LAST, 1, ALICE)
    answers.await_(LAST + 2, 2, BOB)
    assert answers.awaited(1, 2) == BOB
    assert list(answers.overdue(LAST + 11)) == [(LAST, 1, ALICE)]
    assert list(answers.overdue(LAST + 13)) == [(LAST + 2, 2, BOB)]


def test_misses_count_in_succession_and_from_the_last_refresh_on() -> None:
    answers = Answers(patience=10)
    assert [answers.miss(1, 7), answers.miss(1, 7), answers.miss(1, 8), answers.miss(2, 7)] == [1, 2, 1, 1]
    answers.await_(100, 1, ALICE)
    answers.came(100, 1)
    assert answers.miss(1, 8) == 1
    assert answers.miss(2, 7) == 2


def test_binding_that_is_gone_is_forgotten() -> None:
    answers = Answers(patience=10)
    answers.miss(1, 7)
    answers.forget_recovered()
    assert answers.miss(1, 7) == 2
    answers.forget_recovered()
    answers.forget_recovered()
    assert answers.miss(1, 7) == 1


def test_nothing_is_awaited_of_what_is_forgotten() -> None:
    answers = Answers(patience=10)
    answers.await_(100, 1, ALICE)
    answers.forget()
    assert answers.awaited(100, 1) is None
    assert list(answers.overdue(200)) == []
