"""Each phone behind the NAT is pinged once in an interval, from the virtual address alone, whoever leads.

A scaled interval here; ten minutes with the usual 25 s in the long test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest

from sipha.sandbox import SandboxNode
from tests.system.capture import Capture, Kind
from tests.system.conftest import wait_until
from tests.system.faults import Fault, kill_daemon, transfer
from tests.system.handsets import Handsets
from tests.system.hosts import VIRTUAL, Hosts
from tests.system.network import ROUTER
from tests.system.oracle import check_one_holder

pytestmark = pytest.mark.system

SERVER = (VIRTUAL[0], 5060)
PHONES = tuple(f"phone{number}" for number in range(200))
INTERVAL = 2.0
LONG_INTERVAL = 25.0
TOLERANCE = 1.0
"""By how much the time between two pings may differ from the interval, in seconds; failovers included."""

UNKNOWN = 0.15
"""For so many seconds before it fails, or hands leadership on, the others may not know whom a leader has pinged."""

MAX_LOST = 4
PING_TIMEOUT = 0.5

BLOCK = """\
table ip blocked {{
    chain output {{
        type filter hook output priority 0
        ip daddr {} udp sport 5060 drop
    }}
}}
"""
"""To whom nothing may be sent: the kernel says EPERM."""


def nat(interval: float) -> str:
    """Return a section [nat] under which phones that don't answer are removed."""
    return (
        f"[nat]\nping_interval = {interval}\nping_timeout = {PING_TIMEOUT}\n"
        f"remove_unreachable = true\nmax_lost = {MAX_LOST}\n"
    )


@pytest.fixture(scope="module")
def running_hosts(can_build_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts.run(tmp_path_factory.mktemp("hosts"), extra=nat(INTERVAL)) as hosts:
        add_phones(hosts)
        yield hosts


@pytest.fixture
def handsets(hosts: Hosts) -> Iterator[Handsets]:
    """All phones, registered; the times of their pings count from now on."""
    with registered(hosts) as handsets:
        yield handsets


def add_phones(hosts: Hosts) -> None:
    accounts = [{"username": user, "domain": hosts.domain, "password": f"{user}-secret"} for user in PHONES]
    hosts.request(hosts.wait_for_leader(), "POST", "/v1/accounts", accounts)


@contextmanager
def registered(hosts: Hosts, users: Sequence[str] = PHONES) -> Iterator[Handsets]:
    """Run the phones, all registered, and remove their bindings in the end."""
    with Handsets(hosts.network, users, hosts.domain, SERVER) as handsets:
        handsets.wait_until_registered(20.0)
        yield handsets
        leader = hosts.restore()
        for user in bound(hosts, leader):
            hosts.request(leader, "DELETE", f"/v1/bindings/{user}@{hosts.domain}")


def bound(hosts: Hosts, node: SandboxNode) -> set[str]:
    """The users that have a binding, as a node's table says."""
    listed = hosts.request(node, "GET", "/v1/bindings?limit=1000")["bindings"]
    return {binding["aor"].removeprefix("sip:").partition("@")[0] for binding in listed}


def removals(hosts: Hosts, user: str) -> int:
    """How often a binding of a user has been removed because he answers no pings, as the logs of all nodes say."""
    logs = [(node.directory / "log").read_text(encoding="utf-8", errors="replace") for node in hosts.nodes]
    return sum(log.count(f"sip:{user}@{hosts.domain} is removed, reason ping-timeout") for log in logs)


def check_pings(handsets: Handsets, interval: float, begin: float, end: float, faults: Sequence[float] = ()) -> None:
    """Check that in this time each phone heard a ping in each interval, from the virtual address and nobody else.

    What a leader pings just before it fails, at one of the times `faults`, the next one pings again: it can't know.
    """
    pauses: list[tuple[float, str]] = []
    repeated = 0
    for phone in handsets.phones:
        assert {ping.source for ping in phone.pings} == {SERVER}, phone.user
        times = [ping.time for ping in phone.pings if begin <= ping.time <= end]
        again = {
            after
            for before, after in pairwise(times)
            if after - before < TOLERANCE and any(abs(before - fault) < UNKNOWN for fault in faults)
        }
        repeated += len(again)
        times = [when for when in times if when not in again]
        assert times, phone.user
        assert times[0] <= begin + interval + TOLERANCE, phone.user
        assert times[-1] >= end - interval - TOLERANCE, phone.user
        pauses += [(after - before, phone.user) for before, after in pairwise(times)]
    print(
        f"{len(handsets.phones)} phones, {end - begin:.0f} s, {len(faults)} failovers: between two pings "
        f"{min(pauses)[0]:.2f} to {max(pauses)[0]:.2f} s; {repeated} came again after a failover"
    )
    assert interval - TOLERANCE <= min(pauses)[0], min(pauses)
    assert max(pauses)[0] <= interval + TOLERANCE, max(pauses)
    assert repeated <= len(faults) * len(handsets.phones) * 2 * UNKNOWN / interval


def fail_over(hosts: Hosts, fault: Fault) -> None:
    """Let it befall the leader, and wait until another leads and all are well."""
    leader = hosts.wait_for_leader()
    others = [node for node in hosts.nodes if node is not leader]
    fault(hosts, leader)
    wait_until(lambda: any(hosts.leads(node) for node in others), f"another to lead after {fault.__name__}")
    hosts.restore()


def run_through_failovers(hosts: Hosts, interval: float, seconds: float) -> None:
    """Watch the phones for so long, while leadership moves twice."""
    with registered(hosts) as handsets, Capture(hosts.network, VIRTUAL) as capture:
        time.sleep(interval)
        begin = time.time()
        faults: list[float] = []
        for fault in (kill_daemon, transfer):
            time.sleep(seconds / 3)
            faults.append(time.time())
            fail_over(hosts, fault)
        time.sleep(seconds / 3)
        end = time.time()
        for node in hosts.nodes:
            assert bound(hosts, node) == set(PHONES), node.name
    check_pings(handsets, interval, begin, end, faults)
    check_one_holder(capture)
    router = hosts.network.host(ROUTER)
    strangers = {frame.source for frame in capture.frames if frame.kind is Kind.UDP and frame.target == router}
    assert strangers == {VIRTUAL[0]}


def test_each_phone_is_pinged_once_in_an_interval_through_two_failovers(hosts: Hosts) -> None:
    run_through_failovers(hosts, INTERVAL, 8 * INTERVAL)


def test_no_phone_is_removed_because_the_leader_cannot_send(hosts: Hosts, handsets: Handsets) -> None:
    leader = hosts.wait_for_leader()
    wait_until(lambda: all(phone.pings for phone in handsets.phones), "pings", 3 * INTERVAL)
    hosts.network.run(leader.name, "nft", "--file", "-", text=BLOCK.format(hosts.network.host(ROUTER)))
    blocked = time.time()
    time.sleep(12 * INTERVAL)
    assert not [ping for phone in handsets.phones for ping in phone.pings if ping.time > blocked + 0.5]
    hosts.network.run(leader.name, "nft", "delete", "table", "ip", "blocked")
    opened = time.time()
    assert hosts.wait_for_leader() is leader
    time.sleep((MAX_LOST + 1) * INTERVAL)
    for node in hosts.nodes:
        assert bound(hosts, node) == set(PHONES), node.name
    check_pings(handsets, INTERVAL, opened, time.time())


def test_phone_that_is_switched_off_is_removed_once_on_all_nodes(hosts: Hosts, handsets: Handsets) -> None:
    phone = handsets.phones[0]
    wait_until(lambda: phone.pings, "a ping", 3 * INTERVAL)
    before = removals(hosts, phone.user)
    phone.on = False
    off = time.time()
    due = MAX_LOST * INTERVAL + PING_TIMEOUT
    leader = hosts.wait_for_leader()
    wait_until(lambda: phone.user not in bound(hosts, leader), "the phone to be removed", due + 2 * INTERVAL)
    took = time.time() - off
    print(f"removed after {took:.1f} s, {due:.1f} s are due")
    assert due - INTERVAL - TOLERANCE <= took
    wait_until(lambda: all(phone.user not in bound(hosts, node) for node in hosts.nodes), "all nodes to remove it")
    time.sleep(INTERVAL)
    assert removals(hosts, phone.user) == before + 1
    for node in hosts.nodes:
        assert bound(hosts, node) == set(PHONES) - {phone.user}, node.name


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("extra", "interval"),
    [
        pytest.param("[nat]\nping_interval = 4.0\nmax_lost = 2\nremove_unreachable = true\n", 4.0, id="removing"),
        pytest.param("", 25.0, marks=pytest.mark.long, id="default"),
    ],
)
def test_nodes_that_cannot_send_from_the_address_remove_nobody(
    can_build_networks: None, tmp_path_factory: pytest.TempPathFactory, extra: str, interval: float
) -> None:
    """The incumbents' flaw: the backup's pings can't leave, and what it takes for lost is deleted everywhere."""
    users = PHONES[:40]
    with Hosts.run(tmp_path_factory.mktemp("hosts"), extra=extra) as hosts:
        add_phones(hosts)
        with registered(hosts, users) as handsets:
            begin = time.time() + 1.0
            time.sleep(1.0 + 3.5 * interval)
            for node in hosts.nodes:
                assert bound(hosts, node) == set(users), node.name
            check_pings(handsets, interval, begin, time.time())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_each_phone_is_pinged_once_in_25_s_through_two_failovers(
    can_build_networks: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Hosts.run(tmp_path_factory.mktemp("hosts"), extra=nat(LONG_INTERVAL)) as hosts:
        add_phones(hosts)
        run_through_failovers(hosts, LONG_INTERVAL, 600.0)
