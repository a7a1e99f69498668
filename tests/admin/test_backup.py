from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from sipha.admin.api import Api
from sipha.admin.client import AdminClient, Refused, Unreachable
from sipha.admin.outflow import PATIENCE, PAUSE
from sipha.admin.site import AdminSite
from sipha.state.machine import DamagedMemory
from sipha.state.snapshot import Frozen, Loader
from tests.admin.fakes import DOMAINS, Console, FakeNode, Reply


@pytest.fixture
def node() -> FakeNode:
    """A node whose backup has some ten chunks."""
    node = FakeNode()
    for number in range(2000):
        node.register(f"sip:user{number}@sipha.test", user_agent="x" * 200)
    return node


def fetch(console: Console, method: str = "GET") -> Reply:
    """Ask for a backup, and let time pass until it is there."""
    replies: list[Reply] = []
    console.start(method, "/v1/backup").addCallback(replies.append)
    for _ in range(100):
        console.flush()
        console.clock.advance(PAUSE)
    (reply,) = replies
    return reply


class Client:
    """A client that takes what it wants of a backup."""

    def __init__(self, node: FakeNode) -> None:
        self.clock = Clock()
        http: Any = None  # nothing is forwarded here
        site = AdminSite(self.clock, Api(self.clock, node, DOMAINS, http).resource(), "127.0.0.11")
        self._channel = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport: Any = StringTransport()
        self._channel.makeConnection(self.transport)
        self._channel.dataReceived(b"GET /v1/backup HTTP/1.1\r\nHost: localhost\r\n\r\n")

    @property
    def received(self) -> bytes:
        return bytes(self.transport.value())

    def wait(self, chunks: int) -> None:
        for _ in range(chunks):
            self.clock.advance(PAUSE)

    def go(self) -> None:
        self._channel.connectionLost(Failure(ConnectionDone()))


def test_backup_is_that_of_one_moment(node: FakeNode) -> None:
    console = Console(node)
    replies: list[Reply] = []
    before, count = node.machine.hash_hex(), node.machine.index
    console.start("GET", "/v1/backup").addCallback(replies.append)
    for number in range(100):
        console.flush()
        console.clock.advance(PAUSE)
        node.register(f"sip:later{number}@sipha.test")
        node.register(f"sip:user{1999 - number}@sipha.test", "sip:elsewhere@127.0.0.1", call_id=str(number))
    (reply,) = replies
    assert reply.status == 200
    assert reply.headers.getRawHeaders("Sipha-Index") == [str(count)]
    assert reply.headers.getRawHeaders("Content-Type") == ["application/octet-stream"]
    loader = Loader()
    loader.feed(reply.content)
    loaded = loader.finish()
    assert (loaded.header.index, loaded.header.hash.hex()) == (count, before)
    assert loaded.tables.location.count == 2000
    assert node.freed == 1


def test_backup_waits_while_the_client_takes_nothing(node: FakeNode) -> None:
    client = Client(node)
    client.wait(3)
    client.transport.producer.pauseProducing()
    taken = len(client.received)
    assert taken > 10_000
    client.clock.advance(PATIENCE - 1)
    assert len(client.received) == taken
    client.transport.producer.resumeProducing()
    client.wait(100)
    assert client.received.endswith(b"\r\n0\r\n\r\n")
    assert node.freed == 1
    assert not client.transport.disconnecting


def test_client_that_takes_nothing_for_long_is_hung_up_on(node: FakeNode) -> None:
    client = Client(node)
    client.wait(3)
    client.transport.producer.pauseProducing()
    client.clock.advance(PATIENCE)
    assert client.transport.disconnected
    client.go()
    assert node.freed == 1
    client.wait(3)


def test_backup_ends_with_its_client(node: FakeNode) -> None:
    client = Client(node)
    client.wait(3)
    client.go()
    assert node.freed == 1
    taken = len(client.received)
    client.wait(3)
    assert len(client.received) == taken


def test_head_makes_no_backup(node: FakeNode) -> None:
    reply = fetch(Console(node), "HEAD")
    assert (reply.status, reply.content) == (200, b"")
    assert reply.headers.getRawHeaders("Sipha-Index") == [str(node.machine.index)]
    assert node.freed == 1


class Broken:
    """A backup that finds the memory damaged after two chunks."""

    def __init__(self, frozen: Frozen) -> None:
        self.header = frozen.header
        self._chunks = frozen
        self._left = 2

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise DamagedMemory("a record has another hash")
        return next(self._chunks)

    def close(self) -> Iterator[None]:
        return self._chunks.close()


def test_backup_of_damaged_memory_never_looks_whole(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = node.backup()
    monkeypatch.setattr(node, "backup", lambda: Broken(frozen))
    client = Client(node)
    client.wait(10)
    assert client.transport.disconnected
    assert not client.received.endswith(b"\r\n0\r\n\r\n")
    client.go()
    assert node.freed == 1


def test_client_takes_a_backup(node: FakeNode) -> None:
    console, loader = Console(node), Loader()
    client = AdminClient(console.http, Clock(), "http://127.0.0.1:8080")
    indices: list[int] = []
    Deferred.fromCoroutine(client.backup(loader.feed)).addCallback(indices.append)
    for _ in range(100):
        console.flush()
        console.clock.advance(PAUSE)
    assert indices == [node.machine.index]
    assert loader.finish().header.hash.hex() == node.machine.hash_hex()


def test_client_says_why_there_is_no_backup(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def backup() -> None:
        raise DamagedMemory("a record has another hash")

    monkeypatch.setattr(node, "backup", backup)
    console = Console(node)
    failures: list[Failure] = []
    client = AdminClient(console.http, Clock(), "http://127.0.0.1:8080")
    Deferred.fromCoroutine(client.backup(list)).addErrback(failures.append)
    console.flush()
    (failure,) = failures
    assert failure.check(Refused)
    assert "a record has another hash" in failure.getErrorMessage()


def test_client_waits_no_longer_than_its_deadline_for_more(node: FakeNode) -> None:
    console, clock = Console(node), Clock()
    taken: list[bytes] = []
    failures: list[Failure] = []
    client = AdminClient(console.http, clock, "http://127.0.0.1:8080", deadline=3)
    Deferred.fromCoroutine(client.backup(taken.append)).addErrback(failures.append)
    for _ in range(4):
        console.flush()
        clock.advance(2)
        console.clock.advance(PAUSE)
    assert taken
    assert not failures
    clock.advance(3)
    (failure,) = failures
    assert failure.check(Unreachable)
    assert "/v1/backup sent nothing for 3 s" in failure.getErrorMessage()
