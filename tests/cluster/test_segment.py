from __future__ import annotations

from random import Random

import pytest
from twisted.internet.task import Clock

from sipha.cluster.disk import Damaged
from sipha.cluster.segment import HEADER, OVERHEAD, Segment
from sipha.cluster.wire import Entry
from sipha.errors import ConfigError
from tests.cluster_sim.disk import VirtualDisk

NAME = "log-00000000000000000007"


def entries(first: int, count: int, term: int = 3) -> list[Entry]:
    return [(b"%d " % index * 5, index, term) for index in range(first, first + count)]


@pytest.fixture
def disk() -> VirtualDisk:
    disk = VirtualDisk(Random(0))
    disk.start(Clock())
    return disk


def written(disk: VirtualDisk, *groups: tuple[list[Entry], int]) -> Segment:
    """A file with these entries; with each group goes what was durable before."""
    segment, before = Segment.new(7), 2
    disk.append(segment.name, segment.header())
    for group, durable in groups:
        disk.append(segment.name, segment.records(group, before, durable))
        before = group[-1][2]
        for command, _, term in group:
            segment.add(len(command), term)
    return segment


def loaded(disk: VirtualDisk, before: int | None = None) -> tuple[Segment, list[Entry]]:
    segment = Segment.open(disk, 7)
    return segment, [entry for piece in segment.load(disk, before) for entry in piece]


def test_entries_come_back_as_they_were_written(disk: VirtualDisk) -> None:
    segment = written(disk, (entries(7, 3), 6), (entries(10, 2, 4), 9))
    assert segment.size == disk.size(NAME) == HEADER + 5 * OVERHEAD + sum(len(c) for c, _, _ in entries(7, 5))
    again, found = loaded(disk)
    assert found == entries(7, 3) + entries(10, 2, 4)
    assert (again.first, again.last, len(again), again.size, again.vouched) == (7, 11, 5, segment.size, 9)
    assert [again.term_at(index) for index in range(7, 12)] == [3, 3, 3, 4, 4]
    assert Segment.find(disk) == [7]


def test_entries_are_loaded_in_pieces(disk: VirtualDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipha.cluster.segment._PIECE", 200)
    written(disk, (entries(7, 50), 6))
    pieces = list(Segment.open(disk, 7).load(disk, None))
    assert len(pieces) > 10
    assert [entry for piece in pieces for entry in piece] == entries(7, 50)


def test_entries_are_read_by_index(disk: VirtualDisk) -> None:
    segment = written(disk, (entries(7, 50), 6))
    assert segment.read(disk, 20, 20, 1000) == entries(20, 1)
    assert segment.read(disk, 20, 30, 1) == entries(20, 1)
    assert segment.read(disk, 55, 99, 10_000) == entries(55, 2)
    assert 2 < len(segment.read(disk, 20, 50, 200)) < 6


def test_read_of_a_damaged_entry_fails(disk: VirtualDisk) -> None:
    segment = written(disk, (entries(7, 5), 6))
    disk.flip(NAME, 8 * (segment.offset(9) + OVERHEAD))
    assert segment.read(disk, 7, 8, 1000) == entries(7, 2)
    with pytest.raises(OSError, match=f"entry 9 in {NAME} is damaged"):
        segment.read(disk, 8, 10, 1000)


def test_cut_segment_goes_on_from_there(disk: VirtualDisk) -> None:
    segment = written(disk, (entries(7, 5), 6))
    segment.cut(9)
    disk.truncate(NAME, segment.size)
    disk.append(NAME, segment.records(entries(10, 2, 8), 3, 9))
    assert loaded(disk)[1] == entries(7, 3) + entries(10, 2, 8)


@pytest.mark.parametrize(("stale", "before"), [(entries(9, 1), 3), (entries(11, 1), 3), (entries(10, 1), 2)])
def test_record_that_doesnt_follow_the_last_ends_the_log(disk: VirtualDisk, stale: list[Entry], before: int) -> None:
    segment = written(disk, (entries(7, 3), 6))
    disk.append(NAME, segment.records(stale, before, 9))
    again, found = loaded(disk)
    assert found == entries(7, 3)
    assert again.size == segment.size


def test_first_record_follows_the_file_before(disk: VirtualDisk) -> None:
    written(disk, (entries(7, 3), 6))
    assert loaded(disk, 2)[1] == entries(7, 3)
    assert loaded(disk, 1)[1] == []


def test_later_record_vouches_for_what_was_durable(disk: VirtualDisk) -> None:
    segment = written(disk, (entries(7, 2), 6), (entries(9, 2), 8), (entries(11, 2), 10))
    for damaged, vouched in ((7, True), (8, True), (9, True), (10, True), (11, False), (12, False)):
        disk.flip(NAME, 8 * (segment.offset(damaged) + OVERHEAD))
        again, _ = loaded(disk)
        assert again.last + 1 == damaged
        assert again.vouches(disk, damaged) == vouched
        disk.flip(NAME, 8 * (segment.offset(damaged) + OVERHEAD))


def test_record_vouches_though_the_one_before_has_a_wrong_length(disk: VirtualDisk) -> None:
    segment = written(disk, (entries(7, 1), 6), (entries(8, 1), 7))
    for bit in range(32):
        disk.flip(NAME, 8 * (segment.offset(7) + 8) + bit)
        again, found = loaded(disk)
        assert not found
        assert again.vouches(disk, 7)
        disk.flip(NAME, 8 * (segment.offset(7) + 8) + bit)


def test_command_that_looks_like_a_record_vouches_for_nothing(disk: VirtualDisk) -> None:
    """A phone chooses what is in a command; it doesn't know the file's salt."""
    forged = Segment.new(7).records([(b"x", 99, 99)], 99, 98)
    segment = written(disk, ([(b"\0" + forged, 7, 3)], 6))
    disk.flip(NAME, 8 * segment.offset(7))
    again, found = loaded(disk)
    assert not found
    assert not again.vouches(disk, 7)


def test_records_of_another_file_are_no_entries(disk: VirtualDisk) -> None:
    """An earlier file may have left them in the disk's blocks."""
    written(disk, (entries(7, 2), 6))
    other = Segment.new(7)
    disk.append(NAME, other.records(entries(9, 2), 3, 8))
    again, found = loaded(disk)
    assert found == entries(7, 2)
    assert not again.vouches(disk, 8)


def test_damaged_header_is_noticed(disk: VirtualDisk) -> None:
    written(disk, (entries(7, 1), 6))
    for bit in range(8 * HEADER):
        disk.flip(NAME, bit)
        with pytest.raises(Damaged, match="header"):
            Segment.open(disk, 7)
        disk.flip(NAME, bit)


def test_header_that_was_cut_short_has_no_entries(disk: VirtualDisk) -> None:
    content = Segment.new(7).header()
    for size in range(HEADER):
        disk.replace(NAME, content[:size])
        segment, found = loaded(disk)
        assert not found
        assert segment.size == HEADER


def test_file_under_another_name_is_damage(disk: VirtualDisk) -> None:
    written(disk)
    disk.rename(NAME, "log-00000000000000000008")
    with pytest.raises(Damaged, match="another file"):
        Segment.open(disk, 8)


def test_later_format_is_left_alone(disk: VirtualDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sipha.cluster.segment._FORMAT", 2)
        written(disk)
    with pytest.raises(ConfigError, match="later release"):
        Segment.open(disk, 7)


def test_other_names_are_not_of_the_log(disk: VirtualDisk) -> None:
    for name in ("log-7", "log-0000000000000000000x", "log-000000000000000000071", "lock", "damaged-1-" + NAME):
        disk.append(name, b"")
    assert Segment.find(disk) == []
