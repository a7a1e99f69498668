"""What can befall a node of the network; `Hosts.restore` undoes it."""

from __future__ import annotations

import signal
from collections.abc import Callable

from sipha.sandbox import SandboxNode
from tests.system.hosts import Hosts
from tests.system.network import OUTSIDE

Fault = Callable[[Hosts, SandboxNode], object]

STEP = 3700
"""Seconds by which a wall clock is set wrong: more than an hour."""


def kill_daemon(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.daemon(node), signal.SIGKILL)


def kill_guard(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.guard(node), signal.SIGKILL)


def kill_both(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.daemon(node) + hosts.guard(node), signal.SIGKILL)


def stop_daemon(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.daemon(node), signal.SIGSTOP)


def stop_guard(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.guard(node), signal.SIGSTOP)


def stop_both(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.daemon(node) + hosts.guard(node), signal.SIGSTOP)


def terminate(hosts: Hosts, node: SandboxNode) -> None:
    hosts.signal(hosts.daemon(node), signal.SIGTERM)


def transfer(hosts: Hosts, node: SandboxNode) -> None:
    hosts.request(node, "POST", "/v1/transfer", {})


def unplug(hosts: Hosts, node: SandboxNode) -> None:
    hosts.network.unplug(node.name)


def lose_half(hosts: Hosts, node: SandboxNode) -> None:
    hosts.network.lose(node.name, 50)


def cut_what_it_sends(hosts: Hosts, node: SandboxNode) -> None:
    for place in set(hosts.network.ports) - {node.name}:
        hosts.network.cut(node.name, place)


def cut_what_it_hears(hosts: Hosts, node: SandboxNode) -> None:
    for place in set(hosts.network.ports) - {node.name}:
        hosts.network.cut(place, node.name)


def cut_it_off(hosts: Hosts, node: SandboxNode) -> None:
    hosts.network.partition({node.name}, {OUTSIDE})


def cut_it_off_with_the_caller(hosts: Hosts, node: SandboxNode) -> None:
    hosts.network.partition({other.name for other in hosts.nodes if other is not node}, {node.name, OUTSIDE})


def cut_all_off(hosts: Hosts, _: SandboxNode) -> None:
    hosts.network.partition(*({node.name} for node in hosts.nodes))


def set_clock_ahead(hosts: Hosts, node: SandboxNode) -> None:
    hosts.set_clock(node, STEP)


def set_clock_back(hosts: Hosts, node: SandboxNode) -> None:
    hosts.set_clock(node, -STEP)
