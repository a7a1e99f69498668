"""`external` mode beside a real keepalived, which has the configuration of docs/virtual-address.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sipha.sandbox import USERS, SandboxNode
from tests.system.conftest import bindings, wait_until
from tests.system.faults import Fault, kill_daemon, stop_daemon, terminate, unplug
from tests.system.hosts import VIRTUAL, Hosts
from tests.system.network import OUTSIDE
from tests.system.probe import describe, make_probe
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

PAGE = Path(__file__).parents[2] / "docs" / "virtual-address.md"
PRIORITIES = (150, 100, 50)
"""Those of the nodes, as the page says."""

AWAY = "isn't here"
"""What an alarm says of a node that doesn't have the addresses."""

WITHIN = 15.0
"""How long it may take until the address is served again, in seconds: keepalived notices a dead daemon after three."""


class Followers(Hosts):
    """Nodes that follow the addresses wherever keepalived has them."""

    keepalived: dict[str, subprocess.Popen[bytes]]

    def addressing(self, node: SandboxNode) -> str:
        """See Sandbox."""
        return f'mode = "external"\naddresses = ["{VIRTUAL[0]}", "{VIRTUAL[1]}"]'

    def start(self) -> None:
        """See Sandbox; the addresses must be somewhere before a node can lead."""
        self.found()
        self.keepalived = {}
        for node in self.nodes:
            self.start_node(node)
            self.start_keepalived(node)
        self.wait_for_leader()

    def start_keepalived(self, node: SandboxNode) -> None:
        """Start a node's keepalived."""
        configuration = node.directory / "keepalived.conf"
        configuration.write_text(documented(PRIORITIES[self.nodes.index(node)]), encoding="utf-8")
        files = [f"--{name}={node.directory / name}.pid" for name in ("pid", "vrrp_pid")]
        options = ["--dont-fork", "--vrrp", "--log-console", f"--use-file={configuration}", *files]
        with (node.directory / "keepalived.log").open("ab") as log:
            self.keepalived[node.name] = subprocess.Popen(
                [*self.network.launcher(node.name), "keepalived", *options], stdout=log, stderr=log
            )

    def stop_keepalived(self, node: SandboxNode) -> None:
        """End a node's keepalived, which takes the addresses away."""
        process = self.keepalived.pop(node.name)
        process.terminate()
        process.wait()

    def restore(self) -> SandboxNode:
        """See Hosts."""
        for node in self.nodes:
            if node.name not in self.keepalived:
                self.start_keepalived(node)
        return super().restore()

    def wait_until_well(self) -> SandboxNode:
        """See Hosts; that the addresses are at another node doesn't count."""
        return self._wait(lambda status: all("unwell" not in alarm or AWAY in alarm for alarm in status["alarms"]))

    def holders(self) -> list[str]:
        """The nodes that have one of the addresses."""
        shown = {node.name: self.network.run(node.name, "ip", "-oneline", "address", "show") for node in self.nodes}
        return [name for name, listed in shown.items() if any(f" {address}/" in listed for address in VIRTUAL)]


def documented(priority: int) -> str:
    """The page's configuration of keepalived for a node of this priority, with the network's addresses."""
    found = re.search(r"^## `external`$.*?^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    text = found[1]
    here = {"192.0.2.10": VIRTUAL[0], "2001:db8::10": VIRTUAL[1], f"priority {PRIORITIES[0]}": f"priority {priority}"}
    for shown, meant in here.items():
        assert shown in text
        text = text.replace(shown, meant)
    return text


def stop_keepalived(hosts: Hosts, node: SandboxNode) -> None:
    assert isinstance(hosts, Followers)
    hosts.stop_keepalived(node)


@pytest.fixture(scope="module")
def running(can_build_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followers]:
    with Followers.run(tmp_path_factory.mktemp("followers")) as hosts:
        hosts.add_accounts({user: f"{user}-secret" for user in USERS})
        yield hosts


@pytest.fixture
def hosts(running: Followers) -> Followers:
    """Nodes that are well, of which the one that has the addresses leads."""
    running.restore()
    running.wait_until_well()
    wait_until(lambda: running.holders() == [running.wait_for_leader().name], "the leader to follow")
    return running


@pytest.fixture
def alice(hosts: Followers) -> Iterator[UserAgent]:
    with hosts.network.inside(OUTSIDE):
        agent = UserAgent("alice", (VIRTUAL[0], 5060), host=hosts.network.host(OUTSIDE), domain=hosts.domain)
    yield agent.register()
    agent.close()


@pytest.mark.parametrize(
    "fault",
    [
        kill_daemon,
        stop_keepalived,
        terminate,
        pytest.param(stop_daemon, marks=pytest.mark.long),
        pytest.param(unplug, marks=pytest.mark.long),
    ],
    ids=lambda fault: fault.__name__,
)
def test_leader_follows_the_addresses_that_keepalived_moves(hosts: Followers, alice: UserAgent, fault: Fault) -> None:
    leader = hosts.wait_for_leader()
    others = [node for node in hosts.nodes if node is not leader]
    with make_probe(hosts.network, (VIRTUAL[0], 5060)) as probe:
        assert probe.wait_for_answer(WITHIN)
        fault(hosts, leader)
        wait_until(lambda: any(hosts.leads(node) for node in others), f"another to lead after {fault.__name__}")
        assert probe.wait_for_answer(WITHIN), f"no answer after {fault.__name__}"
    print(f"{fault.__name__}: {describe(probe.outages, probe.questions[0].sent)}")
    follower = hosts.leader()
    assert follower in others
    assert follower.name in hosts.holders()
    assert bindings(hosts, follower, "alice")
    alice.register()
    hosts.restore()
    for node in hosts.nodes:
        status = hosts.quick_status(node)
        assert status is not None
        assert "probation" not in str(status["alarms"])
