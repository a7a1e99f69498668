from __future__ import annotations

from typing import get_args

import pytest

from sipha.admin.log import _SHOWN, RECORDS, entry_view, record_view
from sipha.state.entries import (
    SCHEMA,
    Barrier,
    Batch,
    Expire,
    ImportBinding,
    Member,
    Policy,
    PutAccount,
    PutKey,
    PutMembers,
    PutSetting,
    Record,
    Register,
    RemoveBindings,
    encode,
)
from tests.admin.fakes import Console, FakeNode


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


def test_operator_sees_the_latest_entries_first(console: Console) -> None:
    for number in range(5):
        console.node.register(f"sip:user{number}@sipha.test")
    page = console.ask("GET", "/v1/log/entries?limit=2").json
    assert [entry["index"] for entry in page["entries"]] == [5, 4]
    entry = page["entries"][0]
    assert (entry["kind"], entry["committed"], entry["count"], entry["time"]) == ("records", True, 1, 1000.0)
    (record,) = entry["records"]
    assert (record["kind"], record["subject"]) == ("register", "sip:user4@sipha.test")
    assert record["fields"]["contacts"][0]["uri"] == "sip:phone@127.0.0.1:5070"
    assert page["cursor"] == 4
    page = console.ask("GET", "/v1/log/entries?limit=100&cursor=4").json
    assert [entry["index"] for entry in page["entries"]] == [3, 2, 1]
    assert page["cursor"] is None
    assert console.ask("GET", "/v1/log").json["last_index"] == 5


def test_empty_log_has_no_entries(console: Console) -> None:
    assert console.ask("GET", "/v1/log/entries").json == {"entries": [], "cursor": None}
    assert console.ask("GET", "/v1/log/entries?cursor=0").json == {"entries": [], "cursor": None}


def test_secrets_never_leave(console: Console) -> None:
    body = {"username": "alice", "domain": "sipha.test", "password": "alice-secret"}
    assert console.ask("POST", "/v1/accounts", body).status == 201
    console.node.apply(PutKey(b"k" * 32))
    account = console.node.account("alice", "sipha.test")
    assert account is not None
    content = console.ask("GET", "/v1/log/entries").content
    assert b"put-account" in content
    assert b"put-key" in content
    assert b"alice" in content
    for secret in (*account.ha1.values(), "k" * 32, (b"k" * 32).hex(), "a2tra2tr"):
        assert secret.encode() not in content


def test_every_kind_of_record_can_be_shown() -> None:
    account = PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32})
    assert record_view(account).fields == {
        "domain": "sipha.test", "auth_name": "alice", "realm": "sipha.test",
        "create_only": False, "replace_only": False,
    }  # fmt: skip
    assert record_view(Expire((("sip:a@b", 1 << 60, 7),))).fields == {"bindings": [["sip:a@b", f"{1 << 60:016x}", 7]]}
    assert record_view(PutSetting("pings", "off")).subject == "pings"
    assert record_view(PutMembers((Member("n1", "192.0.2.1:7000", "voter"),))).fields == {
        "members": [{"name": "n1", "address": "192.0.2.1:7000", "role": "voter"}]
    }
    assert record_view(Barrier(3, "n1")).fields == {"term": 3}
    assert record_view(None).kind == "unreadable"
    register = Register("sip:a@b", "c1", 1, ())
    brought = record_view(ImportBinding(register))
    assert (brought.kind, brought.subject) == ("import-binding", "sip:a@b")
    assert brought.fields == record_view(register).fields
    assert {*_SHOWN, ImportBinding} == set(get_args(Record))


def test_long_entry_shows_its_first_records() -> None:
    records = tuple(RemoveBindings(f"sip:user{number}@sipha.test") for number in range(RECORDS + 5))
    view = entry_view(7, 2, "records", encode(Batch(SCHEMA, 5000, Policy(), records)), committed=False)
    assert (view.index, view.term, view.count, len(view.records)) == (7, 2, RECORDS + 5, RECORDS)
    assert not view.committed


@pytest.mark.parametrize("entry", [b"", b"\xff" * 10, encode(Batch(SCHEMA + 1, 1, Policy(), ()))])
def test_what_cant_be_read_is_shown_as_such(entry: bytes) -> None:
    assert entry_view(7, 2, "records", entry, committed=True).kind == "unreadable"
    assert entry_view(7, 2, "empty", b"", committed=True).kind == "empty"
