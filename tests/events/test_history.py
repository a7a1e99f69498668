from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sipha.events.event import KeyAdded, Moment, encode, gap, stamp
from sipha.events.history import History, HistoryError, Row, gap_row
from tests.events.site import ALICE, BOB

KEEP = 1000.0
BIG = 1 << 30


def row(entry: int, aor: str = ALICE, number: int = 0, time: int | None = None, size: int = 0) -> Row:
    """What is written of an event; the database doesn't care what it says."""
    event = KeyAdded(*stamp(Moment(entry, entry, 1_764_380_000.0 + entry, None), f"{entry}.{number}" + " " * size))
    return Row(entry, number, entry if time is None else time, aor, encode(event))


def opened(path: Path, cluster: str = "c1", *, keep: float = KEEP, most: int = BIG, suspect: bool = False) -> History:
    history = History(path / "history", keep, most, suspect=suspect)
    history.enter(cluster, 0)
    return history


def known(history: History, aor: str = ALICE) -> list[str]:
    return [event.id.strip() for event in history.page(aor).events]


def test_history_of_an_aor_begins_with_the_latest(tmp_path: Path) -> None:
    history = opened(tmp_path)
    assert history.write([row(1), row(2, BOB), row(3), row(3, number=1)], 5, 10) == 4
    assert known(history) == ["3.1", "3.0", "1.0"]
    assert known(history, "sip:carol@x") == []
    assert history.page(ALICE).begins == "2025-11-29T01:33:21.000Z"
    history.close()


def test_history_outlives_a_restart_and_doesnt_take_an_entry_twice(tmp_path: Path) -> None:
    history = opened(tmp_path)
    history.write([row(1), row(3)], 5, 10)
    history.close()
    history = opened(tmp_path)
    assert history.reached == 5
    assert history.write([row(1), row(3), row(5), row(6)], 6, 10) == 1
    assert known(history) == ["6.0", "3.0", "1.0"]
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600


def test_pages_hold_each_event_once_and_the_gaps_between(tmp_path: Path) -> None:
    history = opened(tmp_path)
    missing = gap(Moment(50, 1, 1.0, "n1"), "50", 40, "why")
    history.write([*(row(entry, number=number) for entry in range(1, 60) for number in (0, 1) if not 40 < entry < 51),
                   gap_row(missing, encode(missing))], 60, 10)  # fmt: skip
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = history.page(ALICE, cursor, 7)
        assert len(page.events) <= 7
        found += [event.id for event in page.events]
        cursor = page.cursor
    assert len(found) == len(set(found)) == 2 * 49 + 1
    assert found[found.index("50") - 1] == "51.0"
    assert found[found.index("50") + 1] == "40.1"


@pytest.mark.parametrize("cursor", ["x", "1", "1.2", "1.2.3.4", "-1.0.0", "1.2.99999999999999999999", "1.2.x"])
def test_what_is_no_cursor_is_refused(tmp_path: Path, cursor: str) -> None:
    with pytest.raises(ValueError, match="is not a cursor"):
        opened(tmp_path).page(ALICE, cursor)


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    history = opened(tmp_path, keep=1.0)
    history.write([row(entry, time=entry) for entry in range(1, 4000)], 4000, 4000)
    assert known(history)[-1] == "3000.0"
    history.write([], 4000, 1_000_000)
    assert known(history) == []


def test_history_takes_no_more_room_than_it_may(tmp_path: Path) -> None:
    most = 1 << 20
    history = opened(tmp_path, most=most)
    for start in range(0, 20_000, 1000):
        history.write([row(start + entry, size=400) for entry in range(1000)], start + 1000, 1)
    kept = history.page(ALICE).events
    assert kept[0].id.strip() == "19999.0"
    assert (tmp_path / "history").stat().st_size < 2.5 * most
    begins = history.page(ALICE).begins
    assert begins is not None
    assert begins > "2025-11-29T01:33:20.000Z"


def test_each_cluster_of_a_node_has_a_history_of_its_own(tmp_path: Path) -> None:
    history = opened(tmp_path, keep=1.0)
    history.write([row(1, time=9000), row(2, time=9000)], 7, 9000)
    assert history.enter("c2", 100) == 0
    history.write([row(1, number=5, time=100)], 1, 100)
    assert known(history) == ["1.5", "2.0", "1.0"], "nothing of the former one is older than the new one can tell"
    history.close()
    history = opened(tmp_path, "c2", keep=1.0)
    history.write([], 1, 1_050)
    assert known(history) == ["1.5", "2.0", "1.0"]
    history.write([], 1, 1_100)
    assert known(history) == ["1.5"]


@pytest.mark.parametrize("damage", [b"this is no database, is it?" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_database_that_is_none_is_moved_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "history").write_bytes(damage)
    history = opened(tmp_path)
    history.write([row(1)], 1, 1)
    assert known(history) == ["1.0"]
    assert (tmp_path / "history.damaged").read_bytes() == damage


def test_damaged_database_is_found_out_when_it_is_suspect(tmp_path: Path) -> None:
    history = opened(tmp_path)
    history.write([row(entry) for entry in range(1, 2000)], 2000, 1)
    history.close()
    with (tmp_path / "history").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 8)
    history = opened(tmp_path, suspect=True)
    assert history.reached == 0
    assert known(history) == []
    assert (tmp_path / "history.damaged").exists()


def test_what_the_disk_refuses_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="No such file or directory"):
        History(tmp_path / "absent" / "history", KEEP, BIG)
    history = opened(tmp_path)
    history.close()
    with pytest.raises(HistoryError, match="closed database"):
        history.write([row(1)], 1, 1)
    with pytest.raises(HistoryError, match="closed database"):
        history.page(ALICE)
    with pytest.raises(HistoryError, match="closed database"):
        history.enter("c3", 0)


def test_event_of_a_later_release_is_passed_over(tmp_path: Path) -> None:
    history = opened(tmp_path)
    history.write([row(1), Row(2, 0, 1, ALICE, b'{"kind":"phone-dreamed"}')], 2, 1)
    assert known(history) == ["1.0"]
    assert sqlite3.connect(tmp_path / "history").execute("SELECT count(*) FROM events").fetchone() == (2,)
