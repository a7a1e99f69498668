"""sipha on the nodes of a network of namespaces, with virtual addresses that really move."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

from sipha.sandbox import START_DEADLINE, Sandbox, SandboxError, SandboxNode
from tests.system.network import PREFIX, PREFIX6, Network

VIRTUAL = (f"{PREFIX}.10", f"{PREFIX6}10")
"""The virtual addresses."""

LEASE = 0.32
"""How long a leader may lead after it last heard from a majority, in seconds: 0.8 × election_min."""

_FAKETIME = "/usr/$LIB/faketime/libfaketime.so.1"
"""Debian's faketime; the dynamic linker knows what $LIB is."""

_CLOCK_READ = 1
"""Seconds between two looks of a process at what its wall clock is to be."""

_GUARD = b"sipha.vip.guard"
_AT_ONCE = 0.5
"""Within how many seconds a node that is well answers its admin."""


@dataclass
class Hosts(Sandbox):
    """Three nodes of a cluster, each a `sipha run` as root in a namespace of its own; the admin is on its loopback.

    With `clocks` the wall clock of each, its guard's too, can be set.
    """

    network: Network = field(kw_only=True)
    tls: bool = True
    clocks: bool = False

    @classmethod
    @contextmanager
    def run(cls, directory: Path, *, extra: str = "", clocks: bool = False) -> Iterator[Self]:
        """Run three nodes in a network of their own, with more configuration at the end of the file."""
        with Network() as network:
            hosts = cls(directory, network=network, extra=extra, clocks=clocks)
            try:
                hosts.start()
                yield hosts
            finally:
                hosts.stop()

    def __post_init__(self) -> None:
        """Lay out the nodes on the network's."""
        self.prefix = PREFIX
        self.size = len(self.network.nodes)
        super().__post_init__()

    def lay_out(self) -> SandboxNode:
        """See Sandbox."""
        node = super().lay_out()
        node.admin_host = "127.0.0.1"
        return node

    def addressing(self, node: SandboxNode) -> str:
        """See Sandbox."""
        addresses = json.dumps([f"{address}%eth0" for address in VIRTUAL])
        return f'mode = "netlink"\naddresses = {addresses}\nguard = "{node.directory}/guard"'

    def launcher_of(self, node: SandboxNode) -> tuple[str, ...]:
        """See Sandbox."""
        launcher = self.network.launcher(node.name)
        if self.clocks:
            file = f"FAKETIME_TIMESTAMP_FILE={self._clock(node)}"
            only = ("DONT_FAKE_MONOTONIC=1", f"FAKETIME_CACHE_DURATION={_CLOCK_READ}")
            launcher += ("env", f"LD_PRELOAD={_FAKETIME}", file, *only)
        return launcher

    def _clock(self, node: SandboxNode) -> Path:
        return node.directory / "clock"

    def configure(self, node: SandboxNode) -> None:
        """See Sandbox."""
        super().configure(node)
        if self.clocks and not self._clock(node).exists():
            self.set_clock(node, 0)

    def set_clock(self, node: SandboxNode, ahead: int) -> None:
        """Put a node's wall clock so many seconds ahead of the machine's, within a second."""
        self._clock(node).write_text(f"{ahead:+d}", encoding="ascii")

    def request(self, node: SandboxNode, method: str, path: str, body: object = None) -> Any:
        """See Sandbox."""
        with self.network.inside(node.name):
            return super().request(node, method, path, body)

    def leader(self) -> SandboxNode | None:
        """Return the node that holds the virtual addresses, of those that answer at once, or None."""
        return next((node for node in self.nodes if self.leads(node)), None)

    def leads(self, node: SandboxNode) -> bool:
        """Return True if a node answers at once that it holds the virtual addresses."""
        status = self.quick_status(node) if node.running else None
        return status is not None and bool(status["leading"])

    def quick_status(self, node: SandboxNode) -> dict[str, Any] | None:
        """Return a node's status, or None if it doesn't answer at once."""
        with self.network.inside(node.name), suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(f"{node.admin}/v1/status", timeout=_AT_ONCE) as response:
                status: dict[str, Any] = json.load(response)
            return status
        return None

    def wait_until_whole(self) -> SandboxNode:
        """Wait until all nodes run and have applied as much as the leader, and return it."""
        return self._wait(lambda _: True)

    def wait_until_well(self) -> SandboxNode:
        """Wait until, besides, no node counts as unwell any more because of what befell it."""
        return self._wait(lambda status: not any("unwell" in alarm for alarm in status["alarms"]))

    def _wait(self, is_well: Callable[[dict[str, Any]], bool]) -> SandboxNode:
        deadline = time.monotonic() + START_DEADLINE
        while True:
            seen = [status for node in self.nodes if (status := self.quick_status(node)) is not None]
            leaders = [status["node"] for status in seen if status["leading"]]
            whole = len(seen) == len(self.nodes) and len({status["applied_index"] for status in seen}) == 1
            if whole and len(leaders) == 1 and all(is_well(status) for status in seen):
                return next(node for node in self.nodes if node.name == leaders[0])
            if time.monotonic() > deadline:
                raise SandboxError(f"the nodes don't come to agree; the logs are in {self.directory}")
            time.sleep(0.05)

    # -- processes --------------------------------------------------------------------------------------------------

    def daemon(self, node: SandboxNode) -> list[int]:
        """The process of a node's daemon."""
        return [node.process.pid] if node.process is not None and node.running else []

    def guard(self, node: SandboxNode) -> list[int]:
        """The processes of a node's guard."""
        pids = self.network.run(node.name, "ip", "netns", "pids", self.network.namespace(node.name)).split()
        return [int(pid) for pid in pids if _GUARD in _command(pid)]

    def signal(self, pids: list[int], number: signal.Signals) -> None:
        """Send a signal to processes, as many as still are."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wall_clock(self, node: SandboxNode) -> float:
        """What time it is, in seconds of the epoch, by a node's own clock."""
        with (
            self.network.inside(node.name),
            urllib.request.urlopen(f"{node.admin}/v1/status", timeout=_AT_ONCE) as answer,
        ):
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()

    def restore(self) -> SandboxNode:
        """Undo all faults, let everything go on and start what doesn't run; return the leader when all agree."""
        self.network.heal()
        for node in self.nodes:
            if self.clocks:
                self.set_clock(node, 0)
            self.signal([*self.daemon(node), *self.guard(node)], signal.SIGCONT)
            if not node.running:
                self.start_node(node)
        return self.wait_until_whole()

    def stop(self) -> None:
        """See Sandbox."""
        for node in self.nodes:
            self.signal(self.daemon(node), signal.SIGCONT)
        super().stop()


def _command(pid: str) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
    return b""
