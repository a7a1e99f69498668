"""Clusters of node processes: started, asked, loaded, frozen and ended."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec

from bench import log_node, log_stock
from bench.load import BenchError
from bench.log_figures import STAMP, Report
from sipha.cluster import authority, founding

T = TypeVar("T")

NAMES = ("a", "b", "c")
LEADER_CORE, OTHER_CORE = 0, 1
PATIENCE = 60.0
SETTLE = 0.5
"""Seconds in which the last entries are answered."""
REALTIME = 10
"""The priority of nodes that run before all else."""


class Process:
    """One node; with `realtime` it runs before all that has no such priority."""

    def __init__(self, module: str, setup: log_node.Setup | log_stock.Setup, *, realtime: bool) -> None:
        self.name = setup.node
        self.directory = Path(setup.directory)
        self.began = time.monotonic()
        self._realtime = realtime
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.source, source = socket.socketpair()
        descriptors = (control.fileno(), source.fileno())
        command = [sys.executable, "-m", module, msgspec.json.encode(setup).decode(), *map(str, descriptors)]
        self._process = subprocess.Popen(command, pass_fds=descriptors)
        control.close()
        source.close()
        self.pin(OTHER_CORE)

    def pin(self, core: int) -> None:
        """Let it run on one core."""
        for task in self._tasks():
            os.sched_setaffinity(int(task.name), {core})
            if self._realtime:
                os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(REALTIME))

    def ask(self, kind: Any = Any, **command: Any) -> Any:
        """Have it do something, and return what it says; raises BenchError."""
        self.tell(**command)
        return self.answer(kind)

    def tell(self, **command: Any) -> None:
        """Have it do something that takes its time: `answer` gives what it says."""
        try:
            self._control.send(msgspec.json.encode(command))
        except OSError as error:
            raise BenchError(f"{self.name}: {error}") from error

    def answers(self, within: float) -> bool:
        """Return True if it says something within some seconds."""
        return bool(select.select([self._control], [], [], within)[0])

    def answer(self, kind: Any = Any, patience: float = PATIENCE) -> Any:
        """What it says; raises BenchError."""
        if not self.answers(patience):
            raise BenchError(f"{self.name} says nothing")
        data = self._control.recv(1 << 16)
        if not data:
            raise BenchError(f"{self.name} has ended")
        return msgspec.json.decode(data, type=kind)

    def cpu(self) -> float:
        """Seconds of CPU time that its threads have had."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks()) / 1e9

    def resident(self) -> int:
        """Resident bytes of its own."""
        _, resident, shared, *_ = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> dict[str, int]:
        """The names of its files, and their bytes."""
        with os.scandir(self.directory) as found:
            sizes = {}
            for file in found:
                with suppress(FileNotFoundError):
                    sizes[file.name] = file.stat().st_size
            return sizes

    def freeze(self) -> None:
        """Let it do nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self.thaw()
        self._control.close()
        self.source.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tasks(self) -> list[Path]:
        return list(Path(f"/proc/{self._process.pid}/task").iterdir())


class Cluster:
    """Node processes with their data in `directory`: the leader on one core, all others on the other."""

    def __init__(self, directory: Path, *, realtime: bool) -> None:
        self.directory = directory
        self.nodes: dict[str, Process] = {}
        self.addresses = dict(zip(NAMES, _free_addresses(), strict=True))
        self.cluster_id = uuid4().hex
        self._realtime = realtime
        self._tls = ""

    @property
    def voters(self) -> dict[str, str]:
        """Names and addresses."""
        return {name: f"{host}:{port}" for name, (host, port) in self.addresses.items()}

    def found(self) -> None:
        """Make the data of founders."""
        for name in self.addresses:
            with founding.taken(self.directory / name, create=True) as disk:
                founding.found(disk, name, self.voters, self.cluster_id)

    def certify(self) -> None:
        """Make certificates: from now on the nodes speak TLS."""
        directory = self.directory / "tls"
        directory.mkdir()
        now = datetime.now(UTC)
        ca = authority.found("sipha", now)
        (directory / "ca.pem").write_bytes(ca.certificate)
        for name in self.addresses:
            issued = authority.issue(ca, name, now)
            (directory / f"{name}.pem").write_bytes(issued.certificate)
            (directory / f"{name}.key").write_bytes(issued.key)
        self._tls = str(directory)

    # Nodes

    def start(self, *names: str, hurried: bool = True, **options: Any) -> None:
        """Start nodes of sipha's, before all other processes only if `hurried`."""
        for name in names:
            setup = log_node.Setup(name, self.addresses, str(self.directory / name), self._tls, **options)
            self._start("bench.log_node", setup, realtime=self._realtime and hurried)

    def start_stock(self, names: Sequence[str], options: dict[str, Any]) -> None:
        """Start nodes of the library's, a cluster of these."""
        addresses = {name: self.addresses[name] for name in names}
        for name in names:
            directory = self.directory / name
            directory.mkdir(exist_ok=True)
            files = {"journalFile": str(directory / "journal"), "fullDumpFile": str(directory / "dump")}
            setup = log_stock.Setup(name, addresses, str(directory), files | options)
            self._start("bench.log_stock", setup, realtime=self._realtime)

    def _start(self, module: str, setup: log_node.Setup | log_stock.Setup, *, realtime: bool) -> None:
        self.nodes[setup.node] = Process(module, setup, realtime=realtime)

    def stop(self) -> None:
        """End all nodes."""
        while self.nodes:
            self.nodes.popitem()[1].stop()

    def leader(self) -> Process:
        """The node that leads, as soon as one does: on its own core from now on."""
        leader = until(self._find_leader)
        for node in self.nodes.values():
            node.pin(LEADER_CORE if node is leader else OTHER_CORE)
        return leader

    def others(self, leader: Process) -> list[Process]:
        """All but the leader."""
        return [node for node in self.nodes.values() if node is not leader]

    def agree(self) -> bool:
        """Return True if all have the same table."""
        seen = [node.ask(do="status") for node in self.nodes.values()]
        return len({(status["applied"], status["hash"]) for status in seen}) == 1

    def _find_leader(self) -> Process | None:
        return next((node for node in self.nodes.values() if node.ask(do="status")["leading"]), None)


def until(condition: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """What the condition gives as soon as it gives something; raises BenchError."""
    end = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > end:
            raise BenchError("what was waited for did not come")
        time.sleep(0.05)
    return found


def drive(
    node: Process, rate: float, seconds: float, seed: int = 1, enough: Callable[[], bool] = lambda: False
) -> None:
    """Ask for entries at random times (Poisson), whatever becomes of them, for some seconds or until it is enough."""
    dice = random.Random(seed)
    due = time.monotonic()
    end = due + seconds
    while due < end and not enough():
        due += dice.expovariate(rate)
        time.sleep(max(due - time.monotonic(), 0))
        node.source.send(STAMP.pack(time.monotonic()))


def open_loop(node: Process, rate: float, seconds: float, seed: int = 1) -> Report:
    """What becomes of entries that come at a rate."""
    node.ask(do="reset")
    drive(node, rate, seconds, seed)
    time.sleep(SETTLE)
    report: Report = node.ask(Report, do="collect")
    return report


@contextmanager
def cluster(directory: Path, *, realtime: bool = False) -> Iterator[Cluster]:
    """A cluster in a new directory; its nodes end with the context."""
    directory.mkdir(parents=True)
    made = Cluster(directory, realtime=realtime)
    try:
        yield made
    except BaseException:
        for log in sorted(directory.glob("*.log")):
            print(f"-- {log}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
        raise
    finally:
        made.stop()


def _free_addresses() -> list[tuple[str, int]]:
    sockets = [socket.socket() for _ in NAMES]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [each.getsockname() for each in sockets]
    for each in sockets:
        each.close()
    return addresses
