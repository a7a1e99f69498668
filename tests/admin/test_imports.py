"""What the admin takes over from another registrar."""

from __future__ import annotations

from typing import Any

import pytest

from sipha.errors import NoQuorum
from sipha.state.binding import BEHIND_NAT
from tests.admin.fakes import NOW, Console, FakeNode

ALICE: dict[str, Any] = {
    "aor": "alice@Sipha.Test",
    "contact": "sip:alice@10.0.0.5:5060;ob",
    "expires": 86400,
    "call_id": "abc@10.0.0.5",
    "cseq": 17,
    "q": 0.5,
    "user_agent": "phone/1",
    "received": "sip:192.0.2.77:40000;transport=tcp",
    "behind_nat": True,
    "socket": "udp:192.0.2.10:5060",
    "path": ["<sip:192.0.2.5;lr>"],
    "methods": "INVITE,CANCEL",
    "instance": "<urn:uuid:1>",
    "reg_id": 1,
    "flags": 3,
    "attr": "x",
    "kv_store": '{"a":1}',
}


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


def test_domains_are_shown_with_their_realms(console: Console) -> None:
    first, second = console.ask("GET", "/v1/domains").json["domains"]
    assert first == {"name": "sipha.test", "realm": "sipha.test", "aliases": ["alias.test"], "algorithms": ["MD5"]}
    assert second["realm"] == "Lower"


def test_a_binding_comes_with_all_that_it_has(console: Console) -> None:
    reply = console.ask("POST", "/v1/bindings", [ALICE])
    assert reply.json == {
        "results": [{"aor": "sip:alice@sipha.test", "contact": ALICE["contact"], "status": 201, "detail": ""}]
    }
    (binding,) = console.ask("GET", "/v1/bindings/alice@sipha.test").json["bindings"]
    shown = {key: binding[key] for key in ALICE}
    assert shown == {**ALICE, "aor": "sip:alice@sipha.test"}
    (stored,) = console.node.bindings("sip:alice@sipha.test")
    assert (stored.cflags, stored.expires_at) == (BEHIND_NAT, int(NOW + 86400) * 1000)


def test_what_is_here_already_stays(console: Console) -> None:
    console.node.register("sip:alice@sipha.test", ALICE["contact"])
    (result,) = console.ask("POST", "/v1/bindings", [{**ALICE, "reg_id": 0}]).json["results"]
    assert result["status"] == 200
    (binding,) = console.node.bindings("sip:alice@sipha.test")
    assert binding.user_agent == "phone/1"
    assert binding.expires_at == int(NOW + 600) * 1000


def test_each_binding_has_a_result(console: Console) -> None:
    some = [{**ALICE, "contact": f"sip:alice@10.0.0.{number}", "reg_id": 0, "instance": ""} for number in range(300)]
    results = console.ask("POST", "/v1/bindings", some).json["results"]
    assert [result["status"] for result in results] == [201] * 12 + [409] * 288
    assert results[12]["detail"] == "sip:alice@sipha.test has 12 bindings, and may have no more"
    console.node.trouble = NoQuorum("no majority answers", retry_after=1)
    (result,) = console.ask("POST", "/v1/bindings", [{**ALICE, "aor": "bob@sipha.test"}]).json["results"]
    assert (result["status"], result["detail"]) == (503, "no majority answers")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aor", "alice@elsewhere.test"),
        ("aor", "sipha.test"),
        ("aor", "alice@sipha.test:99999999"),
        ("contact", "not a uri"),
        ("contact", "sip:a@h\r\nVia: x"),
        ("contact", "sip:" + "a" * 600),
        ("expires", 0),
        ("call_id", "é"),
        ("cseq", 1 << 32),
        ("q", 1.5),
        ("received", "sip:host.test"),
        ("path", ["sip"]),
        ("instance", 'a"b'),
        ("nonsense", 1),
    ],
)
def test_a_binding_that_no_register_would_make_is_refused_and_none_is_made(
    console: Console, field: str, value: object
) -> None:
    assert console.ask("POST", "/v1/bindings", [ALICE, {**ALICE, field: value}]).status == 422
    assert console.node.records == []


def test_user_agents_are_kept_as_registrations_keep_them(console: Console) -> None:
    console.ask("POST", "/v1/bindings", [{**ALICE, "user_agent": "phone\x1b" + "x" * 600}])
    (binding,) = console.node.bindings("sip:alice@sipha.test")
    assert binding.user_agent.startswith("phone?xxx")
    assert len(binding.user_agent) == 512


def test_nothing_comes_before_all_nodes_understand_it(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipha.admin.routes.bindings.SCHEMA", 99)
    reply = console.ask("POST", "/v1/bindings", [ALICE])
    assert reply.status == 409
    assert "upgrade all nodes" in reply.fault
