"""The phones behind the NAT register, answer, and note what comes: with a registrar that is a socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from sipha.sip.flow import Address
from tests.system.conftest import wait_until
from tests.system.handsets import Handsets
from tests.system.network import Network
from tests.system.wire import call_id, options, read, response

pytestmark = pytest.mark.system

USERS = ("alice", "bob")
CHALLENGE = '401 Unauthorized\r\nWWW-Authenticate: Digest realm="r", nonce="n", algorithm=MD5, qop="auth"'


class Registrar:
    """Challenges once, then says 200; `sources` are where the phones are seen."""

    def __init__(self, network: Network) -> None:
        with network.inside("n1"):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = (network.host("n1"), 5060)
        self.socket.bind(self.address)
        self.socket.settimeout(5.0)

    def admit(self) -> tuple[str, Address]:
        """Let one phone register, and return its user and where it is."""
        while True:
            data, source = self.socket.recvfrom(4096)
            message = read(data)
            if message.all("Authorization"):
                user = message.get("From").partition(b"sip:")[2].partition(b"@")[0].decode()
                self.socket.sendto(response(message, "200 OK", "r"), source)
                return user, source
            self.socket.sendto(response(message, CHALLENGE, "r"), source)


@pytest.fixture
def registrar(network: Network) -> Iterator[Registrar]:
    registrar = Registrar(network)
    yield registrar
    registrar.socket.close()


@pytest.fixture
def handsets(network: Network, registrar: Registrar) -> Iterator[Handsets]:
    with Handsets(network, USERS, "sipha.test", registrar.address) as handsets:
        yield handsets


def test_phones_register_through_the_nat(network: Network, registrar: Registrar, handsets: Handsets) -> None:
    seen = dict(registrar.admit() for _ in USERS)
    handsets.wait_until_registered(5.0)
    assert set(seen) == set(USERS)
    assert {host for host, _ in seen.values()} == {network.host("router")}
    assert len({port for _, port in seen.values()}) == len(USERS)


def test_phone_answers_a_ping_and_notes_it(registrar: Registrar, handsets: Handsets) -> None:
    seen = dict(registrar.admit() for _ in USERS)
    sent = time.time()
    ping = options("alice")
    registrar.socket.sendto(ping, seen["alice"])
    answer = read(registrar.socket.recv(4096))
    assert answer.status == 200
    assert answer.get("Call-ID") == call_id(ping)
    alice, bob = handsets.phones
    (heard,) = alice.pings
    assert heard.source == registrar.address
    assert sent <= heard.time <= time.time()
    assert bob.pings == []


def test_phone_that_is_off_hears_nothing(registrar: Registrar, handsets: Handsets) -> None:
    seen = dict(registrar.admit() for _ in USERS)
    alice, bob = handsets.phones
    alice.on = False
    for source in seen.values():
        registrar.socket.sendto(options("phone"), source)
    wait_until(lambda: bob.pings, "the other phone to be pinged")
    assert alice.pings == []
