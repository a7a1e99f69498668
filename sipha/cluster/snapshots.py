"""The files of snapshots: taken of the machine, received from another node, and loaded, a little in each turn.

What is not yet whole and on disk, or received and not yet to be kept, has a name of its own, and is removed at the next
start.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from errno import EIO
from typing import Any, NamedTuple, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Cooperator, SchedulerStopped, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha.cluster.disk import Disk
from sipha.state.machine import Machine
from sipha.state.snapshot import DamagedSnapshot, Frozen, Header, Loaded, Loader

BACKLOG = 1 << 20
"""Bytes of a received snapshot that may wait to be parsed and written."""

KEPT = 2
"""How many snapshots are kept, and the log from the older one on: should the newest be unreadable, nothing is lost."""

_TAKEN = "snapshot.taken"
_INCOMING = "snapshot.incoming"
_NAME = re.compile(r"snapshot-(\d{20})\Z")

_PIECE = 128 << 10  # made or parsed in one turn: some 2 ms
_PAUSE = 0.002  # seconds between two turns
_SYNC = 8 << 20
_HEADER = 4096

P = ParamSpec("P")
T = TypeVar("T")


class SnapshotFile(NamedTuple):
    """A file that holds the snapshot which `header` is of, in `size` bytes."""

    name: str
    size: int
    header: Header


class Snapshots:
    """The snapshots on a disk; what an earlier run left half-written is removed. Raises OSError.

    `taking` is True while one is being taken. Whatever is told an error is told OSError, or what the method names.
    """

    def __init__(self, disk: Disk, reactor: IReactorTime) -> None:
        self.taking = False
        self._disk = disk
        self._reactor = reactor
        self._log = Logger(namespace="sipha.cluster")
        self._running: set[Deferred[None]] = set()
        self._staging: Deferred[None] | None = None
        self._cooperator = Cooperator(terminationPredicateFactory=lambda: lambda: True, scheduler=self._schedule)
        for name in (_TAKEN, _INCOMING):
            self._drop(name)

    # At the start

    def newest(self) -> SnapshotFile | None:
        """The newest one whose header is whole; raises UnknownSchema.

        Blocks, as `load` and `load_newest` do: they are for the start.
        """
        return next((file for index in reversed(self._indices()) if (file := self._file(index)) is not None), None)

    def load(self, file: SnapshotFile) -> Loaded:
        """What a file holds; raises DamagedSnapshot or UnknownSchema."""
        loader = Loader()
        for offset in range(0, file.size, _SYNC):
            loader.feed(self._read(file.name, offset, _SYNC))
        return loader.finish()

    def load_newest(self) -> tuple[Loaded | None, list[str]]:
        """What the newest one that is whole holds, and the names of the damaged ones after it; raises UnknownSchema."""
        damaged: list[str] = []
        for index in reversed(self._indices()):
            file = self._file(index)
            with suppress(DamagedSnapshot):
                if file is not None:
                    return self.load(file), damaged
            damaged.append(_name(index))
        return None, damaged

    def _file(self, index: int) -> SnapshotFile | None:
        """The file of the snapshot at an index, None if its header is damaged."""
        name, loader = _name(index), Loader()
        with suppress(DamagedSnapshot):
            loader.feed(self._read(name, 0, _HEADER))
        if loader.header is None or loader.header.index != index:
            return None
        return SnapshotFile(name, self._disk.size(name), loader.header)

    # While the node runs

    def load_sliced(self, file: SnapshotFile, done: Callable[[Loaded | Exception], None]) -> None:
        """Tell what a file holds; DamagedSnapshot or UnknownSchema too."""
        self._run(self._load(file), done)

    def read(self, file: SnapshotFile, offset: int, size: int, done: Callable[[bytes | Exception], None]) -> None:
        """Tell what is in a part of a file; FileNotFoundError if newer ones have taken its place."""
        self._disk.run_bulk(lambda: self._disk.read(file.name, offset, size), done)

    def take(
        self, machine: Machine, term: int, cluster_id: str, done: Callable[[SnapshotFile | Exception], None]
    ) -> None:
        """Write the state as it is now, and tell when it is durable; DamagedMemory too. Only while not `taking`."""
        frozen = machine.freeze(term, cluster_id)
        self.taking = True
        self._run(self._take(frozen), done)

    def stage(
        self,
        index: int,
        term: int,
        size: int,
        progress: Callable[[int], None],
        done: Callable[[tuple[Loaded, SnapshotFile] | Exception], None],
    ) -> Staging:
        """Receive the snapshot at entry `index` of `term`, in `size` bytes; give up what is being received.

        `progress` is told up to where the bytes are parsed and written, `done` when all is and the file is durable;
        DamagedSnapshot and UnknownSchema too. What it holds is not loaded at the next start unless it is kept.
        """
        self.unstage()
        staging = Staging(index, term, size, progress)
        self._staging = self._run(self._receive(staging), done)
        return staging

    def unstage(self) -> None:
        """Give up what is being received, if anything is."""
        if self._staging is not None:
            self._staging.cancel()

    def keep(self, file: SnapshotFile, done: Callable[[SnapshotFile | Exception], None]) -> None:
        """Let one that was received be loaded at the next start, and tell when that is durable."""
        self._disk.run_bulk(lambda: self._keep(file), done)

    def remove(self, file: SnapshotFile) -> None:
        """Remove a file that is not to be used."""
        self._discard(file.name)

    def dismantle(self, steps: Iterator[None]) -> None:
        """Take these steps, one in a turn: those that free what has become superfluous."""
        self._cooperator.coiterate(steps).addErrback(Failure.trap, SchedulerStopped)

    def close(self) -> None:
        """Give up all that is under way."""
        for running in list(self._running):
            running.cancel()
        self._cooperator.stop()

    # How it is done

    async def _take(self, frozen: Frozen) -> SnapshotFile:
        writer = _Writer(self._disk, _TAKEN)
        try:
            piece = bytearray()
            for chunk in frozen:
                piece += chunk
                if len(piece) >= _PIECE:
                    await self._bulk(writer.write, bytes(piece))
                    await deferLater(self._reactor, _PAUSE)
                    piece.clear()
            await self._bulk(writer.write, bytes(piece))
            await self._bulk(writer.finish)
            return await self._bulk(self._keep, SnapshotFile(_TAKEN, writer.size, frozen.header))
        except BaseException:
            self._discard(_TAKEN)
            raise
        finally:
            self.taking = False
            self.dismantle(frozen.close())

    async def _load(self, file: SnapshotFile) -> Loaded:
        loader = Loader()
        try:
            for offset in range(0, file.size, _PIECE):
                loader.feed(await self._bulk(self._read, file.name, offset, _PIECE))
                await deferLater(self._reactor, _PAUSE)
            return loader.finish()
        except BaseException:
            self.dismantle(loader.dismantle())
            raise

    async def _receive(self, staging: Staging) -> tuple[Loaded, SnapshotFile]:
        loader, writer = Loader(), _Writer(self._disk, _INCOMING)
        try:
            while writer.size < staging.size:
                piece = await staging.next_piece()
                loader.feed(piece)
                staging.check(loader.header)
                await self._bulk(writer.write, piece)
                staging.written(writer.size)
                await deferLater(self._reactor, _PAUSE)
            loaded = loader.finish()
            await self._bulk(writer.finish)
            return loaded, SnapshotFile(_INCOMING, writer.size, loaded.header)
        except BaseException:
            self._discard(_INCOMING)
            self.dismantle(loader.dismantle())
            raise

    def _read(self, name: str, offset: int, size: int) -> bytes:
        try:
            return self._disk.read(name, offset, size)
        except OSError as error:
            if error.errno != EIO:
                raise
            raise DamagedSnapshot(f"the disk can't read {name}") from error

    def _keep(self, file: SnapshotFile) -> SnapshotFile:
        """Give what was written its name, and remove the oldest."""
        name = _name(file.header.index)
        self._disk.rename(file.name, name)
        for index in self._indices()[:-KEPT]:
            self._drop(_name(index))
        return file._replace(name=name)

    def _indices(self) -> list[int]:
        return sorted(int(match[1]) for name in self._disk.names() if (match := _NAME.match(name)))

    def _discard(self, name: str) -> None:
        self._disk.run_bulk(lambda: self._drop(name), self._discarded)

    def _drop(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._disk.remove(name)

    def _discarded(self, result: object) -> None:
        if isinstance(result, OSError):
            self._log.warn("can't remove a superfluous snapshot: {error}", error=result)

    def _bulk(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Do a job on the disk's second thread."""
        result: Deferred[T] = Deferred()

        def done(outcome: T | Exception) -> None:
            if isinstance(outcome, Exception):
                result.errback(outcome)
            else:
                result.callback(outcome)

        self._disk.run_bulk(lambda: job(*args, **kwargs), done)
        return result

    def _run(self, work: Coroutine[Deferred[Any], Any, T], done: Callable[[T | Exception], None]) -> Deferred[None]:
        """Do what takes many turns, and tell `done` how it ended, unless it was given up."""

        def failed(failure: Failure) -> None:
            error = failure.value
            if isinstance(error, Exception) and not isinstance(error, CancelledError):
                done(error)

        def ended(_: None) -> None:
            self._running.discard(running)

        running = Deferred.fromCoroutine(work).addCallbacks(done, failed)
        self._running.add(running)
        running.addErrback(self._failed).addCallback(ended)
        return running

    def _schedule(self, call: Callable[[], None]) -> IDelayedCall:
        return self._reactor.callLater(_PAUSE, call)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("the work on a snapshot failed", failure)


class Staging:
    """A snapshot that is being received, made by `Snapshots.stage`: `offset` is the next byte that is missing.

    `header` is None until it has come.
    """

    def __init__(self, index: int, term: int, size: int, progress: Callable[[int], None]) -> None:
        self.index = index
        self.term = term
        self.size = size
        self.offset = 0
        self.header: Header | None = None
        self._progress = progress
        self._pieces: deque[bytes] = deque()
        self._written = 0
        self._waiting: Deferred[None] | None = None

    def add(self, offset: int, data: bytes) -> bool:
        """Take the bytes that come next; False for others, and for more than may wait or than there are."""
        end = offset + len(data)
        if offset != self.offset or not data or end > self.size or end - self._written > BACKLOG:
            return False
        self.offset = end
        self._pieces.append(data)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
        return True

    async def next_piece(self) -> bytes:
        """The bytes that are to be parsed and written next."""
        if not self._pieces:
            self._waiting = Deferred()
            await self._waiting
        piece = self._pieces.popleft()
        while self._pieces and len(piece) + len(self._pieces[0]) <= _PIECE:
            piece += self._pieces.popleft()
        return piece

    def check(self, header: Header | None) -> None:
        """Take note of the header; raises DamagedSnapshot if it is not that of the snapshot which was announced."""
        if header is not None and (header.index, header.term) != (self.index, self.term):
            raise DamagedSnapshot(f"entry {self.index} of term {self.term} was announced, {header.index} has come")
        self.header = header

    def written(self, size: int) -> None:
        """Take note that the first `size` bytes are parsed and written."""
        self._written = size
        self._progress(size)


class _Writer:
    """A new file, which is synced in pieces; for the disk's thread."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.size = 0
        self._disk = disk
        self._name = name
        self._unsynced = 0

    def write(self, data: bytes) -> None:
        self._disk.append(self._name, data)
        self.size += len(data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC:
            self._disk.sync(self._name)
            self._unsynced = 0

    def finish(self) -> None:
        self._disk.sync(self._name)


def _name(index: int) -> str:
    return f"snapshot-{index:020d}"
