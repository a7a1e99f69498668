"""Keys kept in order."""

from __future__ import annotations

import gc
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state import ordered as module
from sipha.state.ordered import _CHUNK, OrderedKeys

keys = st.text("abc", max_size=3)


@given(st.sets(keys), st.lists(keys), keys, st.integers(0, 10))
def test_keys_are_a_sorted_set(start: set[str], toggled: list[str], after: str, limit: int) -> None:
    ordered: OrderedKeys[str] = OrderedKeys()
    ordered.extend(sorted(start))
    expected = set(start)
    for key in toggled:
        if key in expected:
            ordered.remove(key)
        else:
            ordered.add(key)
        expected ^= {key}
    assert list(ordered) == sorted(expected)
    assert len(ordered) == len(expected)
    assert ordered.first() == min(expected, default=None)
    assert ordered.after(after, limit) == [key for key in sorted(expected) if key > after][:limit]


def test_chunks_split_and_vanish() -> None:
    names = [f"{number * 7919 % 10_007:05d}" for number in range(10_000)]
    ordered: OrderedKeys[str] = OrderedKeys()
    for name in names:
        ordered.add(name)
        assert len(ordered._chunks[0]) <= 2 * _CHUNK
    assert list(ordered) == sorted(names)
    assert max(map(len, ordered._chunks)) <= 2 * _CHUNK
    page, seen = ordered.after("", 777), []
    while page:
        seen += page
        page = ordered.after(page[-1], 777)
    assert seen == sorted(names)
    for name in names:
        ordered.remove(name)
    assert list(ordered) == []
    assert (len(ordered._chunks), len(ordered._lowest), len(ordered._epochs)) == (0, 0, 0)
    ordered.add("0")
    assert list(ordered) == ["0"]


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=9))
def test_keys_are_added_at_the_end_in_order_or_not_at_all(runs: list[list[int]]) -> None:
    ordered: OrderedKeys[int] = OrderedKeys()
    expected: list[int] = []
    for run in runs:
        longer = expected + run
        if longer == sorted(set(longer)):
            ordered.extend(run)
            expected = longer
        else:
            with pytest.raises(ValueError, match="out of order"):
                ordered.extend(run)
        assert list(ordered) == expected


def test_chunks_that_someone_holds_stay_as_they_are() -> None:
    ordered: OrderedKeys[int] = OrderedKeys()
    ordered.extend(range(0, 10 * _CHUNK, 2))
    chunks = ordered.chunks()
    for number in range(1, 10 * _CHUNK, 2):
        ordered.add(number)
        ordered.remove(number - 1)
    assert [key for chunk in chunks for key in sorted(chunk)] == list(range(0, 10 * _CHUNK, 2))
    assert list(ordered) == list(range(1, 10 * _CHUNK, 2))


@given(st.lists(st.integers(0, 15) | st.just(-1), max_size=60))
@settings(max_examples=300)
def test_keys_that_someone_holds_stay_whatever_comes_and_goes(steps: list[int]) -> None:
    with mock.patch.object(module, "_CHUNK", 1):
        ordered: OrderedKeys[int] = OrderedKeys()
        present: set[int] = set()
        held = []
        for step in steps:
            if step < 0:
                held.append((ordered.chunks(), sorted(present)))
            elif step in present:
                ordered.remove(step)
                present.remove(step)
            else:
                ordered.add(step)
                present.add(step)
        for chunks, expected in held:
            assert [key for chunk in chunks for key in sorted(chunk)] == expected


def test_collector_visits_no_chunk() -> None:
    ordered: OrderedKeys[str] = OrderedKeys()
    for number in range(1000):
        ordered.add(f"{number * 7919 % 1009}")
    ordered.chunks()
    ordered.add("x")
    assert len(ordered._chunks) > 5
    assert not any(map(gc.is_tracked, ordered._chunks))
