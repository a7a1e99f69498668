"""The kernel that makes first bindings, in C, beside what is written in Python: the same to the last byte."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state.binding import decode
from sipha.state.changes import Added
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Record, Register, RemoveBindings, encode
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome, Registered
from sipha.state.row import LEAD
from tests.kernels import check_that_nothing_is_kept, kernel
from tests.state.snapshots import taken
from tests.state.test_changes import Witness
from tests.state.test_model import policies
from tests.state.test_row_kernel import WIDTHS, seconds, state_of, texts, written_in

KERNEL = kernel("sipha.state._first")

AORS = [f"sip:{number}@x" for number in range(3)]
numbers = st.sampled_from([width for width in WIDTHS if width <= 0xFFFFFFFF])
contacts = st.builds(
    Contact,
    texts.filter(bool),
    seconds,
    st.none() | st.sampled_from([0, 127, 128, 256, 1000]),
    texts,
    st.sampled_from([0, 0, 0, 1]),
    texts,
    numbers,
)
registers = st.builds(
    Register,
    st.sampled_from(AORS),
    st.sampled_from(["c", "d"]),
    st.integers(0, 3) | numbers,
    st.lists(contacts, max_size=2).map(tuple),
    st.sampled_from([False, False, False, True]),
    **dict.fromkeys(["received", "socket", "flow", "user_agent", "methods", "attr", "kv_store"], texts),
    **dict.fromkeys(["flags", "cflags"], numbers),
    path=st.lists(texts, max_size=2).map(tuple) | st.sampled_from([15, 16, 70_000]).map(lambda size: ("h",) * size),
    outbound=st.booleans(),
)
records = registers | st.builds(RemoveBindings, st.sampled_from(AORS))


@given(
    st.lists(st.tuples(st.lists(records, min_size=1, max_size=4), st.integers(0, 200_000)), min_size=1, max_size=6),
    policies,
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_kernel_makes_of_first_registers_what_the_reference_makes(
    history: list[tuple[list[Record], int]], policy: Policy, frozen: bool
) -> None:
    machines, time = {"Python": Machine(), "C": Machine()}, 0
    observers, told = {language: Witness() for language in machines}, dict[str, list[tuple[str, int, int]]]()
    for language, machine in machines.items():
        machine.observer = observers[language]
        told[language] = []
        machine.location.bound = lambda *binding, told=told[language]: told.append(binding)
    for batch, elapsed in history:
        time += elapsed
        found = []
        for language, machine in machines.items():
            with written_in(language):
                held = machine.location.freeze() if frozen else None
                entry = encode(Batch(SCHEMA, time, policy, tuple(batch)))
                found.append((machine.apply(machine.index + 1, entry), state_of(machine.location), held and list(held)))
                for _ in held.close() if held else ():
                    pass
        assert found[0] == found[1]
    assert observers["Python"].told == observers["C"].told
    assert told["Python"] == told["C"]
    assert taken(machines["Python"]) == taken(machines["C"])


def made(*requests: Any, tombstones: Any = None, version: int = 7) -> tuple[list[Outcome], list[Any], dict[str, bytes]]:
    """What the kernel alone makes of records."""
    shard: dict[str, bytes] = {}
    outcomes: list[Outcome] = []
    done: list[Any] = []
    KERNEL.first((shard,), tombstones, requests, outcomes, done, count(version << 20), version, 0, 3600, 60, 7200)
    return outcomes, done, shard


def test_kernel_takes_what_most_phones_send() -> None:
    request = Register(AORS[0], "c", 1, (Contact("sip:a@h", 600),), received="sip:h", user_agent="phone", cflags=1)
    (outcome,), ((record, contact_id, row),), shard = made(request)
    assert isinstance(outcome, Registered)
    assert shard == {AORS[0]: row}
    assert (record, contact_id) == (request, 7 << 20)
    (binding,) = decode(row[LEAD:])
    assert outcome.bindings == (binding,)
    assert (binding.contact_id, binding.expires_at, binding.cflags) == (7 << 20, 600_000, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"contacts": ()},
        {"contacts": (Contact("a"), Contact("b"))},
        {"contacts": (Contact("a", 0),)},
        {"contacts": (Contact("a", 60, instance="i", reg_id=1),)},
        {"wildcard": True},
        {"user_agent": "\udcff"},
        {"path": ("\udcff",)},
        {"flags": -1},
        {"cseq": 1 << 64},
    ],
)
def test_kernel_leaves_what_asks_for_more_to_the_reference(changed: dict[str, Any]) -> None:
    request = Register(AORS[0], "c", 1, (Contact("sip:a@h", 600),))
    assert made(msgspec.structs.replace(request, **changed)) == ([], [], {})
    assert len(made(request, object(), request)[0]) == 1


def test_kernel_leaves_an_aor_that_is_bound_or_was_to_the_reference() -> None:
    request = Register(AORS[0], "c", 1, (Contact("sip:a@h", 600),))
    assert len(made(request, request)[0]) == 1
    assert made(request, tombstones=({(AORS[0], "c"): 1},))[0] == []
    assert len(made(request, tombstones=({(AORS[0], "d"): 1},))[0]) == 1


def test_kernel_gives_no_id_that_no_row_can_hold() -> None:
    request = Register(AORS[0], "c", 1, (Contact("sip:a@h", 600),))
    assert made(request, version=(1 << 43) - 1)[1][0][1] == ((1 << 43) - 1) << 20
    assert made(request, version=1 << 43) == ([], [], {})


def test_first_registers_are_told_as_they_are_made() -> None:
    machine = Machine()
    machine.observer = observer = Witness()
    with written_in("C"):
        requests = [Register(aor, "c", 1, (Contact("sip:a@h", 600),)) for aor in AORS]
        machine.apply(1, encode(Batch(SCHEMA, 0, Policy(), tuple(requests))))
    ((index, time, changes),) = observer.told
    assert (index, time, [type(change) for change in changes]) == (1, 0, [Added] * 3)
    assert [change.aor for change in changes] == AORS
    assert machine.location.count == len(machine.location) == 3


@pytest.mark.parametrize(
    "changed",
    [{0: ()}, {0: ({}, {}, {})}, {1: ()}, {2: "x"}, {3: ()}, {4: ()}, {5: 1}, {6: -1}, {7: None}, {8: "1"}, {10: 1.0}],
)
def test_kernel_refuses_what_it_isnt_for(changed: dict[int, object]) -> None:
    arguments: list[object] = [({},), None, (), [], [], count(), 1, 1, 1, 1, 1]
    assert KERNEL.first(*arguments) == (0, 0)
    with pytest.raises(TypeError):
        KERNEL.first(*(changed.get(place, value) for place, value in enumerate(arguments)))
    with pytest.raises(TypeError):
        KERNEL.first(*arguments[1:])


def test_kernel_holds_on_to_nothing() -> None:
    request = Register(AORS[0], "éé", 1, (Contact("sip:a@h", 600, 500),), path=("i", "é"))
    buried = ({(AORS[0], "éé"): 1},)

    def use() -> None:
        assert len(made(request, request)[0]) == 1
        assert made(request, tombstones=buried)[0] == []

    check_that_nothing_is_kept(use, [request, request.aor, request.contacts[0], request.path, buried])
