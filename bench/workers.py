"""What a REGISTER and a call cost each process of a node with workers, by CPU time, beside a node in one process.

    .venv/bin/python -m bench.workers [--workers 2] [--rounds 20]

Both nodes are clusters of one, and serve the same phones in turns: all of them register at once, as with a node that
has all it can do; then so many calls are made at once, as `bench.calls` makes them, but for what their timers cost when
they end. Each figure is the least of the rounds, since whatever else the machine does only adds to it. The
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

from bench.calls import answer, in_dialog, invite
from bench.node import CONFIG, DOMAIN, PASSWORD, register, user
from sipha import config
from sipha.admin.views import WorkersStatus
from sipha.cluster import founding
from sipha.service.life import Life
from sipha.service.node import Node
from sipha.sip.digest import ha1
from sipha.state.entries import PutAccount

PHONES = 900
CALLS = 300
"""At once: each phone has one, in turns."""

DEADLINE = 2.0
LINES = 60
"""Sources among which the phones are divided, and the kernel divides them among the workers."""


class Site:
    """A node that leads itself, with so many workers, and phones that know a nonce of who reads what they say."""

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
        self.nonces, self.nonces_of_calls = (list(map(self._nonce, self.lines)) for _ in range(2))

    def round(self, cseq: int) -> list[float]:
        """Register all phones once; the seconds of CPU time that it took the daemon, and each worker.

        Without end if one wasn't served: on a busy machine datagrams may have waited too long.
        """
        for number in range(PHONES):
            line, nonce = self.lines[number % LINES], self.nonces[number % LINES]
            contact = b"@127.0.8.200:%d;transport=udp>" % line.getsockname()[1]
            line.send(register(number, cseq, nonce).replace(b"@127.0.8.200:5999;transport=udp>", contact))
        served = 0

        def act(_: socket.socket, data: bytes) -> bool:
            nonlocal served
            served += data.startswith(b"SIP/2.0 200 ")
            return served == PHONES

        return self._measure(act)

    def calls(self, first: int) -> list[float]:
        """Make calls, of these numbers on; what they took, as for REGISTERs."""
        for number in range(first, first + CALLS):
            self.lines[number % LINES].send(invite(number, self.nonces_of_calls[number % LINES]))
        ended = 0

        def act(line: socket.socket, data: bytes) -> bool:
            nonlocal ended
            text = data.decode()
            if text.startswith("INVITE "):
                for status in ("180 Ringing", "200 OK"):
                    line.send(answer(text, f"SIP/2.0 {status}"))
            elif text.startswith("BYE "):
                line.send(answer(text, "SIP/2.0 200 OK"))
            elif text.startswith("SIP/2.0 200 "):
                if " INVITE\r\n" in text:
                    for method in ("ACK", "BYE"):
                        line.send(in_dialog(text, method))
                else:
                    ended += 1
            return ended == CALLS

        return self._measure(act)

    def _measure(self, act: Callable[[socket.socket, bytes], bool]) -> list[float]:
        """Let the node work until `act` says of what came to a line that this is all; see `round`."""
        before, own, through = self._spent(), 0.0, False
        end = time.monotonic() + DEADLINE
        while not through and time.monotonic() < end:
            begin = time.thread_time()
            self.reactor.iterate(0.01)
            own += time.thread_time() - begin
            for line, data in self._received():
                through = act(line, data) or through
        spent = [own, *[after - already for already, after in zip(before, self._spent(), strict=True)]]
        return spent if through else [inf] * len(spent)

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

    def _nonce(self, line: socket.socket) -> str:
        line.send(register(0, 1, ""))
        challenge: list[bytes] = []
        while not challenge:
            self.reactor.iterate(0.005)
            challenge = [data for _, data in self._received()]
        return challenge[0].partition(b'nonce="')[2].partition(b'"')[0].decode()

    def _received(self) -> list[tuple[socket.socket, bytes]]:
        received = []
        for line in self.lines:
            try:
                while True:
                    received.append((line, line.recv(65535)))
            except BlockingIOError:
                pass
        return received


def _children() -> list[int]:
    """The processes that this one has started and that live."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def main() -> None:
    """Read the options, measure, and print."""
    parser = argparse.ArgumentParser(prog="bench.workers", description="Measure what workers take off a node.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    least = {(what, workers): (inf, inf) for what in ("REGISTER", "call") for workers in (1, options.workers)}
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        for turn in range(4):  # one after the other: they have the same addresses
            workers = (1, options.workers)[turn % 2]
            site = Site(Path(directory, str(turn)), workers)
            for number in range(options.rounds + 2):
                measured = {"REGISTER": site.round(number + 1), "call": site.calls(number * CALLS)}
                for what, (daemon, *others) in measured.items():
                    if number > 1:  # bindings are made, caches are filled
                        before = least[what, workers]
                        least[what, workers] = min(daemon, before[0]), min(max(others, default=0.0), before[1])
            site.stop()
    for what, count in (("REGISTER", PHONES), ("call", CALLS)):
        alone, (daemon, busiest) = least[what, 1][0], least[what, options.workers]
        one, own, other = (seconds / count * 1e6 for seconds in (alone, daemon, busiest))
        print(
            f"a {what} in one process: {one:.1f} µs; with {options.workers} workers the daemon {own:.1f}, a worker "
            f"{other:.1f} µs; the busiest process, of one process: {max(daemon, busiest) / alone:.2f}"
        )


if __name__ == "__main__":
    main()
