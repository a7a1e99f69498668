from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.events import history as history_module
from sipha.events.event import Moment, gap
from sipha.events.history import History, HistoryError
from sipha.events.told import Told, told
from sipha.state.binding import Binding
from sipha.state.changes import Added, added
from tests.events.site import ALICE, BOB

KEEP = 1000.0
BIG = 1 << 30


def made(aor: str, size: int = 0) -> Added:
    """A binding that was made; the database doesn't care which."""
    return added(Binding(aor, "", 1, 1, 1, "", 1, None, "", 0, "", "", "", "", (), "x" * size, "", 0, 0, "", 0))


def row(entry: int, *aors: str, time: int | None = None, size: int = 0) -> Told:
    """What is written of an entry that concerns these AORs, or Alice."""
    moment = Moment(entry, entry if time is None else time, 1_764_380_000.0 + entry, None)
    return told(moment, [made(aor, size) for aor in aors or (ALICE,)])


def opened(path: Path, cluster: str = "c1", *, keep: float = KEEP, most: int = BIG, suspect: bool = False) -> History:
    history = History(path / "history", keep, most, suspect=suspect)
    history.enter(cluster, 0)
    return history


def known(history: History, aor: str = ALICE) -> list[str]:
    return [event.id for event in history.page(aor).events]


def test_history_of_an_aor_begins_with_the_latest(tmp_path: Path) -> None:
    history = opened(tmp_path)
    assert history.write([row(1), row(2, BOB), row(3, ALICE, ALICE)], 5, 10) == 4
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
    before, after = range(1, 41), range(51, 60)
    history.write([*(row(entry, ALICE, BOB, ALICE) for entry in before)], 40, 10)
    history.write([missing, *(row(entry, ALICE, BOB, ALICE) for entry in after)], 60, 10)
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = history.page(ALICE, cursor, 7)
        assert len(page.events) <= 7
        found += [event.id for event in page.events]
        cursor = page.cursor
    assert len(found) == len(set(found)) == 2 * 49 + 1
    assert found[found.index("50") - 1] == "51.0"
    assert found[found.index("50") + 1] == "40.2"
    assert "40.1" not in found, "that is Bob's"


@pytest.mark.parametrize("cursor", ["x", "1", "1.2.3", "-1.0", "1.99999999999999999999", "1.x"])
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
    assert kept[0].id == "19999.0"
    assert (tmp_path / "history").stat().st_size < 2.5 * most
    begins = history.page(ALICE).begins
    assert begins is not None
    assert begins > "2025-11-29T01:33:20.000Z"


def test_no_more_goes_than_must_of_entries_that_are_large(tmp_path: Path) -> None:
    history = opened(tmp_path, most=1 << 20)
    for entry in range(1, 101):
        history.write([row(entry, size=40_000)], entry, 1)
        assert len(known(history)) >= min(entry, 20)
    assert len(known(history)) <= (1 << 20) / 40_000


def test_page_has_nothing_that_came_after_the_one_before(tmp_path: Path) -> None:
    history = opened(tmp_path, keep=1.0)
    history.write([row(entry, time=0) for entry in range(1, 11)], 10, 1)
    cursor = history.page(ALICE, "", 5).cursor
    history.write([], 10, 5000)
    assert known(history) == []
    history.close()
    history = opened(tmp_path, keep=1.0)
    history.write([row(entry, time=5000) for entry in range(11, 21)], 20, 5000)
    assert cursor is not None
    assert history.page(ALICE, cursor).events == ()
    assert len(known(history)) == 10


@pytest.mark.parametrize("changes", [b"\xc1", b"", b"\x92\x94\x01\x01\x01\xa1\xff\x90"])
def test_what_the_disk_has_changed_is_an_error_and_no_mistake_of_who_asks(tmp_path: Path, changes: bytes) -> None:
    history = opened(tmp_path)
    history.write([row(1), Told(2, 1, (ALICE,), changes)], 2, 1)
    with pytest.raises(HistoryError):
        history.page(ALICE)
    assert known(history, BOB) == []


def test_each_cluster_of_a_node_has_a_history_of_its_own(tmp_path: Path) -> None:
    history = opened(tmp_path, keep=1.0)
    history.write([row(1, time=9000), row(2, time=9000)], 7, 9000)
    assert history.enter("c2", 100) == 0
    history.write([row(1, BOB, ALICE, time=100)], 1, 100)
    assert known(history) == ["1.1", "2.0", "1.0"], "nothing of the former one is older than the new one can tell"
    history.close()
    history = opened(tmp_path, "c2", keep=1.0)
    history.write([], 1, 1_050)
    assert known(history) == ["1.1", "2.0", "1.0"]
    history.write([], 1, 1_100)
    assert known(history) == ["1.1"]


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
    later = msgspec.msgpack.encode(((2, 1, 1.0, None), [("phone-dreamed", ALICE)]))
    history.write([row(1), Told(2, 1, (ALICE,), later)], 2, 1)
    assert known(history) == ["1.0"]
    assert sqlite3.connect(tmp_path / "history").execute("SELECT count(*) FROM entries").fetchone() == (2,)


def test_database_in_another_form_is_moved_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "history") as former:
        former.execute("CREATE TABLE events (epoch INTEGER)")
    former.close()
    history = opened(tmp_path)
    history.write([row(1)], 1, 1)
    assert known(history) == ["1.0"]
    assert (tmp_path / "history.damaged").exists()


def test_aors_of_one_hash_have_histories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_hash", lambda _: 1)
    history = opened(tmp_path, keep=1.0)
    history.write([row(1), row(2, BOB), row(3, BOB, ALICE)], 3, 10)
    assert (known(history), known(history, BOB)) == (["3.1", "1.0"], ["3.0", "2.0"])
    history.write([], 3, 2000)
    assert (known(history), known(history, BOB)) == ([], [])


@given(st.lists(st.lists(st.sampled_from(["sip:a@x", "sip:b@x", "sip:c@x"]), min_size=1, max_size=150), max_size=6))
@settings(max_examples=50, deadline=None)
def test_each_aor_has_its_events_and_nothing_is_left_of_what_goes(entries: list[list[str]]) -> None:
    with TemporaryDirectory() as directory:
        history = opened(Path(directory), keep=1.0)
        written = [row(index, *aors, time=0) for index, aors in enumerate(entries, 1)]
        assert history.write(written, len(entries), 1) == sum(map(len, entries))
        for aor in ("sip:a@x", "sip:b@x", "sip:c@x", "sip:d@x"):
            expected = [
                f"{index}.{number}"
                for index, aors in enumerate(entries, 1)
                for number, other in enumerate(aors)
                if aor == other
            ]
            assert known(history, aor) == expected[::-1]
        history.write([], len(entries), 2000)
        rows = sqlite3.connect(Path(directory) / "history")
        assert [rows.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("entries", "aors")] == [(0,)] * 2
        rows.close()
        history.close()
