from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sipha.auth.window import WIDTH, NonceWindow
from sipha.sip.token import SERIALS

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


def nonce(maker: int, number: int = 0) -> str:
    """What one maker's looks like, as far as a window looks at it."""
    return f"{1:02x}{7:08x}{1000:08x}{maker * SERIALS + number:08x}" + "0" * 24


def test_window_accepts_no_count_of_a_nonce_that_another_has_made() -> None:
    window = NonceWindow(300, maker=3)
    assert not window.accept(nonce(2), "alice", 1, 1000, 1001)
    assert not window.holds(nonce(2), "alice", 1000)
    assert window.holds(nonce(3), "alice", 1000)
    assert window.accept(nonce(3), "alice", 1, 1000, 1001)
    assert len(window) == 1


def test_window_accepts_no_count_of_what_an_earlier_maker_of_the_same_number_has_made() -> None:
    window = NonceWindow(300, maker=3, since=1001)
    assert not window.accept(nonce(3), "alice", 1, 1000, 1001)
    assert window.accept(nonce(3), "alice", 1, 1001, 1001)


def test_nonces_that_were_forgotten_are_refused_although_nonces_live_longer_now() -> None:
    window = NonceWindow(300)
    assert window.accept("n", "alice", 1, 1000, 1010)
    assert window.accept("m", "alice", 1, 1400, 1400)
    window.lifetime = 600
    assert not window.accept("n", "alice", 1, 1000, 1401)


def test_nonce_that_is_ceded_before_its_first_use_is_the_others() -> None:
    one, other = NonceWindow(300, maker=3), NonceWindow(300, maker=0)
    counts = one.cede(nonce(3), "alice", 1000, 1001)
    assert counts == (0, 0)
    assert one.cede(nonce(3), "alice", 1000, 1001) is None
    assert not other.holds(nonce(3), "alice", 1000)
    other.take(nonce(3), "alice", 1000, counts, 1001)
    assert other.accept(nonce(3), "alice", 1, 1000, 1001)
    assert not one.accept(nonce(3), "alice", 1, 1000, 1001)
    assert one.accept(nonce(3), "bob", 1, 1000, 1001)  # each user's is one of its own


def test_nonce_that_is_ceded_to_a_full_window_is_nobodys() -> None:
    one, other = NonceWindow(300, maker=3), NonceWindow(300, capacity=1, maker=0)
    assert other.accept(nonce(0), "bob", 1, 1001, 1001)
    counts = one.cede(nonce(3), "alice", 1000, 1001)
    assert counts is not None
    other.take(nonce(3), "alice", 1000, counts, 1001)
    assert not other.accept(nonce(3), "alice", 1, 1000, 1001)
    assert not one.accept(nonce(3), "alice", 1, 1000, 1001)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), COUNTS), max_size=200))
def test_no_count_is_accepted_twice_whoever_reads_it(steps: list[tuple[str, int, int]]) -> None:
    """Windows of a daemon and of two workers; every now and then one of these cedes what it reads."""
    windows = [NonceWindow(300, maker=maker) for maker in range(3)]
    accepted: list[tuple[int, int]] = []
    for step, maker, count in steps:
        made = nonce(maker)
        if maker and step == "d" and (counts := windows[maker].cede(made, "alice", 1000, 1001)) is not None:
            windows[0].take(made, "alice", 1000, counts, 1001)
        accepted += [(maker, count) for window in windows if window.accept(made, "alice", count, 1000, 1001)]
        assert sum(window.holds(made, "alice", 1000) for window in windows) == 1
    assert len(accepted) == len(set(accepted))
