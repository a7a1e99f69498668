"""What an operator does to a cluster of real nodes, and what their disks do to them, while phones register."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from sipha.cluster import founding
from sipha.sandbox import Sandbox, SandboxNode
from sipha.state.entries import SCHEMA
from tests.system.conftest import agree, wait_until
from tests.system.nodes import (
    caught_up,
    check,
    freeze,
    offline,
    quick,
    quick_status,
    registered,
    restore,
    run_siphactl,
    siphactl,
    steady,
    thaw,
)
from tests.system.registrations import Load

pytestmark = pytest.mark.system

PREFIX, OTHER_PREFIX = "127.0.25", "127.0.26"
USERS = tuple(f"user{number}" for number in range(60))
LATER_USERS = tuple(f"later{number}" for number in range(20))
EARLIER = (sys.executable, str(Path(__file__).with_name("earlier.py")))
_seeds = count(1)  # each load has Call-IDs and contacts of its own

Make = Callable[..., Sandbox]
MakeLoad = Callable[..., Load]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make sandboxes, none of which outlives the test."""
    made: list[Sandbox] = []

    def sandbox(prefix: str = PREFIX, **options: Any) -> Sandbox:
        made.append(Sandbox(tmp_path / f"cluster{len(made)}", prefix=prefix, **options))
        made[-1].directory.mkdir()
        return made[-1]

    with Path(tempfile.gettempdir(), "sipha-cluster-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield sandbox
        for each in made:
            for node in each.nodes:
                thaw(node)
            each.stop()


@pytest.fixture
def cluster(make: Make) -> Sandbox:
    """Three nodes that talk under TLS, with accounts."""
    return begin(make(tls=True))


@pytest.fixture
def calm(make: Make) -> Sandbox:
    """Three nodes whose leases outlast whatever else this machine does meanwhile."""
    return begin(make(tls=True, cluster="heartbeat = 0.1\nelection_min = 3.0\nelection_max = 6.0"))


def begin(cluster: Sandbox) -> Sandbox:
    """Start a cluster, with accounts for all users."""
    cluster.start()
    accounts = [
        {"username": user, "domain": cluster.domain, "password": f"{user}-secret"} for user in (*USERS, *LATER_USERS)
    ]
    results = cluster.request(cluster.wait_for_leader(), "POST", "/v1/accounts", accounts)["results"]
    assert {result["status"] for result in results} == {201}
    return cluster


@pytest.fixture
def load() -> Iterator[MakeLoad]:
    """Start phones of a cluster; what they saw must be faultless in the end."""
    started: list[Load] = []

    def start(cluster: Sandbox, users: tuple[str, ...] = USERS, **options: Any) -> Load:
        server = (cluster.virtual_address, 5060)
        started.append(Load(users, f"{cluster.prefix}.200", server, cluster.domain, seed=next(_seeds), **options))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


# -- members --------------------------------------------------------------------------------------------------------


def test_blank_node_is_added_leads_and_is_removed_again(cluster: Sandbox, load: MakeLoad) -> None:
    phones = load(cluster)
    phones.wait_for(200)
    first = cluster.wait_for_leader()
    added = cluster.lay_out()
    cluster.start_node(added)
    wait_until(lambda: quick_status(added), "the new node's admin")
    assert "siphactl node add" in quick(added)["alarms"][0]
    assert siphactl(first, "node", "add", added.name, added.address) == "n4 is a voter\n"
    wait_until(lambda: quick(added)["memory"] == "whole", "the new node to have all")
    assert siphactl(first, "transfer", added.name) == "n4 leads\n"
    wait_until(lambda: quick(added)["leading"], "the new node to serve phones")
    phones.wait_for(phones.acknowledged + 200)

    refused = run_siphactl("--url", added.admin, "node", "rm", added.name, status=1).stderr
    assert "n4 leads the cluster; hand leadership on first" in refused
    siphactl(added, "transfer", first.name)
    wait_until(lambda: quick(first)["leading"], "the first leader to serve phones")
    siphactl(cluster.nodes[1], "node", "rm", added.name)
    assert [node["name"] for node in json.loads(siphactl(first, "node", "list", "--json"))["nodes"]] == [
        "n1", "n2", "n3",
    ]  # fmt: skip
    cluster.nodes.remove(added)
    left = quick(added)["last_index"]
    phones.wait_for(phones.acknowledged + 200)
    phones.stop()
    check(cluster, phones)
    assert quick(added)["last_index"] == left
    cluster.nodes.append(added)  # to be stopped with the others


def test_members_are_not_removed_below_a_majority(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    other, dead = (node for node in cluster.nodes if node is not leader)
    cluster.kill(dead)
    wait_until(lambda: not peer(leader, dead)["connected"], "the leader to miss a node")
    refused = run_siphactl("--url", leader.admin, "node", "rm", other.name, status=1).stderr
    assert "bring the others up first" in refused
    siphactl(leader, "node", "rm", dead.name)
    cluster.nodes.remove(dead)
    wait_until(lambda: agree(cluster), "the nodes to agree")


def test_operator_hands_leadership_around_and_no_phone_notices(calm: Sandbox, load: MakeLoad) -> None:
    phones = load(calm)
    for node in calm.nodes * 2:
        phones.wait_for(phones.acknowledged + 100)
        siphactl(calm.nodes[0], "transfer", node.name)
        wait_until(partial(leads, node), f"{node.name} to serve phones")
    phones.wait_for(phones.acknowledged + 100)
    phones.stop()
    check(calm, phones)
    assert not phones.statuses[503], phones.statuses


# -- backup, restore, recovery --------------------------------------------------------------------------------------


def test_backup_of_a_follower_becomes_a_cluster(cluster: Sandbox, make: Make, load: MakeLoad, tmp_path: Path) -> None:
    phones = load(cluster)
    phones.wait_for(500)
    follower = next(node for node in cluster.nodes if node is not cluster.wait_for_leader())
    under_load = json.loads(siphactl(follower, "backup", str(tmp_path / "under-load"), "--json"))
    assert under_load["bindings"] > 0
    phones.stop()
    check(cluster, phones)
    file = tmp_path / "backup"
    siphactl(follower, "backup", str(file))
    accounts = cluster.request(follower, "GET", "/v1/accounts?limit=1000")
    before, index = steady(cluster, follower), quick(follower)["applied_index"]
    cluster.stop()

    restored = make(OTHER_PREFIX, size=1)
    (node,) = restored.nodes
    restored.configure(node)
    offline(node, "restore", str(file))
    restored.start_node(node)
    restored.wait_for_leader()
    assert quick(node)["applied_index"] > index
    assert restored.request(node, "GET", "/v1/accounts?limit=1000") == accounts
    assert steady(restored, node) == before
    assert not phones.check(registered(restored, node), stood=60)
    phones = load(restored, LATER_USERS)
    phones.wait_for(100)


def test_one_node_goes_on_when_the_others_are_lost_for_good(cluster: Sandbox, load: MakeLoad) -> None:
    phones = load(cluster)
    phones.wait_for(300)
    phones.stop()
    wait_until(lambda: agree(cluster), "the nodes to agree")
    survivor, *lost = cluster.nodes
    for node in cluster.nodes:
        cluster.kill(node)
    assert "--others-are-off" in run_siphactl("recover", "--config", str(survivor.configuration), status=2).stderr
    offline(survivor, "recover", "--others-are-off")
    stood = time.monotonic()
    cluster.start_node(survivor)
    assert cluster.wait_for_leader() is survivor
    assert not phones.check(registered(cluster, survivor), stood=time.monotonic() - stood + 30)

    # Two of the old cluster come back: they are a majority of it, and have nothing to do with the new one.
    for node in lost:
        cluster.start_node(node)
    siphactl(survivor, "node", "add", lost[0].name, lost[0].address, "--no-wait")
    wait_until(lambda: quick(survivor)["counters"].get("other cluster id"), "the old node to be refused")
    assert not peer(survivor, lost[0])["connected"]
    for node in lost:
        cluster.kill(node)
        shutil.rmtree(node.data)
        cluster.start_node(node)
    siphactl(survivor, "node", "add", lost[1].name, lost[1].address)
    wait_until(lambda: agree(cluster), "the nodes to agree")
    later = load(cluster, LATER_USERS)
    later.wait_for(100)
    later.stop()
    restore(cluster)
    for node in cluster.nodes:
        assert not later.check(registered(cluster, node, "later"))
        assert not phones.check(registered(cluster, node), stood=60)


# -- disks ----------------------------------------------------------------------------------------------------------


def test_node_whose_disk_was_wiped_has_all_again(cluster: Sandbox, load: MakeLoad) -> None:
    phones = load(cluster)
    phones.wait_for(200)
    leader = cluster.wait_for_leader()
    wiped, other = (node for node in cluster.nodes if node is not leader)
    cluster.kill(wiped)
    shutil.rmtree(wiped.data)
    phones.wait_for(phones.acknowledged + 100)
    cluster.start_node(wiped)
    wait_until(lambda: (status := quick_status(wiped)) and status["memory"] == "whole", "the wiped node to have all")
    cluster.kill(other)  # now the wiped one is half of the majority
    phones.wait_for(phones.acknowledged + 200)
    cluster.kill(leader)
    cluster.start_node(other)
    phones.wait_for(phones.acknowledged + 200)
    phones.stop()
    check(cluster, phones)


def test_disk_with_flipped_bits_is_moved_aside_and_fetched_again(cluster: Sandbox, load: MakeLoad) -> None:
    phones = load(cluster)
    phones.wait_for(200)
    damaged = next(node for node in cluster.nodes if node is not cluster.wait_for_leader())
    cluster.kill(damaged)
    (log,) = damaged.data.glob("log-*")
    content = bytearray(log.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 1
    log.write_bytes(content)
    assert "damaged" in offline(damaged, "disk").splitlines()[0]
    cluster.start_node(damaged)
    wait_until(lambda: (status := quick_status(damaged)) and status["memory"] == "whole", "the node to have all again")
    assert any("damaged-" in alarm for alarm in quick(damaged)["alarms"])
    assert siphactl(damaged, "status").startswith(f"ALARM {damaged.name}: ")
    phones.stop()
    check(cluster, phones)


@pytest.fixture
def small(make: Make) -> Iterator[Sandbox]:
    """Three nodes, each of whose disks has 32 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    cluster = make(tls=True)
    for node in cluster.nodes:
        node.data.mkdir(mode=0o700, parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=0700", "sipha-test", str(node.data)], check=True)
    yield begin(cluster)
    for node in cluster.nodes:
        cluster.kill(node)
        subprocess.run(["umount", str(node.data)], check=True)


@pytest.mark.parametrize("patient", [False, pytest.param(True, marks=pytest.mark.long)])
def test_leader_whose_disk_is_full_steps_down_and_says_so(small: Sandbox, load: MakeLoad, patient: bool) -> None:
    phones = load(small)
    phones.wait_for(200)
    full = small.wait_for_leader()
    filler = fill(full)
    wait_until(lambda: quick(full)["role"] == "failed", "the node to step down")
    status = quick(full)
    assert not status["leading"]
    assert not status["holds_virtual_addresses"]
    assert "No space left on device" in status["alarms"][0]
    phones.wait_for(phones.acknowledged + 200)
    assert any(line.startswith(f"ALARM {full.name}: ") for line in siphactl(full, "status").splitlines())
    assert full.process is not None
    if patient:
        assert full.process.wait(90) == 1
    else:
        assert full.running
        full.process.terminate()
        full.process.wait(10)
    filler.unlink()
    small.start_node(full)
    phones.stop()
    check(small, phones)


def fill(node: SandboxNode) -> Path:
    """Leave no room on the disk of a node; return the file that takes it."""
    filler = node.data / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


# -- frozen nodes ---------------------------------------------------------------------------------------------------


def test_frozen_follower_changes_nothing_for_phones(calm: Sandbox, load: MakeLoad) -> None:
    phones = load(calm, pause=0.1)
    phones.wait_for(300)
    leader = calm.wait_for_leader()
    frozen = next(node for node in calm.nodes if node is not leader)
    freeze(frozen)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        phones.wait_for(phones.acknowledged + 50)
    thaw(frozen)
    phones.wait_for(phones.acknowledged + 200)
    phones.stop()
    check(calm, phones)
    assert calm.wait_for_leader() is leader
    assert not phones.statuses[503], phones.statuses


# -- clocks ---------------------------------------------------------------------------------------------------------


def start_ahead(cluster: Sandbox, node: SandboxNode, seconds: int) -> None:
    """Start a node whose CLOCK_BOOTTIME and CLOCK_MONOTONIC are ahead of the machine's."""
    ahead = (f"--boottime={seconds}", f"--monotonic={seconds}")
    cluster.launcher = ("unshare", "--time", *ahead, "--fork", "--kill-child")
    cluster.start_node(node)
    cluster.launcher = ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a namespace of time")
def test_no_binding_expires_early_or_late_though_clocks_are_hours_apart(make: Make, load: MakeLoad) -> None:
    cluster = make(tls=True)
    cluster.found()
    for number, node in enumerate(cluster.nodes):
        start_ahead(cluster, node, 3600 * number)
    begin(cluster)
    phones = load(cluster)
    for number, node in enumerate(cluster.nodes):
        phones.wait_for(phones.acknowledged + 200)
        siphactl(cluster.nodes[0], "transfer", node.name)
        wait_until(partial(leads, node), f"{node.name} to serve phones")
        phones.wait_for(phones.acknowledged + 100)
        cluster.kill(node)
        start_ahead(cluster, node, 10_000 - 5000 * number)  # its clock is stepped, by more than an hour
        wait_until(lambda: caught_up(cluster), "the node to catch up")
    phones.wait_for(phones.acknowledged + 200)
    phones.stop()
    check(cluster, phones)


# -- a witness ------------------------------------------------------------------------------------------------------


@pytest.fixture
def witnessed(make: Make) -> Sandbox:
    """Two nodes and a witness, the last."""
    cluster = make(tls=True)
    cluster.found()
    start_witness(cluster)
    return begin(cluster)


def start_witness(cluster: Sandbox) -> None:
    """Start the last node, as a witness."""
    cluster.cluster = "witness = true"
    cluster.start_node(cluster.nodes[-1])
    cluster.cluster = ""


class Claims(threading.Thread):
    """Asks a node again and again whether it serves phones; `made` is what it said when it did."""

    def __init__(self, node: SandboxNode) -> None:
        super().__init__()
        self.made: list[dict[str, Any]] = []
        self._node = node
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            status = quick_status(self._node)
            if status and (status["leading"] or status["holds_virtual_addresses"]):
                self.made.append(status)


def test_two_nodes_and_a_witness_survive_the_loss_of_either(witnessed: Sandbox, load: MakeLoad) -> None:
    """The witness keeps what only one other node has, and gives it to whoever comes back (pitfalls-log-vip 6)."""
    witness = witnessed.nodes[-1]
    with Claims(witness) as claims:
        phones = load(witnessed)
        phones.wait_for(200)
        first = witnessed.wait_for_leader()
        second = next(node for node in witnessed.nodes[:2] if node is not first)
        witnessed.kill(first)
        assert witnessed.wait_for_leader() is second
        phones.wait_for(phones.acknowledged + 200)
        witnessed.kill(second)
        witnessed.start_node(first)  # of what was acknowledged since it died, the witness alone has all
        assert witnessed.wait_for_leader() is first
        phones.wait_for(phones.acknowledged + 200)
        witnessed.kill(witness)
        witnessed.start_node(second)
        wait_until(lambda: (status := quick_status(second)) and status["leader"], "the other node to hear of a leader")
        phones.wait_for(phones.acknowledged + 200)
        start_witness(witnessed)
        phones.wait_for(phones.acknowledged + 100)
    phones.stop()
    check(witnessed, phones)
    assert not claims.made


# -- releases -------------------------------------------------------------------------------------------------------


def test_nodes_of_two_releases_run_side_by_side_until_the_last_is_upgraded(
    make: Make, load: MakeLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make(tls=True)
    with monkeypatch.context() as earlier:
        earlier.setattr(founding, "SCHEMA", 1)
        cluster.found()
    old = cluster.nodes[2]
    cluster.launcher = EARLIER
    cluster.start_node(old)
    cluster.launcher = ()
    begin(cluster)
    phones = load(cluster)
    phones.wait_for(200)
    assert schemas(cluster) == {1}
    siphactl(cluster.nodes[0], "transfer", old.name)
    wait_until(lambda: quick(old)["leading"], "the node of the earlier release to lead")
    phones.wait_for(phones.acknowledged + 100)
    siphactl(cluster.nodes[0], "transfer", cluster.nodes[0].name)
    time.sleep(1.0)
    assert schemas(cluster) == {1}

    upgrade(cluster, old)
    wait_until(lambda: schemas(cluster) == {SCHEMA}, "the schema to be raised")
    phones.wait_for(phones.acknowledged + 100)
    cluster.kill(old)
    assert len(json.loads(offline(old, "disk", "--json"))["members"]) == 3  # in the table too, not in the log alone
    shutil.rmtree(old.data)
    cluster.launcher = EARLIER
    cluster.start_node(old)
    cluster.launcher = ()
    refused = [node for node in cluster.nodes if node is not old]
    wait_until(
        lambda: all(quick(node)["counters"].get("older release") for node in refused), "the release to be refused"
    )
    upgrade(cluster, old)
    phones.stop()
    check(cluster, phones)


def leads(node: SandboxNode) -> bool:
    """Return True if a node serves phones."""
    return bool(quick(node)["leading"])


def schemas(cluster: Sandbox) -> set[int | None]:
    """Return the schemas that are active; None for a node that doesn't answer."""
    return {status["schema"] if (status := quick_status(node)) else None for node in cluster.nodes}


def upgrade(cluster: Sandbox, node: SandboxNode) -> None:
    """Start a node again, with the present release."""
    assert node.process is not None
    node.process.terminate()
    node.process.wait(10)
    cluster.start_node(node)


def peer(node: SandboxNode, other: SandboxNode) -> dict[str, Any]:
    """What a node sees of another one."""
    return next(one for one in quick(node)["peers"] if one["name"] == other.name)
