"""What tests ask of real nodes, and do to them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import agree, wait_until
from tests.system.registrations import Load


@contextmanager
def started(cluster: Sandbox, *users: str) -> Iterator[Sandbox]:
    """Run a cluster that has accounts of these users, once no other run of the tests has its addresses."""
    with Path(tempfile.gettempdir(), f"sipha-{cluster.prefix}-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            cluster.start()
            cluster.add_accounts({user: f"{user}-secret" for user in users})
            yield cluster
        finally:
            for node in cluster.nodes:
                thaw(node)
            cluster.stop()


def check(cluster: Sandbox, phones: Load, *, stood: float = 0.0) -> None:
    """Check what the phones were told, and that all three nodes have it."""
    restore(cluster)
    assert not phones.faults, phones.faults[:5]
    for node in cluster.nodes:
        faults = phones.check(registered(cluster, node), stood=stood)
        assert not faults, (node.name, len(faults), faults[:5])


def restore(cluster: Sandbox) -> None:
    """Start what doesn't run, and wait until all agree."""
    for node in cluster.nodes:
        if not node.running:
            cluster.start_node(node)
    cluster.wait_for_leader()
    wait_until(lambda: agree(cluster), "the nodes to agree")


def clear(cluster: Sandbox) -> None:
    """Restore the cluster, and remove all bindings."""
    restore(cluster)
    leader = cluster.wait_for_leader()
    for aor in {binding["aor"] for binding in table(cluster, leader)}:
        cluster.request(leader, "DELETE", f"/v1/bindings/{aor.removeprefix('sip:')}")
    wait_until(lambda: agree(cluster), "the nodes to agree")


def caught_up(cluster: Sandbox) -> bool:
    """Return True if all nodes have applied nearly as much as the one with the most."""
    statuses = [cluster.status(node) for node in cluster.nodes]
    indices = [status["applied_index"] for status in statuses if status]
    return len(indices) == len(cluster.nodes) and max(indices) - min(indices) < 20


def table(cluster: Sandbox, node: SandboxNode) -> list[dict[str, Any]]:
    """Return all bindings of a node, page by page."""
    bindings: list[dict[str, Any]] = []
    cursor = ""
    while cursor is not None:
        page = cluster.request(node, "GET", f"/v1/bindings?limit=1000&cursor={cursor}")
        bindings += page["bindings"]
        cursor = page["cursor"]
    return bindings


def registered(cluster: Sandbox, node: SandboxNode, users: str = "user") -> list[dict[str, Any]]:
    """Return the bindings of the load's users, whose names begin so."""
    return [binding for binding in table(cluster, node) if binding["aor"].startswith(f"sip:{users}")]


def steady(cluster: Sandbox, node: SandboxNode) -> list[dict[str, Any]]:
    """Return the bindings of a node without what changes while one looks."""
    return [{name: value for name, value in binding.items() if name != "expires"} for binding in table(cluster, node)]


def freeze(node: SandboxNode) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)


def thaw(node: SandboxNode) -> None:
    if node.process is not None and node.running:
        node.process.send_signal(signal.SIGCONT)


def quick_status(node: SandboxNode) -> dict[str, Any] | None:
    """Return a node's status, or None if it doesn't answer at once."""
    try:
        with urllib.request.urlopen(f"{node.admin}/v1/status", timeout=1.0) as response:
            status: dict[str, Any] = json.load(response)
    except (urllib.error.URLError, OSError):
        return None
    return status


def quick(node: SandboxNode) -> dict[str, Any]:
    """Return the status of a node that answers."""
    status = quick_status(node)
    assert status is not None
    return status


def is_bound(host: str) -> bool:
    """Return True if a UDP or TCP socket has port 5060 of an IPv4 address."""
    # The kernel prints the address as a number of the machine's byte order.
    wanted = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{5060:04X}"
    for name, state in (("udp", "07"), ("tcp", "0A")):  # TCP_CLOSE, as an unconnected UDP socket has it, and TCP_LISTEN
        for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1] == wanted and fields[3] == state:
                return True
    return False


def siphactl(node: SandboxNode, *arguments: str, text: str = "") -> str:
    """Run siphactl against a node, and return what it prints; it must have done what it was told."""
    return run_siphactl("--url", node.admin, *arguments, text=text).stdout


def offline(node: SandboxNode, *arguments: str) -> str:
    """Run siphactl on the data of a node that is stopped."""
    return run_siphactl(*arguments, "--config", str(node.configuration)).stdout


def run_siphactl(*arguments: str, text: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run siphactl, which must end with this status."""
    command = [str(Path(sys.executable).with_name("siphactl")), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == status, (done.stdout, done.stderr)
    return done
