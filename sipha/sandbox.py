"""Three nodes on the loopback interface, to try sipha out: `make run`, the system tests and the benchmark use it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

from sipha.cluster import authority, founding

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
{encryption}
{cluster}
{peers}
[virtual_address]
{virtual_address}

[sip]
port = {port}
transports = ["udp", "tcp"]
{sip}

[admin]
{admin}

[[domains]]
name = "{domain}"
{extra}
"""

_CERTIFICATES = """\
ca = "{directory}/ca.pem"
certificate = "{directory}/cert.pem"
key = "{directory}/key.pem"
"""

_PEER = """
[[cluster.peers]]
name = "{name}"
address = "{host}:7000"
admin = "{scheme}://{host}:8080"
"""


@dataclass
class SandboxNode:
    """One node: a `twistd -n sipha run` process, its address and its directory."""

    name: str
    host: str
    directory: Path
    admin_host: str
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.directory / "sipha.toml"

    @property
    def address(self) -> str:
        """Where the other nodes reach it."""
        return f"{self.host}:7000"

    @property
    def admin(self) -> str:
        """The URL of the node's admin."""
        return f"{self.scheme}://{self.admin_host}:8080"

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self.process is not None and self.process.poll() is None


@dataclass
class Sandbox:
    """A cluster of `size` nodes on PREFIX.11 and up, which share the virtual address PREFIX.10 (udp and tcp `port`).

    Under `tls` they have certificates; without, they talk in the clear. `cluster` and `sip` are TOML added to each
    node's tables of these names, `extra` at the end of the file; `more_addresses` are further virtual addresses,
    `launcher` is a command that runs each node's.
    """

    directory: Path
    prefix: str = "127.0.0"
    size: int = 3
    domain: str = DOMAIN
    tls: bool = False
    cluster: str = ""
    sip: str = ""
    extra: str = ""
    port: int = 5060
    more_addresses: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    nodes: list[SandboxNode] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Lay out the nodes."""
        for _ in range(self.size):
            self.lay_out()

    def lay_out(self) -> SandboxNode:
        """Think of one more node, whose disk is blank."""
        number = len(self.nodes) + 1
        host = f"{self.prefix}.{10 + number}"
        node = SandboxNode(f"n{number}", host, self.directory / f"n{number}", host)
        self.nodes.append(node)
        return node

    @property
    def virtual_address(self) -> str:
        """The address that the leader alone serves."""
        return f"{self.prefix}.10"

    def addressing(self, node: SandboxNode) -> str:  # noqa: ARG002
        """Return a node's section [virtual_address]: how the leader comes by the addresses."""
        return f'mode = "loopback"\naddresses = {json.dumps([self.virtual_address, *self.more_addresses])}'

    def administration(self, node: SandboxNode) -> str:
        """Return a node's section [admin]: where it listens, and who may ask; it is asked by turns, without rest."""
        return f'listen = "{node.admin_host}:8080"\nrate = 100000'

    def found(self) -> None:
        """Let the nodes be the founders of one cluster, unless they are already."""
        done = self.directory / "founded"
        if done.exists():
            return
        cluster_id, voters = uuid4().hex, {node.name: node.address for node in self.nodes}
        for node in self.nodes:
            shutil.rmtree(node.data, ignore_errors=True)  # the foundation was not finished
            with founding.taken(node.data, create=True) as disk:
                founding.found(disk, node.name, voters, cluster_id)
        done.touch()

    def start(self) -> None:
        """Found the cluster and start what doesn't run; raises SandboxError unless the nodes have a leader in time."""
        self.found()
        for node in self.nodes:
            if not node.running:
                self.start_node(node)
        self.wait_for_leader()

    def configure(self, node: SandboxNode) -> None:
        """Write a node's configuration, and make its certificate if it has none."""
        node.directory.mkdir(parents=True, exist_ok=True)
        if self.tls and not (node.directory / "cert.pem").exists():
            self._issue(node)
        node.configuration.write_text(self._config(node))

    def start_node(self, node: SandboxNode) -> None:
        """Configure a node and start its process."""
        self.configure(node)
        command = [str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile=", "sipha", "run"]
        with (node.directory / "log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches us, and we stop the nodes in order.
            node.process = subprocess.Popen(  # noqa: S603
                [*self.launcher_of(node), *command, "--config", str(node.configuration)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=node.directory,  # twistd looks there first: not for another sipha than we are told to run
                start_new_session=True,
            )

    def launcher_of(self, node: SandboxNode) -> tuple[str, ...]:  # noqa: ARG002
        """Return the words before a node's command."""
        return self.launcher

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

    def _issue(self, node: SandboxNode) -> None:
        """Make the node's certificate, and the authority before the first."""
        now = datetime.now(UTC)
        certificate, key = self.directory / "ca.pem", self.directory / "ca-key.pem"
        if not key.exists():
            made = authority.found("sipha", now)
            certificate.write_bytes(made.certificate)
            key.write_bytes(made.key)
        own = authority.Issued(certificate.read_bytes(), key.read_bytes())
        issued = authority.issue(own, node.name, now, addresses=[ip_address(node.host)])
        (node.directory / "ca.pem").write_bytes(own.certificate)
        (node.directory / "key.pem").write_bytes(issued.key)
        (node.directory / "cert.pem").write_bytes(issued.certificate)

    def _config(self, node: SandboxNode) -> str:
        peers = [
            _PEER.format(name=peer.name, host=peer.host, scheme=peer.scheme) for peer in self.nodes if peer is not node
        ]
        return _CONFIG.format(
            name=node.name,
            host=node.host,
            admin=self.administration(node),
            data_dir=node.data,
            encryption=_CERTIFICATES.format(directory=node.directory) if self.tls else "plaintext = true",
            cluster=self.cluster,
            peers="".join(peers),
            virtual_address=self.addressing(node),
            port=self.port,
            sip=self.sip,
            domain=self.domain,
            extra=self.extra,
        )


class SandboxError(Exception):
    """The nodes don't run as they should."""


def describe(sandbox: Sandbox) -> str:
    """Return the block that says where everything is."""
    lines = [
        "",
        f"  SIP       {sandbox.virtual_address}:{sandbox.port}, udp and tcp: the leader alone answers there",
        f"  domain    {sandbox.domain}",
        "  accounts  " + ", ".join(f"{user} ({user}-secret)" for user in USERS),
        *(f"  node {node.name}   page {node.admin}/, files in {node.directory}" for node in sandbox.nodes),
        f"  control   {Path(sys.executable).with_name('siphactl')} status",
        "  stop      Ctrl-C",
        "",
    ]
    return "\n".join(lines)


def listens(node: SandboxNode) -> bool:
    """Return whether a process has the port of the node's admin."""
    with socket.socket() as probe:
        return probe.connect_ex((node.admin_host, 8080)) == 0


def main() -> int:
    """Run three nodes until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="sipha.sandbox", description="Run three sipha nodes on this machine.")
    parser.add_argument("--directory", type=Path, default=Path(".run"), help="where the state is kept (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start empty")
    parser.add_argument("--tls", action="store_true", help="let the nodes talk under TLS")
    options = parser.parse_args()
    directory = options.directory.resolve()
    sandbox = Sandbox(directory, tls=options.tls, launcher=_ENDS_WITH_US)
    if other := next((node for node in sandbox.nodes if listens(node)), None):
        print(f"sipha: something answers at {other.admin} already; stop it first", file=sys.stderr)
        return 1
    if options.fresh:
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
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
