from __future__ import annotations

import pytest

from sipha.cluster.window import Tail, Window
from sipha.cluster.wire import Entry


def entries(first: int, last: int, size: int = 10) -> list[Entry]:
    return [(bytes([index % 256]) * size, index, 1) for index in range(first, last + 1)]


def window(first: int, last: int, size: int = 10) -> Window:
    window = Window(first)
    window.extend(entries(first, last, size))
    return window


def test_window_takes_what_fits_and_at_least_one() -> None:
    full = window(5, 9)
    assert full.take(5, 9, 100) == entries(5, 9)
    assert full.take(6, 9, 25) == entries(6, 7)
    assert full.take(6, 9, 20) == entries(6, 7)
    assert full.take(6, 9, 1) == entries(6, 6)
    assert full.take(6, 7, 100) == entries(6, 7)
    assert len(window(1, 5000, 0).take(1, 5000, 100)) == 4096


def test_window_is_cut_at_the_end() -> None:
    full = window(5, 9)
    full.cut(7)
    assert (full.first, full.size) == (5, 30)
    full.add(entries(8, 8)[0])
    assert full[8] == entries(8, 8)[0]
    full.cut(2)
    assert (full.first, full.size) == (3, 0)


def test_window_forgets_the_oldest_that_are_durable() -> None:
    full = window(5, 9)
    full.trim(30, 9)
    assert (full.first, full.size) == (7, 30)
    full.trim(0, 7)
    assert (full.first, full.size) == (8, 20)
    assert full[8] == entries(8, 8)[0]


def test_tail_reads_what_is_looked_at() -> None:
    reads: list[int] = []

    def read(first: int, last: int) -> list[Entry]:
        reads.append(first)
        return entries(first, min(first + 3, last))

    tail = Tail(read, 10, 30)
    assert len(tail) == 21
    assert not reads
    assert tail[0] == entries(10, 10)[0]
    assert tail[:6] == entries(10, 15)
    assert reads == [10, 14]
    assert list(tail) == entries(10, 30)
    assert reads == [10, 14, 18, 22, 26, 30]
    rest = tail[2:]
    assert isinstance(rest, Tail)
    assert list(rest) == entries(12, 30)
    assert tail[:100] == entries(10, 30)


def test_tail_behind_the_end_is_empty() -> None:
    tail = Tail(lambda _first, _last: [], 31, 30)
    assert not tail
    assert list(tail) == tail[:3] == []


def test_tail_of_entries_that_were_forgotten_meanwhile_ends() -> None:
    tail = Tail(lambda _first, _last: [], 10, 30)
    assert tail[:3] == []
    with pytest.raises(IndexError):
        tail[0]
