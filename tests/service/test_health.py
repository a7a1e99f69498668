from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from sipha.service.health import RECOVERY, STALL, TICK, Health


class Node:
    """A node with two links, whose clock may run on while its reactor stands still."""

    def __init__(self, directory: Path, lease: float = 0.0) -> None:
        self.reactor = Clock()
        self.held_up = 0.0
        self.told: list[str] = []
        self.directory = directory
        for name in ("eth0", "eth1"):
            self.set_link(name, "1\n")
        self.health = Health(self.reactor, self.now, self.told.append, ("eth0", "eth1"), directory, lease=lease)
        self.health.startService()

    def now(self) -> float:
        return self.reactor.seconds() + self.held_up

    def set_link(self, name: str, carrier: str) -> None:
        (self.directory / name).mkdir(exist_ok=True)
        (self.directory / name / "carrier").write_text(carrier)

    def run(self, seconds: float) -> None:
        self.reactor.pump([TICK / 2] * round(2 * seconds / TICK))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_node_is_well_while_nothing_is_wrong(node: Node) -> None:
    node.run(60)
    assert node.health.well()
    assert node.told == []


@pytest.mark.parametrize("carrier", ["0\n", "", None])
def test_node_whose_link_is_down_is_unwell(node: Node, carrier: str | None) -> None:
    if carrier is None:
        (node.directory / "eth1" / "carrier").unlink()
    else:
        node.set_link("eth1", carrier)
    node.run(2 * TICK)
    assert not node.health.well()
    assert node.told == ["the link of eth1 is down"]


def test_node_is_well_again_some_time_after_the_last_fault(node: Node) -> None:
    for _ in range(5):  # a link that comes and goes
        node.set_link("eth0", "0\n")
        node.run(1)
        node.set_link("eth0", "1\n")
        node.run(RECOVERY - 1)
        assert not node.health.well()
    node.run(2)
    assert node.health.well()
    assert node.told == ["the link of eth0 is down", ""]


def test_node_that_was_held_up_is_unwell(node: Node) -> None:
    node.run(1)
    node.held_up += STALL - TICK
    node.run(1)
    assert node.health.well()
    node.held_up += STALL + TICK
    node.run(TICK)
    assert not node.health.well()
    assert node.told == ["the process was held up for 1.2 s"]


def test_node_that_was_held_up_for_less_than_its_lease_lasts_is_well(tmp_path: Path) -> None:
    node = Node(tmp_path, lease=2 * STALL)
    node.run(1)
    node.held_up += 2 * STALL - TICK
    node.run(1)
    assert node.health.well()
    node.held_up += 2 * STALL + TICK
    node.run(TICK)
    assert not node.health.well()


def test_node_that_takes_long_to_start_is_well(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.held_up += 10.0
    node.run(5)
    assert node.health.well()


def test_one_fault_after_the_other_is_told(node: Node) -> None:
    node.set_link("eth1", "0\n")
    node.run(5)
    node.health.fault("listener", "nobody answers")
    node.set_link("eth1", "1\n")
    node.run(RECOVERY - 1)
    assert node.told == ["the link of eth1 is down"]
    node.health.fault("listener", "nobody answers")
    node.run(2)
    assert node.told == ["the link of eth1 is down", "nobody answers"]
    node.run(RECOVERY)
    assert node.told[-1] == ""


def test_fault_that_is_shown_to_be_gone_counts_no_longer_than_the_others(node: Node) -> None:
    node.health.fault("listener", "nobody answers", 60)
    node.run(1)
    for _ in range(9):
        node.health.passed("listener")
        node.health.passed("another")
        node.run(1)
    assert not node.health.well()
    node.run(2)
    assert node.health.well()


def test_fault_that_comes_back_counts_for_ever_longer_until_it_has_passed(node: Node) -> None:
    rests = []
    for _ in range(5):
        node.health.fault("address", "another host has it", 10, 60)
        node.run(1)
        node.health.fault("address", "another host has it", 10, 60)
        began = node.now()
        while not node.health.well():
            node.run(TICK)
        rests.append(round(node.now() - began))
    assert rests == [10, 20, 40, 60, 60]
    node.health.passed("address")
    node.health.fault("address", "another host has it", 10, 60)
    node.run(11)
    assert node.health.well()


def test_node_that_is_stopped_looks_no_more(node: Node) -> None:
    node.health.stopService()
    assert not node.reactor.getDelayedCalls()


def test_fault_that_is_over_counts_no_longer(node: Node) -> None:
    node.health.fault("place", "the address isn't here", float("inf"))
    node.run(2 * RECOVERY)
    assert not node.health.well()
    node.health.over("place")
    node.health.over("place")
    assert node.health.well()
    assert node.told == ["the address isn't here", ""]
