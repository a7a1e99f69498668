"""A disk that is only looked at: whatever is changed is changed in memory, and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOENT
from typing import TypeVar

from sipha.cluster.disk import Disk

T = TypeVar("T")


class Draft:
    """What `disk` would hold if the changes that are made here were made there; jobs are done at once.

    A file that is changed is in memory as a whole. Raises OSError as the disk does.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._changed: dict[str, bytes | None] = {}  # None: removed

    def names(self) -> list[str]:
        """The names of all files."""
        untouched = set(self._disk.names()) - self._changed.keys()
        return sorted(untouched | {name for name, content in self._changed.items() if content is not None})

    def size(self, name: str) -> int:
        """The bytes in a file."""
        return len(self._content(name)) if name in self._changed else self._disk.size(name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """At most `size` bytes from `offset` on."""
        if name not in self._changed:
            return self._disk.read(name, offset, size)
        return self._content(name)[offset : None if size is None else offset + size]

    def append(self, name: str, data: bytes) -> None:
        """Write at the end of a file, which is made if there is none."""
        self._changed[name] = (self._content(name) if name in self.names() else b"") + data

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write at an offset of a file, up to its end or beyond."""
        content = self._content(name)
        self._changed[name] = content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]

    def rewrite(self, name: str, offset: int) -> None:
        """Nothing is durable here."""

    def truncate(self, name: str, size: int) -> None:
        """Forget what lies behind the first `size` bytes of a file."""
        self._changed[name] = self._content(name)[:size].ljust(size, b"\0")

    def sync(self, name: str) -> None:
        """Nothing is durable here."""

    def sync_names(self) -> None:
        """Nothing is durable here."""

    def replace(self, name: str, data: bytes) -> None:
        """Let a file have this content."""
        self._changed[name] = data

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        content = self._content(old)
        self._changed[old] = None
        self._changed[new] = content

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._content(name, 0)
        self._changed[name] = None

    def record(self, name: str, offset: int, data: bytes, done: Callable[[OSError | None], None]) -> None:
        """Write to a file, and tell."""
        self.write(name, offset, data)
        done(None)

    def settle(self) -> None:
        """Nothing is ever under way here."""

    def run(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do a job, and tell what it returned or raised."""
        try:
            result: T | Exception = job()
        except Exception as error:  # noqa: BLE001  it is handed over
            result = error
        done(result)

    def run_bulk(self, job: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do a job, and tell what it returned or raised."""
        self.run(job, done)

    def close(self) -> None:
        """The disk itself stays open."""

    def _content(self, name: str, size: int | None = None) -> bytes:
        """The first `size` bytes of a file, or all."""
        if name not in self._changed:
            return self._disk.read(name, 0, size)
        content = self._changed[name]
        if content is None:
            raise FileNotFoundError(ENOENT, f"there is no {name}")
        return content
