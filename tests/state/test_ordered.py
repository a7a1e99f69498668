"""Keys kept in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sipha.state.ordered import _CHUNK, OrderedKeys

keys = st.text("abc", max_size=3)


@given(st.sets(keys), st.lists(keys), keys, st.integers(0, 10))
def test_keys_are_a_sorted_set(start: set[str], toggled: list[str], after: str, limit: int) -> None:
    ordered, expected = OrderedKeys(start), set(start)
    for key in toggled:
        if key in expected:
            ordered.remove(key)
        else:
            ordered.add(key)
        expected ^= {key}
    assert list(ordered) == sorted(expected)
    assert len(ordered) == len(expected)
    assert ordered.after(after, limit) == [key for key in sorted(expected) if key > after][:limit]


def test_chunks_split_and_vanish() -> None:
    names = [f"{number * 7919 % 10_007:05d}" for number in range(10_000)]
    ordered = OrderedKeys()
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
    assert (len(ordered._chunks), len(ordered._firsts)) == (0, 0)
