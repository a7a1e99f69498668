from __future__ import annotations

import os
from typing import Any

import pytest

from tests.admin.fakes import Console, FakeNode


@pytest.fixture
def console() -> Console:
    console = Console(FakeNode())
    console.node.register("sip:alice@sipha.test")
    return console


def ask(console: Console, method: str, *params: object) -> Any:
    """The result, or the error's code and message."""
    answer = console.ask("POST", "/mi", {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).json
    return answer["result"] if "result" in answer else (answer["error"]["code"], answer["error"]["message"])


def test_script_sees_all_methods(console: Console) -> None:
    assert {"ul_dump", "usrloc:dump", "clusterer_list", "nh_enable_ping", "which"} <= set(ask(console, "which"))


def test_every_method_says_how_it_is_called(console: Console) -> None:
    for name in ask(console, "which"):
        ways = ask(console, "which", name)
        assert all(isinstance(way, list) for way in ways), name
    assert ask(console, "which", "ul_sync") == [["table_name"], ["table_name", "aor"]]
    assert ask(console, "which", "clusterer_set_status")[0] == ["cluster_id", "status"]
    assert ask(console, "which", "nope")[0] == 404


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["usrloc:registered_users"], {"usrloc:registered_users": 1}),
        ("location-contacts", {"usrloc:location-contacts": 1}),
        (["sipha:"], {"sipha:received": 7}),
        (["received", "location-users", "nope"], {"sipha:received": 7, "usrloc:location-users": 1}),
    ],
)
def test_script_sees_what_is_counted(console: Console, wanted: object, found: dict[str, int]) -> None:
    assert ask(console, "get_statistics", wanted) == found


def test_all_is_everything(console: Console) -> None:
    assert {"usrloc:registered_users", "sipha:received"} <= set(ask(console, "get_statistics", ["all"]))


def test_what_isnt_counted_is_not_found(console: Console) -> None:
    assert ask(console, "get_statistics", ["tm:"]) == (404, "Statistics Not Found")


def test_script_sees_the_process(console: Console) -> None:
    assert ask(console, "ps") == {"Processes": [{"ID": 0, "PID": os.getpid(), "Type": "sipha"}]}
    assert ask(console, "version") == {"Server": "sipha (0.1.0)"}
    assert ask(console, "uptime")["Up time"] == "3723 [sec]"


@pytest.mark.parametrize(
    ("wanted", "level", "number"),
    [(-3, "critical", -2), (-1, "error", -1), (0, "error", -1), (2, "warn", 1), (3, "info", 3), (9, "debug", 4)],
)
def test_script_sets_the_level_of_the_log(console: Console, wanted: int, level: str, number: int) -> None:
    assert ask(console, "log_level", wanted) == {"New global log level": number}
    assert console.node.level == level
    assert ask(console, "log_level")["Processes"][0]["Log level"] == number
    assert ask(console, "log_level", wanted, os.getpid()) == {"Log level": number}


def test_level_is_set_for_no_other_process_and_not_without_one(console: Console) -> None:
    assert ask(console, "log_level", 4, 1) == (-32602, "Invalid params: Bad PID")
    call = {"jsonrpc": "2.0", "id": 1, "method": "log_level", "params": {"pid": os.getpid()}}
    assert console.ask("POST", "/mi", call).json["error"]["code"] == -32602
    assert console.node.level == "info"
