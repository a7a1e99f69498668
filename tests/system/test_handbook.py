"""The pages of docs/, typed as they stand on the machines of a cluster; each test goes on where the last ended.

A test says by a mark which sections it follows; tests/test_docs.py sees that there is one for each. Before an operator
changes something, the test does what the page tells in words.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.handbook import ROOT, Command, Script, blocks
from tests.system.conftest import wait_until
from tests.system.machines import AUTHORITY, Machines
from tests.system.network import OUTSIDE, Network
from tests.system.ua import UserAgent, call

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

VIRTUAL = "192.0.2.10"
MOST_COMMANDS = 5
CONFIGURATION = "/etc/sipha/sipha.toml"

DUMP = """\
CREATE TABLE `subscriber` (`username` varchar(64), `domain` varchar(64), `password` varchar(64));
INSERT INTO `subscriber` VALUES ('carol','example.com','carol-secret'),('dave','example.com','dave-secret');
CREATE TABLE `location` (
  `username` varchar(64), `domain` varchar(64), `contact` text, `expires` int, `callid` varchar(255), `cseq` int);
INSERT INTO `location` VALUES
  ('carol','example.com','sip:carol@192.0.2.99',4000000000,'1','1'),('dave','example.com','sip:dave@192.0.2.99',1,'2','1');
"""


@pytest.fixture(scope="module")
def machines(can_build_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with Network() as network:
        yield Machines(network, tmp_path_factory.mktemp("machines"))


def test_quickstart_has_at_most_five_commands_a_node() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    until_phones = page[: page.index("## Phones")]
    for node in ("n1", "n2", "n3"):
        typed = re.findall(rf"^{node}# (.*)", until_phones, re.MULTILINE)
        assert 1 <= len(typed) <= MOST_COMMANDS
        assert not any(word in {"&&", ";", "||", "|"} for line in typed for word in shlex.split(line))


@pytest.mark.follows("quickstart")
def test_operator_goes_from_nothing_to_three_nodes_and_loses_one(machines: Machines, script: Script) -> None:
    machines.follow(script.until("SIGKILL"))
    alice, bob = (register(machines, user) for user in ("alice", "bob"))
    call(bob, alice).exchange("BYE")
    machines.make_lead("n1")
    machines.follow(script.until("siphactl status"))
    wait_until(lambda: machines.leader() != "n1", "another node to lead")
    machines.follow(script.rest())
    call(bob, alice).exchange("BYE")
    for node in ("n2", "n3"):  # one of them doesn't lead, and hands on what it is asked
        assert machines.types(node, "siphactl prefer --nobody") == "no node is preferred\n"
    alice.close()
    bob.close()
    wait_until(lambda: machines.role("n1") == "follower", "n1 to have been started again")
    told = json.loads(machines.types("n1", "siphactl status --json"))["nodes"]
    assert sorted(node["role"] for node in told) == ["follower", "follower", "leader"]


@pytest.mark.follows("operations", "Restart or upgrade, one node after the other")
def test_operator_upgrades_a_node(machines: Machines, script: Script) -> None:
    machines.follow(script.rest())


@pytest.mark.follows("operations", "Change the configuration")
def test_operator_changes_the_configuration(machines: Machines, script: Script) -> None:
    machines.append("n1", CONFIGURATION, shown("operations", "toml", "Change the configuration"))
    machines.follow(script.rest())


@pytest.mark.follows("operations", "Standby")
def test_operator_puts_a_node_in_standby(machines: Machines, script: Script) -> None:
    machines.follow(script.rest())
    wait_until(lambda: machines.role("n3") == "follower", "n3 to be back")


@pytest.mark.follows("operations", "Drill")
def test_operator_drills(machines: Machines, script: Script) -> None:
    machines.follow(script.rest())


@pytest.mark.follows("operations", "Remove a node")
def test_operator_removes_a_node(machines: Machines, script: Script) -> None:
    machines.make_lead("n1")
    machines.follow(script.rest())
    bring_in(machines, "n2")


@pytest.mark.follows("operations", "Replace a node")
def test_operator_replaces_a_node(machines: Machines, script: Script) -> None:
    machines.follow(script.rest())
    wait_until(lambda: machines.role("n3") == "follower", "n3 to vote again")


@pytest.mark.follows("configuration", "Mistakes", "Load it again")
def test_operator_loads_a_configuration_with_and_without_mistakes(machines: Machines, script: Script) -> None:
    before = machines.read("n1", CONFIGURATION)
    machines.append("n1", "new.toml", before.partition("[registrar]")[0] + shown("configuration", "text", "Mistakes"))
    machines.follow(script.until("reload"))
    machines.append("n1", CONFIGURATION, shown("configuration", "toml", "Load it again"))
    first, second = script.rest()
    machines.follow([first])
    machines.append("n1", CONFIGURATION, "t1 = 1.0\n")
    machines.follow([second])
    machines.write("n1", CONFIGURATION, before)
    machines.types("n1", "siphactl reload")


@pytest.mark.follows("virtual-address")
def test_operator_looks_at_the_gate(machines: Machines, script: Script) -> None:
    machines.follow(script.rest())


@pytest.mark.follows("admin-api", "Events")
def test_operator_sees_events(machines: Machines, script: Script) -> None:
    (command,) = script.rest()
    machines.watch(command, lambda: register(machines, "alice").close())


@pytest.mark.follows("mi")
def test_script_for_opensips_finds_and_removes_contacts(machines: Machines, script: Script) -> None:
    machines.append(machines.leader(), ".opensips-cli.cfg", shown("mi", "ini"))
    register(machines, "alice").close()
    machines.follow(script.rest())


@pytest.mark.follows("migration")
def test_operator_imports_what_opensips_had(machines: Machines, script: Script) -> None:
    machines.stand_in("mysqldump", f"cat <<'END'\n{DUMP}END\n")
    *_, told = machines.follow(script.rest())
    assert told.splitlines() == [
        "accounts: 2 made, 0 here before, 0 run out, 0 refused",
        "bindings: 1 made, 0 here before, 1 run out, 0 refused",
    ]


@pytest.mark.long
@pytest.mark.follows("cluster-tls", "Make them", "Install them", "Renew a node's certificate")
def test_operator_gives_the_nodes_certificates_and_renews_one(machines: Machines, script: Script) -> None:
    nodes = machines.network.nodes
    for node in nodes:
        machines.types(node, "systemctl stop sipha; rm -rf ca n2 n3")  # those of the quickstart
    machines.follow(script.until("scp"), AUTHORITY)
    install = script.until("new/n1")
    for node in nodes:
        machines.follow(as_on(node, install))
        machines.types(node, "systemctl start sipha")
    machines.follow(script.rest(), AUTHORITY)
    wait_until(lambda: all_connected(machines), "the nodes to know each other")


@pytest.mark.long
@pytest.mark.follows("admin-api", "Who may ask")
def test_operator_asks_from_elsewhere(machines: Machines, script: Script) -> None:
    before = machines.read("n1", CONFIGURATION)
    (told,) = machines.follow(script.until("ca issue"))
    token, _, table = told.partition("\n\n")
    machines.follow(script.until("cd "), AUTHORITY)
    own = re.sub(r'\[\[cluster.peers\]\]\nname = "n2"\naddress = .*\n', "", before).replace(
        "[admin]\nlisten", "#listen"
    )
    machines.write("n1", CONFIGURATION, own + shown("admin-api", "toml", "Who may ask") + table)
    machines.types("n1", "systemctl restart sipha")
    machines.types(machines.leader(), "siphactl transfer n1")
    with machines.variable("SIPHA_TOKEN", token):
        machines.follow(script.until("curl"), AUTHORITY)
        machines.follow(script.rest(), AUTHORITY)
    machines.write("n1", CONFIGURATION, before)
    machines.types("n1", "systemctl restart sipha")


@pytest.mark.long
@pytest.mark.follows("cluster-tls", "Replace the authority")
def test_operator_replaces_the_authority(machines: Machines, script: Script) -> None:
    nodes = machines.network.nodes
    machines.follow(script.until("scp authority:both.pem"), AUTHORITY)
    for step in (script.until("ca2/n1 "), script.until("n1-of-ca2/ca.pem"), script.rest()):
        for node in nodes:
            machines.follow(as_on(node, step))
        for node in nodes:
            machines.types(node, "systemctl restart sipha")
            wait_until(lambda: all_connected(machines), "the nodes to know each other")


@pytest.mark.long
@pytest.mark.follows("operations", "Back up, restore")
def test_operator_begins_anew_from_a_backup(machines: Machines, script: Script) -> None:
    machines.follow(script.rest())
    assert {account["username"] for account in machines.asks("n1", "/v1/accounts")["accounts"]} >= {"alice", "bob"}
    bring_in(machines, "n2", "n3")


@pytest.mark.long
@pytest.mark.follows("operations", "Recover from the loss of a majority")
def test_operator_goes_on_with_what_is_left_of_a_cluster(machines: Machines, script: Script) -> None:
    for node in ("n2", "n3"):
        machines.types(node, "systemctl stop sipha && rm -r /var/lib/sipha/*")
    machines.follow(script.rest())
    assert {account["username"] for account in machines.asks("n1", "/v1/accounts")["accounts"]} >= {"alice", "bob"}
    bring_in(machines, "n2", "n3")


@pytest.mark.long
@pytest.mark.follows("operations", "Install", "Found one", "Add a node")
def test_operator_founds_a_cluster_and_adds_a_node(machines: Machines, script: Script) -> None:
    for node in machines.network.nodes:
        machines.types(node, "systemctl stop sipha && rm -r /var/lib/sipha/*")
    machines.follow(script.rest())
    assert [node["role"] for node in machines.asks("n1", "/v1/nodes")["nodes"]] == ["voter", "voter"]


def shown(page: str, language: str, *headings: str) -> str:
    """The block of a language on a page."""
    (block,) = blocks(page, language, *headings)
    return block.text


def as_on(node: str, commands: list[Command]) -> list[Command]:
    """Commands for n1, as they are for another node."""
    return [replace(command, prompt=f"{node}#", text=command.text.replace("n1", node)) for command in commands]


def register(machines: Machines, user: str) -> UserAgent:
    """A phone that has registered."""
    with machines.network.inside(OUTSIDE):
        return UserAgent(user, (VIRTUAL, 5060), host="192.0.2.14", domain="example.com").register()


def bring_in(machines: Machines, *nodes: str) -> None:
    """Make nodes members, with empty directories."""
    for node in nodes:
        machines.types(node, "systemctl stop sipha; rm -rf /var/lib/sipha/*; systemctl start sipha")
        address = f"192.0.2.{11 + machines.network.nodes.index(node)}:7000"
        assert machines.types(machines.leader(), f"siphactl node add {node} {address}") == f"{node} is a voter\n"


def all_connected(machines: Machines) -> bool:
    """True if the node that leads is connected with all others."""
    return all(node["connected"] for node in machines.asks(machines.leader(), "/v1/nodes")["nodes"])
