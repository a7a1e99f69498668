"""Two Kamailios whose virtual address keepalived moves: the peer that sipha's failover is measured beside."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.daemon import HERE, PATIENCE
from bench.kamailio import Kamailio
from tests.system.hosts import VIRTUAL
from tests.system.network import Network

NODES = ("n1", "n2")

_DOWN = "-254"
"""What a tracked file says to make its node give the address up."""

_KEEPALIVED = """\
vrrp_script sip {{
  script "{check} {host} {timeout}"
  interval {interval}
  timeout {interval}
  fall {fall}
  rise {fall}
}}
track_file up {{
  file {directory}/up
  weight 1
  init_file 0
}}
vrrp_instance V {{
  state BACKUP
  interface eth0
  version {version}
  virtual_router_id 77
  priority 100
  advert_int {advert}
  nopreempt
  virtual_ipaddress {{ {address}/24 }}
  {track}
}}
"""


@dataclass(frozen=True)
class Settings:
    """How keepalived finds out: seconds between adverts and between checks, failed checks in a row, what is tracked."""

    name: str
    advert: float
    interval: int
    fall: int
    timeout: float
    track: str = "track_script { sip }"


SETTINGS = (
    Settings("usual", advert=1, interval=2, fall=2, timeout=2),
    Settings("fast", advert=0.1, interval=1, fall=1, timeout=0.4),
    Settings("fast, with a process watcher", advert=0.1, interval=1, fall=1, timeout=0.4, track="track_file { up }"),
)


@dataclass
class Member:
    """One node: its Kamailio and its keepalived."""

    node: str
    directory: Path
    kamailio: Kamailio
    keepalived: subprocess.Popen[bytes] | None = None


@dataclass
class Pair:
    """Both nodes, n1 and n2 of a network; the virtual address is the first."""

    network: Network
    directory: Path
    settings: Settings
    members: dict[str, Member] = field(default_factory=dict)

    def start(self) -> None:
        """Start everything, and wait until one node has the address."""
        for node in NODES:
            directory, host = self.directory / node, self.network.host(node)
            (other,) = (self.network.host(name) for name in NODES if name != node)
            kamailio = Kamailio(
                directory / "kamailio",
                host,
                defines={"DMQADDR": f'"sip:{host}:5060"', "DMQPEER": f'"sip:{other}:5060"'},
                more_addresses=(VIRTUAL[0],),
                launcher=tuple(self.network.launcher(node)),
            )
            self.members[node] = Member(node, directory, kamailio)
            with self.network.inside(node):
                Path("/proc/sys/net/ipv4/ip_nonlocal_bind").write_text("1\n", encoding="ascii")
            self.start_kamailio(node)
        for member in self.members.values():
            configuration = member.directory / "keepalived.conf"
            configuration.write_text(self._keepalived(member))
            files = [f"--{name}={member.directory / name}.pid" for name in ("pid", "vrrp_pid")]
            options = ["--dont-fork", "--vrrp", "--log-console", f"--use-file={configuration}", *files]
            member.keepalived = self._run(member, "keepalived", *options)
        _wait(lambda: self.holder() is not None, "keepalived to take the address")

    def start_kamailio(self, node: str) -> None:
        """Start a node's Kamailio, and wait until it answers."""
        member = self.members[node]
        member.kamailio.start()
        assert member.kamailio.process is not None
        (member.directory / "up").write_text("0", encoding="ascii")
        watched = (member, member.kamailio.process.pid)
        threading.Thread(target=self._report_death, args=watched, daemon=True).start()

    def holder(self) -> str | None:
        """The node that has the address."""
        for node in NODES:
            if f" {VIRTUAL[0]}/" in self.network.run(node, "ip", "-oneline", "address", "show", "dev", "eth0"):
                return node
        return None

    def signal(self, node: str, number: signal.Signals) -> None:
        """Send a signal to a node's Kamailio, all its processes."""
        kamailio = self.members[node].kamailio
        if number == signal.SIGKILL:
            kamailio.kill()
        else:
            kamailio.signal(number)

    def restore(self) -> None:
        """Bring back what a fault has taken, and wait until both nodes may have the address."""
        self.network.heal()
        for node, member in self.members.items():
            self.signal(node, signal.SIGCONT)
            if member.kamailio.process is None or member.kamailio.process.poll() is not None:
                self.start_kamailio(node)
        time.sleep(self.settings.interval * (self.settings.fall + 1) + 4 * self.settings.advert)

    def stop(self) -> None:
        """Stop everything."""
        for member in self.members.values():
            if member.keepalived is not None:
                member.keepalived.terminate()
                member.keepalived.wait()
            member.kamailio.stop()

    def _run(self, member: Member, *command: str) -> subprocess.Popen[bytes]:
        with (member.directory / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.network.launcher(member.node), *command], stdout=log, stderr=log, start_new_session=True
            )

    def _keepalived(self, member: Member) -> str:
        return _KEEPALIVED.format(
            check=HERE / "check-sip",
            host=self.network.host(member.node),
            timeout=self.settings.timeout,
            interval=self.settings.interval,
            fall=self.settings.fall,
            directory=member.directory,
            version=2 if self.settings.advert >= 1 else 3,
            advert=self.settings.advert,
            address=VIRTUAL[0],
            track=self.settings.track,
        )

    @staticmethod
    def _report_death(member: Member, pid: int) -> None:
        """Watch the process, as an operator's own script might, and say at once when it has died."""
        with open(os.pidfd_open(pid), "rb", buffering=0) as pidfd:  # noqa: PTH123
            select.select([pidfd], [], [])
        (member.directory / "up").write_text(_DOWN, encoding="ascii")


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.1)


@contextlib.contextmanager
def pair(network: Network, directory: Path, settings: Settings) -> Iterator[Pair]:
    """A running pair, which ends with the block."""
    running = Pair(network, directory, settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()
