"""Three real nodes for the tests that use real processes and real clients."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sipha.sandbox import USERS, Sandbox, SandboxNode
from tests.system.hosts import Hosts
from tests.system.network import Network, obstacle
from tests.system.phones import PATIENCE, BaresipPhone, Line, Phone, Pjsua2Phone
from tests.system.ua import UserAgent

PREFIX = "127.0.21"


@pytest.fixture(scope="session")
def running_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Path(tempfile.gettempdir(), "sipha-system-tests.lock").open("w") as lock:
        # The addresses are the machine's: another run of the tests waits until this one is through.
        fcntl.flock(lock, fcntl.LOCK_EX)
        sandbox = Sandbox(
            tmp_path_factory.mktemp("sandbox"),
            prefix=PREFIX,
            more_addresses=("::1",),
            extra='[nat]\nping_scope = "none"',  # what isn't about pings shall not be disturbed by them
        )
        try:
            sandbox.start()
            sandbox.add_accounts({user: f"{user}-secret" for user in USERS})
            yield sandbox
        finally:
            sandbox.stop()


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Sandbox:
    """Three nodes, all running, one leading, and no bindings."""
    for node in running_sandbox.nodes:
        if not node.running:
            running_sandbox.start_node(node)
    leader = running_sandbox.wait_for_leader()
    for user in USERS:
        if bindings(running_sandbox, leader, user):
            running_sandbox.request(leader, "DELETE", f"/v1/bindings/{user}@{running_sandbox.domain}")
    wait_until(lambda: agree(running_sandbox), "the nodes to agree")
    return running_sandbox


@pytest.fixture
def phones(sandbox: Sandbox) -> Iterator[Callable[[str, str, str], Phone]]:
    """Make registered phones: kind (pjsua2 or baresip), user, transport."""
    made: list[Phone] = []

    def make(kind: str, user: str, transport: str) -> Phone:
        bind = f"{PREFIX}.{100 + len(made)}"
        line = Line(user, f"{user}-secret", sandbox.domain, sandbox.virtual_address, transport, bind)
        phone: Phone = BaresipPhone(line) if kind == "baresip" else Pjsua2Phone(line)
        made.append(phone)
        wait_until(lambda: bindings(sandbox, sandbox.wait_for_leader(), user), f"{kind} to register {user}")
        return phone

    yield make
    for phone in made:
        phone.close()


@pytest.fixture
def agents(sandbox: Sandbox) -> Iterator[Callable[..., UserAgent]]:
    """Make user agents: user, transport, and the options of UserAgent; each has an address of its own."""
    made: list[UserAgent] = []

    def make(user: str, transport: str = "UDP", *, server: str = "", **options: Any) -> UserAgent:
        options.setdefault("host", f"{PREFIX}.{150 + len(made)}")
        made.append(UserAgent(user, (server or sandbox.virtual_address, 5060), transport, **options))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
    for node in sandbox.nodes:
        if node.running and (status := sandbox.status(node)):
            assert not status["counters"].get("transport_mistake"), f"see the log in {node.directory}"


@pytest.fixture(scope="session")
def can_build_networks() -> None:
    """Skip the test where rights or kernel don't allow network namespaces; fail where they must (SIPHA_NETWORK)."""
    if reason := obstacle():
        if os.environ.get("SIPHA_NETWORK") == "required":
            pytest.fail(f"a network can't be built here: {reason}")
        pytest.skip(reason)


@pytest.fixture(scope="module")
def built_network(can_build_networks: None) -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def network(built_network: Network) -> Iterator[Network]:
    """A network without faults."""
    yield built_network
    built_network.heal()
    built_network.admit_all()


@pytest.fixture(scope="module")
def running_hosts(can_build_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts.run(tmp_path_factory.mktemp("hosts")) as hosts:
        hosts.add_accounts({user: f"{user}-secret" for user in USERS})
        yield hosts


@pytest.fixture
def hosts(running_hosts: Hosts) -> Iterator[Hosts]:
    """Three nodes in a network that are well, and are made well again."""
    running_hosts.restore()
    yield running_hosts
    running_hosts.restore()


def bindings(sandbox: Sandbox, node: SandboxNode, user: str) -> list[dict[str, Any]]:
    """Return the bindings of a user, as a node's admin lists them."""
    answer = sandbox.request(node, "GET", f"/v1/bindings?prefix={user}@{sandbox.domain}")
    found: list[dict[str, Any]] = answer["bindings"]
    return found


def agree(sandbox: Sandbox) -> bool:
    """Return True if all nodes have applied the same index and have the same table."""
    statuses = [sandbox.status(node) for node in sandbox.nodes]
    return all(statuses) and len({(status["applied_index"], status["hash"]) for status in statuses if status}) == 1


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Poll until a condition holds; raises AssertionError that names what was waited for."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
