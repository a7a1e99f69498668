"""Replicas in one process: first over real connections and disks, then in virtual time where one thing goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from twisted.logger import LogEvent
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sipha.cluster import founding, journal, memory, segment
from sipha.cluster import replica as module
from sipha.cluster.disk import FileDisk
from sipha.cluster.guards import REGULAR
from sipha.cluster.leadership import ILeader
from sipha.cluster.peers import Peers
from sipha.cluster.proposals import COMPANY, MAX_RECORDS, SEVERAL
from sipha.cluster.raft import Timing
from sipha.cluster.replica import Replica
from sipha.cluster.wire import (
    AppendEntries,
    PreVote,
    ProposalOutcome,
    Propose,
    RequestVote,
    VoteGranted,
    read_datagram,
)
from sipha.errors import ConfigError, NoQuorum, NotLeader, Unavailable, UnknownOutcome
from sipha.sip.flow import Address
from sipha.state.entries import SCHEMA, Batch, Policy, PutAccount, PutSetting, Refresh, Register, decode, encode
from sipha.state.interfaces import IBatchLog, ICredentials, ILocation
from sipha.state.outcomes import Done, Invalid, Outcome, Registered
from tests.cluster.assembly import CLUSTER_ID, Assemble, Assembly, register
from tests.cluster.world import World
from tests.cluster_sim.disk import VirtualDisk


@implementer(ILeader)
class Diary:
    def __init__(self) -> None:
        self.entries: list[str] = []

    def gained(self) -> None:
        self.entries.append("gained")

    def lost(self) -> None:
        self.entries.append("lost")


class Cluster:
    """Replicas in one process that talk over real connections and write to real files."""

    def __init__(self, world: World, addresses: dict[str, Address], directory: Path) -> None:
        self.world = world
        self.addresses = addresses
        self.directory = directory
        self.replicas: dict[str, Replica] = {}
        self.diaries: dict[str, Diary] = {}
        self.failed: list[str] = []
        voters = {name: f"{host}:{port}" for name, (host, port) in addresses.items()}
        for name in addresses:
            with founding.taken(directory / name, create=True) as disk:
                founding.found(disk, name, voters, CLUSTER_ID)

    def start(self, *names: str) -> None:
        for name in names:
            seeds = {peer: address for peer, address in self.addresses.items() if peer != name}
            reactor = self.world.reactor
            self.replicas[name] = Replica(
                reactor,
                name,
                FileDisk(self.directory / name, reactor),
                Peers(reactor, name, self.addresses[name], seeds),
                seeds,
                Policy(),
                # The machine may be busy; who is alone is not hurt by that.
                timing=Timing(election_min=0.8, election_max=1.6) if seeds else Timing(0.02, 0.1, 0.2),
                failed=self.failed.append,
            )
            self.diaries[name] = Diary()
            self.replicas[name].leadership.observe(self.diaries[name])
            self.replicas[name].start()

    def stop(self, name: str) -> None:
        self.replicas.pop(name).stop()

    def leader(self) -> Replica | None:
        leaders = [replica for replica in self.replicas.values() if replica.leading()]
        assert len(leaders) < 2
        return leaders[0] if leaders else None

    def wait_for_leader(self) -> Replica:
        self.world.until(self.leader)
        leader = self.leader()
        assert leader is not None
        return leader

    def register(self, replica: Replica, *aors: str) -> list[Outcome | Unavailable]:
        outcomes: list[Outcome | Unavailable] = []
        for aor in aors:
            replica.propose(register(aor), outcomes.append)
        self.world.until(lambda: len(outcomes) == len(aors))
        return outcomes

    def agree(self) -> bool:
        return len({(status.applied_index, status.hash) for status in map(Replica.status, self.replicas.values())}) == 1


@pytest.fixture
def cluster(world: World, addresses: dict[str, Address], tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(world, addresses, tmp_path)
    yield cluster
    for name in list(cluster.replicas):
        cluster.stop(name)


@pytest.fixture
def lone(world: World, addresses: dict[str, Address], tmp_path: Path) -> Iterator[Replica]:
    """A cluster of one."""
    cluster = Cluster(world, {"a": addresses["a"]}, tmp_path)
    cluster.start("a")
    world.until(cluster.leader)
    yield cluster.replicas["a"]
    cluster.stop("a")


@pytest.mark.parametrize("name", ["a", "b"])
def test_who_proposes_many_hears_of_each_at_any_node(assembly: Assembly, name: str) -> None:
    told: list[list[tuple[int, Outcome | Unavailable]]] = []
    leader = assembly.wait_for_leader()
    records = [(register(f"sip:{number}@example.com"), number) for number in range(3)]
    assembly.replica(name).propose_all(records, told.append)
    assembly.until(lambda: sum(map(len, told)) == 3)
    assert [number for outcomes in told for number, outcome in outcomes if isinstance(outcome, Registered)] == [0, 1, 2]
    assert (len(told) == 1) is (name == leader)


def test_leader_takes_no_step_for_a_record_that_waits_for_company(assembly: Assembly) -> None:
    first = assembly.propose("a", register("sip:alice@example.com"))
    assembly.clock.advance(0)
    assert assembly.replica("a")._proposals.under_way
    before = list(assembly.clock.getDelayedCalls())
    second = assembly.propose("a", register("sip:bob@example.com"))
    third = assembly.propose("a", register("sip:carol@example.com"))
    (timer,) = [call for call in assembly.clock.getDelayedCalls() if call not in before]
    assert timer.getTime() == pytest.approx(assembly.clock.seconds() + COMPANY)
    assembly.until(lambda: first and second and third)
    assert {type(outcome) for outcome in first + second + third} == {Registered}


@pytest.mark.parametrize("size", [10, 10_000, 40_000])
def test_single_voter_applies_what_its_disk_has_whatever_comes_meanwhile(
    assemble: Assemble, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """And makes no step after the other for it: of 80 KB, one applies as many entries as are 64 KiB."""
    assembly = assemble("a")
    assembly.start("a")
    replica = assembly.elect("a")
    assembly.run(0.5)
    assembly.seats["a"].disk.delay = (0.03, 0.03)
    steps: Counter[float] = Counter()
    tick = replica._voter.raft.tick

    def count() -> None:
        steps[assembly.clock.seconds()] += 1
        assert steps[assembly.clock.seconds()] < 10
        tick()

    monkeypatch.setattr(replica._voter.raft, "tick", count)
    told: list[tuple[str, Outcome | Unavailable]] = []

    def propose(name: str, size: int, *after: tuple[str, int]) -> None:
        def done(outcome: Outcome | Unavailable) -> None:
            told.append((name, outcome))
            for each in after:
                propose(*each)

        replica.propose(PutSetting(name, "x" * size), done)

    propose("first", 40_000, ("third", size))
    propose("second", 40_000)
    assert assembly.until(lambda: len(told) >= 2) < 0.05
    assembly.until(lambda: len(told) == 3)
    assert [name for name, _ in told] == ["first", "second", "third"]
    assert {type(outcome) for _, outcome in told} == {Done}


def test_single_voter_tells_of_a_record_once_its_disk_has_it(assemble: Assemble) -> None:
    """It has had what is added meanwhile wait for company, and made entries of that, before it looked what it has."""
    assembly = assemble("a")
    assembly.start("a")
    replica = assembly.elect("a")
    assembly.run(0.5)
    assembly.seats["a"].disk.delay = (0.015, 0.015)
    waited: list[float] = []
    for number in range(50):
        begin = assembly.clock.seconds()
        replica.propose(
            register(f"sip:{number}@example.com"),
            lambda _, begin=begin: waited.append(assembly.clock.seconds() - begin),  # type: ignore[misc]
        )
        assembly.run(0.006)
    assembly.run(0.1)
    assert len(waited) == 50
    assert sorted(waited)[25] < 2.5 * 0.015


def test_record_waits_for_company_no_longer_than_it_may_although_nothing_else_happens(assembly: Assembly) -> None:
    """Even if the one before it stays under way."""
    assembly.silent = {"b", "c"}
    assembly.propose("a", register("sip:alice@example.com"))
    assembly.clock.advance(0)
    last = assembly.replica("a").status().last_index
    assembly.propose("a", register("sip:bob@example.com"))
    assert assembly.until(lambda: assembly.replica("a").status().last_index > last) < COMPANY + 0.0005


def test_records_that_an_entry_has_no_room_for_wait_no_longer_either(assembly: Assembly) -> None:
    assembly.silent = {"b", "c"}
    assembly.propose("a", register("sip:alice@example.com"))
    assembly.clock.advance(0)
    last = assembly.replica("a").status().last_index
    records = [(register(f"sip:{number}@example.com"), number) for number in range(MAX_RECORDS + SEVERAL)]
    assembly.replica("a").propose_all(records, lambda _: None)
    assembly.clock.advance(0)
    assert assembly.replica("a").status().last_index == last + 1
    assert assembly.until(lambda: assembly.replica("a").status().last_index > last + 1) < COMPANY + 0.0005


def test_replica_that_stops_awaits_no_company(assembly: Assembly) -> None:
    assembly.propose("a", register("sip:alice@example.com"))
    assembly.clock.advance(0)
    before = list(assembly.clock.getDelayedCalls())
    assembly.propose("a", register("sip:bob@example.com"))
    (timer,) = [call for call in assembly.clock.getDelayedCalls() if call not in before]
    assembly.replica("a").stop()
    assert not timer.active()


def test_who_proposes_many_where_nobody_leads_hears_at_once(assembly: Assembly) -> None:
    told: list[list[tuple[int, Outcome | Unavailable]]] = []
    lonely = assembly.replica("a")
    lonely.stop()
    lonely.propose_all([(register("sip:a@example.com"), 1), (register("sip:b@example.com"), 2)], told.append)
    assert [[(number, type(refusal)) for number, refusal in refusals] for refusals in told] == [
        [(1, NotLeader), (2, NotLeader)]
    ]


def test_replica_is_what_the_rest_asks_for(lone: Replica) -> None:
    for interface in (IBatchLog, ILocation, ICredentials):
        assert verifyObject(interface, lone)


def test_three_replicas_hold_what_one_answered(cluster: Cluster, failures: list[LogEvent]) -> None:
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    outcomes = cluster.register(leader, *[f"sip:{number}@example.com" for number in range(500)])
    assert [type(outcome) for outcome in outcomes] == [Registered] * 500
    cluster.world.until(cluster.agree)
    for replica in cluster.replicas.values():
        assert replica.lookup("sip:499@example.com")[0].contact == "sip:499@example.com;transport=udp"
        assert replica.leader == leader.node
        assert replica.term == leader.term
    assert cluster.diaries[leader.node].entries == ["gained"]
    assert not failures
    assert not cluster.failed


def test_followers_take_over_from_a_leader_that_stops(cluster: Cluster, failures: list[LogEvent]) -> None:
    cluster.start("a", "b", "c")
    first = cluster.wait_for_leader()
    cluster.register(first, "sip:alice@example.com")
    cluster.stop(first.node)
    assert cluster.diaries[first.node].entries == ["gained", "lost"]
    second = cluster.wait_for_leader()
    assert second.lookup("sip:alice@example.com")
    assert isinstance(cluster.register(second, "sip:bob@example.com")[0], Registered)
    cluster.world.turn(0.05)
    cluster.start(first.node)
    cluster.world.until(cluster.agree)
    assert cluster.replicas[first.node].lookup("sip:bob@example.com")
    assert second.leading()
    assert not failures


def test_all_replicas_restart_with_what_was_answered(cluster: Cluster, world: World) -> None:
    cluster.start("a", "b", "c")
    cluster.register(cluster.wait_for_leader(), "sip:alice@example.com")
    time = max(replica.cluster_time() for replica in cluster.replicas.values())
    for name in "abc":
        cluster.stop(name)
    world.turn(0.05)
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    assert leader.lookup("sip:alice@example.com")
    assert leader.cluster_time() >= time - 2


def test_follower_hands_a_record_to_the_leader(cluster: Cluster) -> None:
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    follower = next(replica for replica in cluster.replicas.values() if replica is not leader)
    cluster.world.until(lambda: follower.leader)
    (outcome,) = cluster.register(follower, "sip:alice@example.com")
    assert isinstance(outcome, Registered)
    assert leader.lookup("sip:alice@example.com")


def test_leader_without_followers_gives_up(cluster: Cluster) -> None:
    """The lease ends first, then the proposals that nobody else has."""
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    outcomes: list[Outcome | Unavailable] = []
    for name in set("abc") - {leader.node}:
        cluster.stop(name)
    leader.propose(register("sip:alice@example.com"), outcomes.append)
    cluster.world.until(lambda: not leader.leading())
    cluster.world.until(lambda: cluster.diaries[leader.node].entries == ["gained", "lost"], limit=5.0)
    cluster.world.until(lambda: outcomes)
    assert isinstance(outcomes[0], UnknownOutcome)
    assert isinstance(cluster.register(leader, "sip:bob@example.com")[0], Unavailable)
    status = leader.status()
    assert (status.leading, status.lease) == (False, 0.0)


def test_lone_replica_leads_itself(lone: Replica, world: World) -> None:
    outcomes: list[Outcome | Unavailable] = []
    lone.propose(PutAccount("alice", "example.com", "alice", "example.com", {"MD5": "0" * 32}), outcomes.append)
    world.until(lambda: outcomes)
    assert outcomes == [Done(1)]
    assert lone.known("sip:alice@example.com")
    account = lone.credential("alice", "example.com")
    assert account is not None
    assert account.username == "alice"
    assert lone.machine.keys.current == 1


def test_first_leader_makes_the_key_and_later_ones_keep_it(
    world: World, addresses: dict[str, Address], tmp_path: Path
) -> None:
    cluster = Cluster(world, {"a": addresses["a"]}, tmp_path)
    rings = []
    for _ in range(2):
        cluster.start("a")
        world.until(cluster.leader)
        rings.append(cluster.replicas["a"].machine.keys.ring)
        cluster.stop("a")
    assert rings[0] == rings[1]
    assert [len(secret) for secret in rings[0].values()] == [32]


def test_status_says_what_the_node_does(lone: Replica) -> None:
    status = lone.status()
    assert (status.node, status.role, status.leading, status.leader) == ("a", "leader", True, "a")
    assert (status.cluster_id, status.memory, status.durability, status.schema) == (
        CLUSTER_ID,
        "whole",
        "fsync",
        SCHEMA,
    )
    assert status.lease is None
    assert status.applied_index == status.commit_index == status.last_index == status.durable_index
    assert status.hash == f"{lone.machine.hash():032x}"
    assert status.journal_bytes > 0
    assert msgspec.json.decode(msgspec.json.encode(status))["role"] == "leader"


def test_record_that_cant_be_encoded_harms_no_other(lone: Replica, world: World) -> None:
    """A phone may send any bytes: read as UTF-8 with surrogateescape they are text that isn't UTF-8."""
    outcomes: dict[int, Outcome | Unavailable] = {}
    for number in range(10):
        agent = "caf\udce9" if number == 4 else "café"
        lone.propose(register(f"sip:{number}@example.com", user_agent=agent), partial(outcomes.__setitem__, number))
    world.until(lambda: len(outcomes) == 10)
    assert [number for number, outcome in outcomes.items() if isinstance(outcome, Invalid)] == [4]
    assert sum(isinstance(outcome, Registered) for outcome in outcomes.values()) == 9


def test_record_that_is_too_long_harms_no_other(lone: Replica, world: World) -> None:
    outcomes: list[Outcome | Unavailable] = []
    lone.propose(register("sip:a@example.com", user_agent="x" * 127_000), outcomes.append)
    world.until(lambda: len(outcomes) == 1)
    lone.propose(register("sip:b@example.com", user_agent="x" * 200_000), outcomes.append)
    lone.propose(register("sip:c@example.com"), outcomes.append)
    world.until(lambda: len(outcomes) == 3)
    assert isinstance(outcomes[0], Registered)
    assert sorted(type(outcome).__name__ for outcome in outcomes[1:]) == ["Registered", "Unavailable"]


def test_long_records_reach_the_followers(cluster: Cluster) -> None:
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    outcomes: list[Outcome | Unavailable] = []
    for number in range(12):
        leader.propose(register(f"sip:{number}@example.com", user_agent="x" * 100_000), outcomes.append)
    cluster.world.until(lambda: len(outcomes) == 12)
    assert {type(outcome) for outcome in outcomes} == {Registered}
    cluster.world.until(cluster.agree)


def test_proposer_that_fails_harms_no_other(lone: Replica, world: World, failures: list[LogEvent]) -> None:
    def fail(_outcome: object) -> None:
        raise ZeroDivisionError

    outcomes: list[Outcome | Unavailable] = []
    lone.propose(register("sip:alice@example.com"), fail)
    lone.propose(register("sip:bob@example.com"), outcomes.append)
    world.until(lambda: outcomes)
    assert isinstance(outcomes[0], Registered)
    assert len(failures) == 1
    assert lone.leading()


def test_failing_steps_dont_end_the_driving_until_they_go_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, failures: list[LogEvent]
) -> None:
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    tick = leader._raft.tick
    failing: list[int] = [1, 2]

    def fail() -> None:
        if failing:
            if failing != [0]:
                failing.pop()
            raise ZeroDivisionError
        tick()

    monkeypatch.setattr(leader._raft, "tick", fail)
    cluster.world.until(lambda: not failing)
    assert isinstance(cluster.register(leader, "sip:alice@example.com")[0], Registered)
    assert not cluster.failed
    failing.append(0)
    cluster.world.until(lambda: cluster.failed)
    assert not leader.leading()
    assert leader.status().role == "failed"
    assert cluster.diaries[leader.node].entries == ["gained", "lost"]
    assert len(failures) >= 5
    assert cluster.wait_for_leader() is not leader


# What makes a node leave


@pytest.mark.interpreted
def test_replica_whose_memory_is_full_takes_no_more_part(assembly: Assembly) -> None:
    """An entry that was applied in part makes a table unlike the others'."""
    leader = assembly.replica("a")
    apply = leader.machine.location.register

    def fail(request: Register) -> Any:
        if request.aor == "sip:bob@example.com":
            raise MemoryError
        return apply(request)

    vars(leader.machine.location)["register"] = fail
    outcomes = assembly.propose("a", register("sip:alice@example.com"), register("sip:bob@example.com"))
    assembly.until(lambda: len(outcomes) == 2)
    assert {type(outcome) for outcome in outcomes} == {UnknownOutcome}
    assert assembly.failed == [("a", "the memory is full")]
    new = assembly.wait_for_leader("bc")
    assert assembly.replica(new).bindings("sip:bob@example.com")
    assert "this node has left the cluster: the memory is full" in leader.status().alarms


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("fault", ["full", "sync", "write"])
def test_node_whose_disk_refuses_leaves_and_the_others_go_on(assembly: Assembly, name: str, fault: Any) -> None:
    disk = assembly.seats[name].disk
    if fault == "full":
        disk.capacity = sum(map(len, disk.image().values())) + 500
    else:
        disk.failing = {fault}
    outcomes = assembly.propose("a", *[register(f"sip:{number}@example.com") for number in range(20)])
    assembly.until(lambda: assembly.failed)
    ((who, reason),) = assembly.failed
    assert who == name
    assert "the disk can't be written: " in reason
    assert ("is full" if fault == "full" else f"{fault} fails") in reason
    assembly.until(lambda: len(outcomes) == 20)
    leader = assembly.wait_for_leader()
    assert leader != name
    for number, outcome in enumerate(outcomes):
        kept = bool(assembly.replica(leader).lookup(f"sip:{number}@example.com"))
        assert kept or not isinstance(outcome, Registered)
    status = assembly.replica(name).status()
    assert (status.role, status.leading, status.leader) == ("failed", False, None)
    assembly.register(leader, ["sip:next@example.com"])


def test_no_more_waits_for_the_leaders_own_disk_than_memory_should_hold(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' disks are quicker, and would commit whatever comes; the leader goes on at its own disk's pace."""
    monkeypatch.setattr(module, "_BACKLOG", 20_000)
    monkeypatch.setattr(journal, "_GROUP", 10_000)
    assembly.seats["a"].disk.delay = (0.1, 0.1)
    replica = assembly.replica("a")
    outcomes, most = [], 0
    for number in range(150):
        outcomes.append(assembly.propose("a", register(f"sip:{number}@example.com", user_agent="x" * 1000)))
        assembly.run(0.005)
        most = max(most, replica._journal.backlog)
    assembly.until(lambda: all(outcomes))
    assert 20_000 < most < 80_000
    assert replica.leading()
    assert {type(outcome[0]) for outcome in outcomes} == {Registered}


def test_node_that_cant_write_its_term_down_leaves(assembly: Assembly) -> None:
    """It would vote in that term once more after a restart."""
    replica = assembly.replica("c")
    assembly.seats["c"].disk.failing = {"rename"}
    assembly.sent.clear()
    replica._voter._promise.until = 0.0
    replica.inbox.received("b", RequestVote(replica.term + 1, 1 << 20, replica.term, b""))
    ((name, reason),) = assembly.failed
    assert name == "c"
    assert "the disk can't be written: " in reason
    assert not assembly.said(VoteGranted)


def test_entry_of_a_later_schema_is_not_skipped(assembly: Assembly) -> None:
    """A release that doesn't know it ceases to take part, and says which is needed."""
    raft, replica = assembly.replica("a")._raft, assembly.replica("c")
    command = encode(Batch(SCHEMA + 1, 0, Policy(), (PutSetting("x", "y"),)))
    index = raft.last_index + 1
    message = AppendEntries(
        raft.term, index, raft.last_index, raft.last_term, [(bytes([REGULAR]) + command, index, raft.term)],
        0, 200, 0, 1, b"commitment", False,
    )  # fmt: skip
    replica.inbox.received("a", message)
    assembly.until(lambda: assembly.failed)
    assert assembly.failed[0][0] == "c"
    assert f"the log is of schema {SCHEMA + 1}" in assembly.failed[0][1]
    assert replica.machine.index < index


def test_leader_that_contradicts_what_is_committed_is_not_followed(assembly: Assembly) -> None:
    raft, replica = assembly.replica("a")._raft, assembly.replica("c")
    assembly.register("a", ["sip:alice@example.com"])
    assembly.until(assembly.agree)
    last = replica._raft.commit_index
    entry = (b"\0another", last, raft.term + 1)
    message = AppendEntries(
        raft.term + 1, last, last - 1, raft.term_at(last - 1), [entry], 0, 200, 0, 1, b"commitment", False
    )
    replica.inbox.received("b", message)
    assert assembly.failed == [("c", f"entry {last} is committed here and different at the leader")]
    assembly.register("a", ["sip:bob@example.com"])


# What is on the disk


@pytest.mark.parametrize("name", ["term", "log-"])
def test_damage_makes_an_amnesiac_that_is_given_everything(assembly: Assembly, name: str) -> None:
    """It doesn't vote in a term that it may have voted in, nor with a log that may lack what it acknowledged."""
    assembly.register("a", [f"sip:{number}@example.com" for number in range(30)])
    assembly.run(0.5)
    assembly.crash("b")
    disk = assembly.seats["b"].disk
    (file,) = [each for each in disk.image() if each.startswith(name)]
    disk.flip(file, 8 * (len(disk.image()[file]) // 2))
    assembly.start("b")
    status = assembly.replica("b").status()
    assert status.memory == "amnesiac"
    assert status.last_index == 1
    assert any(f"{file}" in alarm and "damaged-1-" in alarm for alarm in status.alarms)
    assembly.until(lambda: assembly.replica("b").status().memory == "whole")
    assembly.until(assembly.agree)
    assert assembly.replica("b").lookup("sip:29@example.com")


def with_snapshots(assemble: Assemble, monkeypatch: pytest.MonkeyPatch) -> tuple[Assembly, VirtualDisk]:
    """Three nodes, of which b is down, and its disk, which has two snapshots and the log from the older one on."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    assembly = assemble()
    assembly.start("abc", log_limit=8192)
    assembly.elect("a")
    assembly.register("a", [f"sip:{number}@example.com" for number in range(150)])
    assembly.run(1.5)
    assert assembly.replica("b")._raft.first_index == 64
    assembly.crash("b")
    return assembly, assembly.seats["b"].disk


def flip(disk: VirtualDisk, kind: str, skipped: int = 0) -> list[str]:
    """Flip a bit in the body of each file of a kind, but of the first `skipped`; return their names."""
    damaged = sorted(each for each in disk.image() if each.startswith(kind))[skipped:]
    for file in damaged:
        disk.flip(file, 8 * (segment.HEADER + 200))
    return damaged


@pytest.mark.parametrize("kind", ["log", "snapshot"])
def test_damage_makes_an_amnesiac_if_nothing_makes_up_for_it(
    assemble: Assemble, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assembly, disk = with_snapshots(assemble, monkeypatch)
    damaged = flip(disk, kind)
    assembly.start("b")
    status = assembly.replica("b").status()
    assert status.memory == "amnesiac"
    assert any(file in " ".join(status.alarms) for file in damaged)
    assert assembly.replica("b").machine.index == 0
    assembly.until(lambda: assembly.replica("b").status().memory == "whole")
    assembly.until(assembly.agree)


def test_damaged_snapshot_is_made_up_for_by_the_one_before_and_the_log(
    assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembly, disk = with_snapshots(assemble, monkeypatch)
    (file,) = flip(disk, "snapshot", skipped=1)
    older = min(each for each in disk.image() if each.startswith("snapshot"))
    assembly.start("b")
    replica = assembly.replica("b")
    status = replica.status()
    assert (status.memory, status.snapshot_index) == ("whole", int(older.removeprefix("snapshot-")))
    assert status.alarms[0].startswith(f"{file}: damaged, and moved aside to damaged-1-*")
    assembly.until(lambda: replica.machine.hash() == assembly.replica("a").machine.hash())
    assembly.crash("c")
    assembly.register("a", ["sip:bob@example.com"])


def test_amnesiac_neither_votes_nor_stands(assembly: Assembly) -> None:
    """E is on a and b; b loses it; a dies: b and c must not decide without e."""
    assembly.silent = {"c"}
    assembly.register("a", ["sip:alice@example.com"])
    assembly.run(0.1)
    assembly.crash("a")
    assembly.crash("b")
    assembly.seats["b"].disk.wipe()
    assembly.join()
    assembly.start("b")
    assembly.sent.clear()
    assembly.run(10.0)
    assert assembly.leader() is None
    assert assembly.replica("b").status().memory == "blank"
    assert not assembly.said(RequestVote)
    assert not [message for kind in (PreVote, VoteGranted) for message in assembly.said(kind, "b")]
    assembly.start("a")
    assembly.until(assembly.leader)
    assembly.until(lambda: assembly.replica("b").status().memory == "whole")
    assembly.until(assembly.agree)
    assert assembly.replica("b").lookup("sip:alice@example.com")


def test_amnesiac_that_has_joined_again_neither_votes_nor_stands(assembly: Assembly) -> None:
    """As before, but b has heard of a once more, and not of e."""
    assembly.silent = {"c"}
    assembly.register("a", ["sip:alice@example.com"])
    assembly.wipe("b")
    assembly.loses = lambda _sender, _receiver, message: bool(getattr(message, "entries", ()))
    assembly.start("b")
    assembly.until(lambda: assembly.replica("b").status().memory == "amnesiac")
    assembly.run(0.2)
    assembly.crash("a")
    assembly.join()
    assembly.sent.clear()
    assembly.run(10.0)
    assert assembly.said(PreVote, "c", "b")
    assert assembly.leader() is None
    assert not assembly.said(RequestVote)
    assert not [message for kind in (PreVote, VoteGranted) for message in assembly.said(kind, "b")]


def test_amnesiac_counts_again_when_it_has_all_that_was_committed_since(assembly: Assembly) -> None:
    assembly.register("a", ["sip:alice@example.com"])
    assembly.wipe("b")
    assembly.start("b")
    assembly.until(lambda: assembly.replica("b").status().memory == "amnesiac")
    assembly.sever("c")
    assembly.run(2.0)
    assert assembly.replica("b").status().memory == "amnesiac", "nothing is committed without it"
    assert assembly.leader() is None
    assembly.join()
    assembly.until(lambda: assembly.replica("b").status().memory == "whole")
    assembly.sever("c")
    assembly.register(assembly.wait_for_leader(), ["sip:bob@example.com"])


def test_blank_node_founds_nothing(assemble: Assemble) -> None:
    assembly = assemble("abc")
    for name in "abc":
        assembly.seats[name].disk.wipe()
    assembly.start("abc")
    assembly.run(10.0)
    assert assembly.leader() is None
    for replica in assembly.running:
        status = replica.status()
        assert (status.memory, status.term, status.last_index, status.cluster_id) == ("blank", 0, 1, "")
        assert any("this node's disk is blank" in alarm for alarm in status.alarms)


def test_data_of_another_node_are_refused(assemble: Assemble) -> None:
    assembly = assemble("ab")
    assembly.seats["a"].disk, assembly.seats["b"].disk = assembly.seats["b"].disk, assembly.seats["a"].disk
    with pytest.raises(ConfigError, match="the data directory is that of node b, and this is a"):
        assembly.start("a")


def test_leader_whose_disk_hangs_says_so_and_another_leads(assembly: Assembly) -> None:
    assembly.seats["a"].disk.delay = (60.0, 60.0)
    assembly.propose("a", register("sip:alice@example.com"))
    assembly.until(lambda: assembly.leader() in {"b", "c"})
    assert "the disk of this node hangs" in str(assembly.replica("a").status().alarms)


def test_disk_that_cant_be_read_is_said(assemble: Assemble) -> None:
    assembly = assemble("a")
    assembly.seats["a"].disk.failing = {"sync"}
    with pytest.raises(ConfigError, match=r"can't use the data directory: .*sync fails"):
        assembly.start("a")


def test_log_that_is_durable_with_os_only_says_so(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("abc", sync=False)
    assembly.elect("a")
    assembly.register("a", ["sip:alice@example.com"])
    assert assembly.replica("a").status().durability == "os"


# Whom it talks to


def test_node_of_another_cluster_is_refused(assembly: Assembly) -> None:
    hello = msgspec.structs.replace(assembly.replica("b").inbox.introduce(), cluster_id="f" * 32)
    assert assembly.replica("a").inbox.greeted("b", hello) == "other cluster id"


def test_node_of_an_earlier_release_is_refused_once_the_schema_is_raised(assembly: Assembly) -> None:
    hello = msgspec.structs.replace(assembly.replica("b").inbox.introduce(), schema=SCHEMA - 1)
    assert assembly.replica("a").inbox.greeted("b", hello) == "older release"
    later = msgspec.structs.replace(assembly.replica("b").inbox.introduce(), schema=SCHEMA + 1)
    assert assembly.replica("a").inbox.greeted("b", later) is None


def test_schema_is_raised_when_every_member_knows_it(assemble: Assemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is down is asked first (pitfalls-log-vip 17)."""
    with monkeypatch.context() as earlier:
        first = founding._first_entries
        earlier.setattr(founding, "_first_entries", lambda voters, base: first(voters, base)[:1])
        assembly = assemble()
    assembly.start("ab")
    assembly.until(assembly.leader)
    assembly.run(3.0)
    assert {replica.machine.schema for replica in assembly.running} == {1}
    assembly.start("c")
    assembly.until(lambda: all(replica.machine.schema == SCHEMA for replica in assembly.running))
    raised = [b for m in assembly.said(AppendEntries) for b, _, _ in m.entries if b"raise" in b]
    assert {decode(command[1:]).schema for command in raised} == {SCHEMA}


def test_plain_refresh_is_a_short_record(assembly: Assembly) -> None:
    leader = assembly.replica(assembly.wait_for_leader())
    refreshes = [msgspec.structs.replace(register("sip:a@x"), cseq=cseq) for cseq in (1, 2, 3, 4)]
    assembly.register(leader.node, ["sip:a@x"])
    version = leader.machine.index
    # The second of one turn is shortened as the first is, to what isn't there any more when it is applied.
    outcomes = [assembly.propose(leader.node, record) for record in refreshes[1:]]
    assembly.until(lambda: all(outcomes))
    assembly.until(assembly.agree)
    for record, (outcome,) in zip(refreshes[1:], outcomes, strict=True):
        assert isinstance(outcome, Registered)
        assert outcome.bindings[0].cseq == record.cseq
    entries = {index: c for m in assembly.said(AppendEntries) for c, index, _ in m.entries if index > version}
    short, whole = (decode(entries[index][1:]).records for index in sorted(entries)[:2])
    assert short == tuple(Refresh("sip:a@x", version, cseq, 3600) for cseq in (2, 3, 4))
    assert whole == tuple(refreshes[2:])


def test_record_that_comes_to_a_node_that_doesnt_lead_is_not_handed_on(assembly: Assembly) -> None:
    """Two that take each other for the leader would hand it to and fro."""
    record = msgspec.msgpack.encode(register("sip:alice@example.com"))
    assembly.replica("c").inbox.received("b", Propose(1, record))
    assembly.run(0.1)
    (answer,) = assembly.said(ProposalOutcome, "c", "b")
    assert b"a leads the cluster" in answer.outcome
    assert not assembly.replica("a").lookup("sip:alice@example.com")


def test_stranger_is_not_heard(assembly: Assembly) -> None:
    """Only who has said hello as one of our cluster."""
    replica = assembly.replica("a")
    term = replica.term
    replica.inbox.received("x", RequestVote(term + 9, 99, term + 8, b""))
    assert replica.term == term


# The lease


def test_leadership_is_held_only_while_the_lease_lasts(assembly: Assembly) -> None:
    replica, diary = assembly.replica("a"), Diary()
    replica.leadership.observe(diary)
    until = replica._lease.until
    assembly.silent = {"a"}
    assembly.until(lambda: not replica.leading())
    assert assembly.clock.seconds() >= until
    assembly.run(0.001)
    assert diary.entries == ["gained", "lost"]
    assert assembly.wait_for_leader() != "a"


def test_claim_that_its_guard_has_ended_is_not_gone_on_with(assembly: Assembly) -> None:
    replica, diary = assembly.replica("a"), Diary()
    replica.leadership.observe(diary)
    secret, term = replica._lease.secret, replica.term
    replica.claim_ended()
    assert not replica.leading()
    assert diary.entries == ["gained", "lost"]
    assembly.until(replica.leading)
    assert diary.entries == ["gained", "lost", "gained"]
    assert replica._lease.secret not in {b"", secret}
    assert replica.term == term


def test_last_word_of_a_guard_lets_another_lead_at_once(assembly: Assembly) -> None:
    """Even if the daemon's connections ended before the word came, as they do when it is killed."""
    leader = assembly.replica("a")
    word, until = read_datagram(leader.last_word), leader.lease_until
    assembly.crash("a")
    assembly.run(0.01)
    for name in "bc":
        assembly.replica(name).inbox.last_word_heard(word)
    assembly.until(lambda: assembly.leader() is not None, limit=0.1)
    assert assembly.clock.seconds() < until


def test_those_who_wait_hear_that_no_majority_answers_while_the_lease_lasts(assembly: Assembly) -> None:
    """After it nothing may be sent to a phone."""
    replica, heard = assembly.replica("a"), list[tuple[bool, Outcome | Unavailable]]()
    assembly.silent = {"a"}
    for number in range(3):
        replica.propose(
            register(f"sip:{number}@example.com"), lambda outcome: heard.append((replica.leading(), outcome))
        )
    assembly.until(lambda: len(heard) == 3)
    assert {leading for leading, _ in heard} == {True}
    assert {type(outcome) for _, outcome in heard} == {UnknownOutcome}
    late = assembly.propose("a", register("sip:late@example.com"))
    assert [type(outcome) for outcome in late] == [NoQuorum]


def test_nothing_is_answered_before_the_barrier_is_applied(assembly: Assembly) -> None:
    """What earlier leaders have committed may be unknown until then."""
    assembly.silent = {"a"}
    replica = assembly.replica("b")
    assembly.replica("c")._raft.put_election(assembly.clock.seconds() + 5)
    assembly.until(lambda: replica._raft.leads)
    seen: list[tuple[bool, bool]] = []

    def look() -> bool:
        seen.append((replica.leading(), replica._raft.term_at(replica._raft.applied_index) == replica.term))
        return replica.leading()

    assembly.until(look)
    assert not [applied for leading, applied in seen if leading and not applied]
    assert (False, False) in seen


# Time


@pytest.mark.parametrize(("boot", "elapsed"), [("same", 100.0), ("another", 0.0)])
def test_time_goes_on_over_a_stop_of_all_nodes_while_the_machine_is_up(
    assemble: Assemble, boot: str, elapsed: float
) -> None:
    assembly = assemble("a")
    assembly.start("a", boot_id="same")
    assembly.until(assembly.leader)
    assembly.run(50.0)
    time = assembly.replica("a").cluster_time()
    assembly.stop("a")
    assembly.clock.advance(100.0)
    assembly.start("a", boot_id=boot)
    assert assembly.replica("a").cluster_time() == pytest.approx(time + elapsed, abs=2.1)


# Backup


def test_time_that_passes_after_an_entry_is_applied_counts(assemble: Assemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that starts, and knows the time from its log alone, is held up in the step that applies it."""
    assembly = assemble("a")
    assembly.start("a")
    assembly.elect("a")
    assembly.run(2 * memory.PERIOD)
    noted = assembly.replica("a")._memory._noted
    assembly.until(lambda: assembly.replica("a")._memory._noted > noted)
    assembly.run(0.8 * memory.PERIOD)
    assembly.register("a", ["sip:alice@example.com"])
    index, time = assembly.replica("a").machine.index, assembly.replica("a").machine.time / 1000
    assembly.crash("a", power_lost=True)
    assembly.start("a", boot_id="the next")
    replica = assembly.replica("a")
    clock, tick, late = replica._clock, replica._raft.tick, [0.0]
    replica._clock = lambda: clock() + late[0]

    def be_late() -> None:
        tick()
        if replica.machine.index >= index:
            late[0] = 3.0

    monkeypatch.setattr(replica._raft, "tick", be_late)
    assembly.until(lambda: late[0])
    assert replica.cluster_time() > time + 2.9


def test_backup_is_of_the_table_at_one_index(assembly: Assembly) -> None:
    assembly.register("a", [f"sip:{number}@example.com" for number in range(50)])
    replica = assembly.replica("a")
    frozen, table = replica.backup(), replica.machine.hash()
    assembly.register("a", ["sip:later@example.com"])
    assert frozen.header.index < replica.machine.index
    assert frozen.header.hash == table.to_bytes(16, "big")
    assert frozen.header.cluster_id == CLUSTER_ID
    assert replica._raft.term_at(frozen.header.index) == frozen.header.term
    assert b"sip:49@example.com" in b"".join(frozen)
    replica.free(frozen)


def test_progress_is_noted_each_second(assembly: Assembly) -> None:
    assembly.register("a", ["sip:alice@example.com"])
    commit = assembly.replica("a")._raft.commit_index
    assembly.run(2 * memory.PERIOD)
    for name in "abc":
        assembly.crash(name, power_lost=False)
    for name in Random(1).sample("abc", 3):
        assembly.start(name)
        assert assembly.replica(name)._storage.progress is not None
        assert assembly.replica(name)._raft.commit_index >= commit


def test_follower_that_knows_no_leader_refuses(assembly: Assembly) -> None:
    for name in "ab":
        assembly.crash(name)
    assembly.run(2.0)
    outcomes = assembly.propose("c", register("sip:alice@example.com"))
    assert [type(outcome) for outcome in outcomes] == [NotLeader]
    assert "no node leads the cluster yet" in str(outcomes[0])
