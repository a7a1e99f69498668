from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from twisted.web.server import Request
from twisted.web.test.requesthelper import DummyChannel

from sipha.admin.access import ANYONE, Access, Caller, ICaller, Role, Token
from sipha.admin.mi.location import LocationMethods
from sipha.admin.rpc import MAX_BATCH, Dispatcher
from sipha.errors import NoQuorum
from tests.admin.fakes import DOMAINS, Console, FakeNode

BY_ROLE = {role: f"token-of-{role}" for role in Role if role}
ACCESS = Access([Token(sha256(token.encode()).digest(), Caller(f"a {role}", role)) for role, token in BY_ROLE.items()])

RM = {"table_name": "location", "aor": "alice@sipha.test"}


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


def call(method: str, params: object = (), id_: object = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}


def dumped(console: Console, *body: Any, **headers: str) -> Any:
    """What comes of a body, for which the clock must go on."""
    replies: list[Any] = []
    console.start("POST", "/mi", body[0] if len(body) == 1 else body, **headers).addCallback(replies.append)
    for _ in range(20):
        console.flush()
        console.clock.advance(0.01)
    (reply,) = replies
    assert reply.status == 200
    return reply.json


def error(console: Console, body: object) -> tuple[int, object]:
    reply = console.ask("POST", "/mi", body)
    assert (reply.status, reply.json["jsonrpc"]) == (200, "2.0")
    return reply.json["error"]["code"], reply.json["id"]


@pytest.mark.parametrize("params", [RM, list(RM.values())])
def test_params_are_taken_by_name_and_by_position(console: Console, params: object) -> None:
    console.node.register("sip:alice@sipha.test")
    reply = console.ask("POST", "/mi", call("ul_rm", params, "x-1"))
    assert reply.json == {"jsonrpc": "2.0", "result": "OK", "id": "x-1"}
    assert not console.node.bindings("sip:alice@sipha.test")


@pytest.mark.parametrize("id_", [1, "1", 1.5, None])
def test_answer_has_the_id_of_the_call(console: Console, id_: object) -> None:
    assert console.ask("POST", "/mi", call("ps", [], id_)).json["id"] == id_


def test_call_may_have_no_params(console: Console) -> None:
    for body in ({"jsonrpc": "2.0", "id": 1, "method": "ul_flush"}, call("ul_flush", None)):
        assert console.ask("POST", "/mi", body).json["result"] == "OK"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"jsonrpc": "2.0", "method": "ps"'])
def test_what_isnt_json_is_a_parse_error(console: Console, body: bytes) -> None:
    assert error(console, body) == (-32700, None)


@pytest.mark.parametrize(
    "body",
    [
        1,
        "ps",
        {},
        [],
        {"method": "ps", "id": 1},
        {"jsonrpc": "1.0", "method": "ps", "id": 1},
        {"jsonrpc": "2.0", "method": 1, "id": 1},
        {"jsonrpc": "2.0", "method": "ps", "params": "all", "id": 1},
        {"jsonrpc": "2.0", "method": "ps", "id": {}},
        [call("ps")] * (MAX_BATCH + 1),
    ],
)
def test_what_is_no_call_is_an_invalid_request(console: Console, body: object) -> None:
    assert error(console, body) == (-32600, None)


def test_method_that_isnt_there_is_not_found(console: Console) -> None:
    assert error(console, call("dlg_list")) == (-32601, 1)


@pytest.mark.parametrize(
    "params",
    [[], ["location"], [*RM.values(), "more"], {"aor": "alice@sipha.test"}, RM | {"more": 1}, ["location", ["alice"]]],
)
def test_params_that_the_method_doesnt_have_are_invalid(console: Console, params: object) -> None:
    console.node.register("sip:alice@sipha.test")
    assert error(console, call("ul_rm", params)) == (-32602, 1)
    assert console.node.records == []


def test_caller_is_told_what_params_there_are(console: Console) -> None:
    reply = console.ask("POST", "/mi", call("ul_sync"))
    assert reply.json["error"]["message"] == "Invalid params: ul_sync has table_name, [aor]"


def test_notification_is_done_and_not_answered(console: Console) -> None:
    console.node.register("sip:alice@sipha.test")
    notification = {"jsonrpc": "2.0", "method": "ul_rm", "params": RM}
    for body in (notification, [notification, notification], {"jsonrpc": "2.0", "method": "ul_dump"}):
        replies: list[Any] = []
        console.start("POST", "/mi", body).addCallback(replies.append)
        for _ in range(3):
            console.flush()
            console.clock.advance(0.01)
        (reply,) = replies
        assert (reply.status, reply.content) == (200, b"")
    assert not console.node.bindings("sip:alice@sipha.test")
    assert console.node.freed == 1


def test_batch_is_answered_in_its_order(console: Console) -> None:
    console.node.register("sip:alice@sipha.test")
    calls = [call("ul_flush", [], 1), call("nope", [], 2), 3, call("ul_dump", [], 4), call("ps", [], 5)]
    answers = dumped(console, *calls)
    assert [answer["id"] for answer in answers] == [1, 2, None, 4, 5]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32601, -32600, None, None]
    assert console.node.freed == 1


def test_batch_has_one_dump(console: Console) -> None:
    console.node.register("sip:alice@sipha.test")
    first, second = dumped(console, call("ul_dump", [], 1), call("ul_dump", [], 2))
    assert first["result"]["Domains"][0]["AORs"]
    assert second["error"]["code"] == -32600
    assert console.node.freed == 2


def test_dump_is_given_back_if_the_caller_goes_before_the_batch_is_done() -> None:
    node = FakeNode()
    node.held = []
    request = Request(DummyChannel(), queued=False)
    request.setComponent(ICaller, ANYONE)
    clock = Clock()
    batch = json.dumps([call("ul_dump"), call("ul_rm", RM)]).encode()
    dispatcher = Dispatcher(clock, LocationMethods(node, DOMAINS))
    answered = Deferred.fromCoroutine(dispatcher.answer(request, batch))
    clock.advance(1)
    assert (len(node.held), node.freed) == (1, 0)
    answered.cancel()
    assert isinstance(answered.result, Failure)
    answered.addErrback(lambda failure: failure.trap(CancelledError))
    assert node.freed == 1


def test_body_must_be_said_to_be_json(console: Console) -> None:
    console.node.register("sip:alice@sipha.test")
    reply = console.ask("POST", "/mi", json.dumps(call("ul_rm", RM)).encode(), content_type="text/plain")
    assert reply.status == 415
    assert console.node.records == []


def test_trouble_of_the_cluster_is_the_answer(console: Console) -> None:
    console.node.trouble = NoQuorum("no majority answers")
    error = console.ask("POST", "/mi", call("ul_rm", RM)).json["error"]
    assert error == {"code": 503, "message": "no majority answers"}


def test_bug_costs_one_call_of_a_batch(console: Console, failures: list[LogEvent]) -> None:
    console.node.pings = lambda: 1 // 0  # type: ignore[assignment,return-value]
    first, second = dumped(console, call("nh_enable_ping"), call("ul_flush"))
    assert (first["error"]["code"], second["result"]) == (-32603, "OK")
    assert len(failures) == 1
    failures.clear()


@pytest.mark.parametrize(
    ("method", "params", "role"),
    [
        ("ul_dump", [], Role.READ),
        ("ul_show_contact", ["location", "alice@sipha.test"], Role.READ),
        ("ul_rm", RM, Role.OPERATE),
        ("ul_add", ["location", "bob@sipha.test", "sip:bob@192.0.2.1", 60], Role.OPERATE),
        ("clusterer_set_status", [1, 1], Role.OPERATE),
        ("clusterer_shtag_set_active", ["vip/1"], Role.OPERATE),
        ("nh_enable_ping", [], Role.READ),
        ("nh_enable_ping", [0], Role.OPERATE),
    ],
)
def test_method_is_for_a_role(method: str, params: object, role: Role) -> None:
    for caller, token in BY_ROLE.items():
        console = Console(FakeNode(), access=ACCESS)
        console.node.register("sip:alice@sipha.test")
        answer = dumped(console, call(method, params), Authorization=f"Bearer {token}")
        if caller >= role:
            assert "result" in answer
        else:
            assert answer["error"]["code"] == 403
            assert console.node.records == []


def test_stranger_is_unknown() -> None:
    assert Console(FakeNode(), access=ACCESS).ask("POST", "/mi", call("ps")).status == 401


def json_values() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    keys = st.text()
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


def names() -> Iterator[str]:
    reply = Console(FakeNode()).ask("POST", "/mi", call("which"))
    yield from reply.json["result"]


@given(method=st.sampled_from([*names(), "nope"]), params=st.lists(json_values(), max_size=9))
def test_any_call_is_answered(method: str, params: list[Any]) -> None:
    answer = dumped(Console(FakeNode()), call(method, params))
    assert answer["id"] == 1
    assert answer.get("error", {}).get("code") != -32603
