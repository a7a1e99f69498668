"""The files of a data directory, and the threads that wait for the disk so that the reactor doesn't."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.cluster.recorder import IRecorder, recorder, write
from sipha.errors import SiphaError
from sipha.histogram import Histogram

T = TypeVar("T")

ROOM = 256 << 10
"""Bytes by which a file grows for the records to come."""

_NEW = ".new"
_MODE = 0o600
_OPEN_FILES = 8


class Damaged(SiphaError):
    """The disk doesn't give back what was durable on it; the message names the file and what is wrong with it."""


class Disk(Protocol):
    """The files of a data directory. Calls block and raise OSError, but for those that tell `done`, and the last."""

    def names(self) -> list[str]:
        """The names of all files."""

    def size(self, name: str) -> int:
        """The bytes in a file."""

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """At most `size` bytes from `offset` on."""

    def append(self, name: str, data: bytes) -> None:
        """Write at the end of a file, which is made if there is none."""

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write at an offset of a file, up to its end or beyond."""

    def rewrite(self, name: str, offset: int) -> None:
        """Write again what a file has from `offset` on: after a failed `sync` the kernel takes it for written."""

    def truncate(self, name: str, size: int) -> None:
        """Forget what lies behind the first `size` bytes of a file."""

    def sync(self, name: str) -> None:
        """Make durable what is in a file."""

    def sync_names(self) -> None:
        """Make durable which names there are."""

    def replace(self, name: str, data: bytes) -> None:
        """Let a file have this content, durably; after a crash it has the old one or the new one."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, durably."""

    def remove(self, name: str) -> None:
        """Remove a file; durable after `sync_names`."""

    def record(self, name: str, offset: int, data: bytes, done: Callable[[OSError | None], None]) -> None:
        """Write to a file and sync, beside the reactor, and tell there that it has ended, or why it failed.

        If the file grows, then by more than that, all zeros: where the next has room, it is synced in less time. The
        record and the jobs of the journal before it must have ended. Raises OSError if it can't be begun.
        """

    def settle(self) -> None:
        """Wait for the record that is under way, if there is one; it is told before this returns."""

    def run(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do a job of the journal, after those before it, and tell in the reactor what it returned or raised."""

    def run_bulk(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do a job that may take long, beside those of the journal."""

    def close(self) -> None:
        """Wait for the job that is being done and drop the others; `done` isn't called any more."""


class FileDisk:
    """A directory, of which no other process uses the files; `done` is called through the reactor's `callFromThread`.

    `syncs` are the seconds that each fdatasync took; `make` makes who writes records. Raises OSError.
    """

    def __init__(self, directory: Path | str, reactor: Any, make: Callable[[], IRecorder] = recorder) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files: dict[str, _File] = {}  # those that were written to last
        self.syncs = Histogram()
        self._records = _Records(reactor, make, self.syncs)
        self._journal = _Worker("journal", reactor)
        self._bulk = _Worker("bulk", reactor)
        for name in self._listed():
            if name.endswith(_NEW):
                os.unlink(name, dir_fd=self._directory)

    def names(self) -> list[str]:
        """The names of all files."""
        return sorted(name for name in self._listed() if not name.endswith(_NEW))

    def size(self, name: str) -> int:
        """The bytes in a file."""
        return os.stat(name, dir_fd=self._directory).st_size

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """At most `size` bytes from `offset` on."""
        file = self._open(name, os.O_RDONLY)
        left = os.fstat(file.fd).st_size - offset if size is None else size
        pieces = []
        while left > 0 and (piece := os.pread(file.fd, left, offset)):
            pieces.append(piece)
            offset += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def append(self, name: str, data: bytes) -> None:
        """Write at the end of a file, which is made if there is none."""
        file = self._file(name, os.O_CREAT).fd
        write(file, os.fstat(file).st_size, data)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write at an offset of a file, up to its end or beyond."""
        write(self._file(name).fd, offset, data)

    def rewrite(self, name: str, offset: int) -> None:
        """Write again what a file has from `offset` on: after a failed `sync` the kernel takes it for written."""
        file = self._open(name, os.O_RDWR)
        write(file.fd, offset, self.read(name, offset))

    def truncate(self, name: str, size: int) -> None:
        """Forget what lies behind the first `size` bytes of a file."""
        self._file(name).truncate(size)

    def sync(self, name: str) -> None:
        """Make durable what is in a file (fdatasync)."""
        began = time.monotonic()
        os.fdatasync(self._file(name).fd)
        self.syncs.observe(time.monotonic() - began)

    def sync_names(self) -> None:
        """Make durable which names there are (fsync of the directory)."""
        os.fsync(self._directory)

    def replace(self, name: str, data: bytes) -> None:
        """Let a file have this content, durably; after a crash it has the old one or the new one."""
        file = self._open(name + _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        write(file.fd, 0, data)
        os.fsync(file.fd)
        self.rename(name + _NEW, name)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, durably."""
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._files.pop(old, None)
        self._files.pop(new, None)
        self.sync_names()

    def remove(self, name: str) -> None:
        """Remove a file; durable after `sync_names`."""
        os.unlink(name, dir_fd=self._directory)
        self._files.pop(name, None)

    def record(self, name: str, offset: int, data: bytes, done: Callable[[OSError | None], None]) -> None:
        """Write to a file and sync, on the recorder's thread."""
        file = self._file(name)
        self._records.begin(file, offset, file.with_room(offset, data), done)

    def settle(self) -> None:
        """Wait for the record that is under way, if there is one; it is told before this returns."""
        self._records.settle()

    def run(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do a job on the journal's thread, after those before it."""
        self._journal.run(job, done)

    def run_bulk(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do a job on the second thread, after those before it."""
        self._bulk.run(job, done)

    def close(self) -> None:
        """Wait for the job that is being done and drop the others; `done` isn't called any more."""
        self._records.close()
        self._journal.close()
        self._bulk.close()
        self._files.clear()
        os.close(self._directory)

    def _listed(self) -> list[str]:
        return os.listdir(self._directory)  # noqa: PTH208  a descriptor: the directory may be renamed

    def _file(self, name: str, flags: int = 0) -> _File:
        """The file to write to. Only one thread at a time may write to a file."""
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = self._open(name, flags | os.O_RDWR)
            for oldest in list(self._files)[:-_OPEN_FILES]:
                self._files.pop(oldest, None)
        return file

    def _open(self, name: str, flags: int) -> _File:
        return _File(os.open(name, flags | os.O_CLOEXEC, _MODE, dir_fd=self._directory))


class _File:
    """An open file; it is closed when no thread uses it any more."""

    __slots__ = ("_size", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._size = 0  # no more than it has

    def with_room(self, offset: int, data: bytes) -> bytes:
        """The data and, if it goes beyond the end of the file, zeros in which the next has room."""
        end = offset + len(data)
        if end > self._size:
            self._size = os.fstat(self.fd).st_size
        if end > self._size:
            self._size = end + ROOM
            data += bytes(ROOM)
        return data

    def truncate(self, size: int) -> None:
        """Forget what lies behind the first `size` bytes."""
        self._size = 0
        os.ftruncate(self.fd, size)

    def __del__(self) -> None:
        with suppress(OSError):  # what must be durable was synced
            os.close(self.fd)


@implementer(IReadDescriptor)
class _Records:
    """The recorder, made with the first record, and what becomes of the one that it has."""

    def __init__(self, reactor: Any, make: Callable[[], IRecorder], syncs: Histogram) -> None:
        self._reactor = reactor
        self._make = make
        self._syncs = syncs
        self._log = Logger(namespace="sipha.cluster")
        self._recorder: IRecorder | None = None
        self._under_way: tuple[_File, Callable[[OSError | None], None]] | None = None

    def begin(self, file: _File, offset: int, data: bytes, done: Callable[[OSError | None], None]) -> None:
        """Have a record written; raises OSError."""
        if self._recorder is None:
            self._recorder = self._make()
            self._reactor.addReader(self)
        self._recorder.begin(file.fd, offset, data)
        self._under_way = file, done

    def settle(self) -> None:
        """Wait for the record, and tell."""
        if self._recorder is None or self._under_way is None:
            return
        error, seconds = self._recorder.take()
        (_, done), self._under_way = self._under_way, None
        if not error:
            self._syncs.observe(seconds)
        done(OSError(error, os.strerror(error)) if error else None)

    def close(self) -> None:
        """Wait for the record; it isn't told."""
        if self._recorder is not None:
            self._reactor.removeReader(self)
            self._recorder.close()
            self._recorder = None
        self._under_way = None  # only now may its file be closed

    def doRead(self) -> None:
        """See IReadDescriptor: the reactor would never ask again if this raised."""
        try:
            self.settle()
        except Exception:  # noqa: BLE001  whatever it is, the next record must be heard of
            self._log.failure("who waited for the disk failed")

    def fileno(self) -> int:
        """See IReadDescriptor."""
        return -1 if self._recorder is None else self._recorder.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """See IReadDescriptor."""

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "disk"


class _Worker:
    """A thread that does one job after the other; it begins with the first, for a daemon forks before that."""

    def __init__(self, name: str, reactor: Any) -> None:
        self._reactor = reactor
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._closed = False

    def run(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        self._jobs.put((job, done))
        if not self._thread.ident:
            self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._jobs.put(None)
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        while item := self._jobs.get():
            if self._closed:
                continue
            job, done = item
            try:
                result = job()
            except Exception as error:  # noqa: BLE001  it is handed over
                result = error
            self._reactor.callFromThread(self._deliver, done, result)

    def _deliver(self, done: Callable[[Any], None], result: Any) -> None:
        if not self._closed:
            done(result)
