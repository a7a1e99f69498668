"""The nodes' connections under TLS: who gets in, who doesn't, and certificates that change meanwhile."""

from __future__ import annotations

import gc
import os
import pickle
import random
import ssl
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from socket import create_connection, socket
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from sipha.cluster import authority, peers
from sipha.cluster.authority import Issued
from sipha.cluster.connection import MAX_UNSENT, Connection
from sipha.cluster.peers import Peers
from sipha.cluster.tls import Certificates, Credentials, expires, load
from sipha.cluster.wire import (
    MAX_FRAME,
    MAX_HELLO,
    PROTOCOL,
    AppendEntries,
    Propose,
    SnapshotChunk,
    StaleTerm,
    frame,
)
from sipha.errors import ConfigError
from sipha.sip.flow import Address
from tests.cluster.callers import Caller, call
from tests.cluster.certificates import Pki, any_authority, any_certificate, replace, serial
from tests.cluster.nodes import Node, blank, greeting
from tests.cluster.world import World

Answer = Callable[[ssl.SSLContext | None], Caller]

HELLO = frame(greeting("c"))


class Talk:
    """Nodes a and b, of which b dials; each tells the other a number every 5 ms."""

    def __init__(self, world: World, nodes: dict[str, Node]) -> None:
        self.world = world
        self.nodes = nodes
        self.number = 0
        world.until(lambda: all(node.user.events for node in nodes.values()))
        self._tell()

    def _tell(self) -> None:
        self.number += 1
        for name, other in ("ab", "ba"):
            self.nodes[name].network.send(other, StaleTerm(self.number))
        self.world.reactor.callLater(0.005, self._tell)

    def goes_on(self) -> None:
        """On the one connection that there has been, and nothing but the numbers is heard."""
        until = self.number + 5
        for name, other in ("ab", "ba"):
            user = self.nodes[name].user
            self.world.until(lambda: StaleTerm(until) in user.messages)  # noqa: B023  used at once
            assert user.messages == [StaleTerm(number) for number in range(1, len(user.messages) + 1)]
            assert [event for event in user.events if other in event] == [f"+{other}"]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "sipha")


@pytest.fixture
def talk(world: World, addresses: dict[str, Address], pki: Pki, failures: list[LogEvent]) -> Iterator[Talk]:
    """What goes on during an attack, and after it; nothing that an attacker does may be logged as a failure."""
    talk = Talk(world, {name: Node(world, name, addresses, credentials=pki.install(name)) for name in "ab"})
    yield talk
    talk.goes_on()
    for node in talk.nodes.values():
        node.network.stop()
    world.turn(0.02)
    assert not failures


class Target:
    """Node a, which is attacked while it talks with b; the attackers have what may belong to c."""

    def __init__(self, world: World, node: Node, address: Address) -> None:
        self.world = world
        self.network = node.network
        self.user = node.user
        self.address = address

    def call(self, tls: ssl.SSLContext | None = None) -> Caller:
        return call(self.world, self.address, tls)


@pytest.fixture
def target(talk: Talk, addresses: dict[str, Address]) -> Target:
    return Target(talk.world, talk.nodes["a"], addresses["a"])


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SILENCE", 0.4)
    monkeypatch.setattr(peers, "PING", 0.05)


class TestStrangers:
    """What becomes of those who call a node."""

    @pytest.fixture
    def of_c(self, pki: Pki, tmp_path: Path) -> ssl.SSLContext:
        """The right certificate of node c."""
        return pki.tls(pki.issue("c"))

    def test_node_with_the_right_certificate_is_welcome(
        self, world: World, target: Target, of_c: ssl.SSLContext
    ) -> None:
        caller = target.call(of_c)
        assert isinstance(caller.socket, ssl.SSLSocket)
        assert caller.socket.version() == "TLSv1.3"
        caller.say(HELLO)
        world.until(lambda: "+c" in target.user.events and caller.listens() and caller.received)
        assert caller.received.startswith(frame(greeting("a")))
        assert target.network.hello("c") == greeting("c")
        assert not target.network.counters
        caller.close()

    @pytest.mark.parametrize(
        ("certify", "hello", "reason"),
        [
            pytest.param(lambda _: None, HELLO, "no certificate", id="no certificate"),
            pytest.param(lambda pki: Pki(pki.directory / "x").issue("c"), HELLO, "certificate not ours", id="other CA"),
            pytest.param(
                lambda pki: any_certificate(pki.issue("c"), "c.sipha.sipha"),
                HELLO,
                "certificate not ours",
                id="issued by a node",
            ),
            pytest.param(
                lambda pki: any_certificate(pki.authority, "c.other.sipha"),
                HELLO,
                "certificate not ours",
                id="outside the CA's names",
            ),
            pytest.param(
                lambda pki: any_certificate(pki.authority), HELLO, "certificate of another node", id="no names"
            ),
            pytest.param(lambda pki: pki.issue("x"), HELLO, "certificate of another node", id="wrong name"),
            pytest.param(
                lambda pki: pki.issue("c"), frame(greeting("b")), "certificate of another node", id="another's hello"
            ),
            pytest.param(lambda pki: pki.issue("x"), frame(blank("x")), "unknown node", id="no member"),
            pytest.param(
                lambda pki: pki.issue("c"), frame(greeting("c", "other")), "other cluster", id="other cluster"
            ),
            pytest.param(
                lambda pki: pki.issue("c", age=timedelta(days=101)), HELLO, "certificate not valid now", id="expired"
            ),
            pytest.param(
                lambda pki: pki.issue("c", age=timedelta(days=-3)), HELLO, "certificate not valid now", id="not yet"
            ),
            pytest.param(
                lambda pki: pki.issue("c"),
                frame(greeting("c", "sipha", PROTOCOL + 1)),
                "other protocol version",
                id="v",
            ),
        ],
    )
    def test_certificate_or_hello_is_refused(
        self, target: Target, pki: Pki, certify: Callable[[Pki], Issued | None], hello: bytes, reason: str
    ) -> None:
        caller = target.call(pki.tls(certify(pki)))
        caller.say(hello + frame(StaleTerm(666)))
        caller.until_closed()
        assert target.network.counters == {reason: 1}
        assert target.user.events == ["+b"]
        assert not caller.received

    def test_node_of_another_cluster_of_the_same_authority_is_refused(
        self, world: World, addresses: dict[str, Address], tmp_path: Path, failures: list[LogEvent]
    ) -> None:
        pki = Pki(tmp_path)
        pki.authority = any_authority()  # which may sign the names of any cluster
        own = any_certificate(pki.authority, "a.sipha.sipha")
        node = Node(world, "a", addresses, credentials=pki.install("a", own))
        other = pki.tls(any_certificate(pki.authority, "c.other.sipha"))
        for cluster in ("sipha", "other"):
            caller = call(world, addresses["a"], other)
            caller.say(frame(greeting("c", cluster)))
            caller.until_closed()
        assert node.network.counters == {"certificate of another node": 1, "other cluster": 1}
        assert not node.user.events
        assert not failures
        node.network.stop()

    def test_old_tls_is_refused(self, target: Target, of_c: ssl.SSLContext) -> None:
        of_c.maximum_version = ssl.TLSVersion.TLSv1_2
        target.call(of_c).until_closed()
        assert target.network.counters == {"not TLS 1.3": 1}

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"REGISTER sip:example.com SIP/2.0\r\n\r\n",
            HELLO,
            b"\x80\x04\x95.",
            struct.pack("!I", 0xFFFFFFFF) + bytes(100),
            b"\x16\x03\x01\x40\x01" + bytes(0x4001),  # a record that is too long
            (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(0x3FFC)) * 9,  # a ClientHello of 16 MB
        ],
    )
    def test_what_is_not_tls_is_refused(self, target: Target, impatience: None, data: bytes) -> None:
        caller = target.call()
        caller.say(data)
        caller.until_closed()
        assert sum(target.network.counters.values()) == 1
        assert set(target.network.counters) <= {"not TLS 1.3", "broken TLS", "silent"}

    def test_random_bytes_never_fail(self, world: World, target: Target) -> None:
        dice = random.Random(1)
        for number in range(60):
            head = (b"", b"\x16\x03\x01", b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03")[number % 3]
            caller = target.call()
            caller.say(head + dice.randbytes(dice.randrange(1, 400)))
            world.turn(0.005)
            caller.close()
        world.turn(0.05)
        assert sum(target.network.counters.values()) >= 20

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (struct.pack("!I", MAX_HELLO + 1), "frame too long"),
            (struct.pack("!I", 0xFFFFFFFF) + bytes(100_000), "frame too long"),
            (frame(StaleTerm(1)), "not a message"),
            (frame(Propose(1, b"x")), "not a message"),
            (HELLO + HELLO, "out of place"),
            (HELLO + struct.pack("!I", MAX_FRAME + 1), "frame too long"),
            (HELLO + b"\x00\x00\x00\x01\xc1", "not a message"),
            (HELLO + frame(StaleTerm(666)), "not our log"),
        ],
    )
    def test_node_that_says_what_no_node_says_is_disconnected(
        self, target: Target, of_c: ssl.SSLContext, data: bytes, reason: str
    ) -> None:
        caller = target.call(of_c)
        caller.say(data + frame(StaleTerm(1 << 40)))
        caller.until_closed()
        assert target.network.counters == {reason: 1}
        assert target.user.events in (["+b"], ["+b", "+c", "-c"])
        target.user.messages = [message for message in target.user.messages if message != StaleTerm(666)]

    @pytest.mark.parametrize("known", [False, True], ids=["stranger", "node"])
    def test_library_of_pysyncobj_gets_nowhere(
        self, target: Target, of_c: ssl.SSLContext, tmp_path: Path, known: bool
    ) -> None:
        """What its own transport takes from anyone: code in a pickle, utility commands, entries from a reader."""
        pwned = tmp_path / "pwned"

        class Code:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {pwned}",)

        command = b"\0" + pickle.dumps((0, (Code(), 1)), 2)
        messages: list[Any] = [
            Code(),
            ["status"],
            ["transfer"],
            ["add", "127.0.0.9:1"],
            "readonly",
            {"type": "apply_command", "command": command},
            {"type": "append_entries", "term": 1 << 40, "commit_index": 9, "entries": [(command, 2, 1)]},
        ]
        callers = []
        for message in messages:
            body = zlib.compress(pickle.dumps(message, 2))
            for order in "<!":
                for tls in (None, of_c):
                    callers.append(target.call(tls))
                    callers[-1].say((HELLO if known and tls else b"") + struct.pack(f"{order}i", len(body)) + body)
                    callers[-1].until_closed()
        assert sum(target.network.counters.values()) >= len(callers)
        assert not pwned.exists()
        assert not any(caller.received.removeprefix(frame(greeting("a"))) for caller in callers)

    def test_stranger_never_takes_the_place_of_a_node(self, target: Target, pki: Pki, tmp_path: Path) -> None:
        for issued in (None, pki.issue("c"), Pki(tmp_path / "x").issue("b"), pki.issue("b", age=timedelta(days=200))):
            caller = target.call(pki.tls(issued))
            caller.say(frame(greeting("b")))
            caller.until_closed()
        caller = target.call()
        caller.say(frame(greeting("b")))
        caller.until_closed()
        assert "replaced" not in target.network.counters
        assert target.user.events == ["+b"]

    def test_connection_of_the_right_node_takes_the_place_of_the_old_one(
        self, world: World, target: Target, of_c: ssl.SSLContext
    ) -> None:
        old, new = (target.call(of_c) for _ in range(2))
        old.say(HELLO)
        world.until(lambda: target.user.events == ["+b", "+c"])
        new.say(HELLO)
        world.until(lambda: target.user.events == ["+b", "+c", "-c", "+c"])
        old.until_closed()
        assert target.network.counters == {"replaced": 1}
        new.close()

    @pytest.mark.parametrize("slow", ["handshake", "hello", "silent", "silent under TLS"])
    def test_slow_stranger_is_turned_away(
        self, world: World, target: Target, impatience: None, of_c: ssl.SSLContext, slow: str
    ) -> None:
        caller = target.call(of_c if slow in {"hello", "silent under TLS"} else None)
        text = {"handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "hello": HELLO}.get(slow, b"")
        for byte in text + b"\0" * 200 if text else b"":
            world.turn(0.05)
            if not caller.listens():
                break
            caller.say(bytes([byte]))
        caller.until_closed()
        assert target.network.counters == {"silent": 1}
        assert not caller.received

    def test_crowd_of_strangers_keeps_no_node_out(
        self, world: World, target: Target, addresses: dict[str, Address], pki: Pki
    ) -> None:
        callers = []

        def crowd() -> None:
            for _ in range(2):
                callers.append(target.call())
                callers[-1].say(b"\x16\x03\x01\x02\x00\x01")
            calls[0] = world.reactor.callLater(0.001, crowd)

        calls = [world.reactor.callLater(0, crowd)]
        world.until(lambda: target.network.counters["too many strangers"] > 50)
        node = Node(world, "c", addresses, credentials=pki.install("c"))
        world.until(lambda: "+c" in target.user.events)
        calls[0].cancel()
        assert set(target.network.counters) == {"too many strangers"}
        node.network.stop()
        for caller in callers:
            caller.close()

    def test_node_that_does_not_read_gets_no_more_entries_and_then_none_at_all(
        self, world: World, target: Target, of_c: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sipha.cluster.peers.SILENCE", 60.0)  # it says nothing, either
        caller = target.call(of_c)
        caller.say(HELLO)
        world.until(lambda: target.user.events == ["+b", "+c"])
        entries = AppendEntries(1, 0, 1, 0, [(b"\0" + bytes(200_000), 2, 1)], 0, 200, 0, 1, b"", False)
        piece = SnapshotChunk(1, 2, 1, 9, 0, b"piece")
        while target.network.send("c", entries):
            world.turn(0.002)
        assert not target.network.send("c", piece)
        before = len(target.user.events)
        world.until(lambda: caller.listens() and target.user.events[before:] == ["+c"])
        assert target.network.send("c", piece)
        while target.network.send("c", entries):
            world.turn(0.002)
        said = 0
        while target.network.send("c", StaleTerm(1)) and not target.network.counters:
            said += len(frame(StaleTerm(1)))
            assert said <= MAX_UNSENT
        world.until(lambda: target.user.events[-1] == "-c")
        assert target.network.counters == {"does not read": 1}
        caller.close()

    def test_stranger_leaves_nothing_for_the_collector(
        self, world: World, target: Target, addresses: dict[str, Address], pki: Pki, tmp_path: Path
    ) -> None:
        def count() -> int:
            return sum(isinstance(each, Connection | TLSMemoryBIOProtocol) for each in gc.get_objects())

        gc.collect()
        gc.disable()
        try:
            before = count()
            for issued in (None, Pki(tmp_path / "x").issue("c"), pki.issue("x"), pki.issue("c")):
                caller = target.call(pki.tls(issued))
                caller.say(HELLO + frame(StaleTerm(1 << 40)) + HELLO)
                caller.until_closed()
            for data in (b"garbage", b""):
                caller = target.call()
                caller.say(data)
                world.turn(0.02)
                caller.close()
            other = Pki(tmp_path / "y")
            trusted = pki.authority.certificate + other.authority.certificate
            refused = Node(world, "c", addresses, credentials=other.install("c", trusted=trusted))
            world.until(lambda: refused.network.counters["our certificate refused"] >= 2)
            refused.network.stop()
            world.until(lambda: count() == before, 2)
        finally:
            gc.enable()
        target.user.messages.remove(StaleTerm(1 << 40))


class TestImpostors:
    """What becomes of those whom a node calls in the belief that they are another."""

    @pytest.fixture
    def caller(self, world: World, addresses: dict[str, Address], pki: Pki, failures: list[LogEvent]) -> Iterator[Node]:
        """Node b, which dials a, and believes to find it where the impostors are."""
        node = Node(world, "b", {name: addresses[name] for name in "ab"}, credentials=pki.install("b"))
        yield node
        node.network.stop()
        assert not node.user.events
        assert not node.user.messages
        assert not failures

    @pytest.fixture
    def answer(self, world: World, addresses: dict[str, Address]) -> Iterator[Answer]:
        """Wait for the call, and answer it."""
        with socket() as port:
            port.bind(addresses["a"])
            port.listen()
            port.setblocking(False)

            def answer(tls: ssl.SSLContext | None) -> Caller:
                ends: list[socket] = []

                def accepted() -> bool:
                    with suppress(BlockingIOError):
                        ends.append(port.accept()[0])
                    return bool(ends)

                world.until(accepted)
                return Caller(world, ends[0], tls, server=True)

            yield answer

    @pytest.mark.parametrize(
        ("certify", "reason"),
        [
            (lambda pki: pki.issue("c"), "certificate of another node"),
            (lambda pki: any_certificate(pki.authority), "certificate of another node"),
            (lambda pki: any_certificate(pki.authority, "a.other.sipha"), "certificate not ours"),
            (lambda pki: Pki(pki.directory / "x").issue("a"), "certificate not ours"),
            (lambda pki: pki.issue("a", age=timedelta(days=101)), "certificate not valid now"),
        ],
        ids=["wrong name", "no names", "other cluster", "other CA", "expired"],
    )
    def test_impostor_hears_no_hello(
        self, caller: Node, answer: Answer, pki: Pki, certify: Callable[[Pki], Issued], reason: str
    ) -> None:
        impostor = answer(pki.tls(certify(pki), server=True))
        impostor.say(frame(greeting("a")))
        impostor.until_closed()
        assert not impostor.received
        impostor.world.until(lambda: caller.network.counters[reason] == 1)

    def test_old_tls_is_refused(self, world: World, caller: Node, answer: Answer, pki: Pki) -> None:
        tls = pki.tls(pki.issue("a"), server=True)
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        answer(tls).until_closed()
        world.until(lambda: caller.network.counters["TLS refused"] + caller.network.counters["not TLS 1.3"] == 1)

    @pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", frame(greeting("a")), b""])
    def test_what_is_not_tls_is_refused(
        self, world: World, caller: Node, answer: Answer, impatience: None, data: bytes
    ) -> None:
        impostor = answer(None)
        impostor.say(data)
        impostor.until_closed()
        world.until(lambda: sum(caller.network.counters.values()) == 1)
        assert impostor.received.startswith(b"\x16\x03\x01")  # a ClientHello
        assert frame(greeting("b")) not in impostor.received

    @pytest.mark.parametrize(
        ("hello", "reason"),
        [
            (greeting("c"), "other node than dialled"),
            (greeting("a", "other"), "other cluster"),
            (greeting("a", incarnation="bad"), "bad incarnation"),
        ],
    )
    def test_node_that_is_not_what_was_dialled_is_refused(
        self, caller: Node, answer: Answer, pki: Pki, hello: Any, reason: str
    ) -> None:
        caller.network.set_peers({"a": caller.network._peers["a"], "c": ("127.0.0.23", 9)})
        impostor = answer(pki.tls(pki.issue("a"), server=True))
        impostor.say(frame(hello))
        impostor.until_closed()
        impostor.world.until(lambda: caller.network.counters[reason] == 1)
        assert impostor.received == frame(greeting("b"))

    def test_refused_certificate_is_told_and_dialled_with_again(
        self, world: World, addresses: dict[str, Address], pki: Pki, tmp_path: Path, failures: list[LogEvent]
    ) -> None:
        a = Node(world, "a", addresses, credentials=pki.install("a"))
        other = Pki(tmp_path / "other")
        trusted = pki.authority.certificate + other.authority.certificate
        b = Node(world, "b", addresses, credentials=other.install("b", trusted=trusted))
        world.until(lambda: b.network.counters["our certificate refused"] > 1)
        assert a.network.counters["certificate not ours"] > 1
        pki.directory = other.directory
        pki.install("b")
        world.until(lambda: b.user.events == ["+a"] and a.user.events == ["+b"])
        for node in (a, b):
            node.network.stop()
        assert not failures


class Relay:
    """Whoever sits on the way to a node: keeps what the dialler says, and may add to it."""

    def __init__(self, world: World, target: Address) -> None:
        self.said: list[bytes] = []  # on each connection
        self.nodes: list[socket] = []
        self._world = world
        self._diallers: list[socket] = []
        self._port = socket()
        self._port.bind(("127.0.0.1", 0))
        self._port.listen()
        self._port.setblocking(False)
        self._target = target
        self.address: Address = self._port.getsockname()
        self._pass_on()

    def _pass_on(self) -> None:
        self._world.reactor.callLater(0.001, self._pass_on)
        with suppress(BlockingIOError):
            self._diallers.append(self._port.accept()[0])
            self.nodes.append(create_connection(self._target))
            self.said.append(b"")
        for number, ends in enumerate(zip(self._diallers, self.nodes, strict=True)):
            for source, sink in (ends, ends[::-1]):
                with suppress(OSError):
                    source.setblocking(False)
                    data = source.recv(65536)
                    if data:
                        sink.sendall(data)
                    else:
                        sink.close()
                    if source is ends[0]:
                        self.said[number] += data

    def close(self) -> None:
        for each in (self._port, *self._diallers, *self.nodes):
            each.close()


def records(data: bytes) -> list[bytes]:
    """The TLS records in what was said."""
    found = []
    while data:
        (size,) = struct.unpack_from("!H", data, 3)
        found.append(data[: 5 + size])
        data = data[5 + size :]
    return found


class TestOnTheWay:
    """What those can do who see what the nodes send."""

    @pytest.fixture
    def relay(self, world: World, addresses: dict[str, Address]) -> Iterator[Relay]:
        relay = Relay(world, addresses["a"])
        yield relay
        relay.close()

    @pytest.fixture
    def talk(
        self, world: World, addresses: dict[str, Address], pki: Pki, relay: Relay, failures: list[LogEvent]
    ) -> Iterator[Talk]:
        """Node b finds a at the relay's."""
        a = Node(world, "a", addresses, credentials=pki.install("a"))
        b = Node(world, "b", {"a": relay.address, "b": addresses["b"]}, credentials=pki.install("b"))
        talk = Talk(world, {"a": a, "b": b})
        yield talk
        for node in (a, b):
            node.network.stop()
        assert not failures

    def test_recorded_session_is_worth_nothing(self, world: World, talk: Talk, target: Target, relay: Relay) -> None:
        talk.goes_on()
        assert frame(StaleTerm(3)) not in relay.said[0]
        for pause in (0.0, 0.001):
            caller = target.call()
            for record in records(relay.said[0]):
                caller.say(record)
                world.turn(pause)
            caller.until_closed()
        assert target.network.counters["broken TLS"] == 2
        talk.goes_on()

    @pytest.mark.parametrize("what", ["replayed", "changed"])
    def test_record_that_is_slipped_in_ends_the_connection_and_is_not_heard(
        self, world: World, talk: Talk, target: Target, relay: Relay, what: str
    ) -> None:
        talk.goes_on()
        record = bytearray(records(relay.said[0])[-2])
        if what == "changed":
            record[-1] ^= 1
        relay.nodes[0].sendall(record)
        world.until(lambda: target.user.events == ["+b", "-b", "+b"])
        heard = [message.term for message in target.user.messages if isinstance(message, StaleTerm)]
        assert heard == sorted(set(heard))
        assert target.network.counters == {"broken TLS": 1}

    def test_messages_of_one_turn_go_out_in_one_record(self, world: World, talk: Talk, relay: Relay) -> None:
        talk.goes_on()
        before = len(records(relay.said[0]))
        network = talk.nodes["b"].network
        sent = [Propose(number, bytes(100)) for number in range(100)]
        for message in sent:
            network.send("a", message)
        world.until(lambda: sent[-1] in talk.nodes["a"].user.messages)
        assert [message for message in talk.nodes["a"].user.messages if isinstance(message, Propose)] == sent
        longest = max(records(relay.said[0])[before:], key=len)
        assert len(longest) > sum(len(frame(message)) for message in sent)

    def test_what_hurries_goes_out_in_one_record_with_what_was_said_before(
        self, world: World, talk: Talk, relay: Relay
    ) -> None:
        talk.goes_on()
        before = len(records(relay.said[0]))
        proposal = Propose(1, bytes(100))
        entries = AppendEntries(1, 0, 1, 1, [(bytes(100), 2, 1)], 0, 0, 0, 0, b"", unaided=False)
        for message in (proposal, entries):
            assert talk.nodes["b"].network.send("a", message)
        world.until(lambda: entries in talk.nodes["a"].user.messages)
        first, *_ = records(relay.said[0])[before:]
        assert len(first) > len(frame(proposal) + frame(entries))


class TestRotation:
    """Certificates change while the nodes talk."""

    @pytest.fixture
    def shown(self, world: World, addresses: dict[str, Address], pki: Pki) -> Callable[[str], int]:
        """Which certificate, by its serial number, a node shows on a new connection."""

        def look(node: str) -> int:
            caller = call(world, addresses[node], pki.tls(None))
            assert isinstance(caller.socket, ssl.SSLSocket)
            der = caller.socket.getpeercert(binary_form=True)
            caller.until_closed()
            assert der is not None
            return x509.load_der_x509_certificate(der).serial_number

        return look

    def joins(self, world: World, talk: Talk, addresses: dict[str, Address], credentials: Credentials) -> None:
        """Node c comes, talks with the others, and goes."""
        c = Node(world, "c", addresses, credentials=credentials)
        world.until(lambda: set(c.user.events) == {"+a", "+b"})
        for node in talk.nodes.values():
            world.until(lambda: node.user.events[-1] == "+c")  # noqa: B023  used at once
        c.network.stop()
        for node in talk.nodes.values():
            world.until(lambda: node.user.events[-1] == "-c")  # noqa: B023  used at once

    def test_nodes_get_new_certificates(
        self, world: World, talk: Talk, addresses: dict[str, Address], pki: Pki, shown: Callable[[str], int]
    ) -> None:
        of_c = pki.install("c")
        self.joins(world, talk, addresses, of_c)
        for node in "abc":
            new = pki.issue(node)
            pki.install(node, new)
            if node != "c":
                assert shown(node) == serial(new.certificate)
            self.joins(world, talk, addresses, of_c)
        talk.goes_on()
        for each in talk.nodes.values():
            assert set(each.network.counters) == {"no certificate"}  # the onlookers

    def test_authority_is_replaced(
        self, world: World, talk: Talk, addresses: dict[str, Address], pki: Pki, tmp_path: Path
    ) -> None:
        old, new = pki.authority, Pki(tmp_path / "new").authority
        both = old.certificate + new.certificate
        files = {
            node: Credentials(*(pki.directory / node / f"{name}.pem" for name in ("ca", "cert", "key")))
            for node in "abc"
        }
        of_c = pki.install("c")
        stale = pki.issue("c")
        for node in "abc":  # all trust both
            replace(files[node].ca, both)
            self.joins(world, talk, addresses, of_c)
        pki.authority = new
        for node in "abc":  # all are certified by the new one
            pki.install(node, trusted=both)
            self.joins(world, talk, addresses, of_c)
        for node in "abc":  # the old one is trusted no more
            replace(files[node].ca, new.certificate)
            self.joins(world, talk, addresses, of_c)
        assert not any(node.network.counters for node in talk.nodes.values())
        caller = call(world, addresses["a"], pki.tls(stale))
        caller.say(HELLO)
        caller.until_closed()
        assert talk.nodes["a"].network.counters == {"certificate not ours": 1}

    @pytest.mark.parametrize("fault", ["no key yet", "no file", "damaged", "other authority", "other node", "expired"])
    def test_new_files_that_can_not_be_used_are_told_once(
        self, target: Target, pki: Pki, shown: Callable[[str], int], tmp_path: Path, fault: str
    ) -> None:
        before = shown("a")
        new = pki.issue("a")
        directory = pki.directory / "a"
        problems: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if "stay in use" in (event.get("log_format") or ""):
                problems.append(event["problem"])

        globalLogPublisher.addObserver(observe)
        if fault == "no key yet":
            replace(directory / "cert.pem", new.certificate)
        elif fault == "no file":
            (directory / "ca.pem").unlink()
        elif fault == "damaged":
            replace(directory / "key.pem", new.key[:50])
        elif fault == "expired":
            pki.install("a", pki.issue("a", age=timedelta(days=200)))
        elif fault == "other node":
            pki.install("a", pki.issue("b"))
        else:
            pki.install("a", Pki(tmp_path / "x").issue("a"))
        assert [shown("a") for _ in range(3)] == [before] * 3
        globalLogPublisher.removeObserver(observe)
        assert len(problems) == 1
        assert str(directory) in problems[0]
        assert target.network.counters["new certificates unusable"] == 1
        pki.install("a", new)
        assert shown("a") == serial(new.certificate)
        assert target.network.counters["new certificates unusable"] == 1

    def test_reload_reads_the_files_at_once(self, target: Target, pki: Pki) -> None:
        certificates = target.network.certificates
        assert certificates is not None
        before = certificates.expires
        credentials = pki.install("a", pki.issue("a", days=200))
        assert certificates.expires == before
        target.network.reload()
        assert certificates.expires == expires(credentials) > before
        target.network.check_certificates()
        credentials.key.unlink()
        with pytest.raises(ConfigError, match=r"can't be read: .*; the old certificates stay in use"):
            target.network.check_certificates()
        certificates.look()
        assert target.network.counters["new certificates unusable"] == 1, "it is told once"
        target.network.reload()
        assert target.network.counters["new certificates unusable"] == 2


class TestFiles:
    """Which files a node starts with."""

    def test_expiry_is_that_of_the_certificate_or_of_its_authority(self, pki: Pki) -> None:
        now = datetime.now(UTC)
        left = expires(pki.install("a")) - now
        assert timedelta(days=99) < left <= timedelta(days=100)
        short = Pki(pki.directory / "short")
        short.authority = authority.found("sipha", now - timedelta(days=20), days=30)
        certificate = any_certificate(short.authority, "a.sipha.sipha")  # which outlives it
        left = expires(short.install("a", certificate)) - now
        assert timedelta(days=9) < left <= timedelta(days=10)

    def test_authority_beyond_that_which_expires_is_of_no_account(self, pki: Pki) -> None:
        old = authority.found("sipha", datetime.now(UTC) - timedelta(days=20), days=21).certificate
        credentials = pki.install("a", trusted=old + pki.authority.certificate)
        assert expires(credentials) - datetime.now(UTC) > timedelta(days=99)

    @pytest.mark.parametrize(("days", "said"), [(20, 1), (40, 0)])
    def test_log_says_that_the_certificate_expires_soon(
        self, world: World, addresses: dict[str, Address], pki: Pki, days: int, said: int
    ) -> None:
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observe)
        node = Node(world, "a", addresses, credentials=pki.install("a", pki.issue("a", days=days)))
        node.network.stop()
        globalLogPublisher.removeObserver(observe)
        assert sum("expires at" in (event.get("log_format") or "") for event in events) == said

    def test_intermediate_authority_is_sent_along(
        self, world: World, addresses: dict[str, Address], tmp_path: Path
    ) -> None:
        pki = Pki(tmp_path)
        pki.authority = any_authority()
        between = any_certificate(pki.authority, ca=True)
        nodes = {}
        for name in "ab":
            own = any_certificate(between, f"{name}.sipha.sipha")
            chain = Issued(own.certificate + between.certificate, own.key)
            nodes[name] = Node(world, name, addresses, credentials=pki.install(name, chain))
        Talk(world, nodes).goes_on()
        for node in nodes.values():
            node.network.stop()

    def test_nodes_with_certificates_may_be_anywhere(self, world: World, pki: Pki) -> None:
        credentials = pki.install("a")
        Peers(world.reactor, "a", ("192.0.2.1", 7000), {"b": ("2001:db8::1", 7000)}, "sipha", credentials)
        for host in ("0.0.0.0", "::", "224.0.0.1", "example.com", ""):
            with pytest.raises(ConfigError, match="cluster address of b"):
                Peers(world.reactor, "a", ("192.0.2.1", 7000), {"b": (host, 7000)}, "sipha", credentials)

    def test_expired_certificate_keeps_no_node_from_starting(self, pki: Pki) -> None:
        """Its clock may be wrong for now; TLS and the others judge."""
        credentials = pki.install("a", pki.issue("a", age=timedelta(days=200)))
        certificates = Certificates(credentials, partial(load, credentials, "a.sipha.sipha"), print)
        assert certificates.expires < datetime.now(UTC)

    @pytest.mark.parametrize(
        ("file", "content", "problem"),
        [
            ("ca", lambda _: None, "ca.pem can't be read: No such file"),
            ("certificate", lambda _: None, "cert.pem can't be read: No such file"),
            ("key", lambda _: None, "key.pem can't be read: No such file"),
            ("ca", lambda _: b"", "ca.pem holds no certificate in PEM"),
            ("certificate", lambda pki: pki.authority.key, "cert.pem holds no certificate in PEM"),
            ("key", lambda pki: pki.authority.certificate, "key.pem holds no private key in PEM"),
            ("key", lambda _: b"\xff" * 100, "key.pem holds no private key in PEM"),
            ("key", lambda pki: pki.authority.key, "key.pem is not the key of .*cert.pem; install the two together"),
            ("key", lambda pki: encrypted(pki.authority.key), "key.pem is encrypted"),
            ("ca", lambda _: any_authority().certificate, "cert.pem was issued by none of the authorities in .*ca.pem"),
        ],
    )
    def test_files_that_can_not_be_used_are_refused(
        self, pki: Pki, file: str, content: Callable[[Pki], bytes | None], problem: str
    ) -> None:
        credentials = pki.install("a")
        path: Path = getattr(credentials, file)
        path.unlink()
        data = content(pki)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ConfigError, match=problem):
            Certificates(credentials, partial(load, credentials, "a.sipha.sipha"), print)

    def test_certificate_of_another_node_is_refused(self, world: World, pki: Pki) -> None:
        with pytest.raises(ConfigError, match=r"cert\.pem is not the certificate of a\.sipha\.sipha; make one with"):
            Peers(world.reactor, "a", ("127.0.0.1", 7000), {}, "sipha", pki.install("a", pki.issue("b")))


def encrypted(key: bytes) -> bytes:
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
