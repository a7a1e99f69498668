"""The gate's commands, and what it makes of libnftables' answers."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from sipha.vip.gate import Gate, GateError, Lapsed, ruleset
from sipha.vip.placement import Placement
from tests.vip.kernel import FakeKernel

ADDRESSES = ("192.0.2.10", "2001:db8::10")
PLACEMENTS = (Placement("192.0.2.10", "eth0.5", 24), Placement("2001:db8::10", "eth0.5", 128))


def test_ruleset_names_addresses_and_interface() -> None:
    rules = ruleset(PLACEMENTS, {"lo", "eth0.5"})
    assert "arp saddr ip 192.0.2.10 arp saddr ip != @lease drop" in rules
    assert 'arp operation reply arp saddr ip 192.0.2.10 oifname != "eth0.5" drop' in rules
    assert "ip6 saddr 2001:db8::10 ip6 saddr != @lease6 drop" in rules
    assert rules.count('hook egress device "eth0.5"') == 1


def test_gate_hangs_on_no_interface_that_is_not_there() -> None:
    assert "hook egress" not in ruleset(PLACEMENTS, {"lo"})


def test_gate_opens_until_the_deadline() -> None:
    kernel = FakeKernel()
    gate = Gate(PLACEMENTS, kernel.now, kernel.nft)
    gate.install()
    assert not kernel.passes(ADDRESSES[0])
    gate.open(ADDRESSES, kernel.now() + 0.3)
    kernel.clock.advance(0.29)
    assert all(map(kernel.passes, ADDRESSES))
    kernel.clock.advance(0.01)
    assert not any(map(kernel.passes, ADDRESSES))


def test_gate_that_has_shut_is_not_renewed() -> None:
    kernel = FakeKernel()
    gate = Gate(PLACEMENTS, kernel.now, kernel.nft)
    gate.install()
    gate.open(ADDRESSES, kernel.now() + 0.3)
    kernel.clock.advance(0.3)
    with pytest.raises(Lapsed):
        gate.renew(ADDRESSES, kernel.now() + 0.3)
    assert not any(map(kernel.passes, ADDRESSES))


def test_gate_says_so_when_it_is_renewed_too_late() -> None:
    clock = Clock()
    commands: list[str] = []

    def run(text: str) -> None:
        clock.advance(0.3)
        commands.append(text)

    gate = Gate(PLACEMENTS, clock.seconds, run)
    with pytest.raises(Lapsed):
        gate.renew(ADDRESSES, 0.3)
    assert len(commands) == 1
    with pytest.raises(Lapsed):
        gate.renew(ADDRESSES, 0.3)
    assert len(commands) == 1, "what is late already isn't begun"


def test_gate_is_shut_by_being_made_anew_where_it_is_gone() -> None:
    kernel = FakeKernel()
    gate = Gate(PLACEMENTS, kernel.now, kernel.nft)
    gate.shut()
    assert kernel.done == ["shut", "install"]
    kernel.gate = None
    with pytest.raises(GateError):
        gate.renew(ADDRESSES, kernel.now() + 1)
