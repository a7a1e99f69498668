from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.logger import LogEvent
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sipha.cluster import replica as module
from sipha.cluster.leadership import ILeader
from sipha.cluster.peers import INetworkUser
from sipha.cluster.raft import Timing
from sipha.cluster.replica import Replica
from sipha.errors import ConfigError, NotLeader, Unavailable, UnknownOutcome
from sipha.sip.flow import Address
from sipha.state.entries import Contact, Policy, PutAccount, Register
from sipha.state.interfaces import ICredentials, ILocation, ILog
from sipha.state.outcomes import Done, Invalid, Outcome, Registered
from tests.cluster.world import World


@implementer(ILeader)
class Diary:
    def __init__(self) -> None:
        self.entries: list[str] = []

    def gained(self) -> None:
        self.entries.append("gained")

    def lost(self) -> None:
        self.entries.append("lost")


class Cluster:
    """Replicas in one process that talk over real connections."""

    def __init__(self, world: World, addresses: dict[str, Address], directory: Path) -> None:
        self.world = world
        self.addresses = addresses
        self.directory = directory
        self.replicas: dict[str, Replica] = {}
        self.diaries: dict[str, Diary] = {}
        self.failed: list[str] = []

    def start(self, *names: str) -> None:
        for name in names:
            peers = {peer: address for peer, address in self.addresses.items() if peer != name}
            self.replicas[name] = Replica(
                self.world.reactor,
                name,
                self.addresses[name],
                peers,
                self.directory / name,
                Policy(),
                timing=Timing(election_min=0.8, election_max=1.6),  # the machine may be busy
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


def register(aor: str, **more: Any) -> Register:
    return Register(aor, f"call of {aor}", 1, (Contact(f"{aor};transport=udp", 3600),), **more)


@pytest.fixture
def cluster(world: World, addresses: dict[str, Address], tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(world, addresses, tmp_path)
    yield cluster
    for name in list(cluster.replicas):
        cluster.stop(name)


@pytest.fixture
def lone(world: World, tmp_path: Path) -> Iterator[Replica]:
    """A cluster of one."""
    replica = Replica(world.reactor, "a", ("127.0.0.1", 5070), {}, tmp_path / "data", Policy())
    replica.start()
    world.until(replica.leading)
    yield replica
    replica.stop()


def test_replica_is_what_the_rest_asks_for(lone: Replica) -> None:
    for interface in (ILog, ILocation, ICredentials, INetworkUser):
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


def test_follower_refuses_and_names_the_leader(cluster: Cluster) -> None:
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    follower = next(replica for replica in cluster.replicas.values() if replica is not leader)
    cluster.world.until(lambda: follower.leader)
    (outcome,) = cluster.register(follower, "sip:alice@example.com")
    assert isinstance(outcome, NotLeader)
    assert leader.node in str(outcome)


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


def test_first_leader_makes_the_key_and_later_ones_keep_it(world: World, tmp_path: Path) -> None:
    rings = []
    for _ in range(2):
        replica = Replica(world.reactor, "a", ("127.0.0.1", 5070), {}, tmp_path, Policy())
        replica.start()
        world.until(replica.leading)
        rings.append(replica.machine.keys.ring)
        replica.stop()
    assert rings[0] == rings[1]
    assert [len(secret) for secret in rings[0].values()] == [32]


def test_status_says_what_the_node_does(lone: Replica) -> None:
    status = lone.status()
    assert (status.node, status.role, status.leading, status.leader) == ("a", "leader", True, "a")
    assert status.lease is None
    assert status.applied_index == status.commit_index == status.last_index
    assert status.hash == f"{lone.machine.hash():032x}"
    assert 0 < status.journal_bytes < status.journal_limit
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


def test_full_log_takes_nothing_more(lone: Replica, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOURNAL_LIMIT", lone.status().journal_bytes)
    outcomes: list[Outcome | Unavailable] = []
    while len(outcomes) < 2:
        lone.propose(register("sip:alice@example.com"), outcomes.append)
        world.turn(0.05)
    assert "the log is full" in str(outcomes[-1])


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
    tick = leader._voter.tick
    failing: list[int] = [1, 2]

    def fail() -> None:
        if failing:
            if failing != [0]:
                failing.pop()
            raise ZeroDivisionError
        tick()

    monkeypatch.setattr(leader._voter, "tick", fail)
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


def test_replica_whose_memory_is_full_takes_no_more_part(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, failures: list[LogEvent]
) -> None:
    """An entry that was applied in part makes a table unlike the others'."""
    cluster.start("a", "b", "c")
    leader = cluster.wait_for_leader()
    apply = leader.machine.location.register

    def fail(request: Register) -> Any:
        if request.aor == "sip:bob@example.com":
            raise MemoryError
        return apply(request)

    monkeypatch.setattr(leader.machine.location, "register", fail)
    outcomes = cluster.register(leader, "sip:alice@example.com", "sip:bob@example.com")
    assert {type(outcome) for outcome in outcomes} == {UnknownOutcome}
    assert cluster.failed == ["the memory is full"]
    assert not failures
    new = cluster.wait_for_leader()
    assert new is not leader
    assert new.bindings("sip:bob@example.com")


def test_data_directory_is_ours_alone(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "data"
    directory.mkdir(parents=True, mode=0o755)
    first = Replica(world.reactor, "a", ("127.0.0.1", 5070), {}, directory, Policy())
    assert directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="another process uses the data directory"):
        Replica(world.reactor, "a", ("127.0.0.1", 5070), {}, directory, Policy())
    first.stop()


def test_data_directory_that_cant_be_made_is_said(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't use the data directory"):
        Replica(world.reactor, "a", ("127.0.0.1", 5070), {}, tmp_path / "file" / "data", Policy())


def test_address_that_others_can_reach_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a loopback address"):
        Replica(world.reactor, "a", ("192.0.2.1", 5070), {}, tmp_path, Policy())
