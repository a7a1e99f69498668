"""Phones behind NAT of three real nodes are pinged by whoever leads, and nobody else."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from sipha.sandbox import Sandbox
from sipha.sip.message import Request, response_to
from sipha.sip.parser import StreamParser, parse
from sipha.state.entries import SCHEMA
from tests.system.conftest import agree, bindings, wait_until
from tests.system.nodes import quick, restore, siphactl, started
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

PREFIX = "127.0.24"
INTERVAL = 2.0
FAILOVER = 3.0
"""Within how many seconds pings must go on at another node."""

USERS = ("alice", "bob", "carol")
NAT = f"""
[nat]
ping_interval = {INTERVAL}
ping_timeout = 0.5
remove_unreachable = true
max_lost = 3
"""


class Phone:
    """A registered user agent that answers pings, and notes when they came and from where."""

    def __init__(self, agent: UserAgent) -> None:
        self.agent = agent
        self.pings: list[tuple[float, Request]] = []
        self.sources: set[tuple[str, int]] = set()
        self.answers = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.agent.close()

    def since(self, when: float) -> list[float]:
        return [came for came, _ in self.pings if came >= when]

    def _serve(self) -> None:
        wire = self.agent._socket
        wire.settimeout(0.1)
        parser = StreamParser()
        while not self._ended.is_set():
            try:
                data, source = wire.recvfrom(65535)
            except TimeoutError:
                continue
            except OSError:
                return
            if self.agent.transport == "UDP":
                self._received(parse(data), source)
                continue
            if not data:
                return
            parser.feed(data)
            while (message := parser.next()) is not None:
                self._received(message, self.agent.server)

    def _received(self, message: object, source: tuple[str, int]) -> None:
        assert isinstance(message, Request)
        assert message.method == "OPTIONS"
        self.pings.append((time.monotonic(), message))
        self.sources.add(source)
        if self.answers:
            self.agent.send(response_to(message, 200, to_tag="phone").render())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    cluster = Sandbox(tmp_path_factory.mktemp("pings"), prefix=PREFIX, extra=NAT)
    with started(cluster, *USERS):
        yield cluster


@pytest.fixture
def cluster(running: Sandbox) -> Sandbox:
    restore(running)
    for user in USERS:
        if bindings(running, running.wait_for_leader(), user):
            running.request(running.wait_for_leader(), "DELETE", f"/v1/bindings/{user}@{running.domain}")
    wait_until(lambda: {quick(node)["schema"] for node in running.nodes} == {SCHEMA}, "the schema to be raised")
    return running


Phones = Callable[..., Phone]


@pytest.fixture
def phones(cluster: Sandbox) -> Iterator[Phones]:
    """Make registered phones, which say that they are at an address behind a NAT unless told otherwise."""
    made: list[Phone] = []

    def make(user: str, transport: str = "UDP", *, nated: bool = True) -> Phone:
        suffix = "" if transport == "UDP" else ";transport=tcp"
        agent = UserAgent(
            user,
            (cluster.virtual_address, 5060),
            transport,
            host=f"{PREFIX}.{100 + len(made)}",
            contact=f"sip:{user}@192.168.1.7:5060{suffix}" if nated else "",
        )
        phone = Phone(agent)
        made.append(phone)
        agent.register()
        phone.start()
        return phone

    yield make
    for phone in made:
        phone.close()


def test_phones_behind_nat_are_pinged_by_the_leader_and_by_the_one_after_it(cluster: Sandbox, phones: Phones) -> None:
    natted, plain, over_tcp = phones("alice"), phones("bob", nated=False), phones("carol", "TCP")
    begin = time.monotonic()
    wait_until(lambda: len(natted.since(begin)) >= 4 and len(over_tcp.since(begin)) >= 3, "pings", 6 * INTERVAL)
    assert plain.pings == []
    assert natted.sources == over_tcp.sources == {(cluster.virtual_address, 5060)}
    assert {ping.uri for _, ping in natted.pings} == {"sip:alice@192.168.1.7:5060"}
    for came in (natted.since(begin), over_tcp.since(begin)):
        intervals = [later - earlier for earlier, later in pairwise(came)]
        assert all(abs(interval - INTERVAL) < 1.0 for interval in intervals), intervals
    leader = cluster.wait_for_leader()
    [binding] = bindings(cluster, leader, "alice")
    assert binding["behind_nat"]
    shown = siphactl(leader, "show", "alice@sipha.test")
    assert "behind NAT" in shown
    assert re.search(r"Answered: a ping of [0-4] s ago", shown)
    counters = quick(leader)["counters"]
    assert counters["pings_answered"] >= 6
    assert counters["pings_unsent"] == 0
    for node in cluster.nodes:
        if node is not leader:
            assert quick(node)["counters"]["pings_sent"] == 0

    killed = time.monotonic()
    last = natted.pings[-1][0]
    cluster.kill(leader)
    wait_until(lambda: natted.since(killed), "pings from another node", INTERVAL + FAILOVER)
    assert natted.since(killed)[0] - last <= INTERVAL + FAILOVER
    before = natted.since(killed)[0]
    wait_until(lambda: len(natted.since(before)) >= 4, "more of them", 5 * INTERVAL)
    assert natted.sources == {(cluster.virtual_address, 5060)}
    assert bindings(cluster, cluster.wait_for_leader(), "alice")
    # The connection has died with its node, and nobody counts that as a lost ping.
    assert bindings(cluster, cluster.wait_for_leader(), "carol")


def test_phone_that_is_switched_off_is_removed_on_all_nodes(cluster: Sandbox, phones: Phones) -> None:
    silent, other = phones("alice"), phones("bob")
    time.sleep(INTERVAL)
    silent.answers = False
    off = time.monotonic()
    leader = cluster.wait_for_leader()
    wait_until(lambda: not bindings(cluster, leader, "alice"), "the binding to be removed", 6 * INTERVAL)
    assert len(silent.since(off)) >= 3
    wait_until(lambda: agree(cluster), "the nodes to agree")
    for node in cluster.nodes:
        assert not bindings(cluster, node, "alice")
        assert bindings(cluster, node, "bob")
    assert other.pings
    log = (leader.directory / "log").read_text(errors="replace")
    assert "a binding of sip:alice@sipha.test is removed, reason ping-timeout" in log


def test_operator_turns_pings_off_and_on_for_all_nodes_and_restarts(cluster: Sandbox, phones: Phones) -> None:
    phone = phones("alice")
    wait_until(lambda: phone.pings, "a ping", 3 * INTERVAL)
    assert "pings are off" in siphactl(cluster.nodes[1], "pings", "off")
    off = time.monotonic()
    wait_until(lambda: {quick(node)["pings"] for node in cluster.nodes} == {"off"}, "all nodes to know")
    time.sleep(1.5 * INTERVAL)
    assert not phone.since(off + 0.2)
    leader = cluster.wait_for_leader()
    cluster.kill(leader)
    restore(cluster)
    restarted = time.monotonic()
    assert quick(leader)["pings"] == "off"
    assert json.loads(siphactl(leader, "pings", "on", "--json")) == {"on": True}
    wait_until(lambda: phone.since(restarted), "a ping", 3 * INTERVAL)
    assert cluster.request(leader, "GET", "/v1/pings") == {"on": True}
    assert bindings(cluster, cluster.wait_for_leader(), "alice")


def test_phones_that_keep_their_way_open_themselves_are_answered(cluster: Sandbox) -> None:
    cluster.wait_for_leader()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind((f"{PREFIX}.120", 0))
        phone.settimeout(5.0)
        server = (cluster.virtual_address, 5060)
        phone.sendto(b"\r\n\r\n", server)
        assert phone.recv(100) == b"\r\n"
        phone.sendto(bytes.fromhex("000100002112a442") + b"transaction!", server)
        answer = phone.recv(100)
    assert answer[:2] == b"\x01\x01"
    assert answer[8:20] == b"transaction!"
    host, port = answer[28:32], answer[26:28]
    mask = bytes.fromhex("2112a442")
    assert bytes(a ^ b for a, b in zip(host, mask, strict=True)) == socket.inet_aton(f"{PREFIX}.120")
    assert len(port) == 2
