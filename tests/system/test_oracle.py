"""Never do two nodes have the virtual addresses, whatever befalls daemon, guard, link or network: as captured."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from sipha.sandbox import SandboxNode
from tests.system.capture import Capture
from tests.system.conftest import wait_until
from tests.system.faults import (
    STEP,
    Fault,
    cut_all_off,
    cut_it_off,
    cut_it_off_with_the_caller,
    cut_what_it_hears,
    cut_what_it_sends,
    kill_both,
    kill_daemon,
    kill_guard,
    lose_half,
    set_clock_ahead,
    set_clock_back,
    stop_both,
    stop_daemon,
    stop_guard,
    unplug,
)
from tests.system.hosts import LEASE, VIRTUAL, Hosts
from tests.system.oracle import check_one_holder, uses_between

pytestmark = pytest.mark.system

GONE = LEASE + 0.3 + 0.05
"""A leader that is cut off, stopped or dead uses the addresses for so many seconds at most, by promise 3."""

ROUNDS = 50
BETWEEN = 0.5
"""For how long the capture looks on when all is well, in seconds."""


MOVING: list[Fault] = [
    kill_daemon,
    kill_guard,
    kill_both,
    stop_daemon,
    stop_guard,
    stop_both,
    unplug,
    cut_what_it_sends,
    cut_what_it_hears,
    cut_it_off,
    cut_it_off_with_the_caller,
]
"""After these another node must have the addresses, and the leader stays without them until it is well again."""

STEPS: list[Fault] = [set_clock_ahead, set_clock_back]
"""These change nothing."""


@pytest.fixture(scope="module")
def running_hosts(can_build_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts.run(tmp_path_factory.mktemp("hosts"), clocks=True) as hosts:
        yield hosts


def named(fault: Fault) -> str:
    return fault.__name__


def befall(hosts: Hosts, fault: Fault, leader: SandboxNode) -> tuple[float, float]:
    """Let it befall the leader until another leads, and mend it; return when it had befallen and when it is mended."""
    fault(hosts, leader)
    befallen = time.time()
    others = [node for node in hosts.nodes if node is not leader]
    wait_until(lambda: any(hosts.leads(node) for node in others), f"another to lead after {fault.__name__}")
    time.sleep(BETWEEN)
    mended = time.time()
    hosts.restore()
    return befallen, mended


def leader_that_stays(hosts: Hosts) -> SandboxNode:
    """Wait until who leads is well, and one more to whom it could hand leadership.

    A leader that is unwell since the fault before hands it on soon, and goes on leading if all others are unwell, too.
    """
    found: list[SandboxNode] = []

    def is_well(node: SandboxNode) -> bool:
        status = hosts.quick_status(node)
        return status is not None and not any("is unwell" in alarm for alarm in status["alarms"])

    def leads_well() -> bool:
        leader = hosts.wait_for_leader()
        found.append(leader)
        return is_well(leader) and hosts.leads(leader) and sum(map(is_well, hosts.nodes)) > 1

    wait_until(leads_well, "a leader that is well, and another node")
    return found[-1]


@pytest.mark.parametrize("fault", MOVING, ids=named)
def test_addresses_move_and_are_never_at_two_nodes(hosts: Hosts, fault: Fault) -> None:
    leader = leader_that_stays(hosts)
    with Capture(hosts.network, VIRTUAL) as capture:
        time.sleep(BETWEEN)
        befallen, mended = befall(hosts, fault, leader)
        time.sleep(BETWEEN)
        last = hosts.wait_for_leader()
    found = check_one_holder(capture)
    assert found[0].node == leader.name
    # Who took over may be unwell since the fault before, and hand leadership on as soon as another is there to take it.
    assert found[-1].node in {last.name, hosts.wait_for_leader().name}
    assert any(tenure.node != leader.name for tenure in found)
    assert not uses_between(capture, leader.name, befallen + GONE, mended)


def test_nobody_has_the_addresses_when_all_are_cut_off(hosts: Hosts) -> None:
    leader = leader_that_stays(hosts)
    with Capture(hosts.network, VIRTUAL) as capture:
        time.sleep(BETWEEN)
        cut_all_off(hosts, leader)
        befallen = time.time()
        time.sleep(2.0)
        mended = time.time()
        hosts.restore()
        time.sleep(BETWEEN)
    found = check_one_holder(capture)
    assert found[0].node == leader.name
    assert found[-1].node == hosts.wait_for_leader().name
    for node in hosts.nodes:
        assert not uses_between(capture, node.name, befallen + GONE, mended)


def test_addresses_stay_when_a_follower_fails(hosts: Hosts) -> None:
    leader = leader_that_stays(hosts)
    follower = next(node for node in hosts.nodes if node is not leader)
    with Capture(hosts.network, VIRTUAL) as capture:
        for fault in (cut_it_off, stop_daemon, kill_both):
            fault(hosts, follower)
            time.sleep(1.0)
            hosts.restore()
    assert [tenure.node for tenure in check_one_holder(capture)] == [leader.name]


@pytest.mark.parametrize("fault", STEPS, ids=named)
def test_addresses_stay_when_the_leaders_wall_clock_is_set(hosts: Hosts, fault: Fault) -> None:
    leader = leader_that_stays(hosts)
    with Capture(hosts.network, VIRTUAL) as capture:
        fault(hosts, leader)
        wait_until(lambda: abs(hosts.wall_clock(leader) - time.time()) > STEP - 60, "the clock to be another")
        time.sleep(2.0)
        hosts.restore()
        time.sleep(2.0)
    assert [tenure.node for tenure in check_one_holder(capture)] == [leader.name]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_addresses_are_never_at_two_nodes_in_many_rounds(hosts: Hosts) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(ROUNDS):
        fault = chance.choice([*MOVING, *STEPS, cut_all_off, lose_half])
        leader = hosts.wait_for_leader()
        print(f"round {number}: {fault.__name__} befalls {leader.name}", flush=True)
        with Capture(hosts.network, VIRTUAL) as capture:
            time.sleep(chance.random())
            fault(hosts, leader)
            time.sleep(chance.uniform(0.05, 3.0))  # often it is mended while the others are about to take over
            hosts.restore()
            time.sleep(BETWEEN)
            last = hosts.wait_for_leader()
        found = check_one_holder(capture)
        # A node that was unwell in an earlier round may have become well just now, and have been given leadership.
        assert found[-1].node in {last.name, hosts.wait_for_leader().name}
