"""Phones behind a router that admits nothing but the virtual address are called, before and after a failover."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.capture import Capture, Kind
from tests.system.conftest import wait_until
from tests.system.faults import kill_daemon
from tests.system.handsets import Handset, Handsets
from tests.system.hosts import VIRTUAL, Hosts
from tests.system.network import OUTSIDE, ROUTER
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

SERVER = (VIRTUAL[0], 5060)


@pytest.fixture
def bob(hosts: Hosts) -> Iterator[Handset]:
    """A phone behind the strict router, which is registered and says that it is busy."""
    hosts.network.admit_only(*SERVER)
    with Handsets(hosts.network, ["bob"], hosts.domain, SERVER) as handsets:
        handsets.wait_until_registered(5.0)
        yield handsets.phones[0]
    hosts.network.admit_all()


@pytest.fixture
def alice(hosts: Hosts) -> Iterator[UserAgent]:
    with hosts.network.inside(OUTSIDE):
        agent = UserAgent("alice", SERVER, host=hosts.network.host(OUTSIDE))
    yield agent
    agent.close()


def test_calls_pass_a_strict_firewall_before_and_after_a_failover(hosts: Hosts, bob: Handset, alice: UserAgent) -> None:
    leader = hosts.wait_for_leader()
    with Capture(hosts.network, VIRTUAL) as capture:
        alice.invite(f"sip:bob@{hosts.domain}")
        alice.expect(486)
        kill_daemon(hosts, leader)
        wait_until(lambda: hosts.leader() not in (None, leader), "another node to lead")
        alice.invite(f"sip:bob@{hosts.domain}")
        alice.expect(486)
    assert [call.source for call in bob.calls] == [SERVER, SERVER]
    router = hosts.network.host(ROUTER)
    sources = {frame.source for frame in capture.frames if frame.kind is Kind.UDP and frame.target == router}
    assert sources == {VIRTUAL[0]}
