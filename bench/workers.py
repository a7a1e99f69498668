"""What a REGISTER costs each process of a node with workers, by CPU time, beside a node in one process.

    .venv/bin/python -m bench.workers [--workers 2] [--rounds 20]

Both nodes are clusters of one, and serve the same phones in turns: all of them register at once, as with a node that
has all it can do. Each figure is the least of the rounds, since whatever else the machine does only adds to it. The
kernel's part is included; there are no followers, and the disk isn't waited for.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

from twisted.internet.epollreactor import EPollReactor

from bench.node import CONFIG, DOMAIN, PASSWORD, register, user
from sipha import config
from sipha.admin.views import WorkersStatus
from sipha.cluster import founding
from sipha.service.life import Life
from sipha.service.node import Node
from sipha.sip.digest import ha1
from sipha.state.entries import PutAccount

PHONES = 900
DEADLINE = 2.0
LINES = 60
"""Sources among which the phones are divided, and the kernel divides them among the workers."""


class Site:
    """A node that leads itself, with so many workers, and phones that know its nonce."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.reactor: Any = EPollReactor()
        directory.mkdir()
        path = directory / "sipha.toml"
        path.write_text(CONFIG.format(directory=directory).replace("[admin]", f"[sip]\nworkers = {workers}\n[admin]"))
        settings = config.load(path)
        with founding.taken(settings.node.data_dir.path, create=True) as disk:
            founding.found(disk, "n1", {"n1": str(settings.cluster.listen)})
        self.node = Node(self.reactor, Life(self.reactor, path))
        others = set(_children())
        self.node.startService()
        self._until(lambda: self.node.sip.transport)
        if workers > 1:
            self._until(lambda: self.node.sip.workers == WorkersStatus(workers, workers))
        self._workers = sorted(set(_children()) - others)
        done: list[object] = []
        for number in range(PHONES):
            hashes = {"MD5": ha1("MD5", user(number), DOMAIN, PASSWORD)}
            record = PutAccount(user(number), DOMAIN, user(number), DOMAIN, hashes)
            self.node.replication.replica.propose(record, done.append)
        self._until(lambda: len(done) == PHONES)
        self.lines = [self._line() for _ in range(LINES)]
        self.lines[0].send(register(0, 1, ""))
        challenge: list[bytes] = []
        while not challenge:
            self.reactor.iterate(0.005)
            challenge = self._answers()
        self.nonce = challenge[0].partition(b'nonce="')[2].partition(b'"')[0].decode()

    def round(self, cseq: int) -> list[float]:
        """Register all phones once; the seconds of CPU time that it took the daemon, and each worker.

        Without end if one wasn't served: on a busy machine datagrams may have waited too long.
        """
        for number in range(PHONES):
            self.lines[number % LINES].send(register(number, cseq, self.nonce))
        before, own = self._spent(), 0.0
        answers: list[bytes] = []
        end = time.monotonic() + DEADLINE
        while len(answers) < PHONES and time.monotonic() < end:
            begin = time.thread_time()
            self.reactor.iterate(0.01)
            own += time.thread_time() - begin
            answers += self._answers()
        served = sum(answer.startswith(b"SIP/2.0 200 ") for answer in answers)
        spent = [own, *[after - already for already, after in zip(before, self._spent(), strict=True)]]
        return spent if served == PHONES else [inf] * len(spent)

    def stop(self) -> None:
        """End the node."""
        ended: list[object] = []
        self.node.stopService().addBoth(ended.append)
        self._until(lambda: ended)
        for line in self.lines:
            line.close()

    def _spent(self) -> list[float]:
        """The CPU time of each worker so far, in seconds."""
        return [int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 for pid in self._workers]

    def _line(self) -> socket.socket:
        line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        line.bind(("127.0.8.200", 0))
        line.setblocking(False)
        line.connect(("127.0.8.100", 5060))
        return line

    def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.reactor.iterate(0.005)

    def _answers(self) -> list[bytes]:
        answers = []
        for line in self.lines:
            try:
                while True:
                    answers.append(line.recv(65535))
            except BlockingIOError:
                pass
        return answers


def _children() -> list[int]:
    """The processes that this one has started and that live."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(prog="bench.workers", description="Measure what workers take off a REGISTER.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    least: dict[int, tuple[float, float]] = {1: (inf, inf), options.workers: (inf, inf)}
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        for turn in range(4):  # one after the other: they have the same addresses
            workers = (1, options.workers)[turn % 2]
            site = Site(Path(directory, str(turn)), workers)
            for cseq in range(1, options.rounds + 3):
                daemon, *others = site.round(cseq)
                if cseq > 2:  # bindings are made, caches are filled
                    before = least[workers]
                    least[workers] = min(daemon, before[0]), min(max(others, default=0.0), before[1])
            site.stop()
    alone, (daemon, busiest) = least[1][0], least[options.workers]
    one, own, other = (seconds / PHONES * 1e6 for seconds in (alone, daemon, busiest))
    print(f"one process: {one:.1f} µs; with {options.workers} workers the daemon {own:.1f}, a worker {other:.1f} µs")
    print(f"the busiest process, of one process: {max(daemon, busiest) / alone:.2f}")


if __name__ == "__main__":
    main()
