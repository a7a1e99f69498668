"""A node with workers, which are processes of their own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sipha import config
from sipha.admin.views import WorkersStatus
from sipha.sip.digest import ha1, ha2, response
from sipha.state.entries import PutAccount
from tests.cluster.world import World
from tests.service.alone import Alone, configuration, found

WORKERS = 2
MORE = f"""
[sip]
workers = {WORKERS}
emergency_numbers = ["112"]
[registrar]
edges = ["192.0.2.0/24"]
[[peers]]
name = "carrier"
networks = ["198.51.100.1"]
[[domains]]
name = "sipha.test"
aliases = ["alias.test"]
[[domains]]
name = "other.test"
"""


@pytest.fixture
def alone(world: World, tmp_path: Path) -> Iterator[Alone]:
    """A cluster of one that leads, and whose workers read."""
    configuration(tmp_path)
    path = tmp_path / "sipha.toml"
    path.write_text(path.read_text().partition("[[domains]]")[0] + MORE)
    settings = config.load(path)
    found(settings)
    alone = Alone(world, settings)
    done: list[object] = []
    world.until(lambda: alone.node.view.status().leading)
    hashes = {"MD5": ha1("MD5", "alice", "sipha.test", "secret")}
    alone.node.replication.replica.propose(
        PutAccount("alice", "sipha.test", "alice", "sipha.test", hashes), done.append
    )
    world.until(lambda: done and alone.node.view.status().workers == WorkersStatus(WORKERS, WORKERS))
    yield alone
    alone.end()


class Phone:
    """At a port of its own."""

    def __init__(self, alone: Alone) -> None:
        self._world = alone.world
        self._line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._line.bind(("127.0.0.1", 0))
        self._line.setblocking(False)
        self._cseq = 0

    def close(self) -> None:
        self._line.close()

    def register(self, port: int = 5060) -> list[bytes]:
        """Register, and return the answers, the challenge first."""
        answers = [self._ask(port, "")]
        nonce = answers[0].partition(b'nonce="')[2].partition(b'"')[0].decode()
        proof = response(
            "MD5",
            ha1("MD5", "alice", "sipha.test", "secret"),
            ha2("MD5", "REGISTER", "sip:sipha.test"),
            nonce,
            nc="00000001",
            cnonce="c0ffee",
            qop="auth",
        )
        return [
            *answers,
            self._ask(
                port,
                f'Authorization: Digest username="alice", realm="sipha.test", nonce="{nonce}", uri="sip:sipha.test", '
                f'response="{proof}", algorithm=MD5, cnonce="c0ffee", qop=auth, nc=00000001\r\n',
            ),
        ]

    def _ask(self, port: int, authorization: str) -> bytes:
        self._cseq += 1
        answers: list[bytes] = []
        host, own = self._line.getsockname()
        self._line.sendto(
            (
                f"REGISTER sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP {host}:{own};rport;branch=z9hG4bK{self._cseq}\r\n"
                "From: <sip:alice@sipha.test>;tag=a\r\nTo: <sip:alice@sipha.test>\r\n"
                f"Call-ID: {own}\r\nCSeq: {self._cseq} REGISTER\r\n{authorization}"
                f"Contact: <sip:alice@{host}:{own}>\r\nContent-Length: 0\r\n\r\n"
            ).encode(),
            ("127.0.0.50", port),
        )

        def answered() -> bool:
            try:
                answers.append(self._line.recv(65535))
            except BlockingIOError:
                return False
            return True

        self._world.until(answered)
        return answers[0]


@pytest.fixture
def phones(alone: Alone) -> Iterator[list[Phone]]:
    made = [Phone(alone) for _ in range(8)]
    yield made
    for phone in made:
        phone.close()


def counted(alone: Alone, name: str) -> int:
    return alone.node.view.status().counters[name]


def test_what_workers_do_is_counted_as_if_the_node_had_done_it(alone: Alone, phones: list[Phone]) -> None:
    for phone in phones:
        assert [answer[8:11] for answer in phone.register()] == [b"401", b"200"]
    alone.world.until(lambda: alone.node.sip.responses().get(("REGISTER", 200)) == len(phones))
    assert alone.node.sip.responses()["REGISTER", 401] == len(phones)
    assert counted(alone, "registrar_requests") == 2 * len(phones)
    assert counted(alone, "registrar_registered") == counted(alone, "workers_registers") == len(phones)
    assert dict(alone.node.sip.latencies()["register"].cumulative())["+Inf"] == len(phones)
    assert len(alone.node.replication.replica.bindings("sip:alice@sipha.test")) == len(phones)


def test_node_goes_on_answering_itself(alone: Alone) -> None:
    before = counted(alone, "workers_datagrams")
    alone.world.until(lambda: counted(alone, "workers_datagrams") >= before + 4)  # its OPTIONS, and the answers
    assert not list(alone.node.view.alarms())


def test_port_that_is_moved_while_the_node_runs_is_read_by_workers(alone: Alone, phones: list[Phone]) -> None:
    moved = msgspec.structs.replace(alone.config, sip=msgspec.structs.replace(alone.config.sip, port=5070))
    alone.node.reconfigure(moved)
    for change in (lambda: None, alone.node.settle):  # another address each time from which what begins is sent
        change()
        alone.world.until(lambda: alone.node.view.status().workers == WorkersStatus(WORKERS, 0))
        alone.world.until(lambda: alone.node.view.status().workers == WorkersStatus(WORKERS, WORKERS))
    for port in (5060, 5070):  # what was left is still read for some time
        registers = counted(alone, "workers_registers")
        assert [answer[8:11] for answer in phones[0].register(port)] == [b"401", b"200"]
        assert counted(alone, "workers_registers") == registers + 1
    assert counted(alone, "workers_restarts") == 0


def test_other_settings_reach_workers(alone: Alone, phones: list[Phone]) -> None:
    other = msgspec.structs.replace(alone.config.domains[0], algorithms=("SHA-256",))
    alone.node.reconfigure(msgspec.structs.replace(alone.config, domains=(other, *alone.config.domains[1:])))
    alone.world.until(lambda: b"algorithm=SHA-256" in phones[0].register()[0])


def test_whoever_looks_on_sees_all_messages(alone: Alone, phones: list[Phone]) -> None:
    seen: list[bytes] = []
    alone.node.sip.taps.append(lambda data, _flow, *, sent: seen.append(data) if sent else None)
    alone.world.turn(0.2)
    answers = [answer for phone in phones for answer in phone.register()]
    assert [answer for answer in answers if answer not in seen] == []
