"""Three nodes on the loopback interface, to try sipha out: `make run`, the system tests and the benchmark use it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOMAIN = "sipha.test"
USERS = ("alice", "bob", "carol")
START_DEADLINE = 60.0
STOP_DEADLINE = 10.0

# The kernel ends a node when the process that started it dies, by whatever signal.
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM")

_CONFIG = """\
[node]
name = "{name}"
data_dir = "{data_dir}"

[cluster]
listen = "{host}:7000"
plaintext = true
{peers}
[virtual_address]
mode = "loopback"
addresses = {addresses}

[sip]
port = 5060
transports = ["udp", "tcp"]

[admin]
listen = "{host}:8080"

[[domains]]
name = "{domain}"
{extra}
"""

_PEER = """
[[cluster.peers]]
name = "{name}"
address = "{host}:7000"
admin = "http://{host}:8080"
"""


@dataclass
class SandboxNode:
    """One node: a `twistd -n sipha run` process, its address and its directory."""

    name: str
    host: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def admin(self) -> str:
        """The URL of the node's admin."""
        return f"http://{self.host}:8080"

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self.process is not None and self.process.poll() is None


@dataclass
class Sandbox:
    """A cluster of `size` nodes on PREFIX.11 and up, which share the virtual address PREFIX.10 (udp and tcp 5060).

    `extra` is TOML added to each node's configuration, `more_addresses` further virtual addresses, `launcher` a command
    that runs each node's.
    """

    directory: Path
    prefix: str = "127.0.0"
    size: int = 3
    domain: str = DOMAIN
    extra: str = ""
    more_addresses: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    nodes: list[SandboxNode] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Lay out the nodes."""
        self.nodes = [
            SandboxNode(f"n{number}", f"{self.prefix}.{10 + number}", self.directory / f"n{number}")
            for number in range(1, self.size + 1)
        ]

    @property
    def virtual_address(self) -> str:
        """The address that the leader alone serves."""
        return f"{self.prefix}.10"

    def start(self) -> None:
        """Start all nodes; raises SandboxError unless they agree on a leader in time."""
        for node in self.nodes:
            self.start_node(node)
        self.wait_for_leader()

    def start_node(self, node: SandboxNode) -> None:
        """Write a node's configuration and start its process."""
        node.directory.mkdir(parents=True, exist_ok=True)
        config = node.directory / "sipha.toml"
        config.write_text(self._config(node))
        command = [str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile=", "sipha", "run"]
        with (node.directory / "log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches us, and we stop the nodes in order.
            node.process = subprocess.Popen(  # noqa: S603
                [*self.launcher, *command, "--config", str(config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop all nodes: SIGTERM, and SIGKILL for what doesn't end in time."""
        for node in self.nodes:
            if node.process is not None and node.running:
                node.process.terminate()
        deadline = time.monotonic() + STOP_DEADLINE
        for node in self.nodes:
            if node.process is None:
                continue
            try:
                node.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(node)

    def kill(self, node: SandboxNode) -> None:
        """Kill a node's process with SIGKILL."""
        if node.process is not None:
            node.process.kill()
            node.process.wait()

    def status(self, node: SandboxNode) -> dict[str, Any] | None:
        """Return what a node's admin says of itself, or None if it doesn't answer."""
        try:
            status: dict[str, Any] = self.request(node, "GET", "/v1/status")
        except (urllib.error.URLError, OSError, ValueError):
            return None
        return status

    def request(self, node: SandboxNode, method: str, path: str, body: object = None) -> Any:
        """Ask a node's admin; raises urllib.error.HTTPError for an answer of 400 or more."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310
            node.admin + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            content = response.read()
        return json.loads(content) if content else None

    def leader(self) -> SandboxNode | None:
        """Return the running node that holds the virtual address, or None."""
        for node in self.nodes:
            if node.running and (status := self.status(node)) and status["leading"]:
                return node
        return None

    def wait_for_leader(self, deadline: float = START_DEADLINE) -> SandboxNode:
        """Wait until a node leads and return it; `deadline` is in seconds."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            if leader := self.leader():
                return leader
            for node in self.nodes:
                if node.process is not None and node.process.poll() not in {None, -signal.SIGKILL}:
                    raise SandboxError(f"node {node.name} stopped; its log is {node.directory / 'log'}")
            time.sleep(0.1)
        raise SandboxError(f"no node leads after {deadline:.0f} s; the logs are in {self.directory}")

    def add_accounts(self, accounts: dict[str, str]) -> None:
        """Create accounts, user name to password, where they don't exist yet."""
        leader = self.wait_for_leader()
        existing = {account["username"] for account in self.request(leader, "GET", "/v1/accounts")["accounts"]}
        for user, password in accounts.items():
            if user not in existing:
                account = {"username": user, "domain": self.domain, "password": password}
                self.request(leader, "POST", "/v1/accounts", account)

    def _config(self, node: SandboxNode) -> str:
        peers = [_PEER.format(name=peer.name, host=peer.host) for peer in self.nodes if peer is not node]
        return _CONFIG.format(
            name=node.name,
            host=node.host,
            data_dir=node.directory / "data",
            peers="".join(peers),
            addresses=json.dumps([self.virtual_address, *self.more_addresses]),
            domain=self.domain,
            extra=self.extra,
        )


class SandboxError(Exception):
    """The nodes don't run as they should."""


def describe(sandbox: Sandbox) -> str:
    """Return the block that says where everything is."""
    lines = [
        "",
        f"  SIP       {sandbox.virtual_address}:5060, udp and tcp: the leader alone answers there",
        f"  domain    {sandbox.domain}",
        "  accounts  " + ", ".join(f"{user} ({user}-secret)" for user in USERS),
        *(f"  node {node.name}   admin {node.admin}/v1/status, files in {node.directory}" for node in sandbox.nodes),
        f"  control   {Path(sys.executable).with_name('siphactl')} status",
        "  stop      Ctrl-C",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run three nodes until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="sipha.sandbox", description="Run three sipha nodes on this machine.")
    parser.add_argument("--directory", type=Path, default=Path(".run"), help="where the state is kept (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start empty")
    options = parser.parse_args()
    directory = options.directory.resolve()
    if options.fresh:
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sandbox = Sandbox(directory, launcher=_ENDS_WITH_US)
    try:
        sandbox.start()
        sandbox.add_accounts({user: f"{user}-secret" for user in USERS})
        print(describe(sandbox))
        print("sipha: ready", flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except SandboxError as error:
        print(f"sipha: {error}", file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sandbox.stop()


if __name__ == "__main__":
    # twistd and siphactl of the same environment are found beside the interpreter, whatever PATH says.
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
