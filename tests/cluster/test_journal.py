from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from errno import EIO
from pathlib import Path
from random import Random

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.cluster import journal as module
from sipha.cluster.disk import Damaged, FileDisk
from sipha.cluster.journal import Journal
from sipha.cluster.segment import HEADER, OVERHEAD
from sipha.cluster.wire import Entry
from tests.cluster_sim.disk import ROOM, Primitive, VirtualDisk


class Watched(VirtualDisk):
    """Remembers its primitives."""

    def __init__(self) -> None:
        super().__init__(Random(0))
        self.clock = Clock()
        self.start(self.clock)
        self.done: list[Primitive] = []

    def _step(self, primitive: Primitive, effect: Callable[[], None]) -> None:
        self.done.append(primitive)
        super()._step(primitive, effect)

    def wait(self) -> None:
        """Let all jobs end."""
        self.clock.pump([0.01] * 100)

    def restart(self, *, power_lost: bool = False) -> None:
        if power_lost:
            self.lose_power()
        self.start(self.clock)
        self.done.clear()


@pytest.fixture
def disk() -> Watched:
    return Watched()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_namespace"] == "sipha.cluster":
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def opened(disk: VirtualDisk, base: tuple[int, int] | None = None, *, sync: bool = True, commit: int = 0) -> Journal:
    return Journal.open(disk, base, sync=sync, commit=commit)


def filled(disk: VirtualDisk, count: int, *, sync: bool = True) -> Journal:
    """A journal with entries 2 … count, in term 1, on disk."""
    journal = opened(disk, sync=sync)
    journal.setCurrentTerm(1, "a")
    add(journal, count - 1)
    journal.sync_now()
    return journal


def add(journal: Journal, count: int = 1, *, term: int = 1, command: bytes = b"\0command") -> None:
    for _ in range(count):
        journal.add(command, journal.last_index + 1, term)


def entries(journal: Journal) -> list[Entry]:
    return [journal[position] for position in range(len(journal))]


# As the library sees it


def test_new_journal_has_the_librarys_first_entry(disk: Watched) -> None:
    journal = opened(disk)
    assert entries(journal) == [(b"\1", 1, 0)]
    assert (journal.first_index, journal.last_index, journal.last_term, journal.durable) == (1, 1, 0, 1)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId(), journal.getRaftCommitIndex()) == (0, None, 1)


def test_journal_gives_entries_slices_and_tails(disk: Watched) -> None:
    journal = filled(disk, 1000)
    assert journal[0] == (b"\1", 1, 0)
    assert journal[-1] == journal[999] == (b"\0command", 1000, 1)
    assert journal[-2][1] == 999
    assert [index for _, index, _ in journal[10:13]] == [11, 12, 13]
    assert journal[999:1002] == [journal[-1]]
    assert journal[1000:1002] == []
    tail = journal[10:]
    assert len(tail) == 990
    assert tail[0] == journal[10]
    assert not journal[1000:]
    for position in (1000, -1001):
        with pytest.raises(IndexError):
            journal[position]
    assert [journal.term_at(index) for index in (0, 1, 2, 1000, 1001)] == [None, 0, 1, 1, None]


def test_open_slice_of_any_length_has_what_the_log_has_from_there_on(disk: Watched) -> None:
    """A few at the end are a list, more are looked at: the library can't tell."""
    journal = filled(disk, 20)
    journal.add(b"\0" + bytes(80_000), 21, 1)
    journal.add(b"\0last", 22, 1)
    every = [journal[position] for position in range(len(journal))]
    for start in range(len(journal) + 2):
        rest = journal[start:]
        assert list(rest) == every[start:]
        assert len(rest) == max(len(every) - start, 0)
        assert rest[:2] == every[start : start + 2]


def test_closed_slice_has_at_least_one_and_no_more_than_64_kib(disk: Watched) -> None:
    journal = opened(disk)
    for size in (100, 40_000, 40_000, 100_000, 100, 100):
        add(journal, command=b"x" * size)
    assert [len(journal[position:7]) for position in range(1, 7)] == [2, 1, 1, 1, 2, 1]


def test_recent_entries_come_newest_first(disk: Watched) -> None:
    journal = Journal.open(disk, None, sync=True, commit=0)
    assert (journal.window_first, journal.recent(99, 10)) == (2, [])
    for index in range(2, 8):
        journal.add(b"\x00" * (30 << 10), index, 1)
    assert [index for _, index, _ in journal.recent(8, 10)] == [7, 6]  # 64 KiB
    assert [index for _, index, _ in journal.recent(1 << 40, 1)] == [7]
    assert [index for _, index, _ in journal.recent(4, 10)] == [3, 2]
    assert journal.recent(2, 10) == []
    journal.add(b"\x00" * (100 << 10), 8, 1)
    assert [index for _, index, _ in journal.recent(9, 10)] == [8]


def test_entry_must_follow_the_last(disk: Watched) -> None:
    journal = opened(disk)
    for index in (1, 3):
        with pytest.raises(ValueError, match="doesn't follow entry 1"):
            journal.add(b"\0", index, 1)
    with pytest.raises(ValueError, match="empty"):
        journal.add(b"", 2, 1)
    assert len(journal) == 1


def test_base_is_never_cut_off(disk: Watched) -> None:
    journal = filled(disk, 5)
    for position in (0, -1, 5):
        with pytest.raises(IndexError):
            journal.deleteEntriesFrom(position)
    assert journal.last_index == 5


def test_commit_index_is_kept_while_the_journal_is_open(disk: Watched) -> None:
    journal = filled(disk, 5)
    journal.setRaftCommitIndex(4)
    assert journal.getRaftCommitIndex() == 4
    journal.close()
    assert opened(disk).getRaftCommitIndex() == 1
    assert opened(disk, commit=3).getRaftCommitIndex() == 3
    assert opened(disk, (4, 1), commit=3).getRaftCommitIndex() == 4


# Groups


def test_nothing_is_durable_before_the_disk_has_done_its_work(disk: Watched) -> None:
    journal = filled(disk, 1)
    told: list[int] = []
    journal.on_durable = lambda: told.append(journal.durable)
    add(journal, 3)
    disk.done.clear()
    journal.flush()
    assert (journal.durable, told, disk.done) == (1, [], [])
    disk.wait()
    assert (journal.durable, told, disk.done) == (4, [4], ["write", "sync"])


def test_what_comes_during_a_sync_is_one_group_after_it(disk: Watched) -> None:
    journal = filled(disk, 1)
    told: list[int] = []
    journal.on_durable = lambda: told.append(journal.durable)
    disk.done.clear()
    for _ in range(10):
        add(journal)
        journal.flush()
    disk.wait()
    assert told == [2, 11]
    assert disk.done == ["write", "sync"] * 2


def test_group_has_a_limit(disk: Watched) -> None:
    journal = filled(disk, 1)
    told: list[int] = []
    journal.on_durable = lambda: told.append(journal.durable)
    add(journal, 50, command=b"x" * 100_000)
    journal.flush()
    disk.wait()
    assert told == [11, 21, 31, 41, 51]


def test_backlog_is_what_is_not_on_disk_yet(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 1000)
    journal = Journal.open(disk, None, sync=True, commit=0)
    assert journal.backlog == 0
    disk.delay = (0.1, 0.1)
    for index in range(2, 12):
        journal.add(bytes([0]) * 300, index, 1)
    record = 300 + OVERHEAD
    before = journal.backlog
    assert 10 * record <= before <= 10 * record + 5 * HEADER
    journal.flush()
    disk.clock.pump([0.01] * 15)
    assert 2 < journal.durable < 11
    assert (11 - journal.durable) * record <= journal.backlog < before
    disk.clock.pump([0.01] * 300)
    assert (journal.durable, journal.backlog) == (11, 0)
    journal.add(bytes([0]) * 300, 12, 1)
    assert record <= journal.backlog <= record + HEADER
    journal.deleteEntriesFrom(11)
    assert journal.backlog == 0


def test_sync_now_waits_for_what_is_under_way_and_does_the_rest(disk: Watched) -> None:
    journal = filled(disk, 1)
    told: list[int] = []
    journal.on_durable = lambda: told.append(journal.durable)
    add(journal)
    journal.flush()
    add(journal)
    journal.sync_now()
    assert journal.durable == 3
    disk.wait()
    assert told[-1] == journal.durable == 3
    disk.restart(power_lost=True)
    assert opened(disk).last_index == 3


def test_log_goes_on_in_a_new_file_when_one_is_full(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 10 * (OVERHEAD + 8))
    journal = filled(disk, 50)
    assert [name for name in disk.names() if name != "term"] == [f"log-{first:020d}" for first in (1, 11, 21, 31, 41)]
    assert journal.size == sum(disk.size(name) for name in disk.names() if name != "term")
    written = entries(journal)
    disk.restart(power_lost=True)
    assert entries(opened(disk)) == written


def test_without_sync_entries_are_written_at_flush_and_nothing_is_synced(disk: Watched) -> None:
    journal = filled(disk, 1, sync=False)
    told: list[int] = []
    journal.on_durable = lambda: told.append(journal.durable)
    add(journal, 3)
    disk.done.clear()
    journal.flush()
    assert (journal.durable, told, disk.done) == (4, [4], ["write"])
    journal.deleteEntriesFrom(2)
    assert (journal.durable, disk.done) == (2, ["write", "truncate"])
    disk.kill()
    disk.restart()
    assert opened(disk, sync=False).last_index == 2


def test_term_and_vote_are_durable_at_once_also_without_sync(disk: Watched) -> None:
    for sync in (True, False):
        journal = opened(disk, sync=sync)
        journal.setCurrentTerm(journal.getCurrentTerm() + 1, "b")
        disk.restart(power_lost=True)
        journal = opened(disk, sync=sync)
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (1 if sync else 2, "b")


def test_term_that_is_kept_already_is_not_written_again(disk: Watched) -> None:
    journal = opened(disk)
    journal.setCurrentTerm(3, None)
    disk.done.clear()
    journal.setCurrentTerm(3, None)
    assert not disk.done
    journal.setCurrentTerm(3, "a")
    assert disk.done


def test_term_is_written_again_after_a_write_that_failed(disk: Watched) -> None:
    """Of which nobody knows whether it has reached the disk."""
    journal = opened(disk)
    journal.setCurrentTerm(3, "a")
    disk.failing = {"sync of names"}
    with pytest.raises(OSError, match="sync of names fails"):
        journal.setCurrentTerm(4, "b")
    disk.failing.clear()
    journal.setCurrentTerm(3, "a")
    disk.restart()
    journal = opened(disk)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (3, "a")


def test_closed_journal_has_written_all_and_tells_nobody(disk: Watched) -> None:
    journal = filled(disk, 1)
    journal.on_durable = lambda: pytest.fail("it told somebody")
    journal.reset(10, 1, lambda _: pytest.fail("it told somebody"))
    add(journal)
    journal.flush()
    add(journal)
    journal._destroy()
    journal.close()
    disk.wait()
    disk.restart(power_lost=True)
    assert opened(disk, (10, 1)).last_index == 12


# Cutting off


def test_cut_entries_are_not_durable_though_their_sync_ends_later(disk: Watched) -> None:
    journal = filled(disk, 1)
    told: list[int] = []
    journal.on_durable = lambda: told.append(journal.durable)
    add(journal, 9)
    journal.flush()
    generation = journal.generation
    journal.deleteEntriesFrom(4)
    assert (journal.durable, journal.last_index) == (1, 4)
    assert journal.generation > generation
    add(journal, 2, term=2)
    disk.wait()
    assert told == [4, 6]


def test_cut_is_durable_before_anything_follows_it(disk: Watched) -> None:
    journal = filled(disk, 9)
    journal.setCurrentTerm(2, None)
    disk.done.clear()
    journal.deleteEntriesFrom(4)
    assert journal.durable == 4
    add(journal, 2, term=2)
    journal.flush()
    disk.wait()
    assert disk.done == ["truncate", "sync", "write", "sync"]
    disk.restart(power_lost=True)
    assert [term for _, _, term in entries(opened(disk))] == [0, 1, 1, 1, 2, 2]


def test_entries_that_never_were_given_to_the_disk_are_cut_in_memory_only(disk: Watched) -> None:
    journal = filled(disk, 3)
    add(journal, 5)
    disk.done.clear()
    generation = journal.generation
    journal.deleteEntriesFrom(5)
    disk.wait()
    assert not disk.done
    assert journal.generation == generation
    journal.sync_now()
    disk.restart()
    assert opened(disk).last_index == 5


# Members


def test_membership_is_the_latest_in_the_log(disk: Watched) -> None:
    journal = filled(disk, 3)
    told: list[tuple[int, bytes] | None] = []
    journal.on_membership = lambda: told.append(journal.membership)
    assert journal.membership is None
    add(journal, command=b"\4abc")
    add(journal)
    add(journal, command=b"\4ab")
    add(journal)
    assert told == [(4, b"\4abc"), (6, b"\4ab")]
    journal.sync_now()
    disk.restart()
    assert opened(disk).membership == (6, b"\4ab")
    assert opened(disk, (6, 1)).membership == (6, b"\4ab")
    assert opened(disk, (7, 1)).membership is None
    journal.deleteEntriesFrom(6)
    assert len(told) == 2
    journal.deleteEntriesFrom(5)
    assert told[2:] == [(4, b"\4abc")]
    journal.compact(5)
    assert told[3:] == [None]
    add(journal, command=b"\4abcd")
    journal.reset(9, 1, lambda _: None)
    assert told[4:] == [(6, b"\4abcd"), None]


# A snapshot covers the beginning


def test_compaction_forgets_entries_and_removes_whole_files(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 10 * (OVERHEAD + 8))
    journal = filled(disk, 50)
    disk.done.clear()
    size = journal.size
    journal.compact(25)
    assert (journal.first_index, len(journal), journal[0][1], journal[1][1]) == (25, 26, 25, 26)
    assert journal.term_at(24) is None
    assert not disk.done
    disk.wait()
    assert disk.done == ["remove"] * 2
    assert f"log-{21:020d}" in disk.names()
    assert journal.size < size
    journal.compact(25)
    journal.compact(51)
    journal.compact(3)
    assert journal.first_index == 25
    disk.restart()
    assert (opened(disk, (25, 1)).first_index, opened(disk, (25, 1)).last_index) == (25, 50)
    with pytest.raises(Damaged, match="begins at entry 21, and no snapshot"):
        opened(disk)
    with pytest.raises(Damaged, match="begins at entry 21, and no snapshot"):
        opened(disk, (20, 1))


def test_files_that_a_crash_kept_from_being_removed_are_removed_at_the_next_opening(
    disk: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT", 10 * (OVERHEAD + 8))
    filled(disk, 50).compact(25)
    disk.restart()
    assert f"log-{1:020d}" in disk.names()
    journal = opened(disk, (25, 1))
    assert disk.names()[0] == f"log-{21:020d}"
    assert journal.first_index == 25


def test_removal_that_fails_is_only_reported(
    disk: Watched, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(module, "SEGMENT", 10 * (OVERHEAD + 8))
    journal = filled(disk, 50)
    journal.on_failed = lambda _: pytest.fail("it gave up")
    disk.failing = {"remove"}
    journal.compact(25)
    disk.wait()
    assert "can't remove an old part of the log" in warnings[0]
    add(journal)
    journal.sync_now()
    assert journal.durable == 51


def test_entries_that_are_not_on_disk_yet_may_be_forgotten(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower with a slow disk applies what the others have."""
    monkeypatch.setattr(module, "SEGMENT", 10 * (OVERHEAD + 8))
    journal = filled(disk, 1)
    add(journal, 40)
    journal.compact(35)
    journal.flush()
    disk.wait()
    assert (journal.first_index, journal.durable) == (35, 41)
    disk.restart(power_lost=True)
    assert [index for _, index, _ in entries(opened(disk, (35, 1)))] == list(range(35, 42))


def test_reset_lets_a_base_take_the_place_of_the_log(disk: Watched) -> None:
    journal = filled(disk, 9)
    ends: list[OSError | None] = []
    journal.reset(30, 1, ends.append)
    assert entries(journal) == [(b"\1", 30, 1)]
    assert (journal.durable, ends) == (0, [])
    add(journal)
    assert 0 < journal.backlog < journal.size, "all of the new log waits for the disk, nothing of the old one"
    journal.flush()
    disk.wait()
    assert (journal.durable, ends, journal.backlog) == (31, [None], 0)
    assert disk.names() == [f"log-{30:020d}", "term"]
    disk.restart(power_lost=True)
    assert opened(disk, (30, 1)).last_index == 31


def test_reset_of_many_files_leaves_a_whole_beginning_wherever_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 3 * (OVERHEAD + 8))
    for step in range(1, 16):
        for seed in range(20):
            disk = Watched()
            journal = filled(disk, 20)
            journal.reset(12, 1, lambda _: None)
            disk._random = Random(seed)
            disk.crash_in(step)
            try:
                disk.wait()
            except BaseException:  # noqa: BLE001  it is Crashed
                disk.restart(power_lost=True)
            assert opened(disk, (12, 1)).first_index == 12


def test_journal_that_a_snapshot_has_overtaken_begins_anew_at_it(disk: Watched) -> None:
    """The node died after the snapshot was installed and before the journal was reset."""
    filled(disk, 9)
    disk.restart()
    journal = opened(disk, (30, 1))
    assert entries(journal) == [(b"\1", 30, 1)]
    assert journal.durable == 30
    disk.restart(power_lost=True)
    assert opened(disk, (30, 1)).first_index == 30


def test_journal_with_another_term_at_the_snapshot_begins_anew_at_it(disk: Watched) -> None:
    filled(disk, 9).setCurrentTerm(2, None)
    disk.restart()
    assert opened(disk, (5, 1)).last_index == 9
    assert entries(opened(disk, (5, 2))) == [(b"\1", 5, 2)]


# Memory


def test_older_entries_are_read_from_the_disk(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 1000)
    monkeypatch.setattr(module, "SEGMENT", 5000)
    journal = opened(disk)
    journal.setCurrentTerm(1, None)
    for number in range(2, 301):
        journal.add(b"\0%d" % number * 10, number, 1)
        if not number % 10:
            journal.sync_now()
    again = opened(disk)
    for each in (journal, again):
        assert each._window.size <= 1250
        assert entries(each) == [(b"\1", 1, 0), *((b"\0%d" % number * 10, number, 1) for number in range(2, 301))]
        assert list(each[100:]) == entries(each)[100:]
    changed = [*entries(journal)[:50], (b"\0again", 51, 1)]
    journal.deleteEntriesFrom(50)
    journal.add(b"\0again", 51, 1)
    assert list(journal[48:]) == changed[48:]
    journal.sync_now()
    assert entries(opened(disk)) == changed


def test_entries_stay_in_memory_until_they_are_on_disk(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 1000)
    journal = filled(disk, 1)
    add(journal, 500)
    journal.flush()
    assert journal[400:410] == entries(journal)[400:410]
    disk.wait()
    assert journal._window.size <= 1250


def test_entry_that_has_rotted_is_not_given_out(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 1000)
    journal = filled(disk, 500)
    disk.flip(f"log-{1:020d}", 8 * journal._segment(7).offset(7))
    assert journal[5][1] == 6
    with pytest.raises(OSError, match=r"entry 7 in log-0+1 is damaged"):
        journal[6]


# A disk that fails


@pytest.mark.parametrize("primitive", ["write", "sync"])
def test_failed_write_is_told_once_and_never_tried_again(disk: Watched, primitive: Primitive) -> None:
    journal = filled(disk, 3)
    told: list[str] = []
    journal.on_failed = lambda error: told.append(str(error))
    journal.on_durable = lambda: pytest.fail("durable")
    disk.failing = {primitive}
    add(journal)
    journal.flush()
    disk.wait()
    assert len(told) == 1
    assert f"{primitive} fails" in told[0]
    disk.failing.clear()
    disk.done.clear()
    add(journal)
    journal.flush()
    journal.sync_now()
    journal.deleteEntriesFrom(3)
    ends: list[OSError | None] = []
    journal.reset(30, 1, ends.append)
    disk.wait()
    journal.close()
    assert not disk.done
    assert isinstance(ends[0], OSError)
    assert len(told) == 1
    assert journal.durable <= 3


def test_journal_that_cant_be_begun_is_not_opened(disk: Watched) -> None:
    disk.failing = {"rename"}
    with pytest.raises(OSError, match="rename fails"):
        opened(disk)
    disk.failing.clear()
    filled(disk, 9)
    disk.failing = {"rename"}
    with pytest.raises(OSError, match="rename fails"):
        opened(disk, (30, 1))


def test_reset_that_fails_is_told(disk: Watched) -> None:
    journal = filled(disk, 3)
    ends: list[OSError | None] = []
    disk.failing = {"rename"}
    journal.reset(30, 1, ends.append)
    disk.wait()
    assert isinstance(ends[0], OSError)
    assert journal.durable == 0
    disk.failing.clear()
    disk.restart(power_lost=True)
    assert opened(disk).last_index == 3


def test_full_disk_loses_nothing_that_was_durable(disk: Watched) -> None:
    journal = filled(disk, 3)
    told: list[OSError] = []
    journal.on_failed = told.append
    disk.capacity = sum(map(disk.size, disk.names())) + 60
    add(journal, 5)
    journal.flush()
    disk.wait()
    assert "full" in str(told[0])
    disk.capacity = None
    disk.restart(power_lost=True)
    assert 3 <= opened(disk).last_index <= 4


def test_entries_that_a_failed_sync_left_in_the_cache_are_written_again(disk: Watched) -> None:
    """The kernel takes them for written; a new process reads them, acknowledges them, and the power goes."""
    journal = filled(disk, 3)
    disk.failing = {"sync"}
    add(journal)
    journal.flush()
    disk.wait()
    disk.failing.clear()
    disk.kill()
    disk.restart()
    assert opened(disk).durable == 4
    disk.restart(power_lost=True)
    assert opened(disk).last_index == 4


def test_opening_makes_durable_what_it_found(disk: Watched) -> None:
    journal = filled(disk, 3, sync=False)
    add(journal)
    journal.flush()
    disk.kill()
    disk.restart()
    assert opened(disk).durable == 4
    disk.restart(power_lost=True)
    assert opened(disk).last_index == 4


# Damage


def test_torn_tail_is_cut_off(disk: Watched, warnings: list[str]) -> None:
    filled(disk, 9)
    name = f"log-{1:020d}"
    whole = disk.size(name)
    for size in range(whole - OVERHEAD - 7, whole):
        disk.restart()
        content = disk.read(name)
        disk.truncate(name, size)
        assert opened(disk).last_index == 8
        disk.replace(name, content)
    assert "what the log has behind entry 8" in warnings[-1]


def test_damaged_entry_that_was_durable_is_not_cut_off(disk: Watched) -> None:
    journal = filled(disk, 5)
    add(journal, 5)
    journal.sync_now()
    for index in range(1, 6):
        offset = 8 * journal._segment(index).offset(index)
        disk.flip(f"log-{1:020d}", offset)
        with pytest.raises(Damaged, match=f"entry {index} in log-0+1 is damaged"):
            opened(disk)
        disk.flip(f"log-{1:020d}", offset)
    assert opened(disk).last_index == 10


def test_lost_file_is_damage(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 10 * (OVERHEAD + 8))
    filled(disk, 50)
    disk.remove(f"log-{21:020d}")
    with pytest.raises(Damaged, match=r"entry 21 in log-0+11 is damaged"):
        opened(disk)


def test_log_that_ends_before_the_commit_index_is_damaged(disk: Watched, warnings: list[str]) -> None:
    filled(disk, 9)
    assert opened(disk, commit=9).getRaftCommitIndex() == 9
    with pytest.raises(Damaged, match="ends at entry 9, but those up to 10 were committed"):
        opened(disk, commit=10)
    assert not warnings
    assert opened(disk, sync=False, commit=10).getRaftCommitIndex() == 9
    assert "durability = os" in warnings[0]


def test_emptied_log_is_damaged(disk: Watched) -> None:
    filled(disk, 9)
    name = f"log-{1:020d}"
    for size in (HEADER, HEADER - 1, 0):
        disk.truncate(name, size)
        with pytest.raises(Damaged, match="has lost its entries"):
            opened(disk)


def test_term_that_is_missing_unreadable_or_old_is_damage(disk: Watched) -> None:
    filled(disk, 9)
    kept = disk.read("term")
    disk.remove("term")
    with pytest.raises(Damaged, match="term is missing"):
        opened(disk)
    disk.replace("term", kept[:-1])
    with pytest.raises(Damaged, match="term is unreadable"):
        opened(disk)
    disk.replace("term", b"")
    with pytest.raises(Damaged, match="term is unreadable"):
        opened(disk)
    disk.remove("term")
    other = Watched()
    opened(other).setCurrentTerm(0, "a")
    disk.append("term", other.read("term"))
    with pytest.raises(Damaged, match="term is older than the log"):
        opened(disk)
    disk.replace("term", kept)
    assert opened(disk).getCurrentTerm() == 1


def test_log_of_the_first_format_is_read(disk: Watched) -> None:
    """What this release has written, later ones read."""
    disk.append(f"log-{1:020d}", bytes.fromhex(FIRST_FORMAT))
    disk.append("term", b'{"term":2,"vote":"b"} e8cd1fbc\n')
    journal = opened(disk, commit=4)
    assert entries(journal) == [(b"\1", 1, 0), (b"\1", 2, 1), (b"\4members", 3, 1), (b"\0batch", 4, 2)]
    assert journal.membership == (3, b"\4members")
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (2, "b")


FIRST_FORMAT = (
    "73697068612d6c6f6701000100000000000000224ee3de0de6f78cf59ec1fb71ce85f201000000010000000000000000"
    "000000000000000000000000000000000000000000000001f59ec1fb29fb621b01000000020000000000000001000000"
    "000000000000000000000000010000000000000001f59ec1fb1c036beb08000000030000000000000001000000000000"
    "0001000000000000000200000000000000046d656d62657273f59ec1fbb37ff229060000000400000000000000020000"
    "000000000001000000000000000200000000000000006261746368"
)


# Records beside the reactor


def test_what_is_synced_now_follows_the_record_under_way(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three groups: one under way, one that follows it when it is told, one that is collected before."""
    monkeypatch.setattr("sipha.cluster.journal._GROUP", 1)
    journal = filled(disk, 2)
    disk.wait()
    for index in range(3, 9):
        journal.add(b"\0%d" % index, index, 1)
        if index == 3:
            journal.flush()
    journal.sync_now()
    assert journal.durable == 8
    before = entries(journal)
    disk.restart(power_lost=True)
    assert entries(opened(disk)) == before


@pytest.mark.parametrize("power_lost", [False, True])
def test_room_behind_the_last_record_is_no_damage(disk: Watched, warnings: list[str], *, power_lost: bool) -> None:
    journal = filled(disk, 9)
    add(journal, command=b"\0that ends with zeros" + bytes(99))
    journal.flush()
    disk.wait()
    assert journal.durable == 10
    before = entries(journal)
    assert disk.image()["log-00000000000000000001"].endswith(bytes(ROOM))
    disk.restart(power_lost=power_lost)
    assert entries(opened(disk)) == before
    assert not warnings
    assert disk.size("log-00000000000000000001") == journal.size


@pytest.mark.parametrize("lost", [3, 4, 9])
def test_durable_entry_in_whose_place_there_are_zeros_is_no_room(disk: Watched, lost: int) -> None:
    """The medium has lost what it had: a later entry says so, or the commit index."""
    journal = filled(disk, 2)
    for _ in range(7):
        add(journal)
        journal.flush()
        disk.wait()
    assert journal.durable == 9
    segment = journal._segments[0]
    offset = segment.offset(lost)
    disk.restart()
    disk.write(segment.name, offset, bytes(OVERHEAD + len(journal[-1][0])))
    disk.sync(segment.name)
    with pytest.raises(Damaged, match=f"entry {lost} in {segment.name}" if lost < 9 else "the log ends at entry 8"):
        opened(disk, commit=9)


def test_full_file_has_no_room_for_more_when_there_is_a_next(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that knows of no room takes it for something torn, as is only what was written last."""
    monkeypatch.setattr("sipha.cluster.journal.SEGMENT", 500)
    journal = filled(disk, 2)
    for _ in range(30):
        add(journal)
        journal.flush()
        disk.wait()
        *full, last = [disk.size(name) for name in disk.names() if name.startswith("log-")]
        assert sum(full) < journal.size <= sum(full) + last
    assert len(full) >= 3
    before = entries(journal)
    disk.restart(power_lost=True)
    assert entries(opened(disk)) == before


def test_record_that_can_not_be_begun_ends_the_journal(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(disk, 2)
    disk.wait()
    failed: list[OSError] = []
    journal.on_failed = failed.append

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(disk, "record", refuse)
    for index in (3, 4):
        journal.add(b"\0", index, 1)
        journal.flush()
    assert "can't start new thread" in str(failed.pop())
    assert not failed
    assert journal.durable == 2
    journal.close()


def test_no_record_is_begun_after_a_write_that_failed(disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by who is told first that what was before it has ended."""
    journal = filled(disk, 2)
    failed: list[OSError] = []
    journal.on_failed = failed.append
    write = disk.write

    def refuse(name: str, offset: int, data: bytes) -> None:
        if name == "log-00000000000000000009":
            raise OSError(EIO, "for the test")
        write(name, offset, data)

    def go_on(error: OSError | None) -> None:
        assert error is None
        monkeypatch.undo()
        disk.done.clear()
        add(journal)
        journal.flush()

    monkeypatch.setattr(disk, "write", refuse)
    add(journal)
    journal.flush()
    journal.reset(9, 1, go_on)
    add(journal)
    disk.wait()
    assert "for the test" in str(failed.pop())
    assert (journal.last_index, journal.durable) == (11, 9)
    assert not disk.done


# Real files


def test_journal_on_real_files_survives_kill_9(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from twisted.internet import reactor
        from sipha.cluster.disk import FileDisk
        from sipha.cluster.journal import Journal
        journal = Journal.open(FileDisk(sys.argv[1], reactor), None, sync=True, commit=0)
        journal.setCurrentTerm(1, None)
        def add():
            for index in range(journal.last_index + 1, journal.last_index + 8):
                journal.add(b"\\0%d" % index, index, 1)
            journal.flush()
            reactor.callLater(0, add)
        journal.on_durable = lambda: print(journal.durable, flush=True)
        reactor.callWhenRunning(add)
        reactor.run()
    """)
    last = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > last + 500:
                process.send_signal(signal.SIGKILL)
                break
        told = [int(line), *(int(rest) for rest in process.stdout if rest.endswith(b"\n"))]
        process.wait()
        disk = FileDisk(tmp_path, None)
        journal = Journal.open(disk, None, sync=True, commit=told[-1])
        assert journal.last_index >= told[-1]
        assert entries(journal)[1:] == [(b"\0%d" % index, index, 1) for index in range(2, journal.last_index + 1)]
        last = journal.last_index
        disk.close()
