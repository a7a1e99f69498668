"""A disk that loses what wasn't synced, tears what was being written, fills up, fails, and ends a node in mid-step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EBADF, EIO, ENOENT, ENOSPC
from random import Random
from typing import Any, Literal, NoReturn, TypeVar

T = TypeVar("T")

SECTOR = 512
"""Bytes that the medium writes all or none of."""

ROOM = 1500
"""Bytes of zeros behind a record with which a file grows."""

_Job = tuple[Callable[[], Any], Callable[[Any], None]]
Primitive = Literal["read", "write", "truncate", "sync", "rename", "remove", "sync of names"]


class Crashed(BaseException):
    """The node has ended in mid-step; like the end of a process it passes by every `except Exception`."""


@dataclass
class _Change:
    """Bytes written at an offset, or the file cut there."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
        content.extend(bytes(max(self.offset - len(content), 0)))
        if self.data is not None:
            content[self.offset : self.offset + len(self.data)] = self.data

    def torn(self, random: Random, durable: int) -> list[_Change]:
        """The sectors that reached the medium; behind the `durable` bytes of a file there may be anything."""
        if self.data is None:
            return [self] if random.random() < 0.5 else []
        changes, start, end = [], self.offset, self.offset + len(self.data)
        while start < end:
            stop = min((start // SECTOR + 1) * SECTOR, end)
            piece = self.data[start - self.offset : stop - self.offset]
            fate = random.random()
            if fate < 0.5:
                changes.append(_Change(start, piece))
            elif fate < 0.6 and start >= durable:
                changes.append(_Change(start, random.randbytes(len(piece))))
            start = stop
        return changes


@dataclass(eq=False)
class _File:
    """What a process reads, what is surely on the medium, and what may or may not be."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[_Change] = field(default_factory=list)

    def change(self, offset: int, data: bytes | None) -> None:
        change = _Change(offset, data)
        change.apply(self.content)
        self.unsynced.append(change)

    def sync(self) -> None:
        for change in self.unsynced:
            change.apply(self.durable)
        self.unsynced.clear()

    def lose_power(self, random: Random) -> None:
        changes = self.unsynced
        match random.choice(("all", "none", "first", "some")):
            case "none":
                changes = []
            case "first":
                changes = changes[: random.randrange(len(changes) + 1)]
                if changes and (data := changes[-1].data):
                    changes[-1] = _Change(changes[-1].offset, data[: random.randrange(len(data) + 1)])
            case "some":
                changes = [piece for change in changes for piece in change.torn(random, len(self.durable))]
        self.unsynced = changes
        self.sync()
        self.content[:] = self.durable


class VirtualDisk:
    """The `Disk` of a node through all its lives; each begins with `start`. All chance comes from `random`.

    `delay` is how many seconds a job takes, from and to; `capacity` the bytes that fit; `failing` the primitives that
    fail. After `crash_in(n)` the nth primitive from then on that changes something raises Crashed, in its middle.
    """

    def __init__(self, random: Random) -> None:
        self.delay = (0.0001, 0.002)
        self.capacity: int | None = None
        self.failing: set[Primitive] = set()
        self.steps = 0
        """Primitives that have changed something."""
        self._random = random
        self._files: dict[str, _File] = {}
        self._durable_files: dict[str, _File] = {}
        self._unsynced_names: list[dict[str, _File | None]] = []
        self._reactor: Any = None
        self._life = 0
        self._state: Literal["open", "closed", "crashed"] = "closed"
        self._crash_at: int | None = None
        self._jobs: dict[str, deque[_Job]] = {}
        self._tell_recorded: Callable[[object], None] | None = None

    # What happens to a disk

    def start(self, reactor: Any) -> None:
        """Begin a life of the node, in whose `reactor` the jobs take their time."""
        self.kill()
        self._reactor = reactor
        self._state = "open"
        self._jobs = {"journal": deque(), "bulk": deque()}
        self._tell_recorded = None
        for name in [name for name in self._files if name.endswith(".new")]:
            self.remove(name)

    def kill(self) -> None:
        """End the node as kill -9 does: what was written is still there, though not durable."""
        self._life += 1
        self._state = "crashed"
        self._crash_at = None

    def lose_power(self) -> None:
        """End the node by a power cut: of what wasn't synced nothing, all or any part is still there."""
        self.kill()
        for changes in self._unsynced_names:
            if self._random.random() < 0.5:
                self._put(self._durable_files, changes)
        self._unsynced_names.clear()
        for file in dict.fromkeys([*self._files.values(), *self._durable_files.values()]):
            file.lose_power(self._random)
        self._files = dict(self._durable_files)

    def crash_in(self, steps: int | None) -> None:
        """Crash in the midst of the nth primitive that changes something; of none any more if None."""
        self._crash_at = None if steps is None else self.steps + steps

    def wipe(self) -> None:
        """Put a blank disk in."""
        self.kill()
        self._files, self._durable_files, self._unsynced_names = {}, {}, []

    def flip(self, name: str, bit: int) -> None:
        """Let a bit of a file rot."""
        file = self._files[name]
        for content in (file.content, file.durable):
            if bit // 8 < len(content):
                content[bit // 8] ^= 1 << bit % 8
        for change in file.unsynced:
            if change.data is not None and change.offset <= bit // 8 < change.offset + len(change.data):
                data = bytearray(change.data)
                data[bit // 8 - change.offset] ^= 1 << bit % 8
                change.data = bytes(data)

    def image(self) -> dict[str, bytes]:
        """All files as a process would read them."""
        return {name: bytes(file.content) for name, file in self._files.items()}

    def durable(self, name: str) -> bytes | None:
        """What a power cut would surely leave of a file."""
        file = self._durable_files.get(name)
        return None if file is None else bytes(file.durable)

    # Disk

    def names(self) -> list[str]:
        self._check("read")
        return sorted(name for name in self._files if not name.endswith(".new"))

    def size(self, name: str) -> int:
        self._check("read")
        return len(self._file(name).content)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        self._check("read")
        return bytes(self._file(name).content[offset : None if size is None else offset + size])

    def append(self, name: str, data: bytes) -> None:
        self._write(name, None, data)

    def write(self, name: str, offset: int, data: bytes) -> None:
        self._file(name)
        self._write(name, offset, data)

    def rewrite(self, name: str, offset: int) -> None:
        file = self._file(name)
        self._step("write", lambda: file.change(min(offset, len(file.content)), bytes(file.content[offset:])))

    def truncate(self, name: str, size: int) -> None:
        file = self._file(name)
        self._step("truncate", lambda: file.change(size, None))

    def sync(self, name: str) -> None:
        file = self._file(name)
        try:
            self._step("sync", file.sync)
        except OSError:  # the kernel takes the bytes for written now, and never writes them
            file.unsynced = [change for change in file.unsynced if change.data is None]
            raise

    def sync_names(self) -> None:
        self._step("sync of names", self._sync_names)

    def replace(self, name: str, data: bytes) -> None:
        new = f"{name}.new"
        if new in self._files:
            self.remove(new)
        self._write(new, None, data)
        self.sync(new)
        self.rename(new, name)

    def rename(self, old: str, new: str) -> None:
        file = self._file(old)
        self._step("rename", lambda: self._change_names({old: None, new: file}))
        self.sync_names()

    def remove(self, name: str) -> None:
        self._file(name)
        self._step("remove", lambda: self._change_names({name: None}))

    def record(self, name: str, offset: int, data: bytes, done: Callable[[OSError | None], None]) -> None:
        ended: list[OSError | None] = []

        def do() -> None:
            if ended:
                return
            try:
                beyond = offset + len(data) > self.size(name)
                self.write(name, offset, data + bytes(ROOM * beyond))
                self.sync(name)
            except OSError as error:
                ended.append(error)
            else:
                ended.append(None)

        def tell(_: object) -> None:
            if self._tell_recorded is tell:
                self._tell_recorded = None
                do()
                done(ended[0])

        assert self._tell_recorded is None, "another record is under way"
        self._tell_recorded = tell
        self._enqueue("journal", do, tell)

    def settle(self) -> None:
        if self._tell_recorded is not None:
            self._tell_recorded(None)

    def run(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        self._enqueue("journal", job, done)

    def run_bulk(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        self._enqueue("bulk", job, done)

    def close(self) -> None:
        if self._state == "open":
            self._life += 1
            self._state = "closed"

    # Primitives

    def _check(self, primitive: Primitive) -> None:
        if self._state == "crashed":
            raise Crashed("is dead")
        if self._state == "closed":
            raise OSError(EBADF, "the disk is closed")
        if primitive in self.failing:
            raise OSError(EIO, f"{primitive} fails")

    def _step(self, primitive: Primitive, effect: Callable[[], None]) -> None:
        """Do something that a crash may prevent, or follow."""
        self.steps += 1
        crash = self.steps == self._crash_at
        if crash and self._random.random() < 0.5:
            self._crash(f"dies before a {primitive}")
        self._check(primitive)
        effect()
        if crash:
            self._crash(f"dies after a {primitive}")

    def _crash(self, when: str) -> NoReturn:
        self.kill()
        raise Crashed(when)

    def _write(self, name: str, offset: int | None, data: bytes) -> None:
        """Write at an offset, or at the end."""
        self._check("read")
        if name not in self._files:
            self._change_names({name: _File()})
        file = self._files[name]
        begin = len(file.content) if offset is None else offset
        room = len(data)
        if self.capacity is not None:
            free = max(self.capacity - sum(len(each.content) for each in self._files.values()), 0)
            room = max(len(file.content) - begin, 0) + free
        written = data[:room]
        if self.steps + 1 == self._crash_at:
            written = written[: self._random.randrange(len(written) + 1)]
        self._step("write", lambda: file.change(begin, written))
        if room < len(data):
            raise OSError(ENOSPC, "the disk is full")

    def _file(self, name: str) -> _File:
        if name not in self._files:
            raise FileNotFoundError(ENOENT, f"there is no {name}")
        return self._files[name]

    def _change_names(self, changes: dict[str, _File | None]) -> None:
        self._put(self._files, changes)
        self._unsynced_names.append(changes)

    def _sync_names(self) -> None:
        self._durable_files = dict(self._files)
        self._unsynced_names.clear()

    @staticmethod
    def _put(files: dict[str, _File], changes: dict[str, _File | None]) -> None:
        for name, file in changes.items():
            if file is None:
                files.pop(name, None)
            else:
                files[name] = file

    # Jobs

    def _enqueue(self, lane: str, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        jobs = self._jobs[lane]
        jobs.append((job, done))
        if len(jobs) == 1:
            self._begin(jobs)

    def _begin(self, jobs: deque[_Job]) -> None:
        """The job has its effect at some moment of the time that it takes."""
        delay = self._random.uniform(*self.delay)
        effect = self._random.uniform(0, delay)
        self._reactor.callLater(effect, self._do, self._life, jobs, delay - effect)

    def _do(self, life: int, jobs: deque[_Job], rest: float) -> None:
        if life != self._life:
            return
        job, done = jobs[0]
        try:
            result = job()
        except Exception as error:  # noqa: BLE001  it is handed over
            result = error
        self._reactor.callLater(rest, self._tell, life, jobs, done, result)

    def _tell(self, life: int, jobs: deque[_Job], done: Callable[[Any], None], result: Any) -> None:
        if life != self._life:
            return
        jobs.popleft()
        if jobs:
            self._begin(jobs)
        done(result)
