"""What a node keeps in its data directory: who it is, its log, and how far it had come.

A node that has lost anything says so to itself before it does anything else: an amnesiac doesn't vote, for it may have
voted or acknowledged what it doesn't know of any more (pitfalls-log-vip 5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

from msgspec import Struct, structs
from twisted.logger import Logger

from sipha.cluster.disk import Damaged, Disk
from sipha.cluster.journal import Journal
from sipha.cluster.seal import seal, unseal
from sipha.errors import ConfigError

_IDENTITY = "identity"
_PROGRESS = "progress"
_PROGRESS_LIMIT = 64 << 10
_KNOWLEDGE = re.compile(r"log-|snapshot-|(?:term|progress)\Z")
_ASIDE = re.compile(r"damaged-(\d+)-")
_MISSING = (
    f"the file {_IDENTITY} is missing from the data directory, which has a log: put it back, or move all files away "
    "while the other nodes run, and let the node join them anew"
)


class Identity(Struct, frozen=True):
    """Whose data these are; `incarnation` is drawn anew whenever a disk is blank or has lost something."""

    cluster_id: str
    node: str
    incarnation: str
    amnesiac: bool


class Progress(Struct, frozen=True):
    """How far the node had come, a second ago: the commit index, and cluster time in ms at `boottime` of a boot."""

    commit: int
    boot_id: str
    boottime: float
    time: int


class Storage:
    """The data of `node`, made by `open`.

    `identity` is None while the disk is blank: such a node never votes. `snapshot` is index and term of the snapshot
    that the journal follows, if there is one; `alarms` are what an operator must know.
    """

    journal: Journal

    def __init__(self, disk: Disk, node: str, snapshot: tuple[int, int] | None, *, sync: bool) -> None:
        self.identity: Identity | None = None
        self.snapshot = snapshot
        self.progress: Progress | None = None
        self.alarms: list[str] = []
        self._disk = disk
        self._node = node
        self._sync = sync
        self._log = Logger(namespace="sipha.cluster")
        self._saving = False
        self._room = 0  # bytes for more lines of progress

    @classmethod
    def open(
        cls, disk: Disk, node: str, *, sync: bool, snapshot: tuple[int, int] | None, damaged: Sequence[str] = ()
    ) -> Storage:
        """Open what is there; if something that is needed is damaged, all is moved aside and the node is an amnesiac.

        `snapshot` is index and term of the newest whole one, `damaged` are the names of later ones: they aren't needed
        if the log reaches back to that. Raises ConfigError and OSError.
        """
        storage = cls(disk, node, snapshot, sync=sync)
        storage._load_identity()
        storage._load_progress()
        if any(_ASIDE.match(name) for name in disk.names()):
            storage.alarms.append("the data directory has files damaged-*: find out why, then delete them")
        reasons = [f"{name} is damaged" for name in damaged]
        try:
            storage._open_journal()
        except Damaged as damage:
            storage._forget("; ".join([*reasons, str(damage)]))
        else:
            if damaged:
                storage._pass_over(damaged)
        return storage

    # Who the node is

    def found(self, cluster_id: str) -> None:
        """Let the blank disk be that of a founder of the cluster; raises ConfigError and OSError."""
        self._begin(cluster_id, amnesiac=False)

    def join(self, cluster_id: str) -> None:
        """Let the blank disk be that of a node which doesn't vote before it has caught up; raises as `found` does."""
        self._begin(cluster_id, amnesiac=True)

    def remembers(self) -> None:
        """Be no amnesiac any more, once all that the log has is durable; raises OSError."""
        if self.identity is None or not self.identity.amnesiac:
            return
        self.journal.sync_now()
        if self.journal.durable == self.journal.last_index:
            self._keep(structs.replace(self.identity, amnesiac=False))

    def _begin(self, cluster_id: str, *, amnesiac: bool) -> None:
        if self.identity is not None:
            raise ConfigError(f"this node is in cluster {self.identity.cluster_id} already")
        self._keep(Identity(cluster_id, self._node, uuid4().hex, amnesiac))

    def _keep(self, identity: Identity) -> None:
        self._disk.replace(_IDENTITY, seal(identity))
        self.identity = identity

    def _load_identity(self) -> None:
        try:
            self.identity = unseal(self._disk.read(_IDENTITY), Identity)
        except FileNotFoundError:
            return
        except ValueError as error:
            raise ConfigError(
                f"the file {_IDENTITY} in the data directory is unreadable ({error}): put it back from a backup, or "
                "move all files away while the other nodes run, and let the node join them anew"
            ) from None
        if self.identity.node != self._node:
            raise ConfigError(f"the data directory is that of node {self.identity.node}, and this is {self._node}")

    # What it knows

    def _open_journal(self) -> None:
        files = self._disk.names()
        if self.identity is not None and not any(name.startswith("log-") for name in files):
            raise Damaged("the log is gone")
        commit = 0 if self.progress is None else self.progress.commit
        self.journal = Journal.open(self._disk, self.snapshot, sync=self._sync, commit=commit)
        if self.identity is None and self.journal.last_index > 1:
            raise ConfigError(_MISSING)

    def save_progress(self, progress: Progress) -> None:
        """Have it written, of the commit index what is durable; not at once, and it isn't lost only by `kill -9`."""
        if self._saving:
            return
        self._saving = True
        line = seal(structs.replace(progress, commit=min(progress.commit, self.journal.durable)))
        write = self._disk.append
        if self._room < len(line):
            write, self._room = self._disk.replace, _PROGRESS_LIMIT
        self._room -= len(line)
        self._disk.run_bulk(lambda: write(_PROGRESS, line), self._saved)

    def _saved(self, result: object) -> None:
        self._saving = False
        if isinstance(result, OSError):
            self._room = 0
            self._log.warn("can't write the file {name}: {error}", name=_PROGRESS, error=result)

    def _load_progress(self) -> None:
        """Take the last line that is readable."""
        with suppress(FileNotFoundError):
            for line in self._disk.read(_PROGRESS).splitlines(keepends=True):
                with suppress(ValueError):
                    self.progress = unseal(line, Progress)

    # What is damaged

    def _forget(self, reason: str) -> None:
        """Be an amnesiac, then move aside what the node knew, and begin an empty log; raises as `open` does."""
        if self.identity is None:
            raise ConfigError(f"{reason}, and {_MISSING}")
        self._keep(structs.replace(self.identity, incarnation=uuid4().hex, amnesiac=True))
        aside = self._set_aside([name for name in self._disk.names() if _KNOWLEDGE.match(name)])
        self.snapshot = self.progress = None
        self.journal = Journal.open(self._disk, None, sync=self._sync, commit=0)
        self._alarm(
            f"{reason}; all that this node knew is now in files {aside}*. It fetches everything from the other nodes, "
            "and doesn't vote before it has. Look after the disk, then delete those files"
        )

    def _pass_over(self, damaged: Sequence[str]) -> None:
        """Move damaged snapshots aside that are not needed."""
        aside = self._set_aside(damaged)
        self._alarm(
            f"{', '.join(damaged)}: damaged, and moved aside to {aside}*. Nothing is lost, as the log goes back to an "
            "earlier snapshot. Look after the disk, then delete those files"
        )

    def _set_aside(self, names: Sequence[str]) -> str:
        """Give files names that are no others', and return what those begin with."""
        numbers = [int(match[1]) for name in self._disk.names() if (match := _ASIDE.match(name))]
        aside = f"damaged-{max(numbers, default=0) + 1}-"
        for name in names:
            self._disk.rename(name, f"{aside}{name}")
        return aside

    def _alarm(self, alarm: str) -> None:
        self.alarms.append(alarm)
        self._log.critical("{alarm}", alarm=alarm)
