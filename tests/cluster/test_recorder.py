"""Both recorders: in C, and of the interpreter, which is the reference."""

from __future__ import annotations

import gc
import os
import resource
import select
import sys
from collections.abc import Iterator
from errno import EBADF, EFBIG, EINVAL, ENOSPC
from pathlib import Path
from typing import Any

import pytest

from sipha.cluster import recorder as recorder_module
from sipha.cluster.recorder import IRecorder, Recorder
from tests.kernels import kernel

RecorderInC = kernel("sipha.cluster._recorder").Recorder


@pytest.fixture(params=[Recorder, RecorderInC], ids=["Python", "C"])
def recorder(request: pytest.FixtureRequest) -> Iterator[IRecorder]:
    recorder = request.param()
    yield recorder
    recorder.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    file = os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR)
    yield file
    os.close(file)


def ended(recorder: IRecorder, within: float = 10) -> bool:
    return bool(select.select([recorder], [], [], within)[0])


def running() -> int:
    """The threads of this process, whoever knows them."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def test_records_are_where_they_belong(recorder: IRecorder, file: int) -> None:
    records = [b"", b"1", bytes(1 << 20), b"2" * 999]
    for number, record in enumerate(records):
        recorder.begin(file, sum(map(len, records[:number])), record)
        assert ended(recorder)
        error, seconds = recorder.take()
        assert error == 0
        assert 0 < seconds < 10
        assert not ended(recorder, 0)
    assert os.pread(file, 1 << 21, 0) == b"".join(records)


def test_taking_a_record_waits_until_it_has_ended(recorder: IRecorder, file: int) -> None:
    for offset in range(100):
        recorder.begin(file, offset, b"1")
        assert recorder.take()[0] == 0
        assert not ended(recorder, 0)
    assert os.pread(file, 101, 0) == b"1" * 100


@pytest.mark.parametrize(
    ("path", "data", "error"),
    [("/dev/full", b"1", ENOSPC), ("/dev/null", b"1", EINVAL), ("/dev/null", b"", EINVAL), ("", b"1", EBADF)],
)
def test_errno_of_what_fails_is_told(recorder: IRecorder, file: int, path: str, data: bytes, error: int) -> None:
    other = os.open(path, os.O_RDWR) if path else -1
    for _ in range(2):
        recorder.begin(file, 0, data)
        assert recorder.take()[0] == 0
        recorder.begin(other, 0, data)
        assert recorder.take() == (error, 0.0)
    if path:
        os.close(other)


def test_what_was_cut_short_is_written_on_from_there(recorder: IRecorder, file: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        recorder.begin(file, 1 << 19, b"1" * (1 << 20))
        assert recorder.take() == (EFBIG, 0.0)
        recorder.begin(file, -1, b"1")
        assert recorder.take() == (EINVAL, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.pread(file, 1 << 21, 0) == bytes(1 << 19) + b"1" * (1 << 19)


def test_one_record_is_under_way_at_most(recorder: IRecorder, file: int) -> None:
    with pytest.raises(RuntimeError):
        recorder.take()
    recorder.begin(file, 0, b"1")
    with pytest.raises(RuntimeError):
        recorder.begin(file, 1, b"2")
    recorder.take()
    with pytest.raises(RuntimeError):
        recorder.take()


def test_closed_recorder_has_written_its_record_and_takes_no_other(recorder: IRecorder, file: int) -> None:
    recorder.begin(file, 0, bytes(1 << 20))
    recorder.close()
    assert os.fstat(file).st_size == 1 << 20
    assert recorder.fileno() == -1
    with pytest.raises(RuntimeError):
        recorder.begin(file, 1, b"2")
    with pytest.raises(RuntimeError):
        recorder.take()
    recorder.close()


def test_recorder_in_c_holds_what_it_writes_and_nothing_else(file: int) -> None:
    data = bytes(range(256)) * 8
    references = sys.getrefcount(data)
    recorder = RecorderInC()
    for _ in range(10):
        recorder.begin(file, 0, data)
        assert sys.getrefcount(data) == references + 1
        recorder.take()
        assert sys.getrefcount(data) == references
    recorder.begin(file, 0, data)
    threads, descriptor = running(), recorder.fileno()
    del recorder
    gc.collect()
    assert sys.getrefcount(data) == references
    assert running() == threads - 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    "arguments", [(), (1, b"1"), ("1", 0, b"1"), (1, 0, "1"), (1 << 40, 0, b"1"), (1, 1 << 70, b"1")]
)
def test_recorder_in_c_refuses_what_it_is_not_made_for(arguments: tuple[Any, ...]) -> None:
    recorder = RecorderInC()
    with pytest.raises((TypeError, OverflowError)):
        recorder.begin(*arguments)
    with pytest.raises(TypeError):
        RecorderInC(1)
    recorder.close()


def test_recorder_is_in_c_if_that_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sipha.cluster._recorder", None)
    reference = recorder_module.recorder()
    assert isinstance(reference, Recorder)
    reference.close()
    monkeypatch.setitem(sys.modules, "sipha.cluster._recorder", kernel("sipha.cluster._recorder"))
    made = recorder_module.recorder()
    assert isinstance(made, RecorderInC)
    made.close()
