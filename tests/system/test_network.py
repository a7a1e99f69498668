"""The network of namespaces is one: it carries, translates, filters, and has the faults that it is told to have."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.system.network import OUTSIDE, PHONES, PHONES_NETWORK, Network, sweep

pytestmark = pytest.mark.system

PORT = 5060
PINHOLE = 1
SOON = 0.3
"""How long a datagram may take that is expected not to come, in seconds."""


class Place:
    """A UDP socket somewhere in the network."""

    def __init__(self, network: Network, name: str, host: str, port: int = PORT) -> None:
        with network.inside(name):
            self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, port))
        self.address = self.socket.getsockname()[:2]

    def send(self, address: tuple[str, int]) -> None:
        self.socket.sendto(b"x", address)

    def source(self, within: float = 2.0) -> tuple[str, int] | None:
        """Where the next datagram comes from; None if none comes."""
        self.socket.settimeout(within)
        try:
            host, port = self.socket.recvfrom(100)[1][:2]
        except TimeoutError:
            return None
        return host, port

    def reaches(self, other: Place, within: float = 2.0) -> bool:
        self.send(other.address)
        return other.source(within) is not None


@pytest.fixture(scope="module")
def built_network(can_build_networks: None) -> Iterator[Network]:
    with Network(pinhole=PINHOLE) as network:
        yield network


@pytest.fixture
def place(network: Network) -> Iterator[Callable[..., Place]]:
    """Open sockets: the name of a place, and its address unless it is the usual one."""
    opened: list[Place] = []

    def open_(name: str, host: str = "", port: int = PORT) -> Place:
        opened.append(Place(network, name, host or network.host(name), port))
        return opened[-1]

    yield open_
    for each in opened:
        each.socket.close()


@pytest.fixture
def phone(network: Network) -> Iterator[Place]:
    phone = Place(network, PHONES, f"{PHONES_NETWORK}.2")
    yield phone
    phone.socket.close()


MakePlace = Callable[..., Place]


def test_bridge_carries_ipv4_and_ipv6(network: Network, place: MakePlace) -> None:
    assert place("n1").reaches(place("n2"))
    assert place("n3", network.host6("n3")).reaches(place(OUTSIDE, network.host6(OUTSIDE)))


# -- the router -----------------------------------------------------------------------------------------------------


def test_router_hides_a_phone_and_leads_answers_back(network: Network, place: MakePlace, phone: Place) -> None:
    node = place("n1")
    phone.send(node.address)
    pinhole = node.source()
    assert pinhole is not None
    assert pinhole[0] == network.host("router")
    assert pinhole[1] != PORT
    node.send(pinhole)
    assert phone.source() == node.address


def test_router_lets_only_the_address_and_port_in_that_a_phone_spoke_to(place: MakePlace, phone: Place) -> None:
    node = place("n1")
    phone.send(node.address)
    pinhole = node.source()
    assert pinhole is not None
    for stranger in (place("n2"), place("n1", port=PORT + 1)):
        stranger.send(pinhole)
        assert phone.source(SOON) is None
    node.send(pinhole)
    assert phone.source() == node.address


def test_pinhole_closes_when_a_phone_is_silent(place: MakePlace, phone: Place) -> None:
    node = place("n1")
    phone.send(node.address)
    pinhole = node.source()
    assert pinhole is not None
    time.sleep(PINHOLE + 0.7)
    node.send(pinhole)
    assert phone.source(SOON) is None


def test_strict_router_admits_one_address_and_port(network: Network, place: MakePlace, phone: Place) -> None:
    admitted, other = place("n1"), place("n1", port=PORT + 1)
    network.admit_only(*admitted.address)
    assert phone.reaches(admitted)
    assert not phone.reaches(other, SOON)
    phone.send(admitted.address)
    pinhole = admitted.source()
    assert pinhole is not None
    admitted.send(pinhole)
    assert phone.source() == admitted.address
    network.admit_all()
    assert phone.reaches(other)


# -- faults ---------------------------------------------------------------------------------------------------------


def test_cut_is_one_way(network: Network, place: MakePlace) -> None:
    one, two = place("n1"), place("n2")
    assert one.reaches(two)
    network.cut("n1", "n2")
    assert not one.reaches(two, SOON)
    assert two.reaches(one)
    network.heal()
    assert one.reaches(two)


def test_partition_cuts_between_groups_alone(network: Network, place: MakePlace) -> None:
    places = {name: place(name) for name in ("n1", "n2", "n3", OUTSIDE)}
    pairs = list(permutations(places.items(), 2))
    assert all(one.reaches(other) for (_, one), (_, other) in pairs)
    for groups, connected in (
        ([{"n1"}, {"n2", "n3"}], {("n2", "n3"), ("n2", OUTSIDE), ("n3", OUTSIDE)}),
        ([{"n2"}, {"n3"}, {"n1"}], {("n1", OUTSIDE)}),
    ):
        network.partition(*groups)
        for (name, one), (other_name, other) in pairs:
            expected = (name, other_name) in connected or (other_name, name) in connected
            assert one.reaches(other, SOON) == expected, (name, other_name)
        network.heal()


def test_loss_is_what_it_is_told_to_be(network: Network, place: MakePlace) -> None:
    one, two = place("n1"), place("n2")
    assert one.reaches(two)
    network.lose("n1", 30)
    arrived = 0
    for _ in range(10):  # the socket has room for so many
        for _ in range(100):
            one.send(two.address)
        while two.source(0.05):
            arrived += 1
    print(f"of 1000 datagrams {arrived} arrived where 30 % are lost")
    assert 600 < arrived < 800


def test_node_without_cable_loses_its_carrier(network: Network, place: MakePlace) -> None:
    one, two = place("n1"), place("n2")
    six = place("n1", network.host6("n1"))
    carrier = "/sys/class/net/eth0/carrier"
    network.unplug("n1")
    assert network.run("n1", "cat", carrier) == "0\n"
    one.send(two.address)
    assert two.source(SOON) is None
    network.heal()
    assert network.run("n1", "cat", carrier) == "1\n"
    assert one.reaches(two)
    assert six.reaches(place("n2", network.host6("n2")))


# -- leftovers ------------------------------------------------------------------------------------------------------


def test_network_of_a_killed_process_is_removed_with_what_runs_in_it(can_build_networks: None) -> None:
    script = (
        "import os, signal, subprocess; from tests.system.network import Network; network = Network(1).start();"
        "null = subprocess.DEVNULL;"
        "ran = subprocess.Popen([*network.launcher('n1'), 'sleep', '600'], stdout=null, stderr=null);"
        "print(network.namespace('n1'), ran.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    name, pid = killed.stdout.split()
    assert Path("/run/netns", name).exists()
    assert Path("/proc", pid).exists()
    sweep()
    assert not Path("/run/netns", name).exists()
    assert not Path("/proc", pid, "exe").exists()
