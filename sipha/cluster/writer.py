"""Does on the disk what the journal says, in that order: on threads of the disk's own, or at once.

A failed operation is never tried again and none follows it, since nobody knows what the disk holds then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EIO
from functools import partial
from threading import Lock

from sipha.cluster.disk import Disk

Done = Callable[[OSError | None], None]
"""Is told that an operation has ended, or why it failed."""


@dataclass(slots=True, eq=False)
class _Operation:
    """`record` is what the disk's `record` takes, of what is no more than that."""

    job: Callable[[], None]
    last: int
    done: Done | None
    record: tuple[str, int, bytes] | None
    ended: bool = False
    error: OSError | None = None


class Writer:
    """`durable` is the index up to which entries are on disk, `error` why nothing more will be.

    `settled` is called in the reactor when operations have ended, with True if `durable` rose; `failed` if one of them
    failed. Without `sync` written is as good as durable.
    """

    def __init__(
        self, disk: Disk, settled: Callable[[bool], None], failed: Callable[[OSError], None], *, sync: bool
    ) -> None:
        self.durable = 0
        self.error: OSError | None = None
        self.running = False
        """True while a thread of the disk's works."""
        self._disk = disk
        self._settled = settled
        self._failed = failed
        self._sync = sync
        self._waiting: deque[_Operation] = deque()
        self._unsettled: deque[_Operation] = deque()  # waiting, under way, or ended and not yet told
        self._recording = False
        self._working = Lock()
        self._broken = False

    @property
    def busy(self) -> bool:
        """True if something is to be done, or being done."""
        return bool(self._unsettled)

    # Operations; once one is done, entries up to `last` are durable

    def write(self, name: str, header: bytes | None, offset: int, records: bytes, last: int) -> None:
        """Write records behind those that a file has, which is new if there is a header."""

        def job() -> None:
            if header is not None:
                # A file that has a name has a whole header; the kernel may put it off if it may put off all.
                (self._disk.replace if self._sync else self._disk.append)(name, header)
            self._disk.write(name, offset, records)
            if self._sync:
                self._disk.sync(name)

        self._put(job, last, record=(name, offset, records) if self._sync and header is None else None)

    def cut(self, removed: Sequence[str], name: str, size: int, last: int) -> None:
        """Remove files, in this order, then cut another."""
        self.lose(last)

        def job() -> None:
            for later in removed:
                self._disk.remove(later)
                if self._sync:
                    self._disk.sync_names()
            self._disk.truncate(name, size)
            if self._sync:
                self._disk.sync(name)

        self._put(job, last)

    def replace(self, removed: Sequence[str], name: str, content: bytes, last: int, done: Done) -> None:
        """Remove files, in this order, and make one in their place: there is always one."""
        self.lose(0)

        def job() -> None:
            for later in removed[:-1]:
                self._disk.remove(later)
                self._disk.sync_names()
            self._disk.replace(name, content)
            for first in removed[-1:]:
                if first != name:
                    self._disk.remove(first)
                    self._disk.sync_names()

        if self.error is None:
            self._put(job, last, done)
        else:
            done(self.error)

    def lose(self, last: int) -> None:
        """Entries after `last` count no more as durable, whatever is under way."""
        self.durable = min(self.durable, last)
        for operation in self._unsettled:
            operation.last = min(operation.last, last)

    def _put(
        self, job: Callable[[], None], last: int, done: Done | None = None, record: tuple[str, int, bytes] | None = None
    ) -> None:
        if self.error is None:
            operation = _Operation(job, last, done, record)
            self._unsettled.append(operation)
            self._waiting.append(operation)

    # Driving

    def start(self) -> None:
        """Do beside the reactor what waits: a record, if that comes first, or all."""
        if not self._waiting or self.running or self._broken:
            return
        self.running = True
        record = self._waiting[0].record
        if record is None:
            self._disk.run(self._work, self._worked)
            return
        operation, self._recording = self._waiting.popleft(), True
        try:
            self._disk.record(*record, partial(self._recorded, operation))
        except Exception as error:  # noqa: BLE001  as below
            self._recorded(operation, error)

    def finish(self) -> None:
        """Do here what waits, after what is under way; blocks."""
        while self._recording:  # one may follow the other
            self._disk.settle()
        self._work()
        self._settle()

    def _work(self) -> None:
        with self._working:
            while self._waiting and not self._broken:
                operation = self._waiting.popleft()
                try:
                    operation.job()
                except Exception as error:  # noqa: BLE001  whatever it is, the journal must hear of it
                    self._end(operation, error)
                else:
                    self._end(operation, None)

    def _end(self, operation: _Operation, error: Exception | None) -> None:
        if error is not None:
            operation.error = error if isinstance(error, OSError) else OSError(EIO, repr(error))
            self._broken = True
        operation.ended = True

    def _recorded(self, operation: _Operation, error: Exception | None) -> None:
        self._recording = False
        self._end(operation, error)
        self._worked(None)

    def _worked(self, _: object) -> None:
        self.running = False
        self._settle()

    def _settle(self) -> None:
        before, failed = self.durable, []
        while self._unsettled and self._unsettled[0].ended:
            if self._unsettled[0].error is not None:
                self.error = self._unsettled[0].error
                failed = list(self._unsettled)
                self._unsettled.clear()
                self._waiting.clear()
                break
            operation = self._unsettled.popleft()
            self.durable = max(self.durable, operation.last)
            if operation.done is not None:
                operation.done(None)
        self._settled(self.durable > before)
        if self.error is not None and failed:
            for operation in failed:
                if operation.done is not None:
                    operation.done(self.error)
            self._failed(self.error)
