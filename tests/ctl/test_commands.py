from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sipha.admin.views import PeerStatus, Secret, WorkersStatus
from sipha.ctl import cli
from sipha.state.binding import BEHIND_NAT
from tests.admin.fakes import Console, FakeNode, serve
from tests.ctl.operator import Operator

AGENT = "A rather long user agent that no column of eighty characters would ever hold without folding it/1.0"


class TestStatus:
    @pytest.fixture
    def nodes(self) -> dict[str, FakeNode]:
        nodes = {f"127.0.0.1{number}:8080": FakeNode(f"n{number}") for number in (1, 2, 3)}
        for node in nodes.values():
            node.leads = node.name == "n2"
            node.peers = tuple(
                PeerStatus(other.name, f"http://{host}", "192.0.2.1:7000", "voter", True, 0.01, 0)
                for host, other in nodes.items()
                if other is not node
            )
        return nodes

    def test_operator_sees_all_nodes(self, nodes: dict[str, FakeNode]) -> None:
        result = Operator(nodes).types("status")
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["node", "role"],
            ["n1", "follower"],
            ["n2", "leader"],
            ["n3", "follower"],
        ]
        assert "0.19 s" in lines[2]
        assert "127.0.0.10" in lines[2]
        assert "127.0.0.10" not in lines[1] + lines[3]
        assert "\x1b" not in result.stdout

    def test_operator_watches_all_nodes(self, nodes: dict[str, FakeNode]) -> None:
        result = Operator(nodes).types("watch", "--times", "2", "--every", "0.1")
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert len(lines) == 2 * 5
        assert lines[0].endswith(" UTC")
        assert [line.split()[0] for line in lines[1:5]] == ["node", "n1", "n2", "n3"]

    def test_program_watches_all_nodes(self, nodes: dict[str, FakeNode]) -> None:
        result = Operator(nodes).types("watch", "--times", "2", "--every", "0.1", "--json")
        looks = [json.loads(line) for line in result.stdout.splitlines()]
        assert [[node["node"] for node in look["nodes"]] for look in looks] == [["n1", "n2", "n3"]] * 2

    def test_operator_sees_that_a_node_is_unreachable(self, nodes: dict[str, FakeNode]) -> None:
        del nodes["127.0.0.13:8080"]
        operator = Operator(nodes)
        result = operator.types("status")
        assert result.exit_code == 0
        assert result.stdout.splitlines()[3].split() == ["n3", "unreachable"]
        assert operator.reads("status")["nodes"][2] == {"node": "n3", "role": "unreachable"}

    def test_operator_sees_those_whose_admins_are_out_of_reach_by_way_of_the_one_that_is_asked(self) -> None:
        leader, follower = FakeNode("n1"), FakeNode("n2")
        follower.leads = False
        follower.leader, follower.leader_url = leader, "https://192.0.2.11:7001"
        follower.peers = tuple(PeerStatus(name, "", "192.0.2.11:7000", "voter", True, 0.1, 0) for name in ("n1", "n3"))
        operator = Operator({"127.0.0.1:8080": follower})
        operator.network.consoles["127.0.0.1:8080"] = Console(follower, serve(leader))
        shown = operator.reads("status")["nodes"]
        assert [(node["node"], node["role"]) for node in shown] == [
            ("n1", "leader"),
            ("n2", "follower"),
            ("n3", "not asked"),
        ]
        assert shown[0]["lease"] == 0.19

    def test_program_gets_the_whole_status(self, nodes: dict[str, FakeNode]) -> None:
        shown = Operator(nodes).reads("status")["nodes"]
        assert [node["leading"] for node in shown] == [False, True, False]
        assert len({node["hash"] for node in shown}) == 1

    def test_alarms_come_first(self, nodes: dict[str, FakeNode]) -> None:
        nodes["127.0.0.13:8080"].alarms = ("this node has left the cluster: the disk is full\x1b[2J",)
        nodes["127.0.0.13:8080"].memory = "amnesiac"
        lines = Operator(nodes).types("status").stdout.splitlines()
        assert lines[0] == "ALARM n3: this node has left the cluster: the disk is full\\x1b[2J"
        assert lines[1].split()[:2] == ["node", "role"]
        assert lines[4].startswith("n3    follower, amnesiac ")

    def test_workers_come_last(self, nodes: dict[str, FakeNode]) -> None:
        nodes["127.0.0.12:8080"].workers = WorkersStatus(4, 3)
        lines = Operator(nodes).types("status").stdout.splitlines()
        assert lines[4:] == ["n2: 3 of 4 workers read UDP"]

    def test_leader_whose_admin_is_unknown_is_not_missed(self, nodes: dict[str, FakeNode]) -> None:
        n1, n2 = nodes["127.0.0.11:8080"], nodes["127.0.0.12:8080"]
        for node in nodes.values():
            node.leader = n2
            node.peers = tuple(
                PeerStatus(peer.name, "" if peer.name == "n2" else peer.admin, "", "voter", True, 0.01, 0)
                for peer in node.peers
            )
        result = Operator(nodes).types("status")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.splitlines()[2].split() == ["n2", "not", "asked"]
        for node in nodes.values():
            node.leader = n1
        assert Operator(nodes).types("status").exit_code == 1

    def test_no_leader_is_a_failure(self, nodes: dict[str, FakeNode]) -> None:
        nodes["127.0.0.12:8080"].leads = False
        result = Operator(nodes).types("status")
        assert result.exit_code == 1
        assert result.stderr == "siphactl: no node leads: a majority must run and reach each other\n"
        assert len(result.stdout.splitlines()) == 4

    def test_tables_that_differ_are_a_failure(self, nodes: dict[str, FakeNode]) -> None:
        nodes["127.0.0.11:8080"].register("sip:alice@sipha.test")
        nodes["127.0.0.12:8080"].register("sip:bob@sipha.test")
        result = Operator(nodes).types("status")
        assert result.exit_code == 1
        assert "the tables of two nodes differ at index 1" in result.stderr


class TestNodes:
    def test_nodes_of_make_run_are_found(self) -> None:
        operator = Operator({"127.0.0.12:8080": FakeNode()})
        assert operator.types("status").exit_code == 0
        assert operator.network.asked[:3] == ["127.0.0.1:8080", "127.0.0.11:8080", "127.0.0.12:8080"]

    @pytest.mark.parametrize(
        "words",
        [
            ("--url", "http://127.0.1.1:1,http://127.0.1.2:2", "status"),
            ("status", "--url", "http://127.0.1.1:1", "--url", "http://127.0.1.2:2/"),
        ],
    )
    def test_first_url_that_answers_is_used(self, words: tuple[str, ...]) -> None:
        operator = Operator({"127.0.1.2:2": FakeNode()})
        assert operator.types(*words).exit_code == 0
        assert operator.network.asked[:2] == ["127.0.1.1:1", "127.0.1.2:2"]

    def test_environment_names_the_node_and_option_overrides_it(self) -> None:
        operator = Operator({"127.0.1.2:2": FakeNode()})
        assert operator.types("status", env={"SIPHA_URL": "http://127.0.1.2:2"}).exit_code == 0
        result = operator.types("--url", "http://127.0.1.3:3", "status", env={"SIPHA_URL": "http://127.0.1.2:2"})
        assert result.exit_code == 1

    def test_no_answer_is_one_sentence(self) -> None:
        result = Operator({}).types("--url", "http://127.0.1.1:1", "show")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr == (
            "siphactl: no node answers: http://127.0.1.1:1/v1/status can't be reached: "
            "Connection was refused by other side.\n"
        )

    @pytest.mark.parametrize(
        "words",
        [
            ("--url", "127.0.0.1:8080", "status"),
            ("frobnicate",),
            ("rm",),
            ("user", "add", "alice", "--password-stdin"),
            ("user", "add", "alice@sipha.test"),
            ("user", "add", "alice@sipha.test", "--password-stdin"),
            ("user", "rm", "@sipha.test"),
        ],
    )
    def test_wrong_command_line_is_status_2(self, operator: Operator, words: tuple[str, ...]) -> None:
        result = operator.types(*words, stdin="\n")
        assert result.exit_code == 2
        assert "Error: " in result.stderr
        assert operator.network.asked == []


class TestShow:
    def test_operator_sees_every_binding_whole(self, node: FakeNode, operator: Operator) -> None:
        node.register("sip:alice@sipha.test", "sip:alice@127.0.0.1:5070;transport=tcp", user_agent=AGENT)
        node.register("sip:bob@sipha.test", "sip:bob@127.0.0.1:5071")
        result = operator.types("show")
        assert result.exit_code == 0
        head, alice, bob = result.stdout.splitlines()
        assert head.split()[:4] == ["AOR", "contact", "expires", "q"]
        assert alice.split()[:4] == ["sip:alice@sipha.test", "sip:alice@127.0.0.1:5070;transport=tcp", "600", "0.5"]
        assert AGENT in alice
        assert bob.startswith("sip:bob@sipha.test ")

    def test_operator_sees_which_phone_is_behind_nat(self, node: FakeNode, operator: Operator) -> None:
        node.register("sip:alice@sipha.test", cflags=BEHIND_NAT)
        node.register("sip:bob@sipha.test")
        head, alice, bob = operator.types("show").stdout.splitlines()
        place = head.index("NAT")
        assert (alice[place : place + 3], bob[place : place + 3].strip()) == ("yes", "")
        assert "Received: sip:127.0.0.1:5070, behind NAT" in operator.types("show", "alice@sipha.test").stdout
        assert [one["behind_nat"] for one in operator.reads("show")["bindings"]] == [True, False]

    def test_operator_sees_all_of_one_aor(self, node: FakeNode, operator: Operator) -> None:
        node.register(
            "sip:alice@sipha.test",
            "sip:alice@127.0.0.1:5070",
            user_agent=AGENT,
            methods="INVITE,ACK",
            path=("<sip:e;lr>",),
        )
        lines = operator.types("show", "alice@sipha.test").stdout.splitlines()
        assert lines[:2] == ["AOR: sip:alice@sipha.test", "  Contact: sip:alice@127.0.0.1:5070"]
        for line in (
            "Expires: 600 s",
            "Q: 0.5",
            "CSeq: 7",
            "Call-ID: call-sip:alice@127.0.0.1:5070",
            f"User-Agent: {AGENT}",
            "Received: sip:127.0.0.1:5070",
            "Path: <sip:e;lr>",
            "Methods: INVITE,ACK",
        ):
            assert f"    {line}" in lines

    def test_aor_without_bindings_is_status_1(self, operator: Operator) -> None:
        result = operator.types("show", "alice@sipha.test")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "siphactl: sip:alice@sipha.test has no bindings\n"

    def test_phone_can_not_write_on_the_terminal(self, node: FakeNode, operator: Operator) -> None:
        node.register("sip:alice@sipha.test", user_agent="\x1b[2J[red]x[/red]")
        for words in (("show",), ("show", "alice@sipha.test")):
            assert "\\x1b[2J[red]x[/red]" in operator.types(*words).stdout

    def test_all_pages_are_shown(self, node: FakeNode, operator: Operator) -> None:
        for number in range(1500):
            node.register(f"sip:user{number}@sipha.test")
        assert len(operator.types("show").stdout.splitlines()) == 1501
        assert len(operator.reads("show")["bindings"]) == 1500

    def test_empty_table_is_an_empty_array(self, operator: Operator) -> None:
        assert operator.reads("show") == {"bindings": []}
        assert len(operator.types("show").stdout.splitlines()) == 1


class TestRm:
    def test_operator_removes_bindings(self, node: FakeNode, operator: Operator) -> None:
        node.register("sip:alice@sipha.test", "sip:one@127.0.0.1")
        node.register("sip:alice@sipha.test", "sip:two@127.0.0.1")
        node.register("sip:alice@sipha.test", "sip:three@127.0.0.1")
        assert operator.types("rm", "alice@sipha.test", "--contact", "sip:one@127.0.0.1").stdout == (
            "removed 1 binding of alice@sipha.test\n"
        )
        assert operator.reads("rm", "alice@sipha.test") == {"removed": 2}
        assert operator.types("rm", "alice@sipha.test").exit_code == 1


class TestUser:
    def test_operator_adds_changes_lists_and_removes_an_account(self, node: FakeNode, operator: Operator) -> None:
        added = operator.types(
            "user", "add", "alice@sipha.test", "--auth-name", "ally", "--password-stdin", stdin="s\n"
        )
        assert added.stdout == "created alice@sipha.test, which authenticates as ally\n"
        before = node.account("alice", "sipha.test")
        changed = operator.types("user", "passwd", "alice@sipha.test", "--password-stdin", stdin="t")
        assert changed.stdout == "changed the password of alice@sipha.test\n"
        after = node.account("alice", "sipha.test")
        assert before is not None
        assert after is not None
        assert (after.auth_name, after.ha1["MD5"] == before.ha1["MD5"]) == ("ally", False)
        _, line = operator.types("user", "list").stdout.splitlines()
        assert line.split() == ["alice@sipha.test", "ally", "sipha.test", "MD5,SHA-256,SHA-512-256"]
        assert operator.reads("user", "list")["accounts"][0]["username"] == "alice"
        assert operator.types("user", "rm", "alice@sipha.test").stdout == "removed alice@sipha.test\n"
        assert len(node.machine.accounts) == 0

    def test_account_that_exists_is_status_1(self, operator: Operator) -> None:
        for status in (0, 1):
            result = operator.types("user", "add", "alice@sipha.test", "--password-stdin", stdin="s\n")
            assert result.exit_code == status
        assert "alice@sipha.test exists" in result.stderr

    def test_password_with_spaces_is_taken_whole(self, node: FakeNode, operator: Operator) -> None:
        operator.types("user", "add", "alice@sipha.test", "--password-stdin", stdin=" a b \r\nc")
        operator.types("user", "add", "bob@sipha.test", "--auth-name", "alice2", "--password-stdin", stdin="x")
        record = node.account("alice", "sipha.test")
        assert record is not None
        secret = Secret(password=" a b ")
        assert record.ha1 == secret.hashes("alice", "sipha.test")


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for command in (
        "status",
        "bindings",
        "export",
        "settings",
        "log",
        "show",
        "user",
        "node",
        "transfer",
        "pings",
        "standby",
        "online",
        "prefer",
        "drill",
        "backup",
        "cluster",
        "restore",
        "recover",
        "disk",
        "ca",
    ):
        assert f"  {command} " in output
