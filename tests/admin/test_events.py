from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from sipha.admin.api import Api
from sipha.admin.events import HEARTBEAT, PATIENCE, Message, Messages
from sipha.admin.site import AdminSite
from sipha.events import feed as feed_module
from sipha.events.event import LeaseGained
from sipha.events.feed import READERS
from sipha.state.entries import PutSetting, RemoveBindings
from tests.admin.fakes import DOMAINS, Console, FakeNode

ALICE, BOB = "sip:alice@sipha.test", "sip:bob@sipha.test"


class Follower:
    """A client that follows a node's events, and takes them when it wants."""

    def __init__(self, node: FakeNode, query: str = "", *, last: str = "") -> None:
        self.clock = node.clock
        http: Any = None  # nothing is forwarded here
        site = AdminSite(self.clock, Api(self.clock, node, DOMAINS, http).resource(), "127.0.0.11")
        self._channel = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport: Any = StringTransport()
        self._channel.makeConnection(self.transport)
        header = f"Last-Event-ID: {last}\r\n" if last else ""
        # HTTP/1.0, so that what comes is not in chunks.
        self._channel.dataReceived(f"GET /v1/events{query} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n".encode())

    @property
    def head(self) -> str:
        return bytes(self.transport.value()).partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self) -> bytes:
        return bytes(self.transport.value()).partition(b"\r\n\r\n")[2]

    def told(self) -> list[tuple[str, str]]:
        """The ids and kinds of what has come by now."""
        self.clock.advance(0)
        return [(message.id, message.kind) for message in Messages().feed(self.body)]

    def pause(self) -> None:
        self.transport.producer.pauseProducing()

    def resume(self) -> None:
        self.transport.producer.resumeProducing()

    def go(self) -> None:
        self._channel.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


def test_follower_is_told_what_happens(node: FakeNode) -> None:
    node.register(BOB)
    follower = Follower(node)
    node.register(ALICE)
    node.feed.tell(LeaseGained)
    assert "Content-Type: text/event-stream" in follower.head
    start, added, (_, own) = follower.told()
    assert (start, added, own) == (("1", "start"), ("2.0", "binding-added"), "lease-gained")
    first, second, _ = Messages().feed(follower.body)
    assert msgspec.json.decode(first.data) == {
        "kind": "start", "node": "a", "cluster_id": "0123456789abcdef" * 2, "index": 1,
    }  # fmt: skip
    assert msgspec.json.decode(second.data)["aor"] == ALICE


@pytest.mark.parametrize(("query", "last"), [("?since=1", ""), ("", "1"), ("?since=0", "1.0")])
def test_follower_goes_on_where_it_was(node: FakeNode, query: str, last: str) -> None:
    node.register(BOB)
    node.register(ALICE)
    follower = Follower(node, query, last=last)
    assert follower.told() == [(last or "1", "start"), ("2.0", "binding-added")]


def test_follower_chooses(node: FakeNode) -> None:
    alice = Follower(node, "?aor=alice@alias.test&kinds=binding-added,binding-removed")
    refreshes = Follower(node, "?kinds=binding-refreshed")
    node.register(ALICE)
    node.register(ALICE, cseq=8)
    node.register(BOB)
    node.apply(RemoveBindings(ALICE))
    node.apply(PutSetting("a", "b"))
    assert alice.told()[1:] == [("1.0", "binding-added"), ("4.0", "binding-removed")]
    assert refreshes.told()[1:] == [("1", "binding-refreshed")]


def test_silence_is_broken_by_comments(node: FakeNode) -> None:
    follower = Follower(node)
    before = len(follower.body)
    node.clock.advance(HEARTBEAT)
    node.clock.advance(HEARTBEAT)
    assert follower.body[before:] == b":\n\n:\n\n"
    assert len(follower.told()) == 1


def test_nothing_is_written_to_who_takes_nothing_and_all_is_when_it_does(node: FakeNode) -> None:
    follower = Follower(node)
    follower.pause()
    node.register(ALICE)
    assert len(follower.told()) == 1
    node.clock.advance(PATIENCE - 1)
    follower.resume()
    assert follower.told()[1:] == [("1.0", "binding-added")]


def test_who_takes_nothing_for_long_is_hung_up_on(node: FakeNode) -> None:
    follower = Follower(node)
    follower.pause()
    node.clock.advance(PATIENCE)
    assert follower.transport.disconnected
    follower.go()
    assert node.feed.followers == 0


def test_follower_that_is_too_slow_is_dropped_and_told_so(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "KEPT", 3)
    node = FakeNode()
    follower = Follower(node)
    follower.pause()
    for number in range(5):
        node.register(f"sip:u{number}@sipha.test")
    follower.resume()
    assert follower.told() == [("0", "start"), ("", "dropped")]
    assert b'"detail":"you have taken events more slowly than they came"' in follower.body
    assert follower.transport.disconnecting
    assert node.feed.followers == 0
    again = Follower(node, last="0")
    assert again.told() == [("0", "start"), ("2.0", "gap"), *((f"{n}.0", "binding-added") for n in (3, 4, 5))]


def test_much_is_written_in_several_turns(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_SCAN", 2)
    for number in range(5):
        node.register(f"sip:u{number}@sipha.test")
    follower = Follower(node, "?since=0")
    assert len(messages_of(follower)) == 3
    node.clock.advance(0)
    node.clock.advance(0)
    assert len(messages_of(follower)) == 6


def messages_of(follower: Follower) -> list[Message]:
    return list(Messages().feed(follower.body))


def test_follower_that_goes_is_forgotten(node: FakeNode) -> None:
    follower = Follower(node)
    assert node.feed.followers == 1
    follower.go()
    assert node.feed.followers == 0
    node.register(ALICE)
    node.clock.advance(PATIENCE)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("?since=x", "since or Last-Event-ID: 'x' is not the id of an event, nor an index of the log"),
        ("?kinds=binding-added,x", "'x' is not a kind of event; there are binding-added, "),
        ("?from=1", "'from' is not a query parameter of this resource; it has since, kinds, aor"),
    ],
)
def test_question_that_makes_no_sense_is_refused(node: FakeNode, query: str, problem: str) -> None:
    reply = Console(node).ask("GET", f"/v1/events{query}")
    assert reply.status == 400
    assert reply.fault.startswith(problem)


def test_aor_that_is_none_of_ours_is_not_found(node: FakeNode) -> None:
    assert Console(node).ask("GET", "/v1/events?aor=alice@elsewhere.test").status == 404


def test_head_of_the_stream_has_no_end(node: FakeNode) -> None:
    reply = Console(node).ask("HEAD", "/v1/events")
    assert (reply.status, reply.content) == (200, b"")
    assert node.feed.followers == 0


def test_there_is_an_end_to_who_may_follow(node: FakeNode) -> None:
    for _ in range(READERS):
        Follower(node)
    reply = Console(node).ask("GET", "/v1/events")
    assert (reply.status, reply.headers.getRawHeaders("Retry-After")) == (503, ["5"])


def test_stream_is_read_however_it_is_cut() -> None:
    stream = b'id: 1.0\nevent: x\ndata: {"a": "b: c"}\n\n:\n\nevent: y\ndata: {}\n\n'
    for size in range(1, len(stream)):
        messages = Messages()
        found = [m for start in range(0, len(stream), size) for m in messages.feed(stream[start : start + size])]
        assert found == [Message("1.0", "x", b'{"a": "b: c"}'), Message("", "y", b"{}")]
