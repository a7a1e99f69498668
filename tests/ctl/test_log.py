from __future__ import annotations

from sipha.state.entries import PutAccount
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator


def test_operator_sees_the_latest_entries(node: FakeNode, operator: Operator) -> None:
    node.apply(PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32}))
    node.register("sip:alice@sipha.test")
    first, heads, register, account = operator.types("log").stdout.splitlines()
    assert first == (
        "term 3, entries 0 to 2 in 1000 bytes; durable up to 2, committed up to 2, applied up to 2; no snapshot yet"
    )
    assert heads.split() == ["index", "term", "time", "record", "about", "more"]
    assert register.split()[:5] == ["2", "3", "1000.000", "register", "sip:alice@sipha.test"]
    assert "user_agent=phone/1" in register
    assert account.split()[3:] == ["put-account", "alice", "domain=sipha.test,", "auth_name=alice,", "realm=sipha.test"]
    assert len(operator.types("log", "-n", "1").stdout.splitlines()) == 3
    assert operator.types("log", "--before", "2").stdout.splitlines()[2].split()[0] == "1"


def test_program_gets_the_log(node: FakeNode, operator: Operator) -> None:
    node.register("sip:alice@sipha.test")
    found = operator.reads("log")
    assert found["log"]["last_index"] == 1
    assert [entry["index"] for entry in found["entries"]] == [1]
    assert found["cursor"] is None
