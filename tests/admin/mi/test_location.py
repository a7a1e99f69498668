from __future__ import annotations

from typing import Any

import pytest

from tests.admin.fakes import Console, FakeNode

ALICE = ["location", "alice@sipha.test"]
BOB = ["location", "bob@sipha.test"]
CONTACT = "sip:bob@192.0.2.1:5060"


@pytest.fixture
def console() -> Console:
    console = Console(FakeNode())
    console.node.register("sip:alice@sipha.test")
    return console


def ask(console: Console, method: str, *params: object) -> Any:
    """The result, or the error's code and message."""
    replies: list[Any] = []
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    console.start("POST", "/mi", body).addCallback(replies.append)
    while not replies:
        console.flush()
        console.clock.advance(0.01)
    answer = replies[0].json
    return answer["result"] if "result" in answer else (answer["error"]["code"], answer["error"]["message"])


@pytest.mark.parametrize("method", ["ul_show_contact", "usrloc:show_contact"])
def test_script_sees_the_contacts_of_an_aor(console: Console, method: str) -> None:
    (contact,) = (shown := ask(console, method, *ALICE))["Contacts"]
    assert shown["AOR"] == "alice@sipha.test"
    assert int(contact.pop("ContactID")) > 0
    assert contact == {
        "Contact": "sip:phone@127.0.0.1:5070",
        "Expires": 600,
        "Q": "0.5",
        "Callid": "call-sip:phone@127.0.0.1:5070",
        "Cseq": 7,
        "User-agent": "phone/1",
        "Received": "sip:127.0.0.1:5070",
        "State": "CS_SYNC",
        "Flags": 0,
        "Cflags": "",
        "Methods": 4294967295,
    }


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (["subscriber", "alice@sipha.test"], (404, "Table not found")),
        (["location", "alice"], (400, "Domain missing in AOR")),
        (["location", "bob@sipha.test"], (404, "AOR not found")),
    ],
)
def test_script_is_told_what_isnt_there(console: Console, params: list[str], error: tuple[int, str]) -> None:
    assert ask(console, "ul_show_contact", *params) == error
    assert ask(console, "ul_sync", *params) == error


def test_aor_of_another_domain_is_not_found(console: Console) -> None:
    assert ask(console, "ul_rm", "location", "alice@other.test")[0] == 404


@pytest.mark.parametrize("method", ["ul_dump", "usrloc:dump"])
def test_script_dumps_all_aors(console: Console, method: str) -> None:
    for number in range(500):
        console.node.register(f"sip:u{number:03}@sipha.test")
    (domain,) = ask(console, method)["Domains"]
    assert domain["name"] == "location"
    assert [record["AOR"] for record in domain["AORs"]] == [
        "alice@sipha.test",
        *(f"u{number:03}@sipha.test" for number in range(500)),
    ]
    assert domain["AORs"][0] == ask(console, "ul_show_contact", *ALICE)
    assert console.node.freed == 1


def test_brief_dump_has_the_aors_only(console: Console) -> None:
    assert ask(console, "ul_dump", "brief")["Domains"][0]["AORs"] == [{"AOR": "alice@sipha.test"}]


def test_dump_of_nothing_is_empty() -> None:
    assert ask(Console(FakeNode()), "ul_dump")["Domains"][0]["AORs"] == []


def test_dump_is_made_in_steps(console: Console) -> None:
    for number in range(500):
        console.node.register(f"sip:u{number:03}@sipha.test")
    replies: list[Any] = []
    body = {"jsonrpc": "2.0", "id": 1, "method": "ul_dump"}
    console.start("POST", "/mi", body).addCallback(replies.append)
    turns = 0
    while not replies:
        console.flush()
        console.clock.advance(0.003)
        turns += 1
    assert turns > 500 * 2 // 200


def test_script_adds_a_contact(console: Console) -> None:
    assert ask(console, "ul_add", *BOB, CONTACT, 600, "0.25", "0", 4, 0, 1 | 8 | 32) == "OK"
    (binding,) = console.node.bindings("sip:bob@sipha.test")
    assert (binding.contact, binding.q, binding.flags, binding.cflags) == (CONTACT, 250, 4, 0)
    assert binding.methods == "INVITE,BYE,OPTIONS"
    (contact,) = ask(console, "ul_show_contact", *BOB)["Contacts"]
    assert (contact["Expires"], contact["Methods"], contact["User-agent"]) == (600, 41, "sipha MI")


def test_script_adds_a_contact_again(console: Console) -> None:
    for expires in ("300", 600):
        assert ask(console, "ul_add", *BOB, CONTACT, expires, "-1", "", 0, 0, 32767) == "OK"
    (contact,) = ask(console, "ul_show_contact", *BOB)["Contacts"]
    assert (contact["Expires"], contact["Q"], contact["Methods"]) == (600, "", 4294967295)


@pytest.mark.parametrize(
    "params",
    [
        ["location", "bob", CONTACT, 60],
        ["elsewhere", "bob@sipha.test", CONTACT, 60],
        [*BOB, "no URI", 60],
        [*BOB, CONTACT, 0],
        [*BOB, CONTACT, -1],
        [*BOB, CONTACT, 1 << 40],
        [*BOB, CONTACT, 60, "2"],
        [*BOB, CONTACT, 60, "nan"],
        [*BOB, CONTACT, 60, "much"],
        [*BOB, CONTACT, 60, "1", "", -1],
    ],
)
def test_contact_that_cant_be_is_not_added(console: Console, params: list[object]) -> None:
    assert isinstance(ask(console, "ul_add", *params), tuple)
    assert not console.node.bindings("sip:bob@sipha.test")


def test_script_removes_an_aor_whether_it_is_there_or_not(console: Console) -> None:
    for _ in range(2):
        assert ask(console, "ul_rm", *ALICE) == "OK"
        assert not console.node.bindings("sip:alice@sipha.test")


def test_script_removes_one_contact(console: Console) -> None:
    console.node.register("sip:alice@sipha.test", "sip:other@127.0.0.1:5071")
    assert ask(console, "ul_rm_contact", *ALICE, "sip:phone@127.0.0.1:5070") == "OK"
    (left,) = console.node.bindings("sip:alice@sipha.test")
    assert left.contact == "sip:other@127.0.0.1:5071"


def test_contact_that_isnt_there_is_not_removed(console: Console) -> None:
    assert ask(console, "ul_rm_contact", *ALICE, CONTACT) == (404, "Contact not found")
    assert ask(console, "ul_rm_contact", *ALICE, "") == (404, "Contact not found")
    assert ask(console, "ul_rm_contact", *BOB, CONTACT) == (404, "AOR not found")
    assert len(console.node.bindings("sip:alice@sipha.test")) == 1


@pytest.mark.parametrize(
    ("method", "params"), [("ul_flush", ()), ("ul_sync", ("location",)), ("ul_sync", ALICE), ("ul_cluster_sync", ())]
)
def test_there_is_nothing_to_sync(console: Console, method: str, params: tuple[object, ...]) -> None:
    assert ask(console, method, *params) == "OK"
    assert console.node.records == []


def test_what_is_behind_nat_is_shown_as_such(console: Console) -> None:
    console.node.register("sip:bob@sipha.test", cflags=3, methods="INVITE,ACK,FOO", path=("<sip:p1>", "<sip:p2>"))
    (contact,) = ask(console, "ul_show_contact", *BOB)["Contacts"]
    assert (contact["Cflags"], contact["Methods"]) == ("NAT PINGED", 1 | 4 | 1 << 14)
    assert contact["Path"] == "<sip:p1>,<sip:p2>"
