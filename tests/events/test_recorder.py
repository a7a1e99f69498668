from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from sipha.events import recorder as recorder_module
from sipha.events.event import BindingAdded, Gap
from sipha.events.history import History, HistoryError, Page
from sipha.events.recorder import FLUSH, MARK, RETRY, Place, Recorder
from sipha.state.machine import Machine
from tests.events.site import ALICE, BOB, Site
from tests.state.snapshots import copied, loaded, taken


class Recording:
    """A node with a history on a disk that fails as long as there is a `fault`, and a thread that may be slow."""

    def __init__(self, path: Path, machine: Machine | None = None, cluster: str = "c1") -> None:
        self.site = Site(machine)
        self.path = path
        self.cluster = cluster
        self.fault = ""
        self.opened: list[bool] = []
        self.slow: list[Callable[[], object]] | None = None
        self.recorder = Recorder(self.site.clock, self.run, self.open, self.place, self.site.feed.gap)
        self.site.feed.archive = self.recorder
        self.recorder.start()

    def place(self) -> Place:
        return Place(self.cluster, self.site.feed.reach(), int(self.site.now * 1000))

    def open(self, suspect: bool) -> History:
        self.opened.append(suspect)
        self.check()
        return History(self.path / "history", 1000.0, 1 << 30, suspect=suspect)

    def check(self) -> None:
        if self.fault:
            raise HistoryError(self.fault)

    def run(self, job: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        def work() -> Any:
            if job.__name__ in {"write", "_write"}:
                self.check()
            return job(*arguments)

        if self.slow is None:
            return maybeDeferred(work)
        done: Deferred[Any] = Deferred()
        self.slow.append(lambda: maybeDeferred(work).chainDeferred(done))
        return done

    def wait(self, seconds: float = FLUSH) -> None:
        self.site.clock.pump([FLUSH] * int(seconds / FLUSH))

    def read(self, aor: str = ALICE) -> list[str]:
        """What is known of an AOR: the ids of its events, and of a gap what it leaves out."""
        pages: list[Page | Failure] = []
        self.recorder.read(aor, "", 1000).addBoth(pages.append)
        (page,) = pages
        if isinstance(page, Failure):
            page.raiseException()
        return [f"{e.after}..{e.index}" if isinstance(e, Gap) else e.id for e in page.events]

    def stop(self) -> None:
        stopped: list[object] = []
        self.recorder.stop().addBoth(stopped.append)
        assert stopped == [None]


def test_what_happens_is_written_in_a_moment(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.register(ALICE)
    node.site.register(ALICE)
    node.site.register(BOB)
    node.wait(2 * FLUSH)
    assert node.recorder.counters == {"history_written": 2, "history_dropped": 0}
    assert node.read() == ["1.0"]


def test_who_asks_sees_what_has_just_happened(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.wait()
    node.site.register(ALICE)
    assert node.read() == ["1.0"]


def test_what_concerns_no_aor_is_not_kept(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.elect("n1")
    node.wait(1.0)
    assert node.recorder.counters["history_written"] == 0


def test_stopping_writes_the_rest(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.wait()
    node.site.register(ALICE)
    node.stop()
    again = Recording(tmp_path, node.site.machine)
    assert again.read() == ["1.0"]
    assert again.opened == [False]


def test_entries_that_are_applied_again_after_a_crash_are_not_doubled(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.register(ALICE)
    node.wait(1.0)
    node.site.register(ALICE, received="sip:192.0.2.1:5")  # this one isn't on the disk when the process is killed
    again = Recording(tmp_path)
    again.site.register(ALICE)
    again.site.register(ALICE, received="sip:192.0.2.1:5")
    again.site.register(BOB)
    assert again.read() == ["2.0", "1.0"]


def test_refreshes_alone_leave_no_gap_after_a_restart(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.register(ALICE)
    node.wait(1.0)
    for _ in range(100):
        node.site.register(ALICE)
    node.wait(MARK + 1)
    again = Recording(tmp_path, copied(node.site.machine))
    assert again.read() == ["1.0"]


def test_history_that_was_off_for_a_while_has_a_gap(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.register(ALICE)
    node.stop()
    node.site.feed.archive = None
    node.site.register(BOB)
    again = Recording(tmp_path, copied(node.site.machine))
    again.site.register("sip:carol@x")
    assert again.read("sip:carol@x") == ["3.0", "1..2"]
    assert again.read() == ["1..2", "1.0"]


def test_snapshot_that_is_installed_leaves_a_gap(tmp_path: Path) -> None:
    leader, node = Site(), Recording(tmp_path)
    for aor in (ALICE, BOB, ALICE):
        leader.register(aor)
    node.site.register(ALICE)
    node.site.machine.adopt(loaded(taken(leader.machine)))
    node.site.register("sip:carol@x")
    assert node.read() == ["1..3", "1.0"]
    assert node.read("sip:carol@x") == ["4.0", "1..3"]


def test_disk_that_fails_is_an_alarm_and_nothing_is_lost_while_there_is_room(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.register(ALICE)
    node.wait(1.0)
    node.fault = "database or disk is full"
    node.site.register(BOB)
    node.wait(1.0)
    (alarm,) = node.recorder.alarms()
    assert alarm.startswith("the history of AORs can't be written: database or disk is full; look after the disk")
    with pytest.raises(HistoryError, match="can't be read: database or disk is full"):
        node.read()
    tried = len(node.opened)
    node.site.register("sip:carol@x")
    node.wait(RETRY - 2)
    assert len(node.opened) == tried, "it isn't tried all the time"
    node.fault = ""
    node.wait(3)
    assert node.opened[tried:] == [True], "what has failed is suspect"
    assert not list(node.recorder.alarms())
    assert (node.read(BOB), node.read("sip:carol@x")) == (["2.0"], ["3.0"])
    assert node.recorder.counters["history_dropped"] == 0


def test_history_that_is_damaged_while_the_node_runs_begins_anew_with_a_gap(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    for _ in range(3):
        node.site.register(ALICE, received=f"sip:192.0.2.1:{node.site.cseq}")
        node.wait(1.0)
    node.fault = "database disk image is malformed"
    node.site.register(BOB)
    node.wait(1.0)
    (tmp_path / "history").write_bytes(b"this is no database, is it?" * 100)
    node.fault = ""
    node.wait(RETRY + 1)
    assert node.read() == ["0..3"]
    assert node.read(BOB) == ["4.0", "0..3"]


def test_disk_that_can_not_even_be_opened_is_an_alarm_for_as_long(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.fault = "unable to open database file"
    node.wait(1.0)
    node.wait(RETRY + 1)
    assert list(node.recorder.alarms())
    assert len(node.opened) == 2
    node.fault = ""
    node.site.register(ALICE)
    node.wait(RETRY + 1)
    assert not list(node.recorder.alarms())
    assert node.read() == ["1.0"]


def test_what_is_too_much_is_dropped_counted_and_owned_up_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MOST", 2)
    node = Recording(tmp_path)
    node.wait()
    node.slow = []
    for number in range(4):
        node.site.register(f"sip:u{number}@x")
    assert node.recorder.counters["history_dropped"] == 2
    node.wait()
    node.site.register(ALICE)
    slow, node.slow = node.slow, None
    for job in slow:
        job()
    assert node.read() == ["5.0", "2..4"]
    assert node.read("sip:u1@x") == ["2..4", "2.0"]


def test_bytes_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MOST_BYTES", 1000)
    node = Recording(tmp_path)
    node.site.register(ALICE, user_agent="x" * 900)
    assert node.recorder.counters["history_dropped"] == 1
    assert node.read() == ["0..1"]


def test_node_that_is_in_no_cluster_has_no_history(tmp_path: Path) -> None:
    node = Recording(tmp_path, cluster="")
    node.wait(1.0)
    with pytest.raises(HistoryError, match="this node is in no cluster yet"):
        node.read()
    node.cluster = "c1"
    node.site.register(ALICE)
    assert node.read() == ["1.0"]


def test_what_is_kept_is_what_was_told(tmp_path: Path) -> None:
    node = Recording(tmp_path)
    node.site.elect("n2")
    node.site.register(ALICE, user_agent="phone/1")
    pages: list[Page] = []
    node.recorder.read(ALICE, "", 10).addCallback(pages.append)
    (event,) = pages[0].events
    assert isinstance(event, BindingAdded)
    assert (event.node, event.user_agent, event.at) == ("n2", "phone/1", "2025-11-29T01:33:20.000Z")
