"""`siphactl import`, as an operator types it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sipha.ctl import imports
from sipha.errors import NoQuorum, Unavailable, UnknownOutcome
from sipha.sip.digest import ha1
from sipha.state.entries import PutAccount, Record
from sipha.state.outcomes import Outcome
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator

HA1 = ha1("MD5", "alice", "sipha.test", "wonder")

SUBSCRIBERS = f"""\
CREATE TABLE `subscriber` (
  `id` int(10) unsigned NOT NULL AUTO_INCREMENT,
  `username` varchar(64) NOT NULL,
  `domain` varchar(64) NOT NULL,
  `password` varchar(64) NOT NULL,
  `ha1` varchar(64) NOT NULL,
  PRIMARY KEY (`id`)
);
INSERT INTO `subscriber` VALUES (1,'alice','sipha.test','','{HA1}'),
(2,'bob','sipha.test','bob\\'s','');
"""


def locations(left: int = 600) -> str:
    at = int(time.time()) + left
    return (
        "INSERT INTO location (username, domain, contact, received, expires, q, callid, cseq, socket) VALUES "
        f"('alice','sipha.test','sip:alice@10.0.0.5','sip:192.0.2.7:4000',{at},1.00,'a',1,'udp:192.0.2.10:5060'),\n"
        f"('bob','sipha.test','sip:bob@10.0.0.6',NULL,{at - 9999},1.00,'b',1,NULL);\n"
    )


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "opensips.sql"
    path.write_text(locations() + SUBSCRIBERS, encoding="utf-8")
    return path


def test_operator_imports_a_dump_and_may_do_so_again(operator: Operator, node: FakeNode, dump: Path) -> None:
    result = operator.types("import", "opensips", str(dump))
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "accounts: 2 made, 0 here before, 0 run out, 0 refused\nbindings: 1 made, 0 here before, 1 run out, 0 refused\n"
    )
    assert result.stderr == ""
    alice, bob = node.accounts("", 9)
    assert alice.ha1 == {"MD5": HA1}
    assert bob.ha1["SHA-256"] == ha1("SHA-256", "bob", "sipha.test", "bob's")
    (binding,) = node.bindings(alice.aor)
    assert (binding.received, binding.behind_nat) == ("sip:192.0.2.7:4000;transport=udp", True)
    again = operator.reads("import", "opensips", str(dump))
    assert again["accounts"] == {"made": 0, "here": 2, "expired": 0, "refused": 0}
    assert again["bindings"] == {"made": 0, "here": 1, "expired": 1, "refused": 0}


def test_what_cannot_be_taken_is_named_and_the_rest_is_taken(operator: Operator, node: FakeNode, dump: Path) -> None:
    with dump.open("a") as file:
        file.write("INSERT INTO subscriber (username, domain, password) VALUES ('carol','elsewhere.test','x'),\n")
        file.write("('dave','sipha.test','x'),\n('eve','sipha.test');\n")
    result = operator.types("import", "opensips", str(dump))
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first == (
        f"{dump}: line 13: subscriber carol@elsewhere.test: 'elsewhere.test' is not a domain of the cluster; "
        "add it to the configuration first"
    )
    assert second == f"{dump}: line 15: subscriber: it has 2 values, and the table 3 columns"
    assert [account.username for account in node.accounts("", 9)] == ["alice", "bob", "dave"]
    assert "accounts: 3 made, 0 here before, 0 run out, 2 refused" in result.stdout


def test_what_the_node_refuses_costs_only_itself(operator: Operator, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    rows = [f"user{number},sipha.test,x" for number in range(30)]
    path.write_text("\n".join(["username,domain,password", *rows, f"{'u' * 300},sipha.test,x", "last,sipha.test,x"]))
    result = operator.types("import", "kamailio", str(path))
    assert result.exit_code == 1
    (refusal,) = result.stderr.splitlines()
    assert refusal.startswith(f"{path}: line 32: subscriber {'u' * 300}@sipha.test: ")
    assert len(node.accounts("", 99)) == 31


def test_dry_run_changes_nothing(operator: Operator, node: FakeNode, dump: Path) -> None:
    result = operator.types("import", "opensips", str(dump), "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.startswith("accounts: 2 would be made")
    assert node.records == []


def test_operator_imports_a_database(operator: Operator, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "kamailio.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users (username TEXT, domain TEXT, password TEXT, ha1 TEXT)")
        connection.executemany(
            "INSERT INTO users VALUES (?, '', ?, '')", [(f"u{number}", "x") for number in range(1000)]
        )
        connection.commit()
    words = "import", "kamailio", f"sqlite://{path}", "--subscriber", "users", "--domain", "sipha.test"
    result = operator.types(*words)
    assert result.exit_code == 0, result.stderr
    assert len(node.accounts("", 2000)) == 1000


def test_dates_may_be_of_another_time_zone(operator: Operator, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "location.csv"
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + 600))
    path.write_text(f"username,domain,contact,expires,callid,cseq\nalice,sipha.test,sip:a@192.0.2.1,{date},a,1\n")
    assert operator.types("import", "kamailio", str(path), "--time-zone", "UTC").exit_code == 0
    (binding,) = node.bindings("sip:alice@sipha.test")
    assert 590_000 <= binding.expires_at - 1_000_000 <= 600_000
    wrong = operator.types("import", "kamailio", str(path), "--time-zone", "Nowhere")
    assert wrong.exit_code == 2


@pytest.mark.parametrize("source", ["missing.sql", "missing.csv", "sqlite:///missing.db"])
def test_a_source_that_is_not_there_is_named(operator: Operator, source: str) -> None:
    result = operator.types("import", "opensips", source)
    assert result.exit_code == 1
    assert "missing" in result.stderr


def test_large_imports_go_in_parts(operator: Operator, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "AT_ONCE", 1)
    assert operator.reads("import", "opensips", str(dump))["accounts"]["made"] == 2


def test_what_is_put_off_is_sent_again(operator: Operator, node: FakeNode, dump: Path) -> None:
    node.trouble = NoQuorum("no majority answers", retry_after=1)
    looks: list[int] = []

    def recover() -> None:
        looks.append(len(looks))
        if len(looks) == 20:
            node.trouble = None

    operator.meanwhile = recover
    result = operator.reads("import", "opensips", str(dump))
    assert result["accounts"] == {"made": 2, "here": 0, "expired": 0, "refused": 0}
    assert result["bindings"]["made"] == 1
    assert len(looks) >= 20


def test_an_import_ends_where_the_cluster_takes_nothing(operator: Operator, node: FakeNode, dump: Path) -> None:
    node.trouble = NoQuorum("no majority answers", retry_after=1)
    result = operator.types("import", "opensips", str(dump))
    assert result.exit_code == 1
    assert result.stderr.count("the cluster took nothing more: import it again") == 3


def test_what_was_made_without_an_answer_counts_as_made(
    operator: Operator, node: FakeNode, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose = node.propose
    lost: set[str] = set()

    def lossy(record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        if isinstance(record, PutAccount) and record.username not in lost:
            lost.add(record.username)
            node.apply(record)
            done(UnknownOutcome("the leader has changed meanwhile"))
        else:
            propose(record, done)

    monkeypatch.setattr(node, "propose", lossy)
    assert operator.reads("import", "opensips", str(dump))["accounts"] == {
        "made": 2,
        "here": 0,
        "expired": 0,
        "refused": 0,
    }
