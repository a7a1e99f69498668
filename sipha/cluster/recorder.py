"""Writes to the log's file and syncs it on a thread beside the reactor's, one record after the other."""

from __future__ import annotations

import os
import time
from errno import EIO
from queue import SimpleQueue
from threading import Thread
from typing import Protocol


class IRecorder(Protocol):
    """Its thread begins with the first record, for a daemon forks before that."""

    def begin(self, file: int, offset: int, data: bytes, /) -> None:
        """Write bytes at an offset and sync the file (fdatasync); the record before must have been taken."""

    def take(self) -> tuple[int, float]:
        """Wait until the record has ended: 0 or the errno of what failed, and the seconds that the sync took."""

    def fileno(self) -> int:
        """The descriptor that can be read once the record has ended, until that is taken."""

    def close(self) -> None:
        """End, after the record that is under way."""


class Recorder:
    """The reference: a thread of the interpreter, which waits for its lock before and after each call."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._busy = False
        self._given: SimpleQueue[tuple[int, int, bytes] | None] = SimpleQueue()
        self._ended: SimpleQueue[tuple[int, float]] = SimpleQueue()
        self._thread = Thread(target=self._work, name="recorder", daemon=True)

    def begin(self, file: int, offset: int, data: bytes) -> None:
        """See IRecorder."""
        if self._busy or self._bell < 0:
            raise RuntimeError("a record is under way, or the recorder is closed")
        if not self._thread.ident:
            self._thread.start()
        self._busy = True
        self._given.put((file, offset, data))

    def take(self) -> tuple[int, float]:
        """See IRecorder."""
        if not self._busy:
            raise RuntimeError("no record is under way")
        ended = self._ended.get()
        os.eventfd_read(self._bell)
        self._busy = False
        return ended

    def fileno(self) -> int:
        """See IRecorder."""
        return self._bell

    def close(self) -> None:
        """See IRecorder."""
        if self._bell >= 0:
            self._given.put(None)
            if self._thread.ident:
                self._thread.join()
            os.close(self._bell)
            self._busy, self._bell = False, -1

    def _work(self) -> None:
        while record := self._given.get():
            ended = self._record(*record)
            os.eventfd_write(self._bell, 1)  # first: nobody must hear it ring for the next record
            self._ended.put(ended)

    def _record(self, file: int, offset: int, data: bytes) -> tuple[int, float]:
        try:
            write(file, offset, data)
            began = time.monotonic()
            self.sync(file)
            return 0, time.monotonic() - began
        except OSError as error:
            return error.errno or EIO, 0.0

    def sync(self, file: int) -> None:
        """Make durable what is in a file; raises OSError."""
        os.fdatasync(file)


def write(file: int, offset: int, data: bytes) -> None:
    """Write all at an offset; raises OSError."""
    written = os.pwrite(file, data, offset)
    while written < len(data):
        written += os.pwrite(file, memoryview(data)[written:], offset + written)


def recorder() -> IRecorder:
    """Make one: in C, whose thread never waits for the interpreter's lock, if that has been built."""
    try:
        from sipha.cluster._recorder import Recorder as Kernel  # noqa: PLC0415  if it has been built
    except ImportError:
        return Recorder()
    return Kernel()
