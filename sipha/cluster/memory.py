"""What a node has when it starts, and how far it has come, noted while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from sipha.cluster.disk import Disk
from sipha.cluster.snapshots import Snapshots
from sipha.cluster.storage import Progress, Storage
from sipha.errors import ConfigError
from sipha.state.entries import UnknownSchema
from sipha.state.machine import Machine
from sipha.state.time import ClusterTime

PERIOD = 1.0
"""Seconds between two notes of how far the node has come."""


class Memory:
    """What the disk of `node` gives back: `machine`, the cluster `time`, `snapshots`, and `storage` with the `journal`.

    `boot_id` names the present run of the machine, of whose clock `clock` is. Raises ConfigError if the disk can't be
    used.
    """

    def __init__(
        self, reactor: Any, node: str, disk: Disk, clock: Callable[[], float], boot_id: str, *, sync: bool
    ) -> None:
        self.machine = Machine()
        self._disk = disk
        self._clock = clock
        self._boot_id = boot_id
        try:
            self.snapshots = Snapshots(disk, reactor)
            self.storage = self._open(node, sync=sync)
        except (UnknownSchema, OSError) as error:
            raise ConfigError(f"can't use the data directory: {error}") from error
        self.journal = self.storage.journal
        self.time = ClusterTime(clock(), self._resume_time())
        self._noted, self._noted_term = 0.0, self.journal.last_term

    def _open(self, node: str, *, sync: bool) -> Storage:
        """Open what is on the disk; if what is needed of it can't be read, the node is an amnesiac."""
        loaded, damaged = self.snapshots.load_newest()
        base = None if loaded is None else (loaded.header.index, loaded.header.term)
        storage = Storage.open(self._disk, node, sync=sync, snapshot=base, damaged=damaged)
        if loaded is not None and storage.snapshot is not None:
            for _ in self.machine.adopt(loaded):
                pass
        return storage

    def _resume_time(self) -> int:
        """The cluster time now: what has passed since the last note of it counts while the machine was up."""
        progress = self.storage.progress
        if progress is None:
            return self.machine.time
        elapsed = self._clock() - progress.boottime if progress.boot_id == self._boot_id else 0.0
        return max(self.machine.time, progress.time + int(max(elapsed, 0.0) * 1000))

    def note(self, commit: int, time_term: int) -> None:
        """Note how far the node has come, if that is due: each second, and when the time is another leader's."""
        if self._clock() - self._noted >= PERIOD or time_term != self._noted_term:
            self._noted_term = time_term
            self.note_now(commit)

    def note_now(self, commit: int) -> None:
        """Note how far the node has come."""
        self._noted = now = self._clock()
        if self.storage.identity is not None:
            self.storage.save_progress(Progress(commit, self._boot_id, now, self.time.now(now)))

    def close(self) -> None:
        """Close all; what was added to the log is durable."""
        self.snapshots.close()
        try:
            self.journal.close()
        except OSError as error:
            Logger(namespace="sipha.cluster").error("the log can't be closed: {error}", error=error)
        self._disk.close()
