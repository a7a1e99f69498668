from __future__ import annotations

from errno import EIO, ENOSPC
from random import Random

import pytest
from twisted.internet.task import Clock

from tests.cluster_sim.disk import SECTOR, Crashed, VirtualDisk


def started(seed: int = 0) -> VirtualDisk:
    disk = VirtualDisk(Random(seed))
    disk.start(Clock())
    return disk


def after_power_loss(disk: VirtualDisk) -> dict[str, bytes]:
    disk.lose_power()
    disk.start(Clock())
    return disk.image()


def test_synced_bytes_under_a_synced_name_survive_a_power_cut() -> None:
    for seed in range(50):
        disk = started(seed)
        disk.append("a", b"first")
        disk.sync("a")
        disk.sync_names()
        disk.append("a", b"second")
        content = after_power_loss(disk)["a"]
        assert content[:5] == b"first"
        assert len(content) <= 11


def test_unsynced_bytes_survive_whole_in_part_or_not_at_all() -> None:
    outcomes = set()
    for seed in range(300):
        disk = started(seed)
        disk.replace("a", b"")
        disk.append("a", b"x" * SECTOR)
        disk.append("a", b"y" * SECTOR)
        content = after_power_loss(disk)["a"]
        outcomes.add((content[:SECTOR].strip(b"\0"), content[SECTOR:].strip(b"\0")))
    one, two = b"x" * SECTOR, b"y" * SECTOR
    assert {(b"", b""), (one, b""), (b"", two), (one, two)} < outcomes


def test_name_that_was_not_synced_may_be_lost() -> None:
    names = set()
    for seed in range(50):
        disk = started(seed)
        disk.append("a", b"x")
        disk.sync("a")
        names.add(tuple(after_power_loss(disk)))
    assert names == {(), ("a",)}


def test_removed_name_may_come_back_until_it_is_synced() -> None:
    names = set()
    for seed in range(50):
        disk = started(seed)
        disk.replace("a", b"x")
        disk.remove("a")
        names.add(tuple(after_power_loss(disk)))
    assert names == {(), ("a",)}


def test_truncation_is_durable_after_sync_only() -> None:
    contents = set()
    for seed in range(50):
        disk = started(seed)
        disk.replace("a", b"abcdef")
        disk.truncate("a", 3)
        if seed % 2:
            disk.sync("a")
            assert after_power_loss(disk) == {"a": b"abc"}
        else:
            contents.add(after_power_loss(disk)["a"])
    assert contents == {b"abc", b"abcdef"}


def test_replace_leaves_the_old_or_the_new_wherever_it_crashes() -> None:
    contents = set()
    for seed in range(300):
        disk = started(seed)
        disk.replace("a", b"old")
        disk.crash_in(seed % 5 + 1)
        try:
            disk.replace("a", b"new")
        except Crashed:
            disk.lose_power()
        else:
            assert seed % 5 + 1 == 5
        disk.start(Clock())
        assert disk.names() == ["a"]
        contents.add(disk.read("a"))
    assert contents == {b"old", b"new"}


def test_kill_keeps_what_was_written_but_not_durably() -> None:
    lost = 0
    for seed in range(50):
        disk = started(seed)
        disk.replace("a", b"")
        disk.append("a", b"x")
        disk.kill()
        disk.start(Clock())
        assert disk.read("a") == b"x"
        lost += after_power_loss(disk)["a"] != b"x"
    assert lost


def test_crashed_disk_does_nothing_until_it_is_started() -> None:
    disk = started()
    disk.append("a", b"x")
    disk.crash_in(1)
    with pytest.raises(Crashed):
        disk.sync("a")
    with pytest.raises(Crashed):
        disk.names()
    disk.start(Clock())
    assert disk.names() == ["a"]


def test_full_disk_takes_what_fits() -> None:
    disk = started()
    disk.capacity = 4
    disk.append("a", b"abc")
    with pytest.raises(OSError, match="full") as raised:
        disk.append("a", b"def")
    assert raised.value.errno == ENOSPC
    assert disk.read("a") == b"abcd"


def test_failed_sync_loses_the_bytes_though_the_next_succeeds() -> None:
    disk = started()
    disk.replace("a", b"old")
    disk.append("a", b"new")
    disk.failing = {"sync"}
    with pytest.raises(OSError, match="sync fails") as raised:
        disk.sync("a")
    assert raised.value.errno == EIO
    disk.failing.clear()
    disk.sync("a")
    assert disk.read("a") == b"oldnew"
    assert after_power_loss(disk) == {"a": b"old"}


def test_flipped_bit_stays_flipped() -> None:
    disk = started()
    disk.replace("a", b"\0\0")
    disk.append("a", b"\0")
    disk.flip("a", 9)
    disk.flip("a", 16)
    disk.sync("a")
    assert after_power_loss(disk) == {"a": b"\0\2\1"}


def test_jobs_take_time_and_keep_their_order() -> None:
    disk, clock = VirtualDisk(Random(1)), Clock()
    disk.start(clock)
    disk.delay = (1.0, 2.0)
    told: list[object] = []

    def fail() -> None:
        raise ValueError("no")

    disk.run(lambda: disk.append("a", b"x"), lambda _: told.append("written"))
    disk.run(fail, lambda result: told.append(type(result)))
    disk.run_bulk(lambda: 7, told.append)
    clock.advance(0)
    assert not told
    clock.pump([0.01] * 201)
    assert told[0] in {"written", 7}
    clock.pump([0.01] * 201)
    assert sorted(map(str, told)) == ["7", "<class 'ValueError'>", "written"]
    assert told.index("written") < told.index(ValueError)


def test_jobs_end_with_the_life_of_the_node() -> None:
    disk, clock = VirtualDisk(Random(1)), Clock()
    for end in (disk.kill, disk.lose_power, disk.close):
        disk.start(clock)
        disk.run(lambda: disk.append("a", b"x"), lambda _: pytest.fail("it was told"))
        end()
        disk.start(clock)
        clock.advance(10)
        assert disk.names() == []


def test_same_seed_gives_the_same_disk() -> None:
    images = []
    for _ in range(2):
        disk = started(5)
        for number in range(20):
            disk.append(f"file{number}", bytes([number]) * 1000)
        images.append(after_power_loss(disk))
    assert images[0] == images[1]
    assert 0 < len(images[0]) < 20


def test_wiped_disk_is_blank() -> None:
    disk = started()
    disk.replace("a", b"x")
    disk.wipe()
    disk.start(Clock())
    assert disk.names() == []
