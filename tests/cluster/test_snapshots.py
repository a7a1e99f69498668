"""The files of snapshots: whole and durable or not there, on a disk that loses what wasn't synced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EIO
from itertools import count
from random import Random
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sipha.cluster import snapshots as module
from sipha.cluster.snapshots import SnapshotFile, Snapshots, Staging
from sipha.state import snapshot
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Register, encode
from sipha.state.machine import DamagedMemory, Machine, UnknownSchema
from sipha.state.snapshot import DamagedSnapshot, Loaded
from tests.cluster_sim.disk import Crashed, VirtualDisk
from tests.state.snapshots import CLUSTER_ID, TERM, loaded, taken

PIECE = 64 << 10


class Site:
    """A disk, a clock, and what is told."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = Clock()
        self.disk = VirtualDisk(Random(seed))
        self.start()

    def start(self) -> None:
        self.disk.start(self.clock)
        self.snapshots = Snapshots(self.disk, self.clock)

    def lose_power(self) -> None:
        self.disk.lose_power()
        self.clock = Clock()
        self.start()

    def rest(self) -> None:
        """Let pass what is under way."""
        while calls := self.clock.getDelayedCalls():
            self.clock.advance(max(calls[0].getTime() - self.clock.seconds(), 0))

    def told(self, begin: Callable[[Callable[[object], None]], None]) -> object:
        results: list[object] = []
        begin(results.append)
        self.rest()
        [result] = results
        return result

    def take(self, machine: Machine) -> object:
        return self.told(lambda done: self.snapshots.take(machine, TERM, CLUSTER_ID, done))

    def taken(self, machine: Machine) -> SnapshotFile:
        result = self.take(machine)
        assert isinstance(result, SnapshotFile), result
        return result

    @property
    def names(self) -> list[str]:
        return sorted(self.disk.image())


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def small_pieces() -> Iterator[None]:
    """Let a small table be as much work as a large one."""
    with mock.patch.multiple(module, _PIECE=1000, _SYNC=4000), mock.patch.object(snapshot, "CHUNK", 500):
        yield


def machine_at(index: int, users: int = 20) -> Machine:
    machine = Machine()
    for at in range(1, index + 1):
        register(machine, at, users)
    return machine


def register(machine: Machine, index: int, users: int = 20) -> None:
    batch = tuple(Register(f"sip:u{n}@x", "c", index, (Contact(f"sip:u{n}@h{index}"),)) for n in range(users))
    machine.apply(index, encode(Batch(SCHEMA, index, Policy(), batch)))


def same(one: Machine, other: Loaded) -> bool:
    copy = Machine()
    copy.adopt(other)
    return taken(copy) == taken(one)


def crashed(begin: Callable[[Site], object], work: Callable[[Site], object]) -> Iterator[Site]:
    """Sites whose power was cut at each step of some work, and that have started again."""
    for seed in range(5):
        for step in count(1):
            site = Site(seed * 100 + step)
            begin(site)
            site.disk.crash_in(step)
            try:
                work(site)
            except Crashed:
                site.lose_power()
                yield site
            else:
                assert step > 5
                break


# Taking


def test_snapshot_is_durable_when_it_is_told(site: Site) -> None:
    machine = machine_at(3)
    file = site.taken(machine)
    assert file.name == "snapshot-00000000000000000003"
    assert (file.header.index, file.header.term, file.header.cluster_id) == (3, TERM, CLUSTER_ID)
    for _ in range(5):
        site.lose_power()
        assert site.snapshots.newest() == file
        assert same(machine, site.snapshots.load(file))


def test_blank_disk_has_no_snapshot(site: Site) -> None:
    assert site.snapshots.newest() is None


def test_newest_two_are_kept(site: Site) -> None:
    for index in (1, 2, 5, 3):
        site.taken(machine_at(index))
    assert site.names == ["snapshot-00000000000000000003", "snapshot-00000000000000000005"]
    newest = site.snapshots.newest()
    assert newest is not None
    assert newest.header.index == 5


@pytest.mark.usefixtures("small_pieces")
def test_snapshot_is_of_its_index_while_the_machine_goes_on(site: Site) -> None:
    machine, results = machine_at(3), list[SnapshotFile | Exception]()
    whole = taken(machine)
    site.snapshots.take(machine, TERM, CLUSTER_ID, results.append)
    assert site.snapshots.taking
    while not results:
        register(machine, machine.index + 1)
        site.clock.advance(0.001)
    [file] = results
    assert machine.index > 10
    assert isinstance(file, SnapshotFile)
    assert not site.snapshots.taking
    assert site.disk.image()[file.name] == whole


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("fault", ["sync", "write", "rename", "full"])
def test_disk_that_fails_is_told_and_nothing_is_left(site: Site, fault: Any) -> None:
    old, machine = site.taken(machine_at(1)), machine_at(2)
    if fault == "full":
        site.disk.capacity = old.size + 2000
    else:
        site.disk.failing.add(fault)
    assert isinstance(site.take(machine), OSError)
    assert site.names == [old.name]
    assert not site.snapshots.taking
    assert not machine.location._rows._frozen
    site.disk.failing.clear()
    site.disk.capacity = None
    assert same(machine, site.snapshots.load(site.taken(machine)))


def test_no_snapshot_is_made_of_damaged_memory(site: Site) -> None:
    machine = machine_at(1)
    machine.location._low += 1
    assert isinstance(site.take(machine), DamagedMemory)
    assert site.names == []


@pytest.mark.usefixtures("small_pieces")
def test_power_cut_at_any_step_leaves_the_old_one_or_the_new_one() -> None:
    old, new = machine_at(1), machine_at(2)
    found = set()

    def begin(site: Site) -> None:
        site.taken(old)

    def take(site: Site) -> None:
        site.snapshots.take(new, TERM, CLUSTER_ID, lambda _: None)
        site.rest()

    for site in crashed(begin, take):
        file = site.snapshots.newest()
        assert file is not None
        assert same({1: old, 2: new}[file.header.index], site.snapshots.load(file))
        assert all(name.startswith("snapshot-") for name in site.names)
        found.add(file.header.index)
    assert found == {1, 2}


# Loading


def test_snapshot_with_a_damaged_header_is_passed_over(site: Site) -> None:
    old, new = site.taken(machine_at(1)), site.taken(machine_at(2))
    site.disk.flip(new.name, 100)
    assert site.snapshots.newest() == old
    site.disk.rename(old.name, "snapshot-00000000000000000007")
    assert site.snapshots.newest() is None


@pytest.mark.parametrize("bit", [100, 3000])
def test_newest_whole_snapshot_is_loaded_and_later_ones_are_named(site: Site, bit: int) -> None:
    old, new = machine_at(1), site.taken(machine_at(2))
    assert site.snapshots.load_newest()[1] == []
    site.disk.flip(new.name, bit)
    assert site.snapshots.load_newest() == (None, [new.name])
    site.taken(old)
    whole, damaged = site.snapshots.load_newest()
    assert whole is not None
    assert same(old, whole)
    assert damaged == [new.name]


def test_snapshot_that_the_disk_cannot_read_is_damaged(site: Site) -> None:
    file = site.taken(machine_at(1))
    with mock.patch.object(site.disk, "read", side_effect=OSError(EIO, "bad sector")):
        assert site.snapshots.newest() is None
        assert site.snapshots.load_newest() == (None, [file.name])
        with pytest.raises(DamagedSnapshot):
            site.snapshots.load(file)
    assert site.snapshots.load(file)


def test_snapshot_of_a_later_schema_is_not_passed_over(site: Site) -> None:
    machine = machine_at(1)
    site.taken(machine)
    machine.index, machine.schema = 2, SCHEMA + 1
    site.taken(machine)
    with pytest.raises(UnknownSchema):
        site.snapshots.newest()


def test_damaged_snapshot_is_not_loaded(site: Site) -> None:
    file = site.taken(machine_at(1))
    site.disk.flip(file.name, file.size * 8 - 300)
    assert site.snapshots.newest() == file
    with pytest.raises(DamagedSnapshot):
        site.snapshots.load(file)
    assert isinstance(site.told(lambda done: site.snapshots.load_sliced(file, done)), DamagedSnapshot)


@pytest.mark.usefixtures("small_pieces")
def test_snapshot_is_loaded_in_slices(site: Site) -> None:
    machine = machine_at(1, users=100)
    file = site.taken(machine)
    begun = site.clock.seconds()
    result = site.told(lambda done: site.snapshots.load_sliced(file, done))
    assert isinstance(result, Loaded)
    assert same(machine, result)
    assert site.clock.seconds() - begun > file.size / 1000 * 0.002


def test_part_of_a_file_is_read(site: Site) -> None:
    file = site.taken(machine_at(1))
    whole = site.disk.image()[file.name]
    assert site.told(lambda done: site.snapshots.read(file, 10, 20, done)) == whole[10:30]
    site.snapshots.remove(file)
    assert isinstance(site.told(lambda done: site.snapshots.read(file, 10, 20, done)), FileNotFoundError)
    assert site.names == []


# Receiving


class Transfer:
    """A snapshot on its way into a site."""

    def __init__(self, site: Site, data: bytes, index: int = 1, size: int | None = None) -> None:
        self.site = site
        self.data = data
        self.progress: list[int] = []
        self.results: list[tuple[Loaded, SnapshotFile] | Exception] = []
        size = len(data) if size is None else size
        self.staging: Staging = site.snapshots.stage(index, TERM, size, self.progress.append, self.results.append)

    def add(self, piece: int = PIECE) -> bool:
        offset = self.staging.offset
        return self.staging.add(offset, self.data[offset : offset + piece])

    def run(self, piece: int = PIECE) -> tuple[Loaded, SnapshotFile] | Exception:
        while self.add(piece):
            self.site.rest()
        [result] = self.results
        return result


@given(st.integers(1, 3000), st.data())
@settings(max_examples=30, deadline=None)
def test_received_snapshot_is_durable_when_it_is_told_and_found_once_it_is_kept(
    piece: int, data: st.DataObject
) -> None:
    site, machine = Site(), machine_at(1)
    transfer = Transfer(site, taken(machine))
    while not transfer.results:
        transfer.add(piece)
        if data.draw(st.booleans()):
            site.clock.advance(data.draw(st.sampled_from([0.0001, 0.001, 0.01])))
        if transfer.staging.offset == len(transfer.data):
            site.rest()
    [result] = transfer.results
    assert isinstance(result, tuple)
    assert transfer.progress[-1] == len(transfer.data)
    assert transfer.progress == sorted(set(transfer.progress))
    loaded, file = result
    assert site.snapshots.newest() is None
    keep = data.draw(st.booleans())
    kept = site.told(lambda done: site.snapshots.keep(file, done)) if keep else None
    site.lose_power()
    assert site.snapshots.newest() == kept
    assert site.disk.image() == ({kept.name: transfer.data} if isinstance(kept, SnapshotFile) else {})
    assert isinstance(kept, SnapshotFile) == keep
    assert same(machine, loaded)


def test_only_the_bytes_that_come_next_are_taken(site: Site) -> None:
    transfer = Transfer(site, taken(machine_at(1)))
    data, staging = transfer.data, transfer.staging
    assert staging.add(0, data[:100])
    for offset, more in ((0, data[:100]), (99, data[99:200]), (101, data[101:]), (100, b""), (100, data[100:] + b"x")):
        assert not staging.add(offset, more)
    assert staging.offset == 100
    assert isinstance(transfer.run(), tuple)


def test_no_more_waits_than_the_backlog(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG", 3 * PIECE)
    transfer = Transfer(site, taken(machine_at(1, users=8000)))
    assert len(transfer.data) > 6 * PIECE
    while transfer.add():
        pass
    assert transfer.staging.offset == 3 * PIECE
    site.rest()
    assert transfer.progress[-1] == transfer.staging.offset
    assert transfer.add()
    assert isinstance(transfer.run(), tuple)


def test_header_is_known_before_the_rest_has_come(site: Site) -> None:
    transfer = Transfer(site, taken(machine_at(1)))
    assert transfer.staging.header is None
    transfer.add(300)
    site.rest()
    assert transfer.staging.header is not None
    assert transfer.staging.header.hash == machine_at(1).hash().to_bytes(16, "big")


@pytest.mark.parametrize("fault", ["flipped", "cut", "longer", "another index", "write", "sync"])
def test_snapshot_that_is_not_whole_is_told_and_nothing_is_left(site: Site, fault: Any) -> None:
    data = taken(machine_at(1))
    expected: type[Exception] = DamagedSnapshot
    match fault:
        case "flipped":
            data = data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]
        case "cut":
            data = data[:-1]
        case "longer":
            data += b"\0"
        case "another index":
            data = taken(machine_at(2))
        case _:
            site.disk.failing.add(fault)
            expected = OSError
    assert isinstance(Transfer(site, data).run(200), expected)
    assert site.names == []
    assert site.snapshots.newest() is None


def test_snapshot_that_cannot_be_kept_is_told(site: Site) -> None:
    result = Transfer(site, taken(machine_at(1))).run()
    assert isinstance(result, tuple)
    site.disk.failing.add("rename")
    assert isinstance(site.told(lambda done: site.snapshots.keep(result[1], done)), OSError)
    assert site.snapshots.newest() is None


def test_transfer_that_is_begun_anew_is_a_new_one(site: Site) -> None:
    first, machine = Transfer(site, taken(machine_at(1))), machine_at(2)
    first.add(1000)
    site.clock.advance(0.0001)
    second = Transfer(site, taken(machine), index=2)
    first.add(1000)
    result = second.run(500)
    assert isinstance(result, tuple)
    assert same(machine, result[0])
    assert first.results == []
    assert site.names == [result[1].name]
    site.told(lambda done: site.snapshots.keep(result[1], done))
    assert site.names == ["snapshot-00000000000000000002"]


def test_snapshot_is_taken_while_another_is_received(site: Site) -> None:
    transfer = Transfer(site, taken(machine_at(3)), index=3)
    transfer.add(1000)
    site.taken(machine_at(1))
    assert isinstance(transfer.run(500), tuple)
    assert len(site.names) == 2


@pytest.mark.usefixtures("small_pieces")
def test_power_cut_at_any_step_leaves_nothing_half_received() -> None:
    machine = machine_at(1)
    data, found = taken(machine), set()

    def receive(site: Site) -> None:
        result = Transfer(site, data).run(1000)
        assert isinstance(result, tuple)
        site.told(lambda done: site.snapshots.keep(result[1], done))

    for site in crashed(lambda _: None, receive):
        file = site.snapshots.newest()
        assert site.names == ([] if file is None else [file.name])
        assert file is None or same(machine, site.snapshots.load(file))
        found.add(file is None)
    assert found == {True, False}


# The end


@pytest.mark.usefixtures("small_pieces")
def test_closed_snapshots_give_up_what_is_under_way(site: Site) -> None:
    machine, results = machine_at(1), list[object]()
    file = site.taken(machine)
    site.snapshots.take(machine, TERM, CLUSTER_ID, results.append)
    site.snapshots.load_sliced(file, results.append)
    transfer = Transfer(site, taken(machine))
    transfer.add(1000)
    site.clock.advance(0.0001)
    site.snapshots.close()
    site.rest()
    assert results == transfer.results == []
    assert not machine.location._rows._frozen
    assert site.names == [file.name]


def test_what_is_superfluous_is_freed_in_many_turns(site: Site) -> None:
    machine, begun = machine_at(1, users=100), site.clock.seconds()
    old = machine.location
    with mock.patch("sipha.state.table._FREED", 1):
        site.snapshots.dismantle(machine.adopt(loaded(taken(machine_at(2)))))
        site.clock.advance(0.002)
        assert old.bindings("sip:u1@x", 0) or old.bindings("sip:u2@x", 0)
        site.rest()
    assert not old.bindings("sip:u1@x", 0)
    assert site.clock.seconds() - begun > 100 * 0.002
