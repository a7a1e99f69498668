from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from sipha.cluster import founding, raft
from sipha.cluster.disk import Disk
from sipha.cluster.founding import Contents, found, recover, restore, status, taken
from sipha.cluster.guards import members_of
from sipha.cluster.peers import INetwork, INetworkUser
from sipha.cluster.replica import Replica
from sipha.cluster.seal import seal
from sipha.cluster.snapshots import Snapshots
from sipha.cluster.storage import Progress, Storage
from sipha.cluster.wire import Hello, RaftMessage
from sipha.errors import ConfigError
from sipha.sip.flow import Address
from sipha.state.entries import SCHEMA, Batch, Contact, Member, Policy, Register, UnknownSchema, encode
from sipha.state.machine import Machine
from tests.cluster_sim.disk import Crashed, VirtualDisk

VOTERS = {"a": "192.0.2.1:7000", "b": "192.0.2.2:7000", "c": "192.0.2.3:7000"}
ALL = tuple(Member(name, address, "voter") for name, address in VOTERS.items())
ALONE = (Member("a", VOTERS["a"], "voter"),)
CLUSTER = "0123456789abcdef" * 2


def blank(seed: object = 1) -> VirtualDisk:
    disk = VirtualDisk(Random(f"founding {seed}"))
    disk.start(Clock())
    return disk


def storage(disk: Disk, node: str = "a", snapshot: tuple[int, int] | None = None) -> Storage:
    return Storage.open(disk, node, sync=True, snapshot=snapshot)


def started(disk: Disk, node: str = "a") -> Storage:
    """Open a disk as the daemon does."""
    newest = Snapshots(disk, Clock()).newest()
    return storage(disk, node, None if newest is None else (newest.header.index, newest.header.term))


def register(number: int) -> bytes:
    contact = Contact(f"sip:user{number}@192.0.2.9", 3600)
    record = Register(f"sip:user{number}@sipha.test", f"call {number}", 1, (contact,))
    return b"\0" + encode(Batch(SCHEMA, 1000 * number, Policy(), (record,)))


def voter_of_three(seed: object = 1, *, snapshot: bool = False, force: bool = False) -> VirtualDisk:
    """The disk of a, which has registered users in the log, the last of them not known to be committed."""
    disk = blank(seed)
    found(disk, "a", VOTERS, CLUSTER)
    data = storage(disk)
    data.journal.setCurrentTerm(7, "b")
    for number in range(1, 9):
        data.journal.add(register(number), data.journal.last_index + 1, 5 if number < 4 else 7)
    data.journal.sync_now()
    disk.append("progress", seal(Progress(8, "boot", 1.0, 1)))
    if snapshot:
        machine = replayed(data)
        founding._write(disk, machine.freeze(7, CLUSTER))
        storage(disk, snapshot=(machine.index, 7)).journal.compact(machine.index)
    if force:
        data.journal.close()
        data._forget("the disk was dropped")
        data.journal.setCurrentTerm(7, None)
        data.journal.add(register(1), 2, 7)
        data.journal.sync_now()
    return disk


def replayed(data: Storage) -> Machine:
    machine = Machine()
    for command, index, _ in data.journal.entries(1, data.journal.last_index):
        if command[0] != 1:
            machine.apply(index, command[1:])
    return machine


def backup(path: Path, bindings: int = 3) -> Machine:
    """Make a backup of a cluster."""
    machine = Machine()
    for number in range(1, bindings + 1):
        machine.apply(number + 40, register(number)[1:])
    path.write_bytes(b"".join(machine.freeze(6, CLUSTER)))
    return machine


def crash_everywhere(
    make: Callable[[object], VirtualDisk],
    act: Callable[[VirtualDisk], object],
    check: Callable[[VirtualDisk], object],
    finished: Callable[[Contents], object],
) -> None:
    """Let `act` die in each of its steps, `check` what is left, act again, and see if it is as if nothing had been."""
    smooth = make(0)
    act(smooth)
    expected = finished(status(smooth, "a"))
    for steps in count(1):
        disk = make(steps)
        disk.crash_in(steps)
        try:
            act(disk)
        except Crashed:
            if steps % 3:
                disk.lose_power()
            disk.start(Clock())
            check(disk)
            act(disk)
            assert finished(status(disk, "a")) == expected
            disk.lose_power()
            disk.start(Clock())
            assert finished(status(disk, "a")) == expected
            data = started(disk)
            assert data.identity is not None
            assert not data.identity.amnesiac
        else:
            assert steps > 5
            return


@implementer(INetwork)
class Nobody:
    """Connections with no peers."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()

    def start(self, user: INetworkUser) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def send(self, peer: str, message: RaftMessage) -> bool:
        return False

    def heard(self, peer: str) -> float | None:
        return None

    def hello(self, peer: str) -> Hello | None:
        return None

    def check(self, peer: str, address: Address) -> None:
        pass

    def set_peers(self, peers: Mapping[str, Address]) -> None:
        pass


@contextmanager
def running(disk: VirtualDisk) -> Iterator[Replica]:
    """The daemon on this disk, which leads alone."""
    clock = Clock()
    clock.advance(1000)
    disk.start(clock)
    raft.use_clock(clock.seconds)
    try:
        replica = Replica(clock, "a", disk, Nobody(), {}, Policy(), clock=clock.seconds)
        replica.start()
        for _ in range(2000):
            clock.advance(0.01)
            if replica.leading():
                break
        assert replica.leading()
        assert replica.machine.members == ALONE
        assert replica.machine.schema == SCHEMA
        assert replica.machine.keys.current is not None
        yield replica
        replica.stop()
    finally:
        raft.use_clock(raft.clock)


# Found


def test_blank_disk_becomes_a_cluster_of_one() -> None:
    disk = blank()
    cluster_id = found(disk, "a", {"a": VOTERS["a"]})
    data = started(disk)
    assert data.identity is not None
    assert (data.identity.cluster_id, data.identity.node, data.identity.amnesiac) == (cluster_id, "a", False)
    assert len(cluster_id) == 32
    assert data.journal.membership is not None
    index, command = data.journal.membership
    assert (index, members_of(command)) == (2, ALONE)
    assert data.journal.last_term == data.journal.getCurrentTerm() == 1
    assert replayed(data).schema == SCHEMA
    assert replayed(data).members == ALONE


def test_founder_of_a_cluster_of_one_leads_it() -> None:
    disk = blank()
    found(disk, "a", {"a": VOTERS["a"]})
    with running(disk) as replica:
        assert replica.machine.location.count == 0


def test_each_new_cluster_has_an_id_of_its_own() -> None:
    assert found(blank(), "a", {"a": VOTERS["a"]}) != found(blank(), "a", {"a": VOTERS["a"]})


def test_founders_of_one_cluster_have_the_same_log() -> None:
    logs = []
    for node in VOTERS:
        disk = blank(node)
        assert found(disk, node, VOTERS, CLUSTER) == CLUSTER
        journal = started(disk, node).journal
        logs.append(journal.entries(1, journal.last_index))
    assert logs[0] == logs[1] == logs[2]
    assert members_of(logs[0][1][0]) == ALL


def test_founder_is_one_of_the_founders() -> None:
    with pytest.raises(ConfigError, match="d is not among the founders, a, b, c"):
        found(blank(), "d", VOTERS, CLUSTER)


def test_disk_that_is_not_blank_founds_nothing() -> None:
    disk = voter_of_three()
    before = disk.image()
    for voters, cluster_id in (({"a": VOTERS["a"]}, None), (VOTERS, CLUSTER), (VOTERS, None)):
        with pytest.raises(ConfigError, match=f"is in cluster {CLUSTER} already"):
            found(disk, "a", voters, cluster_id)
    assert disk.image() == before


def test_learners_disk_founds_nothing() -> None:
    disk = blank()
    storage(disk).join(CLUSTER)
    with pytest.raises(ConfigError, match="is in cluster"):
        found(disk, "a", VOTERS, CLUSTER)


def test_founder_that_has_voted_is_not_founded_again() -> None:
    disk = blank()
    data = storage(disk)
    data.found(CLUSTER)
    data.journal.setCurrentTerm(3, "b")
    with pytest.raises(ConfigError, match="is in cluster"):
        found(disk, "a", VOTERS, CLUSTER)


def test_founded_disk_is_not_founded_as_another_cluster() -> None:
    disk = blank()
    found(disk, "a", VOTERS, CLUSTER)
    with pytest.raises(ConfigError, match="is in cluster"):
        found(disk, "a", VOTERS, CLUSTER[::-1])


def test_founding_twice_changes_nothing() -> None:
    disk = blank()
    cluster_id = found(disk, "a", {"a": VOTERS["a"]})
    before = disk.image()
    assert found(disk, "a", {"a": VOTERS["a"]}) == cluster_id
    assert disk.image() == before


@pytest.mark.parametrize("luck", range(5))
def test_founding_survives_a_crash_at_any_step(luck: int) -> None:
    def check(disk: VirtualDisk) -> None:
        identity = started(disk).identity
        assert identity is None or (identity.cluster_id == CLUSTER and not identity.amnesiac)

    crash_everywhere(
        lambda seed: blank((luck, seed)),
        lambda disk: found(disk, "a", VOTERS, CLUSTER),
        check,
        lambda contents: (contents.cluster_id, contents.term, contents.last_index, contents.hash, contents.members),
    )


# Recover


@pytest.mark.parametrize("snapshot", [False, True])
def test_node_goes_on_alone_with_all_that_its_log_has(snapshot: bool) -> None:
    disk = voter_of_three(snapshot=snapshot)
    before = status(disk, "a")
    assert before.bindings == 8
    cluster_id = recover(disk, "a", VOTERS["a"])
    after = status(disk, "a")
    assert after.members == ALONE
    assert (after.bindings, after.time, after.last_index) == (8, before.time, before.last_index + 2)
    assert after.last_term == after.term == 8
    assert after.cluster_id == cluster_id != CLUSTER  # whom the old nodes refuse, and who refuses them
    assert after.snapshot == before.snapshot == (11 if snapshot else 0)
    assert not after.amnesiac
    assert not after.alarms


@pytest.mark.parametrize("snapshot", [False, True])
def test_recovered_node_leads_and_has_every_binding(snapshot: bool) -> None:
    disk = voter_of_three(snapshot=snapshot)
    recover(disk, "a", VOTERS["a"])
    with running(disk) as replica:
        assert replica.machine.location.count == 8
        assert replica.cluster_time() >= 8.0


def test_node_may_be_recovered_again() -> None:
    disk = voter_of_three()
    first = recover(disk, "a", VOTERS["a"])
    second = recover(disk, "a", VOTERS["a"])
    assert first != second
    assert status(disk, "a").members == ALONE
    assert status(disk, "a").bindings == 8


def test_node_recovers_in_the_term_after_any_it_has_seen() -> None:
    disk = voter_of_three()
    storage(disk).journal.setCurrentTerm(33, None)
    recover(disk, "a", VOTERS["a"])
    assert status(disk, "a").last_term == 34


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("luck", range(5))
def test_recovery_survives_a_crash_at_any_step(luck: int, snapshot: bool) -> None:
    def check(disk: VirtualDisk) -> None:
        assert not started(disk).alarms
        contents = status(disk, "a")
        if contents.cluster_id == CLUSTER:  # the others may be on, and would listen: it must not lead alone
            assert len(contents.members) == 3

    crash_everywhere(
        lambda seed: voter_of_three((luck, seed), snapshot=snapshot),
        lambda disk: recover(disk, "a", VOTERS["a"]),
        check,
        lambda contents: (contents.members, contents.bindings, contents.time, contents.hash),
    )


def test_blank_disk_has_nothing_to_recover() -> None:
    disk = blank()
    with pytest.raises(ConfigError, match="nothing that could be recovered: it was never in a cluster"):
        recover(disk, "a", VOTERS["a"], force=True)
    assert not disk.image()


def test_amnesiac_recovers_only_by_force() -> None:
    disk = voter_of_three(force=True)
    before = disk.image()
    with pytest.raises(ConfigError, match="has lost data"):
        recover(disk, "a", VOTERS["a"])
    assert disk.image() == before
    recover(disk, "a", VOTERS["a"], force=True)
    after = status(disk, "a")
    assert (after.amnesiac, after.bindings, after.members) == (False, 1, ALONE)


def test_damaged_disk_is_refused_and_left_as_it_is() -> None:
    disk = voter_of_three()
    name = next(name for name in disk.image() if name.startswith("log-"))
    disk.flip(name, 8 * (len(disk.image()[name]) // 2))
    before = disk.image()
    with pytest.raises(ConfigError, match=r"nothing that could be recovered: .*damaged"):
        recover(disk, "a", VOTERS["a"], force=True)
    assert disk.image() == before


def test_node_recovers_its_own_disk_only() -> None:
    with pytest.raises(ConfigError, match="that of node a, and this is b"):
        recover(voter_of_three(), "b", VOTERS["b"])


@pytest.mark.parametrize("kind", ["body", "header"])
def test_damaged_snapshot_is_passed_over_if_the_log_reaches_back_to_the_one_before(kind: str) -> None:
    disk = voter_of_three(snapshot=True)
    data = storage(disk)
    machine = replayed(data)
    data.journal.add(register(9), machine.index + 1, 7)
    data.journal.sync_now()
    machine.apply(machine.index + 1, register(9)[1:])
    founding._write(disk, machine.freeze(7, CLUSTER))
    name = "snapshot-00000000000000000012"
    disk.flip(name, 8 * (300 if kind == "body" else 20))
    assert (status(disk, "a").bindings, status(disk, "a").snapshot) == (9, 11)
    (alarm,) = status(disk, "a").alarms
    assert alarm.startswith(f"at its start the daemon will say: {name}: damaged")
    recover(disk, "a", VOTERS["a"])
    after = status(disk, "a")
    assert (after.bindings, after.snapshot, after.members) == (9, 11, ALONE)
    with running(disk) as replica:
        assert replica.machine.location.count == 9


# Restore


def test_blank_disk_goes_on_from_a_backup(tmp_path: Path) -> None:
    machine = backup(tmp_path / "backup")
    disk = blank()
    cluster_id = restore(disk, "a", VOTERS["a"], tmp_path / "backup")
    after = status(disk, "a")
    assert after.members == ALONE
    assert (after.snapshot, after.first_index, after.last_index, after.last_term) == (43, 43, 45, 7)
    assert (after.bindings, after.time) == (3, machine.time / 1000)
    assert after.cluster_id == cluster_id != CLUSTER
    newest = Snapshots(disk, Clock()).newest()
    assert newest is not None
    assert newest.header.cluster_id == cluster_id
    assert newest.header.hash == machine.hash().to_bytes(16, "big")


def test_restored_node_leads_and_has_every_binding(tmp_path: Path) -> None:
    machine = backup(tmp_path / "backup")
    disk = blank()
    restore(disk, "a", VOTERS["a"], tmp_path / "backup")
    with running(disk) as replica:
        assert replica.machine.location.count == 3
        assert replica.machine.index > machine.index
        assert replica.cluster_time() >= machine.time / 1000


def test_restoring_twice_changes_nothing(tmp_path: Path) -> None:
    backup(tmp_path / "backup")
    disk = blank()
    cluster_id = restore(disk, "a", VOTERS["a"], tmp_path / "backup")
    before = disk.image()
    assert restore(disk, "a", VOTERS["a"], tmp_path / "backup") == cluster_id
    assert disk.image() == before


@pytest.mark.parametrize("luck", range(5))
def test_restoring_survives_a_crash_at_any_step(tmp_path: Path, luck: int) -> None:
    backup(tmp_path / "backup")

    def check(disk: VirtualDisk) -> None:
        data = started(disk)
        assert not data.alarms
        assert data.identity is None or data.identity.cluster_id != CLUSTER

    crash_everywhere(
        lambda seed: blank((luck, seed)),
        lambda disk: restore(disk, "a", VOTERS["a"], tmp_path / "backup"),
        check,
        lambda contents: (contents.term, contents.last_index, contents.snapshot, contents.hash, contents.members),
    )


def test_disk_that_is_not_blank_is_not_restored_to(tmp_path: Path) -> None:
    backup(tmp_path / "backup")
    disk = voter_of_three()
    before = disk.image()
    with pytest.raises(ConfigError, match="is in cluster"):
        restore(disk, "a", VOTERS["a"], tmp_path / "backup")
    assert disk.image() == before


def test_disk_with_another_backup_is_not_restored_to(tmp_path: Path) -> None:
    backup(tmp_path / "backup")
    disk = blank()
    restore(disk, "a", VOTERS["a"], tmp_path / "backup")
    before = disk.image()
    other = Machine()
    other.apply(43, register(5)[1:])
    (tmp_path / "same").write_bytes(b"".join(other.freeze(6, CLUSTER)))
    with pytest.raises(ConfigError, match="begun to restore another backup"):
        restore(disk, "a", VOTERS["a"], tmp_path / "same")
    backup(tmp_path / "longer", 4)
    with pytest.raises(ConfigError, match="is in cluster"):
        restore(disk, "a", VOTERS["a"], tmp_path / "longer")
    assert disk.image() == before


def test_disk_that_has_begun_with_another_backup_is_not_restored_to(tmp_path: Path) -> None:
    disk = blank()
    data = storage(disk)
    data.found(CLUSTER)
    data.journal.setCurrentTerm(7, None)
    founding._write(disk, backup(tmp_path / "backup").freeze(6, CLUSTER))
    backup(tmp_path / "longer", 4)
    with pytest.raises(ConfigError, match="is in cluster"):
        restore(disk, "a", VOTERS["a"], tmp_path / "longer")
    assert restore(disk, "a", VOTERS["a"], tmp_path / "backup") == CLUSTER


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "other"])
def test_damaged_backup_is_refused_before_anything_is_changed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "backup"
    backup(path)
    content = bytearray(path.read_bytes())
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[:-1])
        case "flipped":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        case "other":
            path.write_bytes(b"PK\3\4" * 1000)
    disk = blank()
    with pytest.raises(ConfigError, match=f"{path}"):
        restore(disk, "a", VOTERS["a"], path)
    assert not disk.image()


def test_backup_of_a_later_release_is_refused(tmp_path: Path) -> None:
    machine = Machine()
    machine.apply(1, register(1)[1:])
    machine.schema = SCHEMA + 1
    (tmp_path / "backup").write_bytes(b"".join(machine.freeze(6, CLUSTER)))
    with pytest.raises(UnknownSchema, match="install the release"):
        restore(blank(), "a", VOTERS["a"], tmp_path / "backup")


# Status


@pytest.mark.parametrize("snapshot", [False, True])
def test_status_tells_what_a_disk_holds_and_changes_nothing(snapshot: bool) -> None:
    disk = voter_of_three(snapshot=snapshot)
    before = disk.image()
    contents = status(disk, "a")
    assert disk.image() == before
    assert contents.cluster_id == CLUSTER
    assert (contents.term, contents.last_index, contents.last_term, contents.commit) == (
        7,
        11,
        7,
        11 if snapshot else 8,
    )
    assert (contents.snapshot, contents.first_index) == ((11, 11) if snapshot else (0, 1))
    assert contents.members == ALL
    assert (contents.bindings, contents.time, contents.schema, contents.amnesiac) == (8, 8.0, SCHEMA, False)
    assert not contents.alarms


def test_status_of_a_blank_disk_is_empty() -> None:
    disk = blank()
    contents = status(disk, "a")
    assert (contents.cluster_id, contents.members, contents.bindings, contents.last_index) == ("", (), 0, 1)
    assert not disk.image()


@pytest.mark.parametrize("snapshot", [False, True])
def test_status_of_a_damaged_disk_says_what_the_daemon_would(snapshot: bool) -> None:
    disk = voter_of_three(snapshot=snapshot)
    disk.remove("term")
    before = disk.image()
    contents = status(disk, "a")
    assert (contents.amnesiac, contents.bindings, contents.members) == (True, 0, ())
    assert "the file term is missing" in contents.alarms[0]
    assert disk.image() == before


def test_status_of_a_torn_tail_leaves_it(tmp_path: Path) -> None:
    disk = voter_of_three()
    name = next(name for name in disk.image() if name.startswith("log-"))
    disk.append(name, b"torn")
    before = disk.image()
    assert status(disk, "a").last_index == 11
    assert disk.image() == before


# Errors of the disk


@pytest.mark.parametrize("act", ["found", "recover", "restore"])
def test_full_disk_is_an_error_and_there_is_no_success_by_halves(tmp_path: Path, act: str) -> None:
    backup(tmp_path / "backup")
    acts: dict[str, Callable[[Disk], str]] = {
        "found": lambda disk: found(disk, "a", VOTERS, CLUSTER),
        "recover": lambda disk: recover(disk, "a", VOTERS["a"]),
        "restore": lambda disk: restore(disk, "a", VOTERS["a"], tmp_path / "backup"),
    }
    disk = voter_of_three() if act == "recover" else blank()
    used = sum(map(len, disk.image().values()))
    for refusals in count():
        disk.capacity = used + 60 * refusals
        try:
            acts[act](disk)
        except OSError:
            disk.start(Clock())
        else:
            assert refusals > 2
            assert status(disk, "a").members == (ALL if act == "found" else ALONE)
            break


# The directory


def test_operations_work_on_a_real_directory(tmp_path: Path) -> None:
    backup(tmp_path / "backup")
    directory = tmp_path / "lib" / "sipha"
    with taken(directory, create=True) as disk:
        restore(disk, "a", VOTERS["a"], tmp_path / "backup")
    assert directory.stat().st_mode & 0o777 == 0o700
    with taken(directory) as disk:
        cluster_id = recover(disk, "a", VOTERS["a"])
    with taken(directory) as disk:
        contents = status(disk, "a")
    assert (contents.cluster_id, contents.bindings, contents.members) == (cluster_id, 3, ALONE)


def test_directory_of_a_running_daemon_is_refused(tmp_path: Path) -> None:
    script = "lock = open(sys.argv[1], 'ab'); fcntl.flock(lock, fcntl.LOCK_EX); print('ready', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, sys; {script}", str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"ready\n"
    with pytest.raises(ConfigError, match="stop the daemon first"), taken(tmp_path):
        pass
    other.stdin.close()
    other.stdout.close()
    other.wait(10)
    with taken(tmp_path):
        pass


def test_others_may_not_look_into_the_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with taken(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_missing_directory_is_not_made_by_who_only_looks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't use the data directory"), taken(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="run this as that user"), taken(tmp_path):
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_error_of_the_disk_names_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: .*no room"), taken(tmp_path):
        raise OSError(28, "no room")
