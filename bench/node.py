"""What a REGISTER costs a node, by the CPU time of its reactor's thread: a cluster of one in this process.

    .venv/bin/python -m bench.node [--rounds 20]

It prints the least of the rounds, since whatever else the machine does only adds to it. The kernel's part is included;
there are no followers, and the disk isn't waited for. To compare two trees, run them in turns, with
PYTHONSAFEPATH=1 PYTHONPATH=TREE:.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

from twisted.internet.epollreactor import EPollReactor

from bench.load import BenchError
from sipha import config
from sipha.cluster import founding
from sipha.service.life import Life
from sipha.service.node import Node
from sipha.sip.digest import ha1, ha2, response
from sipha.state.entries import PutAccount

DOMAIN, PASSWORD = "sipha.test", "secret"
PHONES = 900
ROUNDS = 100
BATCH = 90
"""As many datagrams of this size are read in one turn when a leader has all it can do."""

PATIENCE = 10.0
"""Seconds within which a batch is answered."""

CONFIG = """
[node]
name = "n1"
data_dir = "{directory}/data"
[cluster]
listen = "127.0.8.1:7000"
plaintext = true
durability = "os"
[virtual_address]
addresses = ["127.0.8.100"]
[admin]
listen = "127.0.8.1:8080"
[[domains]]
name = "sipha.test"
"""


class Lone:
    """A node that leads itself, and phones that know its nonce."""

    def __init__(self, directory: Path) -> None:
        self.reactor: Any = EPollReactor()
        path = directory / "sipha.toml"
        path.write_text(CONFIG.format(directory=directory))
        settings = config.load(path)
        with founding.taken(settings.node.data_dir.path, create=True) as disk:
            founding.found(disk, "n1", {"n1": str(settings.cluster.listen)})
        self.node = Node(self.reactor, Life(self.reactor, path))
        self.node.startService()
        self._until(lambda: self.node.sip.transport)
        done: list[object] = []
        for number in range(PHONES):
            hashes = {"MD5": ha1("MD5", user(number), DOMAIN, PASSWORD)}
            record = PutAccount(user(number), DOMAIN, user(number), DOMAIN, hashes)
            self.node.replication.replica.propose(record, done.append)
        self._until(lambda: len(done) == PHONES)
        self.phones = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.phones.bind(("127.0.8.200", 5999))
        self.phones.setblocking(False)
        self.phones.connect(("127.0.8.100", 5060))
        self.phones.send(register(0, 1, ""))
        challenge = b""
        while not challenge:
            self.reactor.iterate(0.005)
            challenge = b"".join(self._answers())
        self.nonce = challenge.partition(b'nonce="')[2].partition(b'"')[0].decode()

    def round(self, cseq: int) -> Iterator[float]:
        """Register all phones once, and yield for each batch the seconds that it took."""
        for first in range(0, PHONES, BATCH):
            for number in range(first, first + BATCH):
                self.phones.send(register(number, cseq, self.nonce))
            spent, answered, deadline = 0.0, 0, time.monotonic() + PATIENCE
            while answered < BATCH:
                if time.monotonic() > deadline:
                    raise BenchError(f"{BATCH - answered} of {BATCH} REGISTERs were lost")
                begin = time.thread_time()
                self.reactor.iterate(0)
                spent += time.thread_time() - begin
                answered += sum(answer.startswith(b"SIP/2.0 200 ") for answer in self._answers())
            yield spent

    def stop(self) -> None:
        """End the node."""
        ended: list[object] = []
        self.node.stopService().addBoth(ended.append)
        self._until(lambda: ended)
        self.phones.close()

    def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.reactor.iterate(0.005)

    def _answers(self) -> Iterator[bytes]:
        while True:
            try:
                yield self.phones.recv(65535)
            except BlockingIOError:
                return


def register(number: int, cseq: int, nonce: str) -> bytes:
    """The REGISTER of a phone, with its credentials unless it knows no nonce."""
    name, count, host = user(number), f"{cseq:08x}", "127.0.8.200:5999"
    authorization = ""
    if nonce:
        proof = response(
            "MD5",
            ha1("MD5", name, DOMAIN, PASSWORD),
            ha2("MD5", "REGISTER", f"sip:{DOMAIN}"),
            nonce,
            nc=count,
            cnonce=f"{number:016x}",
            qop="auth",
        )
        authorization = (
            f'Authorization: Digest username="{name}", realm="{DOMAIN}", nonce="{nonce}", uri="sip:{DOMAIN}", '
            f'response="{proof}", algorithm=MD5, cnonce="{number:016x}", qop=auth, nc={count}\r\n'
        )
    return (
        f"REGISTER sip:{DOMAIN} SIP/2.0\r\nVia: SIP/2.0/UDP {host};rport;branch=z9hG4bK{number:06x}.{cseq:08x}\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:{name}@{DOMAIN}>;tag=t{number:08x}\r\nTo: <sip:{name}@{DOMAIN}>\r\n"
        f"Call-ID: c{number:08}@ua.{DOMAIN}\r\nCSeq: {cseq} REGISTER\r\n"
        f"Contact: <sip:{name}@{host};transport=udp>\r\nExpires: 3600\r\n{authorization}"
        "User-Agent: phone/1.0\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def user(number: int) -> str:
    """The username of a phone."""
    return f"u{number:08}"


def _kernel() -> float:
    """The seconds that the kernel takes to receive a batch and to send as many answers, by this interpreter."""
    request, answer = register(0, 1, "0" * 50), bytes(400)
    least = inf
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        near.bind(("127.0.8.100", 0))
        far.bind(("127.0.8.200", 0))
        for _ in range(ROUNDS):
            for _ in range(BATCH):
                far.sendto(request, near.getsockname())
            peer = far.getsockname()
            begin = time.thread_time()
            for _ in range(BATCH):
                near.recvfrom(65535)
            for _ in range(BATCH):
                near.sendto(answer, peer)
            least = min(least, time.thread_time() - begin)
            for _ in range(BATCH):
                far.recvfrom(65535)
    return least


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(prog="bench.node", description="Measure what a REGISTER costs a node.")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        lone = Lone(Path(directory))
        for cseq in (1, 2):  # bindings are made, caches are filled
            list(lone.round(cseq))
        least = min(seconds for cseq in range(3, 3 + options.rounds) for seconds in lone.round(cseq))
        lone.stop()
    each, kernel = least / BATCH * 1e6, _kernel() / BATCH * 1e6
    print(f"a REGISTER: {each:.1f} µs; a bare recvfrom and sendto of its size: {kernel:.1f} µs")


if __name__ == "__main__":
    main()
