"""The kernel of the table, in C, beside what is written in Python: the same to the last byte, whatever memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state import location as location_module
from sipha.state import registration
from sipha.state import row as row_module
from sipha.state.binding import Binding, decode
from sipha.state.changes import Refreshed
from sipha.state.entries import SCHEMA, UNDECODABLE, Batch, Contact, Policy, Record, Refresh, Register, encode
from sipha.state.location import Location
from sipha.state.machine import Machine
from sipha.state.outcomes import Invalid, Outcome, Outdated, Registered
from sipha.state.row import LATEST, LEAD, Row, row_of
from tests.cluster_sim.explore import explore
from tests.kernels import check_that_nothing_is_kept, kernel
from tests.state.snapshots import taken
from tests.state.test_changes import Witness
from tests.state.test_model import AORS, phones, policies

KERNEL, FIRST = kernel("sipha.state._row"), kernel("sipha.state._first")
KERNELS = {"C": (KERNEL, FIRST), "Python": (None, None)}

WIDTHS = [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


BINDING = Binding("a", "b", 1, 2, 3, "c", 4, 5, "d", 0, "e", "f", "g", "h", ("i",), "j", "k", 6, 7, "l", 8, "m")


@contextmanager
def written_in(language: str) -> Iterator[None]:
    """All that is done meanwhile is done by the kernel as far as it goes, or by none."""
    with pytest.MonkeyPatch.context() as patch:
        used, first = KERNELS[language]
        patch.setattr(location_module, "refresh_plain", used and used.refresh)
        patch.setattr(location_module, "first_plain", first and first.first)
        patch.setattr(location_module, "shorten_plain", used and used.shortened)
        patch.setattr(row_module, "load_plain", used and used.load)
        yield


# Any binding, and what a phone may say of it

numbers = st.sampled_from(WIDTHS) | st.integers(0, (1 << 64) - 1) | st.integers(-200, 200)
texts = (
    st.text(max_size=5)
    | st.text("ab", max_size=70)
    | st.sampled_from([31, 32, 255, 256, 65535, 65536]).map("c".__mul__)
)
values: dict[Any, st.SearchStrategy[Any]] = {
    int: numbers,
    int | None: st.none() | numbers,
    str: texts,
    tuple[str, ...]: st.lists(texts, max_size=2).map(tuple) | st.integers(14, 17).map(lambda size: ("h",) * size),
}
TIMES = {name: st.integers(0, 1 << 50) | st.integers(0, 200_000) for name in ("expires_at", "last_modified")}
SMALL = {name: st.integers(0, 300) for name in ("version", "cseq", "contact_id")}
empty = {field.name: st.just(field.type()) for field in msgspec.structs.fields(Binding) if field.type in {str, int}}
plain = st.builds(
    Binding, **empty | {"q": st.none(), "path": st.just(()), "aor": texts, "contact": texts} | TIMES | SMALL
)
bindings = plain | st.builds(
    Binding, **{field.name: values[field.type] for field in msgspec.structs.fields(Binding)} | TIMES | SMALL
)
rows = st.lists(bindings, min_size=1, max_size=2).map(tuple) | bindings.map(lambda binding: (binding,))
seconds = st.none() | st.sampled_from([0, 1, 60, 3600, 0xFFFFFFFF])


def request_of(binding: Binding, cseq: int, expires: int | None, jitter: int) -> Register:
    """The REGISTER that refreshes a binding."""
    contact = Contact(binding.contact, expires, binding.q, binding.instance, binding.reg_id, binding.params, jitter)
    fields = {
        field.name: getattr(binding, field.name)
        for field in msgspec.structs.fields(Register)
        if hasattr(binding, field.name)
    }
    return Register(**{**fields, "cseq": cseq, "contacts": (contact,)})


def data_of(stored: Sequence[Binding]) -> bytes:
    return msgspec.msgpack.encode(tuple(stored))


def located(data: bytes, now: int, policy: Policy, version: int) -> Location:
    """A table that has what a snapshot holds, about to apply an entry."""
    location = Location()
    location.load([data])
    location.begin(version, now, policy, SCHEMA)
    return location


def state_of(location: Location) -> tuple[Any, ...]:
    """All of a table."""
    return (
        [location._rows.get(aor) for aor in location.aors()],
        location.hash,
        location.count,
        location._buckets._buckets,
    )


# Loading


@given(rows)
def test_kernel_loads_what_is_written_or_leaves_it(stored: tuple[Binding, ...]) -> None:
    data = data_of(stored)
    with written_in("Python"):
        expected = row_module.load(data)
    assert KERNEL.load(data) in {expected[:2], None}
    with written_in("C"):
        assert row_module.load(data) == expected


@pytest.mark.parametrize("size", [*range(400), 70_000])
def test_kernel_has_the_digest_of_rows_of_any_length(size: int) -> None:
    data = data_of([Binding("a", "", 1, 1, 1, "", 1, None, "", 0, "", "", "", "", (), "", "", 0, 0, "", 0, "x" * size)])
    with written_in("Python"):
        row, aor, _ = row_module.load(data)
    assert KERNEL.load(data) == (row, aor)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["contact_id", "version", "cseq", "flags", "q"])
def test_kernel_takes_numbers_of_any_width(name: str, width: int) -> None:
    binding = Binding("a", "", 1, 1, 1, "", 1, None, "", 0, "", "", "", "", (), "", "", 0, 0, "", 0, "")
    assert KERNEL.load(data_of([msgspec.structs.replace(binding, **{name: width})])) is not None
    assert KERNEL.load(data_of([msgspec.structs.replace(binding, **{name: -1 - width % (1 << 62)})])) is None


def test_kernel_leaves_what_never_expires_to_the_reference() -> None:
    never = Binding("a", "", 1, 1, LATEST, "", 1, None, "", 0, "", "", "", "", (), "", "", 0, 0, "", 0, "")
    assert KERNEL.load(data_of([never])) is None
    with written_in("C"), pytest.raises(ValueError, match="no time"):
        row_module.load(data_of([never]))


# Refreshing


@given(rows, st.integers(-2, 2), st.integers(0, 1), seconds, st.sampled_from([0, 7, 0xFFFFFFFF]), policies, st.data())
@settings(max_examples=300)
def test_kernel_refreshes_as_the_reference(  # noqa: PLR0917  what a record and its moment are
    stored: tuple[Binding, ...],
    later: int,
    other: int,
    expires: int | None,
    jitter: int,
    policy: Policy,
    data: st.DataObject,
) -> None:
    binding = stored[0]
    now = data.draw(st.integers(0, 1 << 50) | st.integers(-2, 2).map(lambda delta: max(binding.expires_at + delta, 0)))
    version = data.draw(st.sampled_from([width for width in WIDTHS if width < 1 << 62]))
    record = Refresh(binding.aor, binding.version + other, max(binding.cseq + later, 0), expires, jitter)
    found = []
    for language in ("Python", "C"):
        with written_in(language):
            location = located(data_of(stored), now, policy, version)
            frozen = location.freeze()
            outcomes: list[Outcome] = []
            location.apply_plain((record, None), outcomes)
            found.append((outcomes, state_of(location), list(frozen)))
    assert found[0] == found[1]


@given(bindings, st.integers(1, 2), seconds)
def test_kernel_takes_each_plain_refresh(binding: Binding, later: int, expires: int | None) -> None:
    location = located(data_of([binding]), binding.expires_at - 1, Policy(), 1)
    record = Refresh(binding.aor, binding.version, binding.cseq + later, expires)
    outcomes: list[Outcome] = []
    KERNEL.refresh(location._rows.shards, [record], outcomes, None, 400, max(binding.expires_at - 1, 0), 3600, 60, 7200)
    encoded = [value for value in msgspec.structs.astuple(binding) if isinstance(value, int)]
    taken = min(encoded) >= 0 and expires != 0 and binding.expires_at > 0
    assert [type(outcome) for outcome in outcomes] == [Registered] * taken


# Shortening


@given(rows, st.integers(-1, 2), seconds, st.integers(0, 9), st.data())
@settings(max_examples=300)
def test_kernel_shortens_what_the_reference_shortens(
    stored: tuple[Binding, ...], later: int, expires: int | None, jitter: int, data: st.DataObject
) -> None:
    request = request_of(stored[0], max(stored[0].cseq + later, 0), expires, jitter)
    differs = data.draw(st.none() | st.sampled_from(msgspec.structs.fields(Register)))
    if differs is not None and differs.type in values:
        request = msgspec.structs.replace(request, **{differs.name: data.draw(values[differs.type])})
    row = row_of(stored)
    assert row is not None
    expected = registration.shortened(request, stored[0]) if len(stored) == 1 else None
    negative = any(isinstance(value, int) and value < 0 for value in msgspec.structs.astuple(stored[0]))
    assert KERNEL.shortened(row, request) == (None if negative else expected)


def test_kernel_compares_each_field_that_the_reference_compares() -> None:
    binding = BINDING
    row = row_of((binding,))
    same = request_of(binding, 5, 60, 1)
    assert KERNEL.shortened(row, same) == registration.shortened(same, binding) == Refresh("a", 2, 5, 60, 1)
    contact = same.contacts[0]
    others: list[Register] = [
        msgspec.structs.replace(same, **{name: "x"})
        for name in ("aor", "call_id", "received", "socket", "flow", "user_agent", "methods", "attr", "kv_store")
    ]
    others += [msgspec.structs.replace(same, **{name: 9}) for name in ("flags", "cflags")]
    others += [msgspec.structs.replace(same, path=path) for path in ((), ("i", "i"), ("x",), ("i\udc80",))]
    others += [msgspec.structs.replace(same, contacts=()), msgspec.structs.replace(same, contacts=(contact, contact))]
    others += [msgspec.structs.replace(same, wildcard=True), msgspec.structs.replace(same, user_agent="\udcff")]
    others += [
        msgspec.structs.replace(same, contacts=(msgspec.structs.replace(contact, **{name: value}),))
        for name, value in {"uri": "x", "expires": 0, "q": None, "instance": "x", "reg_id": 1, "params": "x"}.items()
    ]
    others += [msgspec.structs.replace(same, cseq=4)]
    for other in others:
        assert registration.shortened(other, binding) is None
        assert KERNEL.shortened(row, other) is None


# Entries


@given(
    st.lists(st.tuples(st.lists(phones, min_size=1, max_size=4), st.integers(0, 50_000)), min_size=1, max_size=15),
    policies,
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=300)
def test_machines_with_and_without_kernel_stay_the_same(
    history: list[tuple[list[Register], int]], policy: Policy, told: bool, frozen: bool
) -> None:
    machines, time = {"Python": Machine(), "C": Machine()}, 0
    observers = {language: Witness(refreshes=told) for language in machines}
    for requests, elapsed in history:
        time += elapsed
        found = []
        for language, machine in machines.items():
            machine.observer = observers[language]
            with written_in(language):
                records: tuple[Record, ...] = tuple(map(machine.location.shortened, requests))
                held = machine.location.freeze() if frozen else None
                outcomes = machine.apply(machine.index + 1, encode(Batch(SCHEMA, time, policy, records)))
                again = machine.apply(machine.index + 1, encode(Batch(SCHEMA, time, policy, tuple(requests))))
                found.append((records, outcomes, again, held and list(held), state_of(machine.location)))
                for _ in held.close() if held else ():
                    pass
        assert found[0] == found[1]
        assert machines["Python"].hash() == machines["C"].hash()
    assert observers["Python"].told == observers["C"].told
    assert taken(machines["Python"]) == taken(machines["C"])


def test_entry_of_many_refreshes_comes_to_the_same_sum() -> None:
    aors = [f"sip:{number}@x" for number in range(100)]
    found = []
    for language in ("Python", "C"):
        machine = Machine()
        with written_in(language):
            first = [Register(aor, "c", 1, (Contact("sip:a@h"),)) for aor in aors]
            machine.apply(1, encode(Batch(SCHEMA, 0, Policy(), tuple(first))))
            for index in range(2, 5):
                again = [Refresh(aor, index - 1, index) for aor in aors]
                outcomes = machine.apply(index, encode(Batch(SCHEMA, index, Policy(), tuple(again))))
                assert {type(outcome) for outcome in outcomes} == {Registered}
                found.append(machine.hash())
    assert found[:3] == found[3:]


def test_refresh_is_told_while_that_is_wanted() -> None:
    machine = Machine()
    with written_in("C"):
        machine.apply(1, encode(Batch(SCHEMA, 0, Policy(), (Register(AORS[0], "c", 1, (Contact("sip:a@h"),)),))))
        machine.observer = observer = Witness(refreshes=True)
        machine.apply(2, encode(Batch(SCHEMA, 9, Policy(), (Refresh(AORS[0], 1, 2),))))
    assert observer.told == [(2, 9, [Refreshed(machine.location.bindings(AORS[0], 9)[0])])]


@pytest.mark.parametrize("seed", [2, 5])
def test_simulated_clusters_go_the_same_way_with_and_without_kernel(seed: int) -> None:
    """All that is sent, stored and answered in them is part of the trace."""
    found = []
    for language in ("Python", "C"):
        with written_in(language):
            found.append(explore(seed))
    assert (found[0].trace, found[0].failure) == (found[1].trace, found[1].failure)


# Damage


def damaged(row: bytes, data: st.DataObject) -> bytes:
    """A row of which bits have flipped, or which isn't whole."""
    changed = bytearray(row)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    return bytes(changed[:cut]) + data.draw(st.just(b"") | st.binary(max_size=3))


@given(rows, st.data())
@settings(max_examples=300)
def test_kernel_takes_of_a_damaged_row_what_the_reference_takes(
    stored: tuple[Binding, ...], data: st.DataObject
) -> None:
    whole = row_of(stored)
    assert whole is not None
    row = damaged(whole, data)
    record = Refresh(stored[0].aor, stored[0].version, stored[0].cseq + 1, 60)
    shards: tuple[dict[str, Row]] = ({record.aor: row},)
    outcomes: list[Outcome] = []
    KERNEL.refresh(shards, (record,), outcomes, None, 5, 0, 3600, 60, 7200)
    if outcomes:
        location = located(data_of(stored), 0, Policy(), 5)
        location._rows.replace(record.aor, whole, row)
        with written_in("Python"):
            again: list[Outcome] = []
            location.apply_plain((record,), again)
        assert (again, location._rows.get(record.aor)) == (outcomes, shards[0][record.aor])
    request = request_of(stored[0], stored[0].cseq + 1, 60, 0)
    if KERNEL.shortened(row, request) is not None:
        assert KERNEL.shortened(row, request) == registration.shortened(request, decode(row[LEAD:])[0])
    loaded = KERNEL.load(row[LEAD:])
    if loaded is not None:
        with written_in("Python"):
            assert (*loaded, 1) == row_module.load(row[LEAD:])


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_kernel_takes_any_bytes(data: bytes, lead: bytes) -> None:
    loaded = KERNEL.load(data)
    if loaded is not None:
        assert (*loaded, 1) == row_module.load(data)
    request = Register("a", "c", 9, (Contact("b"),))
    for row in (data, lead, lead + data):
        with suppress(*UNDECODABLE):
            assert KERNEL.shortened(row, request) is None or decode(row[LEAD:])
        KERNEL.refresh(({"a": row},), (Refresh("a", 0, 9),), [], None, 5, 0, 3600, 60, 7200)


@pytest.mark.parametrize("cut", range(90))
def test_kernel_reads_nothing_behind_a_row(cut: int) -> None:
    binding = Binding(
        "a", "b" * 40, 300, 70_000, 1 << 40, "c", 4, 5, "d", 0, "e", "f", "g", "h", ("i",), "", "", 6, 7, "", 8
    )
    row = row_of((binding,))
    assert row is not None
    assert KERNEL.load(row[LEAD : len(row) - cut]) == ((row, "a") if cut == 0 else None)


def written(kind: int, width: int, value: int) -> bytes:
    """What msgpack has before, or of, a value."""
    return bytes([kind]) + value.to_bytes(width, "big")


@pytest.mark.parametrize("value", [0, 1, 0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize(("kind", "width"), [(0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8), (0xD0, 1), (0xD3, 8)])
def test_kernel_takes_no_other_writing_of_a_number(value: int, kind: int, width: int) -> None:
    """What another encoder writes has another digest, and is written anew by the reference."""
    if value < 1 << (8 * width - (kind >= 0xD0)):
        own, other = msgspec.msgpack.encode(value), written(kind, width, value)
        assert_taken_in_one_writing(msgspec.structs.replace(BINDING, contact_id=value), b"b" + own, b"b" + other)


@pytest.mark.parametrize("size", [0, 1, 31, 255, 65535])
@pytest.mark.parametrize(("kind", "width"), [(0xD9, 1), (0xDA, 2), (0xDB, 4)])
def test_kernel_takes_no_other_writing_of_a_text(size: int, kind: int, width: int) -> None:
    if size < 1 << 8 * width:
        text = "x" * size
        own, other = msgspec.msgpack.encode(text), written(kind, width, size) + text.encode()
        binding = msgspec.structs.replace(BINDING, attr=text)
        assert_taken_in_one_writing(binding, b"\x07" + own + b"\x08", b"\x07" + other + b"\x08")


@pytest.mark.parametrize("size", [0, 1, 15, 65535])
@pytest.mark.parametrize(("kind", "width"), [(0xDC, 2), (0xDD, 4)])
def test_kernel_takes_no_other_writing_of_a_path(size: int, kind: int, width: int) -> None:
    path = ("",) * size
    own, other = msgspec.msgpack.encode(path), written(kind, width, size) + bytes([0xA0]) * size
    binding = msgspec.structs.replace(BINDING, path=path)
    assert_taken_in_one_writing(binding, b"\xa1h" + own, b"\xa1h" + other)


@pytest.mark.parametrize(
    ("own", "other"),
    [(b"\x91\xdc", b"\xdc\x00\x01\xdc"), (b"\x91\xdc\x00\x16", b"\x91\xdd\x00\x00\x00\x16")],
)
def test_kernel_takes_no_other_writing_of_a_row(own: bytes, other: bytes) -> None:
    assert_taken_in_one_writing(BINDING, own, other)


def assert_taken_in_one_writing(binding: Binding, own: bytes, other: bytes) -> None:
    data = data_of([binding])
    assert KERNEL.load(data) is not None
    assert data.count(own) == 1
    if own != other:
        assert decode(data.replace(own, other)) == (binding,)
        assert KERNEL.load(data.replace(own, other)) is None


def test_kernel_takes_no_bytes_that_are_no_text() -> None:
    data = data_of([Binding("a", "é", 1, 2, 3, "c", 4, 5, "d", 0, "", "", "", "", (), "", "", 6, 7, "", 8, "")])
    assert KERNEL.load(data) is not None
    broken = data.replace("é".encode(), b"\xc3\x28")
    with pytest.raises(UNDECODABLE):
        decode(broken)
    assert KERNEL.load(broken) is None


# What it is given


def test_record_after_one_that_cant_be_applied_is_applied() -> None:
    machine = Machine()
    with written_in("C"):
        first = [Register(aor, "c", 1, (Contact("sip:a@h"),)) for aor in AORS]
        machine.apply(1, encode(Batch(SCHEMA, 0, Policy(), tuple(first))))
        row = machine.location._rows.get(AORS[0])
        assert row is not None
        machine.location._rows.replace(AORS[0], row, row[:LEAD] + b"\xc1")
        outcomes = machine.apply(2, encode(Batch(SCHEMA, 9, Policy(), tuple(Refresh(aor, 1, 2) for aor in AORS))))
    assert [type(outcome) for outcome in outcomes] == [Invalid, Registered]


def test_refresh_of_what_is_not_there_is_outdated() -> None:
    with written_in("C"):
        machine = Machine()
        outcomes = machine.apply(
            1, encode(Batch(SCHEMA, 0, Policy(), (Refresh(AORS[0], 1, 2), Refresh(AORS[1], 1, 2))))
        )
    assert outcomes == [Outdated(), Outdated()]


@pytest.mark.parametrize(
    "changed",
    [{0: ()}, {0: ({}, {}, {})}, {1: "x"}, {2: ()}, {3: ()}, {4: -1}, {5: None}, {6: "1"}, {7: 1 << 70}, {8: 1.0}],
)
def test_kernel_refuses_what_it_isnt_for(changed: dict[int, object]) -> None:
    arguments: list[object] = [({},), (), [], None, 1, 1, 1, 1, 1]
    KERNEL.refresh(*arguments)
    with pytest.raises(TypeError):
        KERNEL.refresh(*(changed.get(place, value) for place, value in enumerate(arguments)))


def test_kernel_begins_with_the_first_that_has_no_outcome() -> None:
    row, other = row_of((BINDING,)), row_of((msgspec.structs.replace(BINDING, aor="o"),))
    shards = ({"a": row, "o": other},)
    outcomes: list[Outcome] = [Outdated()]
    records = [Refresh("a", BINDING.version, 9), Refresh("o", BINDING.version, 9)]
    KERNEL.refresh(shards, records, outcomes, None, 7, 0, 3600, 60, 7200)
    assert [type(outcome) for outcome in outcomes] == [Outdated, Registered]
    assert (shards[0]["a"] is row, shards[0]["o"] is other) == (True, False)


def test_kernel_looks_at_nothing_that_isnt_what_it_is_for() -> None:
    other: Any = object()
    row = row_of((Binding("a", "", 1, 1, 1, "", 1, None, "", 0, "", "", "", "", (), "", "", 0, 0, "", 0, ""),))
    assert KERNEL.load(other) is None
    assert KERNEL.shortened(row, other) is None
    assert KERNEL.shortened(other, Register("a", "", 2, (Contact("b"),))) is None
    assert KERNEL.shortened(row, Register("a", "", 2, (other,))) is None
    outcomes: list[Outcome] = []
    record = Refresh("a", 1, 2)
    for shards in (({"a": other},), (other,), ({},)):
        assert KERNEL.refresh(shards, [record, other], outcomes, None, 1, 0, 1, 1, 1) == (0, 0)
    assert not outcomes
    for arguments in ((), (row,), (row, other, other)):
        with pytest.raises(TypeError):
            KERNEL.shortened(*arguments)


def test_kernel_holds_on_to_nothing() -> None:
    binding = Binding(
        "a", "éé", 300, 1000, 1 << 40, "c", 1, None, "", 0, "", "", "", "", ("i",), "", "", 0, 0, "", 0, ""
    )
    data = data_of([binding])
    stored, _ = KERNEL.load(data)
    request = request_of(binding, 2, 60, 0)
    record = Refresh("a", 1000, 2, 1 << 31)

    def use() -> None:
        shards = ({"a": stored},)
        replaced: list[Any] = []
        outcomes: list[Outcome] = []
        KERNEL.refresh(shards, [record, record], outcomes, replaced, 1 << 40, 9, 3600, 60, 0)
        assert len(outcomes) == len(replaced) == 1
        assert KERNEL.shortened(stored, request) is not None
        assert KERNEL.load(data) is not None
        assert KERNEL.load(data[:-1]) is None

    check_that_nothing_is_kept(
        use, [request, request.aor, request.contacts[0], record, record.aor, stored, data, binding]
    )
