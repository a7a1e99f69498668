from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sipha.cluster.disk import ROOM, FileDisk
from sipha.cluster.recorder import Recorder
from tests.cluster_sim.disk import VirtualDisk
from tests.kernels import kernel


class Reactor:
    """Its turn comes when `turn` is called, or `read` for those who wait for something to read."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.called = threading.Semaphore(0)
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def read(self, within: float = 10) -> None:
        ready, _, _ = select.select(self.readers, [], [], within)
        for reader in ready:
            reader.doRead()

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.calls.append(lambda: function(*args))
        self.called.release()

    def turn(self, calls: int = 1) -> None:
        for _ in range(calls):
            assert self.called.acquire(timeout=10)
            self.calls.pop(0)()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture(params=[Recorder, kernel("sipha.cluster._recorder").Recorder], ids=["Python", "C"])
def disk(tmp_path: Path, reactor: Reactor, request: pytest.FixtureRequest) -> Iterator[FileDisk]:
    threads = threading.active_count()
    disk = FileDisk(tmp_path, reactor, request.param)
    yield disk
    disk.close()
    assert threading.active_count() == threads


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


NAMES = st.sampled_from("abc")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), NAMES, st.binary(max_size=9)),
        st.tuples(st.just("write"), NAMES, st.integers(0, 19), st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("replace"), NAMES, st.binary(max_size=9)),
        st.tuples(st.just("rewrite"), NAMES, st.integers(0, 9)),
        st.tuples(st.just("truncate"), NAMES, st.integers(0, 9)),
        st.tuples(st.just("rename"), NAMES, NAMES),
        st.tuples(st.just("read"), NAMES, st.integers(0, 9), st.none() | st.integers(0, 9)),
        st.tuples(st.sampled_from(["sync", "size", "remove"]), NAMES),
        st.tuples(st.sampled_from(["names", "sync_names"])),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(operations=OPERATIONS)
def test_files_are_as_on_the_virtual_disk(operations: list[tuple[Any, ...]]) -> None:
    """So what the simulation shows is true of real ones, but for crashes."""
    virtual = VirtualDisk(Random(0))
    virtual.start(Clock())
    with TemporaryDirectory() as directory:
        disk = FileDisk(directory, Reactor())
        for name, *args in operations:
            results = []
            for each in (disk, virtual):
                try:
                    results.append(getattr(each, name)(*args))
                except OSError as error:
                    results.append(type(error))
            assert results[0] == results[1], name
            assert {name: disk.read(name) for name in disk.names()} == virtual.image()
        disk.close()


def test_files_are_their_owners_alone(disk: FileDisk, tmp_path: Path) -> None:
    disk.append("a", b"x")
    disk.replace("b", b"x")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_disk_forgets_what_a_crash_left_half_replaced(tmp_path: Path, reactor: Reactor) -> None:
    (tmp_path / "term.new").write_bytes(b"x")
    (tmp_path / "term").write_bytes(b"y")
    disk = FileDisk(tmp_path, reactor)
    assert disk.names() == ["term"]
    assert not (tmp_path / "term.new").exists()
    disk.close()


def test_disk_keeps_few_files_open(disk: FileDisk) -> None:
    before = open_files()
    for number in range(100):
        disk.append(f"log-{number}", b"x")
        assert disk.read(f"log-{number // 2}") == b"x"
    assert open_files() <= before + 8
    disk.append("log-0", b"y")
    assert disk.read("log-0") == b"xy"


def test_append_makes_a_new_file_after_another_thread_removed_it(disk: FileDisk, reactor: Reactor) -> None:
    disk.append("a", b"old")
    disk.run_bulk(lambda: disk.remove("a"), lambda _: None)
    reactor.turn()
    disk.append("a", b"new")
    assert disk.read("a") == b"new"


def test_jobs_are_done_in_their_order_off_the_reactors_thread(disk: FileDisk, reactor: Reactor) -> None:
    ran: list[tuple[int, str]] = []
    told: list[object] = []
    for number in range(50):
        disk.run(lambda number=number: ran.append((number, threading.current_thread().name)), told.append)  # type: ignore[misc]
    reactor.turn(50)
    assert [number for number, _ in ran] == list(range(50))
    assert {name for _, name in ran} == {"journal"}
    assert told == [None] * 50


def test_long_job_doesnt_hold_up_the_journal(disk: FileDisk, reactor: Reactor) -> None:
    go = threading.Event()
    told: list[object] = []
    disk.run_bulk(lambda: go.wait(10), told.append)
    disk.run(lambda: "journal", told.append)
    reactor.turn()
    assert told == ["journal"]
    go.set()
    reactor.turn()
    assert told == ["journal", True]


def test_failed_job_is_told_and_the_next_is_done(disk: FileDisk, reactor: Reactor) -> None:
    told: list[object] = []
    disk.run(lambda: disk.read("nothing"), told.append)
    disk.run(lambda: 7, told.append)
    reactor.turn(2)
    assert isinstance(told[0], FileNotFoundError)
    assert told[1] == 7


def test_closed_disk_tells_nothing_and_leaves_no_thread(tmp_path: Path, reactor: Reactor) -> None:
    disk, threads = FileDisk(tmp_path, reactor), threading.active_count()
    begun, go = threading.Event(), threading.Event()
    ran: list[int] = []

    def job() -> None:
        begun.set()
        go.wait(10)
        ran.append(1)

    disk.run(job, lambda _: pytest.fail("it was told"))
    disk.run(lambda: ran.append(2), lambda _: pytest.fail("it was told"))
    begun.wait(10)
    timer = threading.Timer(0.05, go.set)
    timer.start()
    disk.close()
    timer.join()
    assert ran == [1]
    assert threading.active_count() == threads
    reactor.turn()


def test_records_have_been_written_when_the_reactor_is_told(disk: FileDisk, reactor: Reactor, tmp_path: Path) -> None:
    disk.append("log", b"1")
    told: list[OSError | None] = []
    for offset, record in ((1, b"2"), (2, b"34"), (3, b"5")):
        disk.record("log", offset, record, told.append)
        reactor.read()
    assert told == [None, None, None]
    assert (tmp_path / "log").read_bytes().rstrip(b"\0") == b"1235"
    assert dict(disk.syncs.cumulative())["+Inf"] == 3


def test_file_grows_once_for_many_records(disk: FileDisk, tmp_path: Path) -> None:
    disk.append("log", b"1")
    sizes, offset, record = [], 1, b"2" * 100_000
    for _ in range(8):
        disk.record("log", offset, record, lambda _: None)
        disk.settle()
        offset += len(record)
        sizes.append((tmp_path / "log").stat().st_size)
    assert sizes == sorted([1 + 100_000 + ROOM, 1 + 400_000 + ROOM, 1 + 700_000 + ROOM] * 3)[:8]
    disk.truncate("log", 5)
    disk.record("log", 5, b"3", lambda _: None)
    disk.settle()
    assert (tmp_path / "log").read_bytes() == b"122223" + bytes(ROOM)


def test_settled_record_is_told_once_and_at_once(disk: FileDisk, reactor: Reactor) -> None:
    told: list[OSError | None] = []
    disk.append("log", b"")
    disk.settle()
    disk.record("log", 0, b"1", told.append)
    disk.settle()
    assert told == [None]
    disk.settle()
    reactor.read(0)
    assert told == [None]


def test_failed_record_is_told_why_and_is_no_sync(disk: FileDisk, reactor: Reactor, tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    told: list[OSError | None] = []
    disk.record("log", 0, b"1", told.append)
    reactor.read()
    assert str(told[0]) == "[Errno 28] No space left on device"
    assert dict(disk.syncs.cumulative())["+Inf"] == 0


def test_record_that_can_not_be_begun_raises_why(disk: FileDisk, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(IsADirectoryError):
        disk.record("log", 0, b"1", lambda _: pytest.fail("it was told"))
    disk.settle()


def test_closed_disk_has_written_the_record_and_tells_nothing(tmp_path: Path, reactor: Reactor) -> None:
    before, threads = open_files(), threading.active_count()
    disk = FileDisk(tmp_path, reactor)
    disk.append("log", b"")
    disk.record("log", 0, bytes(1 << 20), lambda _: pytest.fail("it was told"))
    disk.close()
    assert (tmp_path / "log").stat().st_size == (1 << 20) + ROOM
    assert not reactor.readers
    assert (open_files(), threading.active_count()) == (before, threads)


def test_record_that_is_told_to_who_fails_is_not_the_last(disk: FileDisk, reactor: Reactor) -> None:
    """Twisted never again asks a reader that raises; the log would stand still without a word."""
    disk.append("log", b"")
    told: list[OSError | None] = []

    def fail(_: OSError | None) -> None:
        raise ValueError("for the test")

    disk.record("log", 0, b"1", fail)
    reactor.read()
    disk.record("log", 1, b"2", told.append)
    reactor.read()
    assert told == [None]


def test_file_is_open_until_its_record_has_ended_at_the_close(tmp_path: Path, reactor: Reactor) -> None:
    """Another file would get its descriptor."""
    closing, names = threading.Event(), list[str]()

    class Slow(Recorder):
        def close(self) -> None:
            closing.set()
            super().close()

        def sync(self, file: int) -> None:
            assert closing.wait(10)
            with suppress(OSError):
                names.append(Path(f"/proc/self/fd/{file}").readlink().name)

    disk = FileDisk(tmp_path, reactor, Slow)
    disk.append("log", b"")
    disk.record("log", 0, b"1", lambda _: pytest.fail("it was told"))
    for number in range(9):
        disk.append(f"snapshot-{number}", b"1")
    disk.close()
    assert names == ["log"]


@settings(max_examples=100)
@given(
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("record"), st.integers(1, 60)),
            st.tuples(st.just("write"), st.integers(1, 60)),
            st.tuples(st.just("truncate"), st.integers(0, 200)),
            st.tuples(st.sampled_from(["replace", "rename", "remove", "others"]), st.just(0)),
        ),
        max_size=30,
    )
)
def test_records_follow_whatever_was_done_to_their_file(operations: list[tuple[str, int]]) -> None:
    """Behind the last there is room, at most, which is zeros; `write` is what a job of the log writes."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sipha.cluster.disk.ROOM", 100)
        disk = FileDisk(directory, Reactor(), Recorder)
        disk.append("log", b"")
        content = b""
        for number, (operation, size) in enumerate(operations, 1):
            data = bytes([number]) * size
            match operation:
                case "record":
                    told: list[OSError | None] = []
                    disk.record("log", len(content), data, told.append)
                    disk.settle()
                    assert told == [None]
                    content += data
                    assert disk.size("log") <= len(content) + 160
                case "write":
                    disk.write("log", len(content), data)
                    content += data
                case "truncate":
                    content = content[:size]
                    disk.truncate("log", len(content))
                case "replace":
                    content = bytes([number])
                    disk.replace("log", content)
                case "rename":
                    disk.rename("log", "damaged-1-log")
                    disk.append("log", b"")
                    content = b""
                case "remove":
                    disk.remove("log")
                    disk.append("log", b"")
                    content = b""
                case "others":
                    for other in range(9):
                        disk.append(f"snapshot-{other}", b"1")
            found = disk.read("log")
            assert found == content.ljust(len(found), b"\0")
        disk.close()


def test_disk_starts_no_thread_before_it_has_a_job(tmp_path: Path, reactor: Reactor) -> None:
    """A daemon forks after it has opened its files; threads don't survive that."""
    before = threading.active_count()
    disk = FileDisk(tmp_path, reactor)
    disk.replace("a", b"x")
    disk.settle()
    assert threading.active_count() == before
    disk.close()
