"""Three real nodes under TLS, which serve while strangers attack them and while their certificates change."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sipha.cluster.authority import Issued
from sipha.cluster.wire import StaleTerm, frame
from sipha.sandbox import Sandbox, SandboxNode
from tests.cluster.certificates import Pki, replace, serial
from tests.cluster.nodes import greeting
from tests.system.conftest import agree, wait_until
from tests.system.nodes import started

pytestmark = pytest.mark.system

PREFIX = "127.0.24"


class Writer(threading.Thread):
    """Makes one account after the other, wherever a node leads, and keeps those that were acknowledged."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox
        self.users: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        leader = self.sandbox.leader()
        while not self.over.wait(0.01):
            user = f"u{time.monotonic_ns()}"
            account = {"username": user, "domain": self.sandbox.domain, "password": "secret"}
            try:
                self.sandbox.request(leader or self.sandbox.nodes[0], "POST", "/v1/accounts", account)
                self.users.append(user)
            except OSError:  # on a busy machine an election may come in between
                leader = self.sandbox.leader()

    def goes_on(self) -> None:
        """Wait until more has been written."""
        before = len(self.users)
        wait_until(lambda: len(self.users) > before + 3, "writes to be acknowledged")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("cluster-tls"), prefix=PREFIX, tls=True)
    with started(sandbox):
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox) -> Iterator[Sandbox]:
    """All nodes run and agree, before and after; nodes that are not restarted never part, and no write is lost."""
    settle(running)
    writer = Writer(running)
    logs = {node.name: len((node.directory / "log").read_bytes()) for node in running.nodes}
    processes = {node.name: node.process for node in running.nodes}
    writer.start()
    try:
        writer.goes_on()
        yield running
        writer.goes_on()
    finally:
        writer.over.set()
        writer.join()
    settle(running)
    same = [node for node in running.nodes if node.process is processes[node.name]]
    for node in same:
        log = (node.directory / "log").read_bytes()[logs[node.name] :].decode()
        assert not any(f"disconnected from {other.name}" in log for other in same), log
    for node in running.nodes:
        assert set(writer.users) <= accounts(running, node)


@pytest.fixture
def pki(running: Sandbox) -> Pki:
    """The authority of the nodes; its files are where theirs are."""
    pki = Pki(running.directory)
    pki.authority = Issued(*((running.directory / name).read_bytes() for name in ("ca.pem", "ca-key.pem")))
    return pki


def status(sandbox: Sandbox, node: SandboxNode) -> dict[str, Any]:
    found = sandbox.status(node)
    assert found is not None, f"{node.name} doesn't answer; see {node.directory / 'log'}"
    return found


def settle(sandbox: Sandbox) -> None:
    """Wait until all nodes are connected and agree."""
    for node in sandbox.nodes:
        wait_until(lambda: connected(sandbox, node), f"{node.name} to be connected")  # noqa: B023  used at once
    wait_until(lambda: agree(sandbox), "the nodes to agree")


def connected(sandbox: Sandbox, node: SandboxNode) -> bool:
    return all(peer["connected"] for peer in status(sandbox, node)["peers"])


def accounts(sandbox: Sandbox, node: SandboxNode) -> set[str]:
    """The names of all accounts, as one node has them."""
    names: set[str] = set()
    cursor: str | None = ""
    while cursor is not None:
        page = sandbox.request(node, "GET", f"/v1/accounts?cursor={cursor}")
        names |= {account["username"] for account in page["accounts"]}
        cursor = page["cursor"]
    return names


def call(node: SandboxNode, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Say something at a node's cluster port, and return what it says until it ends the connection."""
    heard = b""
    with suppress(OSError), socket.create_connection((node.host, 7000), 5) as plain:
        plain.settimeout(5)
        with plain if tls is None else tls.wrap_socket(plain) as end:
            end.sendall(data)
            while received := end.recv(65536):
                heard += received
    return heard


def shown(node: SandboxNode, pki: Pki) -> int:
    """The serial number of the certificate that a node shows."""
    with socket.create_connection((node.host, 7000), 5) as plain, pki.tls(None).wrap_socket(plain) as end:
        der = end.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def restart(sandbox: Sandbox, node: SandboxNode) -> None:
    """Kill a node, start it, and wait until it talks with both others."""
    sandbox.kill(node)
    sandbox.start_node(node)
    wait_until(lambda: sandbox.status(node) is not None, f"{node.name} to start")
    for each in sandbox.nodes:
        wait_until(lambda: connected(sandbox, each), f"{each.name} to be connected")  # noqa: B023  used at once


def followers(sandbox: Sandbox) -> list[SandboxNode]:
    leader = sandbox.wait_for_leader()
    return [node for node in sandbox.nodes if node is not leader]


def test_strangers_have_no_effect(sandbox: Sandbox, pki: Pki, tmp_path: Path) -> None:
    pwned = tmp_path / "pwned"

    class Code:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {pwned}",)

    body = zlib.compress(pickle.dumps(Code(), 2))
    command = zlib.compress(pickle.dumps({"type": "apply_command", "command": b"\0" + pickle.dumps(Code(), 2)}, 2))
    utility = zlib.compress(pickle.dumps(["status"], 2))
    pickles = [struct.pack("i", len(each)) + each for each in (body, command, utility)]
    old = pki.tls(pki.issue("n1"))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    *_, second, last = (node.name for node in sandbox.nodes)
    for node in sandbox.nodes:
        other = second if node.name == last else last
        hello = frame(greeting(other))
        for tls in (
            None,
            pki.tls(None),
            pki.tls(Pki(tmp_path / "x").issue(other)),
            pki.tls(pki.issue("n9")),
            pki.tls(pki.issue(node.name)),
            old,
        ):
            for data in (
                b"GET / HTTP/1.1\r\n\r\n",
                struct.pack("!I", 0xFFFFFFFF) + bytes(8),
                *pickles,
                hello + frame(StaleTerm(99)),
            ):
                assert not call(node, data, tls).startswith(frame(greeting(node.name))[:4])
    assert not pwned.exists()
    for node in sandbox.nodes:
        counters = status(sandbox, node)["counters"]
        for reason in ("not TLS 1.3", "no certificate", "certificate not ours"):
            assert counters[reason] > 0
        assert counters["certificate of another node"] > 0
        assert "replaced" not in counters


def test_certificates_are_renewed_without_a_pause(sandbox: Sandbox, pki: Pki) -> None:
    for node in sandbox.nodes:
        new = pki.issue(node.name)
        pki.install(node.name, new)
        assert shown(node, pki) == serial(new.certificate)
    for node in followers(sandbox):
        restart(sandbox, node)
    for node in sandbox.nodes:
        assert "new certificates unusable" not in status(sandbox, node)["counters"]


def test_files_that_can_not_be_used_are_told_at_sighup(sandbox: Sandbox, pki: Pki) -> None:
    node = followers(sandbox)[0]
    before, key = shown(node, pki), (node.directory / "key.pem").read_bytes()
    replace(node.directory / "key.pem", pki.issue(node.name).key)
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    wait_until(lambda: status(sandbox, node)["counters"].get("new certificates unusable"), "the node to say so")
    assert shown(node, pki) == before
    replace(node.directory / "key.pem", key)
    log = (node.directory / "log").read_text()
    assert log.count("is not the key of") == 1
    assert "the old certificates stay in use" in log


def test_authority_is_replaced_without_a_pause(sandbox: Sandbox, pki: Pki, tmp_path: Path) -> None:
    old, new = pki.authority, Pki(tmp_path / "new").authority
    both = old.certificate + new.certificate
    first, second = followers(sandbox)
    stale = pki.issue(first.name)
    for node in sandbox.nodes:
        replace(node.directory / "ca.pem", both)
        restart(sandbox, first)
    pki.authority = new
    for node in sandbox.nodes:
        pki.install(node.name, trusted=both)
        restart(sandbox, second)
    for node in sandbox.nodes:
        replace(node.directory / "ca.pem", new.certificate)
        restart(sandbox, first)
    leader = sandbox.wait_for_leader()
    before = status(sandbox, leader)["counters"].get("certificate not ours", 0)
    assert not call(leader, frame(greeting(first.name)), pki.tls(stale))
    assert status(sandbox, leader)["counters"]["certificate not ours"] == before + 1
    replace(sandbox.directory / "ca.pem", new.certificate)
    replace(sandbox.directory / "ca-key.pem", new.key)
