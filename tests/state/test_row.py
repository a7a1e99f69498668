"""The bindings of an AOR as one string of bytes."""

from __future__ import annotations

import msgspec
import pytest

from sipha.state import row as module
from sipha.state.binding import Binding
from sipha.state.multiset import digest
from sipha.state.row import Row, bindings_of, digested, lead, load, moved, row_of, total
from sipha.state.table import DamagedMemory


def binding(number: int, expires_at: int) -> Binding:
    contact = f"sip:{number}@h"
    return Binding(
        "sip:a@x", contact, number, 1, expires_at, "c", 1, None, "", 0, "", "", "", "", (), "", "", 0, 0, "", 0
    )


BINDINGS = binding(1, 9000), binding(2, 7500)


@pytest.fixture
def row() -> Row:
    made = row_of(BINDINGS)
    assert made is not None
    return made


def test_row_holds_the_bindings_and_what_is_asked_of_them(row: Row) -> None:
    high, low, earliest, bucket = lead(row)
    assert bindings_of(row) == BINDINGS
    assert (earliest, bucket) == (7500, 7)
    assert total(high, low) == digest(msgspec.msgpack.encode(BINDINGS))
    assert digested(row) == (msgspec.msgpack.encode(BINDINGS), total(high, low))
    assert row_of(()) is None


@pytest.mark.parametrize(("before", "bucket"), [(3, 3), (7, 7), (8, 7)])
def test_row_stays_in_its_bucket_until_a_binding_expires_earlier(before: int, bucket: int) -> None:
    row = row_of(BINDINGS, before)
    assert row is not None
    assert lead(row)[2:] == (7500, bucket)


def test_row_in_another_bucket_is_the_same_row(row: Row) -> None:
    other = moved(row, 3)
    assert lead(other) == (*lead(row)[:3], 3)
    assert digested(other) == digested(row)


def test_row_is_loaded_from_what_a_snapshot_holds(row: Row) -> None:
    assert load(digested(row)[0]) == (row, "sip:a@x", 2)


@pytest.mark.parametrize("bindings", [(), (binding(1, -1),), (binding(1, module.LATEST),)])
def test_row_that_no_snapshot_holds_is_refused(bindings: tuple[Binding, ...]) -> None:
    with pytest.raises(ValueError, match=r"without bindings|no time"):
        load(msgspec.msgpack.encode(bindings))


@pytest.mark.parametrize("place", [0, 15, module.LEAD + 8, module.LEAD + 40])
def test_row_that_has_changed_by_itself_is_noticed(row: Row, place: int) -> None:
    damaged = row[:place] + bytes([row[place] ^ 1]) + row[place + 1 :]
    with pytest.raises(DamagedMemory, match="have changed by themselves"):
        digested(damaged)
