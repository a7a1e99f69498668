"""Two nodes' connection: what a message costs, plain and under TLS.

    .venv/bin/python -m bench.connection [--seconds 2]

Node b, on core 1, sends entries to node a, on core 0: some in each turn of the reactor, as fast as they go. CPU time is
each process's own, of whole turns. Then one message goes to and fro.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from zope.interface import implementer

from sipha.cluster import authority
from sipha.cluster.peers import INetworkUser, Peers
from sipha.cluster.tls import Credentials
from sipha.cluster.wire import PROTOCOL, AppendEntries, Hello, LastWord, RaftMessage, StaleTerm
from sipha.sip.flow import Address

ADDRESSES: dict[str, Address] = {"a": ("127.0.0.91", 7191), "b": ("127.0.0.92", 7192)}
CASES = [(400, 1), (400, 10), (20_000, 1), (20_000, 10)]
"""Bytes of an entry, and how many messages are sent in one turn."""


@implementer(INetworkUser)
class Node:
    """One end: b sends and measures, a counts and answers."""

    def __init__(self, name: str, credentials: Credentials | None) -> None:
        self.reactor: Any = EPollReactor()
        self.name = name
        self.other = "b" if name == "a" else "a"
        self.heard = 0
        self.then: Callable[[], None] = lambda: None
        self.network = Peers(
            self.reactor, name, ADDRESSES[name], {self.other: ADDRESSES[self.other]}, "sipha", credentials
        )
        self.reactor.callWhenRunning(self.network.start, self)

    def introduce(self) -> Hello:
        """See INetworkUser."""
        return Hello(PROTOCOL, "sipha", self.name, "", "", 2, 100)

    def greeted(self, peer: str, hello: Hello) -> str | None:
        """See INetworkUser."""

    def connected(self, peer: str) -> None:  # noqa: ARG002
        """See INetworkUser."""
        self.then()

    def disconnected(self, peer: str) -> None:
        """See INetworkUser."""

    def received(self, peer: str, message: RaftMessage) -> None:
        """See INetworkUser."""
        self.heard += 1
        if not isinstance(message, StaleTerm):
            return
        if self.name == "a":
            self.network.send(peer, message)
        else:
            self.then()

    def last_word_heard(self, word: LastWord) -> None:
        """See INetworkUser."""


def receive(credentials: Credentials | None, pipe: Connection) -> None:
    """Be node a: say CPU time and count whenever asked."""
    os.sched_setaffinity(0, {0})
    node = Node("a", credentials)

    def look() -> None:
        node.reactor.callLater(0.01, look)
        while pipe.poll():
            if pipe.recv() is None:
                node.reactor.stop()
                return
            pipe.send((time.process_time(), node.heard))

    look()
    node.reactor.run(installSignalHandlers=False)


class Sender:
    """Node b, and what it measures."""

    def __init__(self, credentials: Credentials | None, pipe: Connection, seconds: float) -> None:
        self.node = Node("b", credentials)
        self.pipe = pipe
        self.seconds = seconds
        self.cases = list(CASES)
        self.lines: list[str] = []
        self.node.then = self.begin

    def ask(self) -> tuple[float, int]:
        """CPU time and count of the other end, once it has heard all."""
        before = -1
        while True:
            self.pipe.send(True)
            cpu, heard = self.pipe.recv()
            if heard == before:
                return float(cpu), heard
            before = heard
            time.sleep(0.1)

    def begin(self) -> None:
        """Begin the next case."""
        self.node.then = lambda: None
        if not self.cases:
            self.ping()
            return
        size, batch = self.cases.pop(0)
        message = AppendEntries(1, 1, 1, 1, [(bytes(size), 2, 1)], 1, 400, 1, 1, b"", False)
        network, reactor = self.node.network, self.node.reactor
        other = self.ask()
        cpu, start, sent = time.process_time(), time.monotonic(), 0

        def turn() -> None:
            nonlocal sent
            self.node.then = lambda: None
            if time.monotonic() - start > self.seconds:
                reactor.callLater(0.2, finish)
                return
            for _ in range(batch):
                if not network.send("a", message):
                    self.node.then = turn  # once there is room
                    return
                sent += 1
            reactor.callLater(0, turn)

        def finish() -> None:
            own = time.process_time() - cpu
            rate = sent / (time.monotonic() - start - 0.2)
            cpu_there, heard = self.ask()
            there, count = cpu_there - other[0], heard - other[1]
            assert count == sent, (count, sent)
            self.lines.append(
                f"{size:6} B, {batch:2} a turn: {own / sent * 1e6:6.1f} µs to send, {there / sent * 1e6:6.1f} µs to "
                f"receive, {rate:8.0f}/s"
            )
            self.begin()

        turn()

    def ping(self) -> None:
        """Send one message to and fro."""
        times: list[float] = []
        sent = 0.0

        def back() -> None:
            nonlocal sent
            now = time.perf_counter()
            if sent:
                times.append(now - sent)
            if len(times) < 5000:
                sent = now
                self.node.network.send("a", StaleTerm(1))
                return
            times.sort()
            self.lines.append(
                f"to and fro: p50 {times[2500] * 1e6:.0f} µs, p99 {times[4950] * 1e6:.0f} µs, one in flight"
            )
            self.pipe.send(None)
            self.node.reactor.stop()

        self.node.then = back
        back()


def measure(credentials: dict[str, Credentials], seconds: float) -> list[str]:
    """One round with these certificates, or none."""
    here, there = multiprocessing.Pipe()
    other = multiprocessing.Process(target=receive, args=(credentials.get("a"), there))
    other.start()
    os.sched_setaffinity(0, {1})
    sender = Sender(credentials.get("b"), here, seconds)
    sender.node.reactor.run(installSignalHandlers=False)
    other.join()
    return sender.lines


def certify(directory: Path) -> dict[str, Credentials]:
    """Make the certificates of both nodes."""
    now = datetime.now(UTC)
    ca = authority.found("sipha", now)
    made = {}
    for name in ADDRESSES:
        issued = authority.issue(ca, name, now)
        files = {"ca": ca.certificate, "cert": issued.certificate, "key": issued.key}
        paths = {key: directory / f"{name}-{key}.pem" for key in files}
        for key, data in files.items():
            paths[key].write_bytes(data)
        made[name] = Credentials(paths["ca"], paths["cert"], paths["key"])
    return made


def main() -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory:
        for name, credentials in (("plain", {}), ("TLS 1.3", certify(Path(directory)))):
            print(name)
            for line in measure(credentials, seconds):
                print(f"  {line}")


if __name__ == "__main__":
    main()
