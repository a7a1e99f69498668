from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sipha.auth.window import WIDTH, NonceWindow

COUNTS = st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1))


@given(st.lists(COUNTS, max_size=200))
def test_window_never_accepts_a_count_twice(counts: list[int]) -> None:
    window = NonceWindow(300)
    accepted = [count for count in counts if window.accept("n", "alice", count, 1000, 1001)]
    assert len(accepted) == len(set(accepted))


@given(st.permutations(range(1, WIDTH + 1)))
def test_window_accepts_each_count_in_any_order(counts: list[int]) -> None:
    window = NonceWindow(300)
    assert all(window.accept("n", "alice", count, 1000, 1001) for count in counts)
    assert not any(window.accept("n", "alice", count, 1000, 1001) for count in counts)


@given(st.lists(COUNTS, min_size=1, max_size=100))
def test_window_accepts_exactly_what_is_new_and_not_too_far_behind(counts: list[int]) -> None:
    window = NonceWindow(300)
    seen: set[int] = set()
    for count in counts:
        expected = count not in seen and (not seen or count > max(seen) - WIDTH)
        assert window.accept("n", "alice", count, 1000, 1001) == expected
        if expected:
            seen.add(count)


def test_window_keeps_nonces_and_users_apart() -> None:
    window = NonceWindow(300)
    assert window.accept("n", "alice", 1, 1000, 1001)
    assert window.accept("n", "bob", 1, 1000, 1001)
    assert window.accept("m", "alice", 1, 1000, 1001)
    assert not window.accept("n", "bob", 1, 1000, 1001)


def test_window_refuses_what_is_too_old_or_not_made_yet() -> None:
    window = NonceWindow(300)
    assert window.accept("n", "alice", 1, 1000, 1300)
    assert not window.accept("n", "alice", 2, 1000, 1300.1)
    assert not window.accept("m", "alice", 1, 1001, 1000.5)


def test_window_remembers_the_counts_of_a_term_that_goes_on_and_no_other() -> None:
    window = NonceWindow(300)
    window.begin(7)
    assert window.accept("n", "alice", 1, 1000, 1010)
    window.begin(7)
    assert not window.accept("n", "alice", 1, 1000, 1010)
    window.begin(8)
    assert len(window) == 0
    assert window.accept("n", "alice", 1, 1000, 1010)


def test_window_forgets_nonces_with_their_age() -> None:
    window = NonceWindow(300)
    for second in range(1000, 2000):
        assert window.accept(f"n{second}", "alice", 1, second, second)
    assert len(window) == 301


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(1, 5)), max_size=200))
def test_full_window_forgets_but_never_accepts_twice(uses: list[tuple[int, int, int]]) -> None:
    window = NonceWindow(300, capacity=5)
    accepted = [use for use in uses if window.accept(f"n{use[1]}", "alice", use[2], 1000 + use[0], 1010)]
    assert len(accepted) == len(set(accepted))
    assert len(window) <= 5


def test_full_window_still_accepts_the_newest_nonces() -> None:
    window = NonceWindow(300, capacity=5)
    for second in range(1000, 1050):
        assert window.accept("n", f"user{second}", 1, second, 1050)
    assert not window.is_valid(1000, 1050)
    assert window.is_valid(1049, 1050)
