"""What a REGISTER costs a node, by the CPU time of its reactor's thread: a cluster of one in this process.

    .venv/bin/python -m bench.node [--first | --refused] [--rounds 20]

With `--first` phones are new in each round: what is measured is their challenge, and then the REGISTER that makes their
binding. With `--refused` most have waited too long, and are answered 503. It prints the least of the rounds, since
whatever else the machine does only adds to it. The kernel's part is included; there are no followers, and the disk
isn't waited for. To compare two trees, run them in turns, with PYTHONSAFEPATH=1 PYTHONPATH=TREE:.
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
from sipha.sip.overload import T1
from sipha.state.entries import PutAccount

DOMAIN, PASSWORD = "sipha.test", "secret"
PHONES = 900
ROUNDS = 100
BATCH = 90
"""As many datagrams of this size are read in one turn when a leader has all it can do."""

LATE = 1.1 * T1
"""Seconds for which what is refused has waited; all credit is there again by then."""

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
    """A node that leads itself, and has accounts for so many phones, which know a nonce of its."""

    def __init__(self, directory: Path, phones: int = PHONES) -> None:
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
        for number in range(phones):
            hashes = {"MD5": ha1("MD5", user(number), DOMAIN, PASSWORD)}
            record = PutAccount(user(number), DOMAIN, user(number), DOMAIN, hashes)
            self.node.replication.replica.propose(record, done.append)
            while number + 1 - len(done) >= PHONES:
                self.reactor.iterate(0.005)
        self._until(lambda: len(done) == phones)
        self.phones = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.phones.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.phones.bind(("127.0.8.200", 5999))
        self.phones.setblocking(False)
        self.phones.connect(("127.0.8.100", 5060))
        self.phones.send(register(0, 1, ""))
        challenge = b""
        while not challenge:
            self.reactor.iterate(0.005)
            challenge = b"".join(self._answers())
        self.nonce = _nonce(challenge)

    def round(self, cseq: int) -> Iterator[float]:
        """Register the first phones once, and yield for each batch the seconds that it took."""
        for first in range(0, PHONES, BATCH):
            phones = range(first, first + BATCH)
            yield self._exchange([register(number, cseq, self.nonce) for number in phones], 200)[0]

    def firsts(self, number: int) -> Iterator[tuple[float, float]]:
        """Register phones that are new in each round, and yield for each batch what challenge and binding took."""
        for first in range(number * PHONES, (number + 1) * PHONES, BATCH):
            phones = range(first, first + BATCH)
            challenged, answers = self._exchange([register(number, 1, "") for number in phones], 401)
            nonces = {_username(answer): _nonce(answer) for answer in answers}
            bound, _ = self._exchange([register(number, 2, nonces[user(number)]) for number in phones], 200)
            yield challenged, bound

    def refusals(self, cseq: int) -> Iterator[float]:
        """Let all phones wait too long, and yield for each batch of refusals the seconds that one of them took."""
        for number in range(PHONES):
            self.phones.send(register(number, cseq, self.nonce))
        time.sleep(LATE)
        left, deadline = PHONES, time.monotonic() + PATIENCE
        while left:
            if time.monotonic() > deadline:
                raise BenchError(f"{left} of {PHONES} REGISTERs were lost")
            begin = time.thread_time()
            self.reactor.iterate(0)
            spent = time.thread_time() - begin
            answers = list(self._answers())
            left -= len(answers)
            if answers and all(answer.startswith(b"SIP/2.0 503 ") for answer in answers):
                yield spent / len(answers)

    def _exchange(self, requests: list[bytes], status: int) -> tuple[float, list[bytes]]:
        """The seconds in which a batch got answers of this status, and those; raises BenchError if some don't come."""
        for request in requests:
            self.phones.send(request)
        spent, answers, deadline = 0.0, list[bytes](), time.monotonic() + PATIENCE
        while len(answers) < len(requests):
            if time.monotonic() > deadline:
                raise BenchError(f"{len(requests) - len(answers)} of {len(requests)} REGISTERs were lost")
            begin = time.thread_time()
            self.reactor.iterate(0)
            spent += time.thread_time() - begin
            answers += [answer for answer in self._answers() if answer.startswith(b"SIP/2.0 %d " % status)]
        return spent, answers

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


def _nonce(challenge: bytes) -> str:
    return challenge.partition(b'nonce="')[2].partition(b'"')[0].decode()


def _username(response: bytes) -> str:
    return response.partition(b"From: <sip:")[2].partition(b"@")[0].decode()


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
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--first", action="store_true", help="phones that are new, with their challenge")
    kind.add_argument("--refused", action="store_true", help="phones that have waited too long")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        lone = Lone(Path(directory), (options.rounds + 2 if options.first else 1) * PHONES)
        for cseq in (1, 2):  # bindings are made, caches are filled
            list(lone.round(cseq))
        if options.first:
            found = [spent for number in range(2, 2 + options.rounds) for spent in lone.firsts(number)]
            challenged, bound = (min(seconds) / BATCH * 1e6 for seconds in zip(*found, strict=True))
            print(f"a challenge: {challenged:.1f} µs; the binding: {bound:.1f} µs")
        elif options.refused:
            least = min(spent for cseq in range(3, 3 + options.rounds) for spent in lone.refusals(cseq))
            print(f"a REGISTER that is refused: {least * 1e6:.1f} µs")
        else:
            least = min(seconds for cseq in range(3, 3 + options.rounds) for seconds in lone.round(cseq))
            print(f"a REGISTER: {least / BATCH * 1e6:.1f} µs")
        lone.stop()
    print(f"a bare recvfrom and sendto of its size: {_kernel() / BATCH * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
