"""The table that can be frozen, against a dict."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state import ordered, table
from sipha.state.table import DamagedMemory, Digested, FrozenTable, Shards, Table

keys = st.integers(0, 12)
changes = st.tuples(keys, st.none() | st.integers(1, 99))


def record(value: int) -> Digested:
    return bytes([value]), value


def change(values: Table[int, int], model: dict[int, int], key: int, value: int | None) -> None:
    before = model.get(key)
    if before is None:
        if value is not None:
            values.add(key, value)
    elif value is None:
        values.remove(key, before)
    else:
        values.replace(key, before, value)
    model.pop(key, None)
    model |= {} if value is None else {key: value}


@given(st.dictionaries(keys, st.integers(1, 99)), st.lists(changes), keys, st.integers(0, 9))
@settings(deadline=None)
def test_table_is_a_dict_in_the_order_of_its_keys(
    start: dict[int, int], steps: list[tuple[int, int | None]], after: int, limit: int
) -> None:
    values: Table[int, int] = Table()
    values.extend(sorted(start.items()))
    for key, value in steps:
        change(values, start, key, value)
    assert [values.get(key) for key in range(13)] == [start.get(key) for key in range(13)]
    assert list(values) == [start[key] for key in sorted(start)]
    assert len(values) == len(start)
    assert values.first() == min(start, default=None)
    following = [key for key in sorted(start) if key > after][:limit]
    assert values.keys_after(after, limit) == following
    assert values.after(after, limit) == [start[key] for key in following]


@given(st.lists(changes | st.just("freeze") | st.sampled_from(["first", "last"]), max_size=40))
@settings(max_examples=300, deadline=None)
def test_frozen_records_are_those_of_the_moment(steps: list[tuple[int, int | None] | str]) -> None:
    with mock.patch.object(ordered, "_CHUNK", 1):
        values: Table[int, int] = Table()
        model: dict[int, int] = {}
        frozen: list[tuple[FrozenTable[int, int], Iterator[Digested], list[Digested]]] = []
        for step in steps:
            if step == "freeze":
                taking = values.freeze(record)
                frozen.append((taking, iter(taking), [record(model[key]) for key in sorted(model)]))
            elif not isinstance(step, str):
                change(values, model, *step)
            elif frozen:
                _, records, expected = frozen[0 if step == "first" else -1]
                assert next(records, None) == next(iter(expected), None)
                del expected[:1]
        for taking, records, expected in frozen:
            assert list(records) == expected
            list(taking.close())
        assert not values._frozen


def test_value_that_is_gone_is_found() -> None:
    values: Table[int, int] = Table()
    values.add(1, 1)
    values._values.pop(1)
    with pytest.raises(DamagedMemory):
        list(values)
    with pytest.raises(DamagedMemory):
        list(values.freeze(record))


def test_shards_are_freed_in_steps() -> None:
    shards: Shards[int, int] = Shards()
    for number in range(1000):
        shards.put(number, number)
    with mock.patch.object(table, "_FREED", 5):
        steps = 0
        for _ in shards.dismantle():
            steps += 1
    assert steps >= 200
    assert all(shards.get(number) is None for number in range(1000))
