"""Each key that is said to be live is taken by a node that runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogLevel

from sipha import config
from sipha.admin.views import Reloaded
from sipha.config.changes import keys
from sipha.service.node import Node
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.origin import origin_of
from sipha.sip.overload import ADMITTED, Verdict
from sipha.sip.parser import parse
from tests.cluster.world import World
from tests.service.alone import CONFIG, Alone, configuration, found
from tests.system.wire import options

PEER = '[[cluster.peers]]\nname = "n2"\naddress = "127.0.0.52:7000"\nadmin = "http://127.0.0.52:8080"\n'
PHONE = Flow("UDP", ("127.0.0.50", 5060), ("10.1.1.1", 5060))
REGISTER = parse(
    b"REGISTER sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.1.1:5060;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n"
    b"From: <sip:a@sipha.test>;tag=1\r\nTo: <sip:a@sipha.test>\r\nCall-ID: a\r\nCSeq: 1 REGISTER\r\n"
    b"Contact: <sip:a@10.1.1.1:5060>\r\n\r\n"
)


def endpoint(node: Node) -> Any:
    return node.sip._endpoint


def registrar(node: Node) -> Any:
    return endpoint(node)._user._registrar


def proxy(node: Node) -> Any:
    return endpoint(node)._user._proxy


def policy(name: str) -> Callable[[Node], object]:
    return lambda node: (
        getattr(registrar(node)._settings.policy, name),
        getattr(node.replication.replica.policy, name),
    )


def limit(name: str) -> Callable[[Node], object]:
    return lambda node: getattr(endpoint(node)._sockets._streams["TCP"].limits, name)


def of_registrar(name: str) -> Callable[[Node], object]:
    return lambda node: getattr(registrar(node)._settings, name)


def of_pings(name: str) -> Callable[[Node], object]:
    return lambda node: getattr(node.keepalive._settings, name)


def is_behind_nat(node: Node) -> bool:
    assert isinstance(REGISTER, Request)
    return bool(registrar(node)._is_behind_nat(origin_of(REGISTER), PHONE)) and endpoint(node)._layer.force_rport(
        REGISTER, PHONE
    )


def judged(node: Node, data: bytes) -> Verdict:
    """What becomes of a datagram that has waited too long, when some have been served all the same."""
    overload = node.sip.overload
    overload.waited(1.0, 1.0)
    return [overload.judge(data, PHONE, 0.0) for _ in range(ADMITTED + 1)][-1]


def receive_buffer(node: Node) -> int:
    udp = next(iter(endpoint(node)._sockets._udp.values()))
    return int(udp._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))


Taken = tuple[str, object, Callable[[Node], object]]

TAKEN: dict[str, Taken] = {
    "domains": (
        '[[domains]]\nname = "b.test"',
        ["sipha.test", "b.test"],
        lambda node: [d.name for d in node._domains.all],
    ),
    "peers": (
        '[[peers]]\nname = "gw"\nnetworks = ["192.0.2.1"]',
        True,
        lambda node: "192.0.2.1" in proxy(node)._admission._peers,
    ),
    "cluster.peers": (
        PEER,
        ("http://127.0.0.52:8080", ("127.0.0.52", 7000)),
        lambda node: (node.view._admins.get("n2"), node.replication.replica._kinship._seeds.get("n2")),
    ),
    "sip.port": ("[sip]\nport = 5098", {5098}, lambda node: {each.port for each in node.sip.addresses}),
    "sip.transports": (
        '[sip]\ntransports = ["udp"]',
        {"UDP"},
        lambda node: {each.transport for each in node.sip.addresses},
    ),
    "sip.receive_buffer": ("[sip]\nreceive_buffer = 65536", 131072, receive_buffer),
    "sip.emergency_numbers": (
        '[sip]\nemergency_numbers = ["110"]',
        Verdict.SERVED,
        lambda node: judged(node, b"INVITE sip:110@sipha.test SIP/2.0\r\n\r\n"),
    ),
    "sip.max_message": ("[sip]\nmax_message = 8192", 8192, limit("max_message")),
    "sip.max_connections": ("[sip]\nmax_connections = 7", 7, limit("connections")),
    "sip.idle_timeout": ("[sip]\nidle_timeout = 60", 60, limit("idle")),
    "sip.message_timeout": ("[sip]\nmessage_timeout = 5", 5, limit("message")),
    "registrar.default_expires": ("[registrar]\ndefault_expires = 600", (600, 600), policy("default_expires")),
    "registrar.min_expires": ("[registrar]\nmin_expires = 61", (61, 61), policy("min_expires")),
    "registrar.max_expires": ("[registrar]\nmax_expires = 7201", (7201, 7201), policy("max_expires")),
    "registrar.min_expires_policy": (
        '[registrar]\nmin_expires_policy = "raise"',
        "raise",
        of_registrar("min_expires_policy"),
    ),
    "registrar.expires_jitter": ("[registrar]\nexpires_jitter = 5", 5, of_registrar("expires_jitter")),
    "registrar.max_contacts": ("[registrar]\nmax_contacts = 3", (3, 3), policy("max_contacts")),
    "registrar.full": ('[registrar]\nfull = "refuse"', ("refuse", "refuse"), policy("full")),
    "registrar.full_status": ("[registrar]\nfull_status = 486", 486, of_registrar("full_status")),
    "registrar.one_per_instance": (
        "[registrar]\none_per_instance = false",
        (False, False),
        policy("one_per_instance"),
    ),
    "registrar.out_of_order": ("[registrar]\nout_of_order = 200", 200, of_registrar("out_of_order")),
    "registrar.nonce_lifetime": (
        "[registrar]\nnonce_lifetime = 30",
        (30, 30),
        lambda node: (registrar(node)._authenticator._window.lifetime, proxy(node)._authenticator._window.lifetime),
    ),
    "registrar.edges": (
        '[registrar]\nedges = ["192.0.2.0/24"]',
        (ip_network("192.0.2.0/24"),),
        of_registrar("edges"),
    ),
    "proxy.allow_inbound": (
        "[proxy]\nallow_inbound = true",
        True,
        lambda node: proxy(node)._admission._allow_inbound,
    ),
    "proxy.max_breadth": ("[proxy]\nmax_breadth = 5", 5, lambda node: proxy(node)._settings.max_breadth),
    "nat.detect": ('[nat]\ndetect = ["private-contact"]', True, is_behind_nat),
    "nat.ping_interval": ("[nat]\nping_interval = 20", 20, of_pings("interval")),
    "nat.ping_method": ('[nat]\nping_method = "udp"', "udp", of_pings("method")),
    "nat.ping_scope": ('[nat]\nping_scope = "all"', "all", of_pings("scope")),
    "nat.ping_from": ('[nat]\nping_from = "sip:a@b"', "sip:a@b", of_pings("sender")),
    "nat.ping_timeout": ("[nat]\nping_timeout = 2", 2, of_pings("timeout")),
    "nat.remove_unreachable": ("[nat]\nremove_unreachable = true", True, of_pings("remove")),
    "nat.max_lost": ("[nat]\nmax_lost = 9", 9, of_pings("max_lost")),
    "admin.listen": ('listen = "127.0.0.51:8081"', [("127.0.0.51", 8081)], lambda node: list(node._admin._ports)),
    "admin.tokens": (
        f'[[admin.tokens]]\nname = "m"\nrole = "read"\nsha256 = "{"0" * 64}"',
        ["m"],
        lambda node: [token.caller.name for token in node.access.access.tokens],
    ),
    "log.level": (
        '[log]\nlevel = "error"',
        LogLevel.error,
        lambda node: node._log._predicate.logLevelForNamespace(""),
    ),
    "log.registers": ("[log]\nregisters = true", True, lambda node: node._outcomes.passed in node.sip.taps),
}
"""By key: what is written, and what is then seen in the node."""


@pytest.fixture
def running(alone: Alone) -> Iterator[Alone]:
    alone.life.begin(alone.node)
    alone.world.until(lambda: alone.life.proven)
    yield alone
    alone.life.end()


def write(alone: Alone, directory: Path, text: str) -> None:
    base = CONFIG.format(directory=directory, cluster="plaintext = true")
    if text.startswith("listen"):
        base, text = base.replace('listen = "127.0.0.51:8080"', text), ""
    alone.life.path.write_text(base + text)


def reload(alone: Alone) -> Reloaded:
    results: list[Any] = []
    alone.life.reload().addBoth(results.append)
    alone.world.until(lambda: results)
    assert isinstance(results[0], Reloaded), results
    alone.world.turn(0.02)  # Twisted closes a port in a later turn
    return results[0]


def test_each_live_key_is_tried_here() -> None:
    assert set(TAKEN) | {"admin.clients"} == {key.path for key in keys() if key.live}  # those are in test_access.py


def test_live_keys_are_taken_and_given_up_again(running: Alone, tmp_path: Path) -> None:
    begun, term = running.node, running.node.view.status().term
    for key, (text, expected, seen) in TAKEN.items():
        before = seen(running.node)
        write(running, tmp_path, text)
        assert reload(running).changed == (key,)
        assert (key, seen(running.node)) == (key, expected)
        assert before != expected, key
        write(running, tmp_path, "")
        assert reload(running).changed == (key,)
        assert (key, seen(running.node)) == (key, before)
    assert running.node is begun
    assert running.node.health.well()
    assert running.node.view.status().term == term, "leadership has not moved"


def test_leader_to_be_takes_what_was_loaded_before(world: World, tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    found(settings)
    alone = Alone(world, settings)
    alone.life.begin(alone.node)
    alone.life.good = alone.life.running
    alone.life._probation = None
    write(alone, tmp_path, "[sip]\nport = 5098\n[proxy]\nmax_breadth = 5\n")
    alone.node.reconfigure(config.load(alone.life.path))
    world.until(lambda: alone.node.view.status().leading)
    assert {each.port for each in alone.node.sip.addresses} == {5098}
    assert proxy(alone.node)._settings.max_breadth == 5
    alone.life.end()
    alone.end()


def test_listener_that_cant_be_opened_leaves_all_as_it_was(running: Alone, tmp_path: Path) -> None:
    write(running, tmp_path, "[sip]\nport = 5098\n[proxy]\nmax_breadth = 5\n")
    before = running.node.sip.addresses
    with socket.socket() as other:
        other.bind(("127.0.0.50", 5098))
        other.listen()
        results: list[Any] = []
        running.life.reload().addBoth(results.append)
    assert "sip.port: can't listen on the virtual addresses: Address already in use" in str(results[0].value)
    assert running.node.sip.addresses == before
    assert proxy(running.node)._settings.max_breadth == 60


def test_phones_are_heard_at_both_ports_until_a_new_one_is_proven(running: Alone, tmp_path: Path) -> None:
    write(running, tmp_path, "[sip]\nport = 5098\n")
    results: list[Any] = []
    running.life.reload().addBoth(results.append)
    assert {each.port for each in running.node.sip.addresses} == {5060, 5098}
    running.world.until(lambda: results)
    assert {each.port for each in running.node.sip.addresses} == {5098}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        phone.setblocking(False)
        for port in (5098, 5060):
            phone.sendto(options("127.0.0.50"), ("127.0.0.50", port))
            answers: list[bytes] = []

            def answered() -> bool:
                try:
                    answers.append(phone.recv(65535))  # noqa: B023  called here
                except BlockingIOError:
                    return False
                return True

            running.world.until(answered)
            assert answers[0].startswith(b"SIP/2.0 200")
