"""Rows that are hashed together, four at a time: each as if it were alone, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Record, Refresh, Register, RemoveBindings, encode
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome, Registered
from sipha.state.row import Row, digested, row_of
from tests.kernels import check_that_nothing_is_kept, kernel
from tests.state.test_changes import Witness
from tests.state.test_row_kernel import BINDING, FIRST, KERNEL, KERNELS, state_of, written_in

ALONE = "C, without lanes"
KERNELS[ALONE] = tuple(kernel(f"sipha.state.{name}", "SIPHA_NO_LANES") for name in ("_row", "_first"))
LANGUAGES = ["Python", "C", ALONE]

AORS = [f"sip:{number}@x" for number in range(6)]
BLOCK = 128
LEAST = 90
"""Bytes of a row of what is registered here, about: of it and of how long a text is, a row has any number of blocks."""


def register(aor: str, cseq: int, size: int) -> Register:
    return Register(aor, "c", cseq, (Contact("sip:a@h", 600),), kv_store="x" * size)


sizes = st.builds(
    lambda blocks, more: max(blocks * BLOCK + more - LEAST, 0), st.integers(0, 5), st.integers(-40, 40)
) | st.integers(0, 600)
first_entries = st.lists(
    st.builds(register, st.sampled_from(AORS), st.just(1), sizes) | st.builds(RemoveBindings, st.sampled_from(AORS)),
    max_size=12,
)
steps = st.tuples(st.sampled_from(AORS), st.sampled_from(["refresh"] * 12 + ["late", "register", "remove", "unknown"]))
entries = st.lists(st.lists(steps, min_size=1, max_size=16), max_size=3)


def records(drawn: list[list[tuple[str, str]]]) -> Iterator[list[Record | None]]:
    """What phones say that have registered in the first entry, if each knows what it said last."""
    versions = dict.fromkeys(AORS, 1)
    cseqs = count(2)
    for index, steps in enumerate(drawn, 2):
        entry: list[Record | None] = []
        for aor, step in steps:
            match step:
                case "refresh":
                    entry.append(Refresh(aor, versions[aor], next(cseqs), 600))
                    versions[aor] = index
                case "late":
                    entry.append(Refresh(aor, versions[aor], 1))
                case "register":
                    entry.append(register(aor, next(cseqs), index))
                    versions[aor] = index
                case "remove":
                    entry.append(RemoveBindings(aor))
                case _:
                    entry.append(None)
        yield entry


def same_in_all(entries: Iterable[Sequence[Any]], *, frozen: bool = False) -> list[Outcome]:
    """Apply entries with each kernel, and without: what comes of them is the same, and of the last it is returned."""
    machines = {language: Machine() for language in LANGUAGES}
    observers = [Witness() for _ in LANGUAGES]
    for machine, observer in zip(machines.values(), observers, strict=True):
        machine.observer = observer
    last: list[Outcome] = []
    for index, entry in enumerate(entries, 1):
        found = []
        for language, machine in machines.items():
            with written_in(language):
                held = machine.location.freeze() if frozen else None
                outcomes = machine.apply(index, encode(Batch(SCHEMA, index * 1000, Policy(), tuple(entry))))
                found.append((outcomes, state_of(machine.location), machine.hash(), held and list(held)))
                for _ in held.close() if held else ():
                    pass
        assert found[0] == found[1] == found[2]
        last = found[0][0]
    assert observers[0].told == observers[1].told == observers[2].told
    return last


@given(first_entries, entries, st.booleans())
@settings(max_examples=300, deadline=None)
def test_rows_of_an_entry_are_as_the_reference_makes_them(
    first: list[Record], drawn: list[list[tuple[str, str]]], frozen: bool
) -> None:
    same_in_all([first, *records(drawn)], frozen=frozen)


@pytest.mark.parametrize("step", [1, 128, 131, 257])
def test_rows_of_any_length_beside_each_other(step: int) -> None:
    """There is a row of each length up to five blocks, in another lane in each entry, beside others with each step."""
    aors = [f"sip:{number:03}@x" for number in range(641)]
    first = [register(aor, 1, number * step % len(aors)) for number, aor in enumerate(aors)]
    later = [[Refresh(aor, index, index + 1, 600) for aor in aors[index:]] for index in (1, 2)]
    assert {type(outcome) for outcome in same_in_all([first, *later])} == {Registered}


@pytest.mark.parametrize("times", [2, 3, 4, 9])
@pytest.mark.parametrize("gap", [0, 1, 2, 3])
def test_refresh_after_another_of_its_aor_is_of_what_that_made(times: int, gap: int) -> None:
    """The first names the version that the AOR has before the entry, the others the entry's."""
    first = [register(aor, 1, 100 * number) for number, aor in enumerate(AORS)]
    entry: list[Refresh] = []
    for cseq in range(2, 2 + times):
        entry.append(Refresh(AORS[0], 1 if cseq == 2 else 2, cseq, 600))
        entry += [Refresh(aor, 1 if cseq == 2 else 2, cseq, 600) for aor in AORS[1 : 1 + gap]]
    assert {type(outcome) for outcome in same_in_all([first, entry], frozen=True)} == {Registered}


def shard_of(*aors: str) -> dict[str, Row]:
    rows = {aor: row_of((msgspec.structs.replace(BINDING, aor=aor),)) for aor in aors}
    return {aor: row for aor, row in rows.items() if row is not None}


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_what_is_replaced_is_told_in_order(language: str) -> None:
    shard = shard_of("a", "b", "c")
    before = dict(shard)
    aors = ["a", "b", "a", "a", "c", "b"]
    entry = [Refresh(aor, 2 if aor not in aors[:at] else 7, 9 + at, 600) for at, aor in enumerate(aors)]
    outcomes: list[Outcome] = []
    replaced: list[tuple[str, Row]] = []
    total = KERNELS[language][0].refresh((shard,), [*entry, object()], outcomes, replaced, 7, 0, 3600, 60, 7200)
    assert [aor for aor, _ in replaced] == aors
    assert [replaced[at][1] is before[aor] for at, aor in enumerate(aors)] == [True, True, False, False, True, False]
    assert len({row for _, row in replaced} | set(shard.values())) == len(aors) + len(shard)
    grown = sum(digested(row)[1] for row in shard.values()) - sum(digested(row)[1] for row in before.values())
    assert ((total[0] << 64) + total[1] - grown) % (1 << 128) == 0
    for _, row in replaced:
        digested(row)


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("number", range(10))
def test_rows_before_one_that_fails_are_in_the_table(language: str, number: int) -> None:
    def contact_ids() -> Iterator[int]:
        yield from range(number)
        raise ZeroDivisionError

    shard: dict[str, Row] = {}
    outcomes: list[Outcome] = []
    made: list[Any] = []
    entry = [register(f"sip:{each}@x", 1, 90 * each) for each in range(12)]
    with pytest.raises(ZeroDivisionError):
        KERNELS[language][1].first((shard,), None, entry, outcomes, made, contact_ids(), 7, 0, 3600, 60, 7200)
    assert [request for request, _, _ in made] == entry[:number]
    assert [contact_id for _, contact_id, _ in made] == list(range(number))
    assert list(shard.items()) == [(request.aor, row) for request, _, row in made]
    assert [bytes(outcome.data) for outcome in outcomes] == [digested(row)[0] for row in shard.values()]  # type: ignore[union-attr]


def test_kernels_hold_on_to_nothing() -> None:
    stored = shard_of("a", "b", "c", "d")
    again = [Refresh(aor, version, cseq, 1 << 31) for cseq, version in ((9, 2), (10, 7)) for aor in "abcbd"]
    first = [register(aor, 1, 90) for aor in (*AORS, AORS[4])]

    def use() -> None:
        shard, outcomes, replaced = stored.copy(), list[Outcome](), list[Any]()
        KERNEL.refresh((shard,), again, outcomes, replaced, 7, 0, 3600, 60, 0)
        assert len(outcomes) == len(replaced) == 3
        outcomes, made = list[Outcome](), list[Any]()
        FIRST.first(({},), None, first, outcomes, made, count(), 7, 0, 3600, 60, 7200)
        assert len(outcomes) == len(made) == len(AORS)

    check_that_nothing_is_kept(use, [*again, *first, *stored.values(), *stored, *AORS])
