"""How long the virtual address isn't served when its holder fails: an OPTIONS each 20 ms from outside measures it."""

from __future__ import annotations

import statistics
import time
from itertools import cycle

import pytest

from tests.system.conftest import wait_until
from tests.system.faults import Fault, kill_both, kill_daemon, stop_both, stop_daemon, terminate, transfer, unplug
from tests.system.hosts import VIRTUAL, Hosts
from tests.system.probe import Probe, describe, make_probe

pytestmark = pytest.mark.system

ROUNDS = 20
WITHIN = 10.0
"""How long it may take until the address is served again, in seconds."""

SUDDEN: dict[Fault, tuple[float, float]] = {
    kill_daemon: (0.2, 1.0),
    kill_both: (1.0, 2.5),
    stop_daemon: (1.0, 2.5),
    stop_both: (1.0, 2.5),
    unplug: (1.0, 2.5),
}
"""Promise 6: how long the outage may be at the median and at worst, in seconds."""

PLANNED: tuple[Fault, ...] = (transfer, terminate)


def named(value: Fault | str) -> str:
    return value if isinstance(value, str) else value.__name__


def befall(hosts: Hosts, fault: Fault, address: str = VIRTUAL[0]) -> Probe:
    """Let it befall the leader while a probe asks, until another serves the address; then mend it."""
    leader = hosts.wait_for_leader()
    others = [node for node in hosts.nodes if node is not leader]
    with make_probe(hosts.network, (address, 5060)) as probe:
        assert probe.wait_for_answer(WITHIN)
        time.sleep(0.3)
        befallen = time.time()
        fault(hosts, leader)
        wait_until(lambda: any(hosts.leads(node) for node in others), f"another to lead after {fault.__name__}")
        assert probe.wait_for_answer(WITHIN), f"no answer after {fault.__name__}"
        time.sleep(0.5)
    print(
        f"{fault.__name__}, {address}: {describe(probe.outages, befallen)}; {probe.unanswered} never answered; "
        f"asked at least each {probe.pace * 1000:.0f} ms"
    )
    hosts.restore()
    return probe


@pytest.mark.parametrize(("fault", "address"), list(zip(SUDDEN, cycle(VIRTUAL), strict=False)), ids=named)
def test_outage_is_short_when_the_leader_fails(hosts: Hosts, fault: Fault, address: str) -> None:
    _, worst = SUDDEN[fault]
    assert befall(hosts, fault, address).outage <= worst


@pytest.mark.parametrize("fault", PLANNED, ids=named)
def test_no_request_is_lost_when_leadership_is_handed_on(hosts: Hosts, fault: Fault) -> None:
    hosts.wait_until_well()  # else nobody may have leadership
    assert befall(hosts, fault).unanswered == 0


def test_no_request_is_lost_when_a_leader_stops_and_no_other_node_is_well(hosts: Hosts) -> None:
    leader = hosts.wait_for_leader()
    for node in hosts.nodes:
        if node is not leader:
            unplug(hosts, node)
            time.sleep(0.6)
            hosts.restore()
    time.sleep(1.0)  # they have yet to find each other again
    assert befall(hosts, terminate).unanswered == 0


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", SUDDEN, ids=named)
def test_outages_are_short_in_many_rounds(hosts: Hosts, fault: Fault) -> None:
    outages = [befall(hosts, fault, VIRTUAL[number % 2]).outage for number in range(ROUNDS)]
    found = statistics.median(outages), max(outages)
    print(f"{fault.__name__}: median {found[0]:.2f} s, worst {found[1]:.2f} s of {ROUNDS} rounds")
    median, worst = SUDDEN[fault]
    assert found[0] <= median
    assert found[1] <= worst


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", PLANNED, ids=named)
def test_no_request_is_lost_in_many_rounds(hosts: Hosts, fault: Fault) -> None:
    hosts.wait_until_well()  # else nobody may have leadership
    assert sum(befall(hosts, fault).unanswered for _ in range(ROUNDS)) == 0
