"""Operators ask three real nodes whose admins talk TLS and know who may ask."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import wait_until
from tests.system.nodes import run_siphactl, started

pytestmark = pytest.mark.system

PREFIX = "127.0.40"
TOKENS = {f"sipha_{role}_secret": role for role in ("read", "operate", "admin")}
READ, OPERATE, ADMIN = TOKENS


class Secured(Sandbox):
    """Three nodes, each of whose admins shows the node's certificate and asks who asks."""

    clients = '[[admin.clients]]\nname = "alice.operators.sipha.sipha"\nrole = "operate"\n'
    tokens = "".join(
        f'[[admin.tokens]]\nname = "{role}"\nrole = "{role}"\nsha256 = "{sha256(token.encode()).hexdigest()}"\n'
        for token, role in TOKENS.items()
    )

    def lay_out(self) -> SandboxNode:
        node = super().lay_out()
        node.scheme = "https"
        return node

    def administration(self, node: SandboxNode) -> str:
        files = {"certificate": "cert.pem", "key": "key.pem", "ca": "ca.pem"}
        lines = [f'{name} = "{node.directory}/{file}"' for name, file in files.items()]
        return "\n".join([super().administration(node), *lines, self.tokens, self.clients])

    def request(self, node: SandboxNode, method: str, path: str, body: object = None) -> Any:
        return json.loads(self.ask(node, method, path, body, token=ADMIN))

    def ask(
        self,
        node: SandboxNode,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = "",
        identity: Path | None = None,
    ) -> bytes:
        """As `request`, with a token, or the certificate in a directory."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        if identity is not None:
            context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(node.admin + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            content: bytes = response.read()
        return content

    def refusal(self, *asked: Any, **who: Any) -> int:
        """With which status a request is refused; 0 if it isn't."""
        try:
            self.ask(*asked, **who)
        except urllib.error.HTTPError as error:
            return error.code
        return 0

    def move(self, node: SandboxNode, **who: Any) -> None:
        """Ask a node that doesn't lead to let the third one lead."""
        leader = self.wait_for_leader()
        target = next(one for one in self.nodes if one.name not in {node.name, leader.name})
        self.ask(node, "POST", "/v1/transfer", {"to": target.name}, **who)
        wait_until(lambda: self.leader() is target, f"{target.name} to lead")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    # Leases that outlast whatever else this machine does meanwhile: what moves is what is told to.
    sandbox = Secured(
        tmp_path_factory.mktemp("access"),
        prefix=PREFIX,
        tls=True,
        cluster="heartbeat = 0.1\nelection_min = 2.0\nelection_max = 4.0",
    )
    with started(sandbox):
        (sandbox.directory / "token").write_text(f"{OPERATE}\n")
        yield sandbox


@pytest.fixture(scope="module")
def alice(sandbox: Secured) -> Path:
    """Where an operator has her certificate."""
    run_siphactl("ca", "operator", "alice", "--dir", str(sandbox.directory))
    return sandbox.directory / "operators" / "alice"


def siphactl(sandbox: Secured, node: SandboxNode, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run_siphactl("--url", node.admin, "--cacert", str(sandbox.directory / "ca.pem"), *words, status=status)


def test_each_node_asks_who_asks(sandbox: Secured) -> None:
    for node in sandbox.nodes:
        assert sandbox.refusal(node, "GET", "/v1/status") == 401
        assert sandbox.refusal(node, "GET", "/v1/status", token="sipha_other") == 401
        assert sandbox.refusal(node, "GET", "/v1/status", token=READ) == 0
        assert sandbox.refusal(node, "POST", "/v1/transfer", {}, token=READ) == 403
        assert sandbox.refusal(node, "GET", "/v1/backup", token=OPERATE) == 403
        assert sandbox.refusal(node, "GET", "/v1/backup", token=ADMIN) == 0


def test_operator_moves_leadership_by_asking_whichever_node(sandbox: Secured, alice: Path) -> None:
    new = {"name": "n4", "address": f"{PREFIX}.14:7000"}
    for node in sandbox.nodes:
        for who in ({"token": OPERATE}, {"identity": alice}):
            sandbox.move(node, **who)
            assert sandbox.refusal(node, "POST", "/v1/nodes", new, **who) == 403
            assert sandbox.leader() is not node


def test_node_can_do_nothing_on_its_own_account(sandbox: Secured) -> None:
    for node in sandbox.nodes:
        for other in sandbox.nodes:
            assert sandbox.refusal(other, "GET", "/v1/status", identity=node.directory) == 403


def test_operator_at_a_terminal_shows_a_token_or_a_certificate(sandbox: Secured, alice: Path) -> None:
    shown = siphactl(sandbox, sandbox.nodes[0], "status", "--json", "--token-file", str(sandbox.directory / "token"))
    assert [node["role"] for node in json.loads(shown.stdout)["nodes"]].count("follower") == 2
    own = ("--cert", str(alice / "cert.pem"), "--key", str(alice / "key.pem"))
    refused = siphactl(sandbox, sandbox.nodes[1], "node", "rm", "n3", *own, status=1)
    assert refused.stderr == "siphactl: this needs the role admin, and alice.operators.sipha.sipha has operate\n"


def test_operator_is_told_what_is_missing(sandbox: Secured) -> None:
    node = sandbox.nodes[0]
    assert "say who you are" in siphactl(sandbox, node, "status", status=1).stderr
    untrusted = run_siphactl("--url", node.admin, "--token", READ, "status", status=1).stderr
    assert "its certificate is from no authority that is trusted here (siphactl --cacert, admin.ca)" in untrusted
    clear = run_siphactl("--url", node.admin.replace("https", "http"), "status", status=1).stderr
    assert "perhaps it wants https://" in clear


def test_token_is_withdrawn_while_the_node_serves(sandbox: Secured) -> None:
    node = sandbox.nodes[0]
    assert node.process is not None
    before = node.configuration.read_text()
    node.configuration.write_text(before.replace(sha256(READ.encode()).hexdigest(), sha256(b"new").hexdigest()))
    try:
        node.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sandbox.refusal(node, "GET", "/v1/status", token=READ) == 401, "it to be withdrawn")
        assert sandbox.refusal(node, "GET", "/v1/status", token="new") == 0
    finally:
        node.configuration.write_text(before)
        node.process.send_signal(signal.SIGHUP)
    wait_until(lambda: sandbox.refusal(node, "GET", "/v1/status", token=READ) == 0, "it to be taken again")


def test_no_token_is_in_any_log(sandbox: Secured) -> None:
    for node in sandbox.nodes:
        log = (node.directory / "log").read_text()
        assert "connected with" in log
        assert "sipha_" not in log
