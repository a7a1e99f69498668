"""The stream of bytes that is the whole state: consistent, complete, and never taken for one when it isn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from unittest import mock
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state import ordered, snapshot, table
from sipha.state.entries import (
    SCHEMA,
    Batch,
    Contact,
    DeleteAccount,
    Member,
    Policy,
    PutAccount,
    PutKey,
    PutMembers,
    PutSetting,
    RaiseSchema,
    Record,
    Register,
    RemoveBindings,
    encode,
)
from sipha.state.machine import DamagedMemory, Machine, UnknownSchema
from sipha.state.snapshot import DamagedSnapshot, Frozen, Loader
from tests.state.snapshots import CLUSTER_ID, TERM, copied, loaded, taken

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = "abcdefgh"

records = st.one_of(
    st.builds(
        Register,
        aor=st.sampled_from([f"sip:{name}@x" for name in NAMES]),
        call_id=st.sampled_from(["c1", "c2"]),
        cseq=st.integers(0, 12),
        contacts=st.lists(
            st.builds(Contact, uri=st.sampled_from(["sip:a@h1", "sip:a@h2"]), expires=st.sampled_from([0, 60, 100])),
            max_size=2,
        ).map(tuple),
    ),
    st.builds(RemoveBindings, aor=st.sampled_from([f"sip:{name}@x" for name in NAMES])),
    st.builds(
        PutAccount,
        username=st.sampled_from(NAMES),
        domain=st.just("x"),
        auth_name=st.sampled_from(NAMES),
        realm=st.just("x"),
        ha1=st.sampled_from([{"MD5": "0" * 32}, {"MD5": "1" * 32, "SHA-256": "2" * 64}]),
    ),
    st.builds(DeleteAccount, username=st.sampled_from(NAMES), domain=st.just("x")),
    st.builds(PutKey, secret=st.binary(min_size=32, max_size=32)),
    st.builds(PutSetting, name=st.sampled_from(["s", "t"]), value=st.sampled_from(["", "1", "2"])),
    st.builds(
        PutMembers,
        members=st.sets(st.sampled_from("abc"), min_size=1).map(
            lambda names: tuple(Member(name, f"{name}:1", "voter") for name in names)
        ),
    ),
    st.just(RaiseSchema(SCHEMA)),
)
logs = st.lists(st.tuples(st.lists(records, min_size=1, max_size=4), st.integers(0, 40_000)), min_size=1, max_size=15)


def entries(log: list[tuple[list[Record], int]]) -> Iterator[bytes]:
    time = 0
    for batch, elapsed in log:
        time += elapsed
        yield encode(Batch(SCHEMA, time, Policy(), tuple(batch)))


def sample() -> Machine:
    machine = Machine()
    batch: list[Record] = [RaiseSchema(SCHEMA), PutMembers((Member("a", "h:1", "voter"),)), PutSetting("s", "1")]
    batch += [Register(f"sip:{name}@x", "c", 1, (Contact("sip:a@h1"), Contact("sip:a@h2"))) for name in NAMES]
    batch += [RemoveBindings("sip:c@x"), RemoveBindings("sip:d@x")]
    batch += [PutAccount(name, "x", name, "x", {"MD5": "0" * 32}) for name in NAMES]
    batch += [PutKey(bytes([number] * 32)) for number in range(3)]
    machine.apply(7, encode(Batch(SCHEMA, 5000, Policy(max_contacts=3), tuple(batch))))
    return machine


@contextmanager
def finely_cut() -> Iterator[None]:
    """Let a few records be as many chunks, in memory and in the snapshot."""
    with mock.patch.object(ordered, "_CHUNK", 1), mock.patch.object(snapshot, "CHUNK", 1):
        yield


def chunks(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = 8 + int.from_bytes(data[:4], "little")
        found.append(data[:size])
        data = data[size:]
    return found


def framed(*body: object) -> bytes:
    data = msgspec.msgpack.encode(body)
    return len(data).to_bytes(4, "little") + crc32(data).to_bytes(4, "little") + data


# Taking


@given(logs, st.data())
@settings(max_examples=300, deadline=None)
def test_frozen_state_stays_as_it_was_whatever_is_applied(
    log: list[tuple[list[Record], int]], data: st.DataObject
) -> None:
    with finely_cut():
        machine = Machine()
        taking: list[tuple[Frozen, bytes, list[bytes]]] = []
        for index, entry in enumerate(entries(log), 1):
            machine.apply(index, entry)
            if data.draw(st.booleans()):
                taking.append((machine.freeze(TERM, CLUSTER_ID), taken(machine), []))
            for frozen, _, got in taking:
                got.extend(islice(frozen, data.draw(st.integers(0, 4))))
        for frozen, whole, got in taking:
            assert b"".join([*got, *frozen]) == whole
            frozen.close()
        assert not machine.location._rows._frozen
        assert taken(machine) == taken(copied(machine))


def test_state_that_is_not_frozen_any_more_keeps_nothing() -> None:
    machine = sample()
    frozen = machine.freeze(TERM, CLUSTER_ID)
    rows = frozen._rows._kept
    machine.apply(8, encode(Batch(SCHEMA, 6000, Policy(), (RemoveBindings("sip:a@x"),))))
    assert rows.get("sip:a@x")
    freed = frozen.close()
    machine.apply(9, encode(Batch(SCHEMA, 6000, Policy(), (RemoveBindings("sip:b@x"),))))
    assert not rows.get("sip:b@x")
    for _ in freed:
        pass
    assert not rows.get("sip:a@x")
    assert next(frozen, None) is None


def test_what_was_passed_is_not_kept() -> None:
    with finely_cut():
        machine = sample()
        frozen = machine.freeze(TERM, CLUSTER_ID)
        header_and_first = list(islice(frozen, 2))
        machine.apply(8, encode(Batch(SCHEMA, 6000, Policy(), (RemoveBindings("sip:a@x"), RemoveBindings("sip:h@x")))))
        assert not frozen._rows._kept.get("sip:a@x")
        assert frozen._rows._kept.get("sip:h@x")
        assert b"".join([*header_and_first, *frozen]) == taken(sample())
        assert not frozen._rows._kept.get("sip:h@x")


def test_snapshot_is_the_same_on_every_node_that_has_applied_as_much() -> None:
    machine = sample()
    other = copied(machine)  # its table has grown in another way
    assert taken(other) == taken(machine)
    with finely_cut():
        assert taken(copied(machine)) == taken(machine)


def test_chunks_are_small_but_for_a_large_record() -> None:
    machine = Machine()
    large = Register("sip:large@x", "c", 1, (Contact("sip:a@h1"),), user_agent="x" * 200_000)
    machine.apply(1, encode(Batch(SCHEMA, 0, Policy(), (large,))))
    for number in range(400):
        register = Register(f"sip:{number}@x", "c", 1, (Contact("sip:a@h1"),), user_agent="x" * 500)
        machine.apply(number + 2, encode(Batch(SCHEMA, 0, Policy(), (register,))))
    sizes = [len(chunk) for chunk in machine.freeze(TERM, CLUSTER_ID)]
    assert len(sizes) > 5
    assert len([size for size in sizes if size > snapshot.CHUNK + 4096]) == 1
    assert copied(machine).hash() == machine.hash()


# Loading


@given(logs, st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_snapshot_is_loaded_in_pieces_of_any_size(log: list[tuple[list[Record], int]], piece: int) -> None:
    machine, other = Machine(), Machine()
    for index, entry in enumerate(entries(log), 1):
        machine.apply(index, entry)
    found = loaded(taken(machine), piece)
    assert (found.header.index, found.header.term, found.header.cluster_id) == (len(log), TERM, CLUSTER_ID)
    assert found.header.hash == machine.hash().to_bytes(16, "big")
    other.adopt(found)
    assert (other.index, other.time, other.policy) == (machine.index, machine.time, machine.policy)
    assert (other.schema, other.members) == (machine.schema, machine.members)
    assert other.hash() == machine.hash()
    assert taken(other) == taken(machine)


def test_header_is_known_as_soon_as_it_has_come() -> None:
    data = taken(sample())
    loader = Loader()
    first = len(chunks(data)[0])
    loader.feed(data[: first - 1])
    assert loader.header is None
    loader.feed(data[first - 1 : first])
    assert loader.header is not None
    assert (loader.header.schema, loader.header.index, loader.header.time) == (SCHEMA, 7, 5000)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_flipped_bits_are_found(data: st.DataObject) -> None:
    whole = bytearray(taken(sample()))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedSnapshot):
        loaded(bytes(whole), data.draw(st.sampled_from([1, 100, 1 << 20])))


def test_cut_snapshot_and_one_with_something_behind_are_found() -> None:
    whole = taken(sample())
    for size in range(len(whole)):
        with pytest.raises(DamagedSnapshot):
            loaded(whole[:size])
    for more in (b"\0", b"\0" * 8, whole, framed("part", "member", [])):
        with pytest.raises(DamagedSnapshot):
            loaded(whole + more)


def test_chunks_that_are_lost_repeated_or_out_of_order_are_found() -> None:
    with finely_cut():
        whole = chunks(taken(sample()))
    assert len(whole) > 20
    assert loaded(b"".join(whole))
    for at in range(len(whole)):
        for wrong in (
            whole[:at] + whole[at + 1 :],
            [*whole[: at + 1], *whole[at:]],
            [*whole[:at], *whole[at : at + 2][::-1], *whole[at + 2 :]],
        ):
            if wrong != whole:
                with pytest.raises(DamagedSnapshot):
                    loaded(b"".join(wrong))


def test_records_that_have_not_the_hash_of_the_machine_are_found() -> None:
    [header, *parts, _] = chunks(taken(sample()))
    tag, *fields, table_hash = msgspec.msgpack.decode(header[8:])

    def stream(table_hash: bytes) -> bytes:
        rest = [framed(tag, *fields, table_hash), *parts]
        checksum = 0
        for chunk in rest:
            checksum = crc32(chunk[:8], checksum)
        return b"".join([*rest, framed("end", checksum)])

    assert stream(table_hash) == taken(sample())
    with pytest.raises(DamagedSnapshot, match=table_hash.hex()):
        loaded(stream(bytes(16)))


@pytest.mark.parametrize(
    "body",
    [
        (),
        ("part", "row", []),
        ("sipha snapshot",),
        ("sipha snapshot", SCHEMA, 1, 1, 1, [], "", b"short"),
        ("sipha snapshot", SCHEMA, -1, 1, 1, [], "", b"h" * 16),
        ("sipha snapshot", SCHEMA, 1, 1, 1, ["many"], "", b"h" * 16),
        ("other snapshot", SCHEMA, 1, 1, 1, [], "", b"h" * 16),
    ],
)
def test_header_that_is_none_is_found(body: tuple[object, ...]) -> None:
    with pytest.raises(DamagedSnapshot):
        Loader().feed(framed(*body))


@pytest.mark.parametrize(
    "body",
    [
        ("part", "row", [b"\x90"]),
        ("part", "row", [b"\x91\x90"]),
        ("part", "row", [b"junk"]),
        ("part", "account", [b"\xc0"]),
        ("part", "key", [b"\x91\x01"]),
        ("part", "member", [msgspec.msgpack.encode(("a", "h:1", "king"))]),
        ("part", "cat", []),
        ("end", 0),
        ("sipha snapshot", SCHEMA, 1, 1, 1, [], "", b"h" * 16),
    ],
)
def test_chunk_that_no_machine_makes_is_found(body: tuple[object, ...]) -> None:
    loader = Loader()
    loader.feed(framed("sipha snapshot", SCHEMA, 1, 1, 1, [], "", b"h" * 16))
    with pytest.raises(DamagedSnapshot):
        loader.feed(framed(*body))


def test_length_that_no_chunk_has_is_not_waited_for() -> None:
    with pytest.raises(DamagedSnapshot):
        Loader().feed(b"\xff" * 8)


@pytest.mark.parametrize("rest", [(1, 1, 1, [], "", b"h" * 16), ("a form of its own",)])
def test_snapshot_of_a_later_schema_is_not_taken_for_damage(rest: tuple[object, ...]) -> None:
    with pytest.raises(UnknownSchema):
        Loader().feed(framed("sipha snapshot", SCHEMA + 1, *rest))


# Adopting


def test_adopted_state_replaces_the_old_one_which_is_freed_in_steps() -> None:
    machine = sample()
    other = Machine()
    other.apply(
        1,
        encode(
            Batch(SCHEMA, 0, Policy(), tuple(Register(f"sip:{n}@y", "c", 1, (Contact("sip:a@h"),)) for n in range(500)))
        ),
    )
    old = other.location
    with mock.patch.object(table, "_FREED", 10):
        rest = other.adopt(loaded(taken(machine)))
        assert taken(other) == taken(machine)
        assert old.bindings("sip:0@y", 0)
        steps = sum(1 for _ in rest)
    assert steps > 100
    assert not old.bindings("sip:0@y", 0)
    assert len(old._buckets) == 0


def test_frozen_state_outlives_the_table_that_it_is_of() -> None:
    machine, empty = sample(), Machine()
    whole = taken(machine)
    with finely_cut():
        frozen = machine.freeze(TERM, CLUSTER_ID)
    rest = machine.adopt(loaded(taken(empty)))
    for _ in range(3):
        next(rest)
    assert b"".join(frozen) == whole
    frozen.close()
    for _ in rest:
        pass


def test_loader_that_is_given_up_frees_what_it_has_read() -> None:
    loader = Loader()
    loader.feed(taken(sample())[:-1])
    assert len(loader._tables.location)
    for _ in loader.dismantle():
        pass
    assert not loader._tables.location.bindings("sip:a@x", 0)


# Scrubbing


@given(logs, logs)
@settings(max_examples=100, deadline=None)
def test_scrub_is_content_while_the_table_changes(
    log: list[tuple[list[Record], int]], more: list[tuple[list[Record], int]]
) -> None:
    with finely_cut():
        machine = Machine()
        for index, entry in enumerate(entries(log), 1):
            machine.apply(index, entry)
        scrub = machine.scrub()
        for index, entry in enumerate(entries(more), len(log) + 1):
            next(scrub, None)
            machine.apply(index, entry)
        for _ in scrub:
            pass
        assert not machine.location._rows._frozen


def change_data(machine: Machine) -> None:
    row = machine.location._rows.get("sip:b@x")
    assert row is not None
    machine.location._rows.replace("sip:b@x", row, row.replace(b"sip:a@h1", b"sip:a@h9"))


def change_digest(machine: Machine) -> None:
    row = machine.location._rows.get("sip:b@x")
    assert row is not None
    machine.location._rows.replace("sip:b@x", row, bytes([row[0] ^ 4]) + row[1:])


def change_hash(machine: Machine) -> None:
    machine.location._high ^= 1 << 35


def lose_row(machine: Machine) -> None:
    machine.location._rows._values.pop("sip:b@x")


def lose_listing(machine: Machine) -> None:
    machine.location._rows._order.remove("sip:b@x")


def change_account(machine: Machine) -> None:
    account = machine.accounts.get("b", "x")
    assert account is not None
    account.ha1["MD5"] = "9" * 32


def change_key(machine: Machine) -> None:
    machine.keys.ring[1] = b"x" * 32


def change_setting(machine: Machine) -> None:
    machine.settings._values["s"] = "3"


DAMAGES = [change_data, change_digest, change_hash, lose_row, lose_listing, change_account, change_key, change_setting]


@pytest.mark.parametrize("damage", DAMAGES)
def test_scrub_finds_damaged_memory(damage: Callable[[Machine], None]) -> None:
    machine = sample()
    list(machine.scrub())
    damage(machine)
    with pytest.raises(DamagedMemory):
        list(machine.scrub())
    assert not machine.location._rows._frozen


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_whole_snapshot_is_made_of_damaged_memory(damage: Callable[[Machine], None]) -> None:
    machine = sample()
    damage(machine)
    got: list[bytes] = []
    frozen = machine.freeze(TERM, CLUSTER_ID)
    with pytest.raises(DamagedMemory):
        got += frozen
    with pytest.raises(DamagedSnapshot):
        loaded(b"".join(got))


# Earlier releases


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_log_of_each_schema_gives_what_its_first_release_made_of_it(schema: int) -> None:
    log = msgspec.msgpack.decode((FIXTURES / f"schema-{schema}.log").read_bytes())
    machine = Machine()
    for index, (entry, outcomes, table_hash) in enumerate(log, 1):
        assert msgspec.msgpack.encode(machine.apply(index, entry)) == outcomes
        assert machine.hash_hex() == table_hash
    assert machine.schema == schema
    assert taken(machine) == (FIXTURES / f"schema-{schema}.snapshot").read_bytes()


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_snapshot_of_each_schema_loads(schema: int) -> None:
    data = (FIXTURES / f"schema-{schema}.snapshot").read_bytes()
    [*_, (_, _, table_hash)] = msgspec.msgpack.decode((FIXTURES / f"schema-{schema}.log").read_bytes())
    machine = Machine()
    machine.adopt(loaded(data))
    assert machine.hash_hex() == table_hash
    assert machine.schema == schema
