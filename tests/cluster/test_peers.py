from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from socket import AF_INET, IPPROTO_TCP, SOCK_DGRAM, SOL_SOCKET, TCP_NODELAY, create_connection, socket

import msgspec
import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sipha.cluster import connection, peers
from sipha.cluster.peers import INetwork, Peers
from sipha.cluster.wire import (
    MAX_FRAME,
    PROTOCOL,
    SECRET,
    AppendEntries,
    LastWord,
    Ping,
    RaftMessage,
    SnapshotChunk,
    StaleTerm,
    datagram,
    frame,
)
from sipha.errors import ConfigError
from sipha.sip.flow import Address
from tests.cluster.nodes import Node, blank, greeting
from tests.cluster.world import World


@pytest.fixture
def node(world: World, addresses: dict[str, Address], failures: list[LogEvent]) -> Iterator[Node]:
    """Node a, which waits to be called; nothing that a stranger sends may be logged as a failure."""
    node = Node(world, "a", addresses)
    yield node
    node.network.stop()
    assert not failures


def call(world: World, address: Address, data: bytes) -> socket:
    """Connect to a node and say something."""
    client = create_connection(address)
    client.setblocking(False)
    client.sendall(data)
    world.turn(0.02)
    return client


def closed(client: socket) -> bool:
    try:
        return not client.recv(65536) and not client.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def hello(node: str = "b", cluster: str = "sipha", protocol: int = PROTOCOL) -> bytes:
    return frame(greeting(node, cluster, protocol))


def test_nodes_connect_and_talk_both_ways(world: World, addresses: dict[str, Address]) -> None:
    nodes = {name: Node(world, name, addresses) for name in "abc"}
    assert verifyObject(INetwork, nodes["a"].network)
    world.until(lambda: all(len(node.user.events) == 2 for node in nodes.values()))
    messages: list[RaftMessage] = [StaleTerm(term) for term in range(500)]
    for message in messages:
        assert nodes["a"].network.send("c", message)
        assert nodes["c"].network.send("a", message)
    world.until(lambda: nodes["a"].user.messages == messages and nodes["c"].user.messages == messages)
    for node in nodes.values():
        node.network.stop()


def test_last_words_of_guards_are_heard_and_nothing_else_that_comes_as_a_datagram(world: World, node: Node) -> None:
    word = LastWord(7, "b", b"\1" * SECRET)
    address = node.network._address
    with socket(AF_INET, SOCK_DGRAM) as guard:
        for data in (b"", b"nonsense", datagram(word)[:-1], frame(StaleTerm(7)), datagram(word), datagram(word)):
            guard.sendto(data, address)
        world.until(lambda: len(node.user.words) == 2)
    assert node.user.words == [word, word]
    assert node.network.counters == {"not a last word": 4}
    assert not node.user.events


def test_node_reconnects_to_a_peer_that_was_away(world: World, addresses: dict[str, Address]) -> None:
    b = Node(world, "b", addresses)
    world.turn(0.05)
    a = Node(world, "a", addresses)
    world.until(lambda: b.user.events == ["+a"])
    a.network.stop()
    world.until(lambda: b.user.events == ["+a", "-a"])
    assert not b.network.send("a", StaleTerm(1))
    assert b.network.heard("a") is None
    again = Node(world, "a", addresses)
    world.until(lambda: b.user.events == ["+a", "-a", "+a"])
    for node in (again, b):
        node.network.stop()


def test_node_that_is_stopped_hears_and_says_nothing(world: World, addresses: dict[str, Address]) -> None:
    a, b = (Node(world, name, addresses) for name in "ab")
    world.until(lambda: a.user.events == ["+b"])
    b.network.send("a", StaleTerm(1))
    a.network.stop()
    b.network.stop()
    world.turn(0.5)
    assert a.user.events == ["+b"]
    assert not a.user.messages


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(blank("x")), "unknown node"),
        (hello("a"), "unknown node"),
        (hello(cluster="other"), "other cluster"),
        (hello(protocol=PROTOCOL + 1), "other protocol version"),
        (frame(StaleTerm(9)), "not a message"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame too long"),
        (b"REGISTER sip:example.com SIP/2.0\r\n\r\n", "frame too long"),
        (b"\x00\x00\x00\x04\x80\x04\x95.", "not a message"),
        (struct.pack("!I", 5) + msgspec.msgpack.encode("text"), "not a message"),
        (struct.pack("!I", 0), "not a message"),
        (struct.pack("!I", 0xFFFFFFFF), "frame too long"),
    ],
)
def test_stranger_is_turned_away(
    world: World, node: Node, addresses: dict[str, Address], data: bytes, reason: str
) -> None:
    client = call(world, addresses["a"], data)
    world.until(lambda: closed(client))
    assert node.network.counters == {reason: 1}
    assert not node.user.events


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hello(), "out of place"),
        (struct.pack("!I", MAX_FRAME + 1), "frame too long"),
        (b"\x00\x00\x00\x01\xc1", "not a message"),
        (frame(StaleTerm(666)), "not our log"),
    ],
)
def test_peer_that_says_what_no_node_says_is_disconnected(
    world: World, node: Node, addresses: dict[str, Address], data: bytes, reason: str
) -> None:
    client = call(world, addresses["a"], hello() + data + frame(StaleTerm(1)))
    world.until(lambda: closed(client))
    assert node.network.counters == {reason: 1}
    assert node.user.events == ["+b", "-b"]
    assert StaleTerm(1) not in node.user.messages


def test_random_bytes_never_fail(world: World, node: Node, addresses: dict[str, Address]) -> None:
    dice = random.Random(1)
    clients = []
    for number in range(60):
        data = dice.randbytes(dice.randrange(1, 300))
        if number % 3:
            data = struct.pack("!I", len(data)) + data
        clients.append(call(world, addresses["a"], (hello() if number % 2 else b"") + data))
        if number % 10 == 9:
            for client in clients:
                client.close()
            world.turn(0.02)
            clients.clear()
    assert not node.user.messages
    assert sum(node.network.counters.values()) >= 40


def test_new_connection_takes_the_place_of_the_old(world: World, node: Node, addresses: dict[str, Address]) -> None:
    old = call(world, addresses["a"], hello())
    new = call(world, addresses["a"], hello() + frame(StaleTerm(1)))
    world.until(lambda: node.user.events == ["+b", "-b", "+b"] and closed(old))
    assert node.user.messages == [StaleTerm(1)]
    assert node.network.counters == {"replaced": 1}
    new.close()


def test_stranger_that_says_nothing_is_turned_away(
    world: World, node: Node, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SILENCE", 0.2)
    client = call(world, addresses["a"], b"")
    world.until(lambda: closed(client))
    assert node.network.counters == {"silent": 1}


def test_stranger_that_says_hello_too_slowly_is_turned_away(
    world: World, node: Node, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SILENCE", 0.4)
    monkeypatch.setattr(peers, "PING", 0.05)
    client = call(world, addresses["a"], b"")
    for byte in hello():
        world.turn(0.1)
        if closed(client):
            break
        client.send(bytes([byte]))
    assert node.network.counters == {"silent": 1}


def test_peer_that_says_nothing_more_is_disconnected(
    world: World, node: Node, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SILENCE", 0.4)
    client = call(world, addresses["a"], hello())
    world.until(lambda: node.user.events == ["+b", "-b"])
    world.until(lambda: closed(client))
    assert node.network.counters == {"silent": 1}


def test_idle_connection_is_kept(world: World, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SILENCE", 1.0)
    a, b = (Node(world, name, addresses) for name in "ab")
    world.turn(2.5)
    assert (a.user.events, b.user.events) == (["+b"], ["+a"])
    for node in (a, b):
        node.network.stop()


def test_strangers_are_few(world: World, node: Node, addresses: dict[str, Address]) -> None:
    clients = [call(world, addresses["a"], b"") for _ in range(peers.MAX_STRANGERS + 3)]
    world.until(lambda: node.network.counters["too many strangers"] == 3)
    assert sum(map(closed, clients)) == 3
    for client in clients:
        client.close()


def test_stranger_at_a_peers_address_outlasts_those_from_elsewhere(
    world: World, node: Node, addresses: dict[str, Address]
) -> None:
    peer = create_connection(addresses["a"], source_address=(addresses["b"][0], 0))
    peer.setblocking(False)
    clients = [call(world, addresses["a"], b"") for _ in range(peers.MAX_STRANGERS + 3)]
    world.until(lambda: node.network.counters["too many strangers"] == 4)
    assert [closed(client) for client in clients] == [True] * 4 + [False] * (peers.MAX_STRANGERS - 1)
    peer.sendall(hello())
    world.until(lambda: node.user.events == ["+b"])
    for client in [*clients, peer]:
        client.close()


def test_strangers_dont_keep_a_node_from_calling_its_peers(
    world: World, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RETRY", 0.05)
    caller = Node(world, "b", addresses)
    clients = [call(world, addresses["b"], b"") for _ in range(peers.MAX_STRANGERS)]
    called = Node(world, "a", addresses)
    world.until(lambda: called.user.events == ["+b"], 1.0)
    assert "too many strangers" not in caller.network.counters
    for node in (caller, called):
        node.network.stop()
    for client in clients:
        client.close()


def test_peer_that_doesnt_read_gets_no_more_entries_and_then_none_at_all(
    world: World, node: Node, addresses: dict[str, Address]
) -> None:
    client = socket()
    client.setsockopt(SOL_SOCKET, 8, 4096)  # SO_RCVBUF
    client.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    client.connect(addresses["a"])
    client.sendall(hello())
    world.until(lambda: node.user.events == ["+b"])
    entries = AppendEntries(1, 0, 1, 0, [(b"\0" + bytes(200_000), 2, 1)], 0, 200, 0, 1, b"", False)
    sent = 0
    while node.network.send("b", entries):
        sent += 1
        world.turn(0.005)
        assert sent < 200
    assert not node.network.send("b", SnapshotChunk(1, 2, 1, 9, 0, b"piece"))
    said = 0
    while node.network.send("b", StaleTerm(1)) and not node.network.counters:
        said += len(frame(StaleTerm(1)))
        assert said <= connection.MAX_UNSENT
    world.until(lambda: node.user.events[-1] == "-b")
    assert node.network.counters == {"does not read": 1}
    client.close()


def test_peer_that_reads_again_has_room(world: World, node: Node, addresses: dict[str, Address]) -> None:
    client = call(world, addresses["a"], hello())
    entries = AppendEntries(1, 0, 1, 0, [(b"\0" + bytes(200_000), 2, 1)], 0, 200, 0, 1, b"", False)
    while node.network.send("b", entries):
        client.sendall(frame(Ping()))  # a silent one would be given up
        world.turn(0.002)
    assert node.network.send("b", AppendEntries(1, 0, 1, 0, [], 0, 200, 0, 1, b"", False))
    before = len(node.user.events)

    def read() -> bool:
        with suppress(BlockingIOError):
            client.recv(1 << 20)
        return node.user.events[before:] == ["+b"]

    world.until(read)
    assert node.network.send("b", entries)
    client.close()


def test_user_refuses_a_peer_for_what_it_says_of_itself(
    world: World, node: Node, addresses: dict[str, Address]
) -> None:
    client = call(world, addresses["a"], frame(greeting("b", incarnation="bad")) + frame(StaleTerm(1)))
    world.until(lambda: closed(client))
    assert node.network.counters == {"bad incarnation": 1}
    assert not node.user.events
    assert not node.user.messages


def test_node_knows_what_its_peers_say_of_themselves(world: World, addresses: dict[str, Address]) -> None:
    a, b = (Node(world, name, addresses) for name in "ab")
    assert b.network.hello("a") is None
    b.user.hello = greeting("b", incarnation="fedcba")
    world.until(lambda: a.user.events == ["+b"] and b.user.events == ["+a"])
    assert a.network.hello("b") == greeting("b", incarnation="fedcba")
    assert b.network.hello("a") == greeting("a")
    for node in (a, b):
        node.network.stop()


def test_peer_that_is_removed_is_disconnected_and_not_taken_again(world: World, addresses: dict[str, Address]) -> None:
    a, b, c = nodes = [Node(world, name, addresses) for name in "abc"]
    world.until(lambda: all(len(node.user.events) == 2 for node in nodes))
    b.user.strangers = {"c"}
    b.network.set_peers({"a": addresses["a"]})
    assert b.user.events[2:] == ["-c"]
    assert not b.network.send("c", StaleTerm(1))
    world.until(lambda: "-b" in c.user.events)
    world.until(lambda: b.network.counters["no member"] > 0)
    a.network.set_peers({"c": addresses["c"]})
    b.network.set_peers({})  # b dials a: it must cease to
    world.turn(2 * peers.RETRY)
    assert "no member" not in a.network.counters
    assert a.user.events[2:] == ["-b"]
    for node in nodes:
        node.network.stop()


def test_caller_that_has_heard_what_we_were_must_call_again(
    world: World, node: Node, addresses: dict[str, Address]
) -> None:
    """It would take us for that as long as the connection lasts."""
    client = call(world, addresses["a"], b"")
    node.network.set_peers({})
    node.network.set_peers({"b": addresses["b"]})
    world.until(lambda: closed(client))
    assert not node.network.counters["silent"]
    again = call(world, addresses["a"], hello())
    world.until(lambda: node.user.events == ["+b"])
    again.close()


@pytest.mark.parametrize("dials", [True, False])
def test_peer_that_is_added_is_talked_to(world: World, addresses: dict[str, Address], dials: bool) -> None:
    new, old = ("b", "a") if dials else ("a", "b")
    nodes = {name: Node(world, name, {name: addresses[name]}) for name in "ab"}
    nodes[old].network.set_peers({new: addresses[new]})
    world.turn(0.1)
    nodes[new].network.set_peers({old: addresses[old]})
    world.until(lambda: nodes["a"].user.events == ["+b"] and nodes["b"].user.events == ["+a"])
    for node in nodes.values():
        node.network.stop()


def test_peer_whose_address_changes_is_dialled_there(world: World, addresses: dict[str, Address]) -> None:
    b = Node(world, "b", {name: addresses[name] for name in "ab"})
    moved = Node(world, "a", {"a": addresses["c"], "b": addresses["b"]})
    world.turn(0.1)
    assert not b.user.events  # nobody is at the old address: an attempt, or the wait for the next, is under way
    b.network.set_peers({"a": addresses["c"]})
    world.until(lambda: b.user.events == ["+a"])
    old = Node(world, "a", {name: addresses[name] for name in "ab"})
    b.network.set_peers({"a": addresses["a"]})
    world.until(lambda: b.user.events == ["+a", "-a", "+a"] and old.user.events == ["+b"])
    assert moved.user.events == ["+b", "-b"]
    assert not (b.network.counters + old.network.counters + moved.network.counters)
    for node in (b, old, moved):
        node.network.stop()


def test_set_of_peers_that_can_not_be_talked_to_changes_nothing(world: World, addresses: dict[str, Address]) -> None:
    a, b = (Node(world, name, addresses) for name in "ab")
    world.until(lambda: a.user.events == ["+b"] and b.user.events == ["+a"])
    for mapping in ({"a": addresses["a"]}, {"c": ("192.0.2.1", 7000)}, {"C": addresses["c"]}):
        with pytest.raises(ConfigError):
            a.network.set_peers(mapping)
    world.turn(0.1)
    assert a.network.send("b", StaleTerm(1))
    world.until(lambda: b.user.messages == [StaleTerm(1)])
    for node in (a, b):
        node.network.stop()


def test_log_speaks_of_a_reason_now_and_then_only(
    world: World, node: Node, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "is refused" in (event.get("log_format") or ""):
            lines.append(f"{event['reason']} {event['count']}")

    monkeypatch.setattr(peers, "QUIET", 0.5)
    globalLogPublisher.addObserver(observe)
    for _ in range(3):
        call(world, addresses["a"], frame(blank("x"))).close()
        call(world, addresses["a"], hello(cluster="other")).close()
    world.turn(0.6)
    call(world, addresses["a"], frame(blank("x"))).close()
    globalLogPublisher.removeObserver(observe)
    assert lines == ["unknown node 1", "other cluster 1", "unknown node 4"]


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::", "example.com", "2001:db8::1", ""])
def test_address_that_others_can_reach_is_refused(world: World, host: str) -> None:
    with pytest.raises(ConfigError, match="cluster address of a"):
        Peers(world.reactor, "a", (host, 5070), {})
    with pytest.raises(ConfigError, match="cluster address of b"):
        Peers(world.reactor, "a", ("127.0.0.1", 5070), {"b": (host, 5070)})


@pytest.mark.parametrize("name", ["A", "n_1", "n.1", "-a", "a-", "a" * 64, ""])
def test_name_that_can_not_stand_in_a_certificate_is_refused(world: World, name: str) -> None:
    with pytest.raises(ConfigError, match="the name of the node"):
        Peers(world.reactor, name, ("127.0.0.1", 5070), {})
    with pytest.raises(ConfigError, match="the name of the node"):
        Peers(world.reactor, "a", ("127.0.0.1", 5070), {name: ("127.0.0.1", 5071)})
    with pytest.raises(ConfigError, match="the name of the cluster"):
        Peers(world.reactor, "a", ("127.0.0.1", 5070), {}, name)


def test_address_that_is_in_use_is_said(world: World, node: Node, addresses: dict[str, Address]) -> None:
    with pytest.raises(ConfigError, match=r"can't listen for the other nodes on 127\.0\.0\.21 port \d+: .*in use"):
        Node(world, "a", addresses)


def test_node_that_was_added_later_is_let_in_and_one_that_waits_to_be_called_calls(
    world: World, addresses: dict[str, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "APART", 0.2)
    a = Node(world, "a", addresses)
    b = Node(world, "b", {"b": addresses["b"], "c": addresses["c"]})  # b would dial a, but doesn't know of it
    world.until(lambda: a.user.events == ["+b"])
    assert b.user.events == ["+a"]
    for node in (a, b):
        node.network.stop()
