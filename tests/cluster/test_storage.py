from __future__ import annotations

from random import Random

import pytest
from twisted.internet.task import Clock

from sipha.cluster.seal import seal
from sipha.cluster.storage import Identity, Progress, Storage
from sipha.errors import ConfigError
from tests.cluster_sim.disk import Crashed, VirtualDisk

CLUSTER = "c" * 32
LOG = f"log-{1:020d}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(clock: Clock) -> VirtualDisk:
    disk = VirtualDisk(Random(0))
    disk.start(clock)
    return disk


def opened(disk: VirtualDisk, snapshot: tuple[int, int] | None = None, *, sync: bool = True) -> Storage:
    return Storage.open(disk, "a", sync=sync, snapshot=snapshot)


def founded(disk: VirtualDisk, entries: int = 20) -> Storage:
    storage = opened(disk)
    storage.found(CLUSTER)
    storage.journal.setCurrentTerm(3, "b")
    for index in range(2, entries + 2):
        storage.journal.add(b"\0%d" % index, index, 3)
        storage.journal.sync_now()
    return storage


def identity(storage: Storage) -> Identity:
    assert storage.identity is not None
    return storage.identity


def progress(commit: int, *, time: int = 5) -> Progress:
    return Progress(commit=commit, boot_id="boot", boottime=1.5, time=time)


# Who the node is


def test_blank_disk_stays_blank_until_it_founds_or_joins(disk: VirtualDisk, clock: Clock) -> None:
    for _ in range(3):
        storage = opened(disk)
        assert storage.identity is None
        assert not storage.alarms
        assert storage.journal.last_index == 1
        disk.lose_power()
        disk.start(clock)


def test_founder_remembers_and_one_who_joins_does_not(disk: VirtualDisk, clock: Clock) -> None:
    for amnesiac in (False, True):
        disk.wipe()
        disk.start(clock)
        storage = opened(disk)
        (storage.join if amnesiac else storage.found)(CLUSTER)
        disk.lose_power()
        disk.start(clock)
        again = identity(opened(disk))
        assert again == identity(storage)
        assert (again.cluster_id, again.node, again.amnesiac) == (CLUSTER, "a", amnesiac)
        assert len(again.incarnation) == 32


def test_node_is_in_one_cluster_at_most(disk: VirtualDisk) -> None:
    storage = founded(disk)
    for again in (storage.found, storage.join):
        with pytest.raises(ConfigError, match=f"in cluster {CLUSTER} already"):
            again("d" * 32)


def test_disk_of_another_node_is_refused(disk: VirtualDisk) -> None:
    founded(disk)
    with pytest.raises(ConfigError, match="is that of node a, and this is b"):
        Storage.open(disk, "b", sync=True, snapshot=None)


def test_unreadable_identity_is_refused(disk: VirtualDisk) -> None:
    founded(disk)
    for bit in range(8 * disk.size("identity")):
        disk.flip("identity", bit)
        with pytest.raises(ConfigError, match="identity in the data directory is unreadable"):
            opened(disk)
        disk.flip("identity", bit)
    assert opened(disk).identity is not None


def test_log_without_an_identity_is_refused(disk: VirtualDisk) -> None:
    founded(disk)
    disk.remove("identity")
    with pytest.raises(ConfigError, match="identity is missing"):
        opened(disk)
    disk.flip(LOG, 400)
    with pytest.raises(ConfigError, match="damaged, and the file identity is missing"):
        opened(disk)


def test_node_remembers_once_its_log_is_durable(disk: VirtualDisk, clock: Clock) -> None:
    storage = opened(disk)
    storage.join(CLUSTER)
    storage.journal.setCurrentTerm(1, None)
    for index in range(2, 9):
        storage.journal.add(b"\0", index, 1)
    storage.remembers()
    assert not identity(storage).amnesiac
    disk.lose_power()
    disk.start(clock)
    storage = opened(disk)
    assert not identity(storage).amnesiac
    assert storage.journal.last_index == 8


def test_node_whose_disk_fails_doesnt_remember(disk: VirtualDisk, clock: Clock) -> None:
    storage = opened(disk)
    storage.join(CLUSTER)
    storage.journal.setCurrentTerm(1, None)
    storage.journal.add(b"\0", 2, 1)
    disk.failing = {"sync"}
    storage.remembers()
    assert identity(storage).amnesiac
    disk.failing.clear()
    disk.start(clock)
    assert identity(opened(disk)).amnesiac


# Damage


def damage_body(disk: VirtualDisk) -> None:
    disk.flip(LOG, 8 * 200)


def damage_header(disk: VirtualDisk) -> None:
    disk.flip(LOG, 3)


def lose_log(disk: VirtualDisk) -> None:
    disk.remove(LOG)


def lose_term(disk: VirtualDisk) -> None:
    disk.remove("term")


def damage_term(disk: VirtualDisk) -> None:
    disk.flip("term", 77)


def lose_tail(disk: VirtualDisk) -> None:
    disk.append("progress", seal(progress(21)))
    disk.truncate(LOG, disk.size(LOG) - 1)


DAMAGES = {
    damage_body: "is damaged",
    damage_header: "header",
    lose_log: "the log is gone",
    lose_term: "term is missing",
    damage_term: "term is unreadable",
    lose_tail: "ends at entry 20, but those up to 21",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_makes_an_amnesiac_with_an_empty_log(disk: VirtualDisk, clock: Clock, damage: object) -> None:
    before = identity(founded(disk))
    disk.append("snapshot-00000000000000000001", b"x")
    for name in ("lock", "promise"):
        disk.append(name, b"kept")
    assert callable(damage)
    damage(disk)
    names = set(disk.names())
    storage = opened(disk, (1, 0))
    after = identity(storage)
    assert (after.cluster_id, after.node, after.amnesiac) == (CLUSTER, "a", True)
    assert after.incarnation != before.incarnation
    assert (storage.journal.last_index, storage.journal.getCurrentTerm()) == (1, 0)
    assert storage.snapshot is None
    assert storage.progress is None
    assert DAMAGES[damage] in storage.alarms[0]
    assert "doesn't vote" in storage.alarms[0]
    aside = {f"damaged-1-{name}" for name in names - {"identity", "lock", "promise"}}
    assert set(disk.names()) == aside | {"identity", "lock", "promise", LOG}
    disk.lose_power()
    disk.start(clock)
    again = opened(disk)
    assert again.identity == after
    assert again.journal.last_index == 1
    assert "files damaged-*" in again.alarms[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_node_that_dies_while_it_moves_things_aside_never_votes(damage: object) -> None:
    """It is an amnesiac before anything of its log is gone."""
    assert callable(damage)
    for step in range(1, 30):
        for seed in range(5):
            disk = VirtualDisk(Random(seed))
            disk.start(Clock())
            founded(disk)
            disk.append("snapshot-00000000000000000001", b"x")
            damage(disk)
            for name in disk.names():
                disk.sync(name)
            disk.sync_names()
            disk.crash_in(step)
            try:
                storage = opened(disk)
            except Crashed:
                disk.lose_power()
                disk.start(Clock())
                storage = opened(disk)
            assert identity(storage).amnesiac


def test_things_are_moved_aside_under_a_new_number_each_time(disk: VirtualDisk) -> None:
    founded(disk)
    for number in (1, 2, 3):
        disk.remove(LOG)
        disk.append("term", b"")
        assert f"damaged-{number}-*" in opened(disk).alarms[-1]
    assert [name for name in disk.names() if name.startswith("damaged-")] == [
        "damaged-1-term",
        "damaged-2-term",
        "damaged-3-term",
    ]


def test_blank_disk_that_is_damaged_is_refused(disk: VirtualDisk) -> None:
    opened(disk)
    disk.flip(LOG, 3)
    with pytest.raises(ConfigError, match="identity is missing"):
        opened(disk)


# Progress


def test_progress_is_what_was_saved_last(disk: VirtualDisk, clock: Clock) -> None:
    storage = founded(disk)
    assert storage.progress is None
    for time in range(5):
        storage.save_progress(progress(10 + time, time=time))
        clock.pump([0.01] * 10)
    disk.kill()
    disk.start(clock)
    again = opened(disk)
    assert again.progress == progress(14, time=4)
    assert again.journal.getRaftCommitIndex() == 14


def test_commit_index_is_saved_as_far_as_it_is_durable(disk: VirtualDisk, clock: Clock) -> None:
    """A follower may know that an entry is committed before its own disk has it."""
    storage = founded(disk)
    storage.journal.add(b"\0", 22, 3)
    storage.save_progress(progress(22))
    clock.pump([0.01] * 10)
    disk.lose_power()
    disk.start(clock)
    again = opened(disk)
    assert again.progress == progress(21)
    assert not again.alarms


def test_progress_that_is_still_being_saved_is_not_queued_again(disk: VirtualDisk, clock: Clock) -> None:
    storage = founded(disk)
    for time in range(5):
        storage.save_progress(progress(10, time=time))
    clock.pump([0.01] * 10)
    assert opened(disk).progress == progress(10, time=0)


def test_file_of_progress_stays_small(disk: VirtualDisk, clock: Clock) -> None:
    storage = founded(disk)
    sizes = []
    for time in range(2000):
        storage.save_progress(progress(10, time=time))
        clock.advance(0.01)
        clock.advance(0.01)
        sizes.append(disk.size("progress"))
    assert max(sizes) <= 64 << 10
    assert sorted(sizes) != sizes
    assert opened(disk).progress == progress(10, time=1999)


def test_torn_or_unreadable_progress_is_what_was_saved_before(disk: VirtualDisk, clock: Clock) -> None:
    storage = founded(disk)
    for commit in (10, 11):
        storage.save_progress(progress(commit))
        clock.pump([0.01] * 10)
    disk.truncate("progress", disk.size("progress") - 3)
    storage = opened(disk)
    assert storage.progress == progress(10)
    storage.save_progress(progress(12))
    clock.pump([0.01] * 10)
    assert opened(disk).progress == progress(12)
    disk.truncate("progress", 5)
    assert opened(disk).progress is None


def test_progress_that_cant_be_saved_is_saved_later(disk: VirtualDisk, clock: Clock) -> None:
    storage = founded(disk)
    storage.save_progress(progress(10))
    clock.pump([0.01] * 10)
    disk.capacity = sum(map(disk.size, disk.names())) + 20
    storage.save_progress(progress(11))
    clock.pump([0.01] * 10)
    disk.capacity = None
    storage.save_progress(progress(12))
    clock.pump([0.01] * 10)
    assert opened(disk).progress == progress(12)


def test_commit_index_beyond_the_end_is_no_damage_without_sync(disk: VirtualDisk) -> None:
    founded(disk)
    lose_tail(disk)
    storage = opened(disk, sync=False)
    assert not storage.alarms
    assert not identity(storage).amnesiac
    assert storage.journal.last_index == 20
