"""What an operator does to the data of a node whose daemon is stopped: look, found, recover, restore.

Whether it can be done is found out on a draft, so that a refusal changes nothing. Ended in the midst, by whatever, it
leaves a node that can't be elected, and is finished when it is done once more: for the cluster's id comes first, which
nodes of another cluster refuse, and the entry that lets the node decide alone comes last.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

import msgspec
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from zope.interface import implementer

from sipha.cluster.disk import Disk, FileDisk
from sipha.cluster.draft import Draft
from sipha.cluster.guards import MEMBERSHIP, NO_OP, REGULAR
from sipha.cluster.snapshots import Snapshots
from sipha.cluster.storage import Storage
from sipha.cluster.wire import Entry
from sipha.errors import ConfigError
from sipha.state.entries import SCHEMA, Batch, Member, Policy, PutMembers, RaiseSchema, Record, encode
from sipha.state.machine import Machine
from sipha.state.snapshot import DamagedSnapshot, Frozen, Loaded, Loader

_PIECE = 8 << 20
_NEW = "snapshot.taken"  # removed at the daemon's start, as all that isn't whole


class Contents(msgspec.Struct, frozen=True):
    """What the disk of a stopped node holds, its table being what the whole log makes, also what isn't committed yet.

    `cluster_id` and `incarnation` are empty if the disk is blank, `snapshot` is 0 if there is none; `time` is cluster
    time in seconds, `hash` that of the table, `commit` the index that is known to be committed.
    """

    node: str
    cluster_id: str
    incarnation: str
    amnesiac: bool
    term: int
    first_index: int
    last_index: int
    last_term: int
    commit: int
    snapshot: int
    schema: int
    time: float
    hash: str
    bindings: int
    members: tuple[Member, ...]
    alarms: tuple[str, ...]


@contextmanager
def taken(directory: Path, *, create: bool = False) -> Iterator[Disk]:
    """The data directory, ours alone while the context lasts; raises ConfigError, also for what the disk refuses."""
    lock = take(directory, create=create)
    try:
        disk = FileDisk(directory, _NoReactor())
        try:
            yield disk
        finally:
            disk.close()
    except OSError as error:
        raise ConfigError(f"can't use the data directory {directory}: {error}") from None
    finally:
        lock.close()


def take(directory: Path, *, create: bool) -> BinaryIO:
    """Make the data directory ours alone until what is returned is closed; raises ConfigError if it is another's."""
    try:
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
        if owner != os.geteuid():  # root's files would be in the daemon's way
            name = str(owner)
            with suppress(KeyError):
                name = directory.owner()
            raise ConfigError(f"the data directory {directory} belongs to {name}: run this as that user")
        directory.chmod(0o700)
        lock = (directory / "lock").open("ab")
    except OSError as error:
        raise ConfigError(f"can't use the data directory {directory}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigError(
            f"another process uses the data directory {directory}: stop the daemon first (systemctl stop sipha)"
        ) from None
    return lock


def status(disk: Disk, node: str) -> Contents:
    """What the disk of `node` holds; changes nothing. Raises SiphaError and OSError."""
    data = _look(disk, node)
    storage, journal, machine = data.storage, data.storage.journal, data.machine
    identity = storage.identity
    return Contents(
        node=node,
        cluster_id="" if identity is None else identity.cluster_id,
        incarnation="" if identity is None else identity.incarnation,
        amnesiac=identity is not None and identity.amnesiac,
        term=journal.getCurrentTerm(),
        first_index=journal.first_index,
        last_index=journal.last_index,
        last_term=journal.last_term,
        commit=journal.getRaftCommitIndex(),
        snapshot=0 if storage.snapshot is None else storage.snapshot[0],
        schema=machine.schema,
        time=machine.time / 1000,
        hash=machine.hash_hex(),
        bindings=machine.location.count,
        members=machine.members,
        alarms=tuple(f"at its start the daemon will say: {alarm}" for alarm in storage.alarms),
    )


def found(disk: Disk, node: str, voters: Mapping[str, str], cluster_id: str | None = None) -> str:
    """Let a blank disk be that of a founder of a cluster with these voters, by name their `host:port`.

    Several nodes found one cluster if each is given the same voters and the same id. Returns the cluster's id; raises
    SiphaError and OSError.
    """
    if node not in voters:
        raise ConfigError(f"{node} is not among the founders, {', '.join(sorted(voters))}")
    entries = _first_entries(voters, (1, 0))
    cluster_id = _begun(_look(disk, node).storage, (1, 0), entries, cluster_id)
    storage = Storage.open(disk, node, sync=True, snapshot=None)
    _begin(storage, cluster_id, entries)
    _finish(storage, entries)
    return cluster_id


def recover(disk: Disk, node: str, address: str, *, force: bool = False) -> str:
    """Let the node found a new cluster of one from all that its log has, because the others are off for good.

    The old cluster's nodes are refused from now on. `force` is for an amnesiac, which may lack what phones were told it
    keeps. Returns the new cluster's id; raises SiphaError and OSError.
    """
    data = _look(disk, node)
    identity = data.storage.identity
    if identity is None or not data.machine.index:
        why = "; ".join(data.storage.alarms) or "it was never in a cluster"
        raise ConfigError(
            f"{node} has nothing that could be recovered: {why}. Recover another node, or put a backup on a blank disk "
            "(siphactl restore)"
        )
    if identity.amnesiac and not force:
        raise ConfigError(
            f"{node} has lost data and not fetched them again: bindings that phones were told it keeps may be missing. "
            "Recover another node, or put a backup on a blank disk (siphactl restore); if there is neither, --force"
        )
    storage = Storage.open(disk, node, sync=True, snapshot=data.storage.snapshot, damaged=data.damaged)
    journal = storage.journal
    entries = _first_entries({node: address}, (journal.last_index, journal.getCurrentTerm()))
    cluster_id = uuid4().hex
    _begin(storage, cluster_id, entries)
    _finish(storage, entries)
    return cluster_id


def restore(disk: Disk, node: str, address: str, backup: Path, show: Callable[[int], object] = lambda _: None) -> str:
    """Let a blank disk hold what the file of a backup does, in a new cluster of one; index and time go on from there.

    `show` is told how many bytes of it have been read. Returns the cluster's id; raises SiphaError and OSError.
    """
    loaded = _read(backup, show)
    header = loaded.header
    base = (header.index, header.term)
    entries = _first_entries({node: address}, base)
    data = _look(disk, node)
    cluster_id = _begun(data.storage, base, entries, None)
    if data.storage.snapshot is not None and data.hash != header.hash:
        raise ConfigError(f"{node} has begun to restore another backup; remove all from its data directory first")
    storage = Storage.open(disk, node, sync=True, snapshot=data.storage.snapshot)
    _begin(storage, cluster_id, entries)
    if storage.snapshot is None:
        machine = Machine()
        machine.adopt(loaded)
        _write(disk, machine.freeze(header.term, cluster_id))
        storage = Storage.open(disk, node, sync=True, snapshot=base)
    _finish(storage, entries)
    return cluster_id


class _Data(NamedTuple):
    """What is on a disk: `machine` is what the log makes of the snapshot's table, which has `hash`.

    `damaged` are the snapshots that were passed over, for an older one from which on the log is still there.
    """

    storage: Storage
    machine: Machine
    hash: bytes
    damaged: list[str]


def _look(disk: Disk, node: str) -> _Data:
    """Open what a disk holds, as the daemon would, but change nothing on it."""
    draft = Draft(disk)
    snapshots = Snapshots(draft, _NoReactor())
    machine = Machine()
    loaded, damaged = snapshots.load_newest()
    base = None if loaded is None else (loaded.header.index, loaded.header.term)
    storage = Storage.open(draft, node, sync=True, snapshot=base, damaged=damaged)
    if loaded is not None and storage.snapshot is not None:
        machine.adopt(loaded)
    journal = storage.journal
    index = journal.first_index
    while entries := journal.entries(index, journal.last_index):
        for command, number, _ in entries:
            if command[0] != NO_OP:
                machine.apply(number, command[1:])
        index += len(entries)
    return _Data(storage, machine, b"" if loaded is None else loaded.header.hash, damaged)


def _begun(storage: Storage, base: tuple[int, int], entries: Sequence[Entry], cluster_id: str | None) -> str:
    """The id for the cluster if the disk is blank, or holds a part of what it is to hold; raises ConfigError if not."""
    identity, journal = storage.identity, storage.journal
    if identity is None:
        return cluster_id or uuid4().hex
    held = [journal[position] for position in range(1, min(len(journal), len(entries) + 2))]
    if (
        cluster_id not in {None, identity.cluster_id}
        or identity.amnesiac
        or storage.snapshot not in {None, base}
        or journal.getCurrentTerm() > entries[-1][2]
        or held != entries[: len(held)]
    ):
        raise ConfigError(
            f"{identity.node} is in cluster {identity.cluster_id} already; to begin anew, move all files out of its "
            "data directory"
        )
    return identity.cluster_id


def _begin(storage: Storage, cluster_id: str, entries: Sequence[Entry]) -> None:
    """Let the data be those of a founder of this cluster, durably, and the term that of the entries to come."""
    if storage.identity is None or storage.identity.cluster_id != cluster_id:
        storage.identity = None  # what follows is another cluster's log
        storage.found(cluster_id)
    storage.journal.setCurrentTerm(entries[-1][2], None)


def _finish(storage: Storage, entries: Sequence[Entry]) -> None:
    """Add the entries that the log hasn't yet, durably."""
    journal, failures = storage.journal, list[OSError]()
    journal.on_failed = failures.append
    for entry in entries:
        if entry[1] > journal.last_index:
            journal.add(*entry)
    journal.sync_now()
    if failures:
        raise failures[0]


def _first_entries(voters: Mapping[str, str], base: tuple[int, int]) -> list[Entry]:
    """The entries with which a cluster of these voters begins, behind the entry with this index and term."""
    index, term = base
    members = tuple(sorted(Member(name, address, "voter") for name, address in voters.items()))
    return [
        (_command(MEMBERSHIP, PutMembers(members)), index + 1, term + 1),
        (_command(REGULAR, RaiseSchema(SCHEMA)), index + 2, term + 1),
    ]


def _command(kind: int, record: Record) -> bytes:
    """An entry with a record for which neither time nor policy matter: the time that was reached stays."""
    return bytes([kind]) + encode(Batch(SCHEMA, 0, Policy(), (record,)))


def _read(backup: Path, show: Callable[[int], object]) -> Loaded:
    """The whole of a backup; raises ConfigError, and UnknownSchema."""
    loader = Loader()
    try:
        with backup.open("rb") as file:
            while piece := file.read(_PIECE):
                loader.feed(piece)
                show(file.tell())
        return loader.finish()
    except OSError as error:
        raise ConfigError(f"can't read the backup {backup}: {error.strerror}") from None
    except DamagedSnapshot as error:
        raise ConfigError(f"{backup} is not a whole backup: {error}") from None


def _write(disk: Disk, frozen: Frozen) -> None:
    """Write a snapshot, which has its name when it is durable."""
    if _NEW in disk.names():
        disk.remove(_NEW)
    size = 0
    for chunk in frozen:
        disk.append(_NEW, chunk)
        size += len(chunk)
        if size >= _PIECE:
            disk.sync(_NEW)
            size = 0
    disk.sync(_NEW)
    disk.rename(_NEW, f"snapshot-{frozen.header.index:020d}")


@implementer(IReactorFromThreads)
class _NoReactor(Clock):
    """Here nothing is put off, and no thread has anything to tell."""

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:  # noqa: A002
        raise NotImplementedError
