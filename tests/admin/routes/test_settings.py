from __future__ import annotations

from typing import Any

import pytest

from sipha.errors import NoQuorum, SiphaError
from tests.admin.fakes import Console, FakeNode


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


def values(console: Console) -> dict[str, Any]:
    return {one["name"]: one["value"] for one in console.ask("GET", "/v1/settings").json["settings"]}


def test_operator_sees_all_settings(console: Console) -> None:
    assert values(console) == {"pings": "on", "preferred": "", "standby/a": "off"}


@pytest.mark.parametrize(
    ("name", "value"), [("pings", "off"), ("preferred", "a"), ("standby/a", "on"), ("standby/a", "off")]
)
def test_operator_changes_a_setting(console: Console, name: str, value: str) -> None:
    reply = console.ask("PUT", f"/v1/settings/{name}", {"value": value})
    assert (reply.status, reply.json["value"]) == (200, value)
    assert values(console)[name] == value
    assert console.ask("GET", f"/v1/settings/{name}").json == reply.json


def test_setting_goes_back_to_its_default(console: Console) -> None:
    for name in values(console):
        default = console.ask("GET", f"/v1/settings/{name}").json["default"]
        assert console.ask("PUT", f"/v1/settings/{name}", {"value": default}).json["value"] == default


@pytest.mark.parametrize("name", ["colour", "standby/z", "standby/", "pings/", "Pings"])
def test_setting_that_isnt_one_is_not_found(console: Console, name: str) -> None:
    for reply in (
        console.ask("GET", f"/v1/settings/{name}"),
        console.ask("PUT", f"/v1/settings/{name}", {"value": "on"}),
    ):
        assert reply.status == 404
        assert "there are pings, preferred, standby/a" in reply.fault
    assert console.node.records == []


def test_value_that_a_setting_cant_have_is_refused(console: Console) -> None:
    reply = console.ask("PUT", "/v1/settings/pings", {"value": "maybe"})
    assert (reply.status, reply.fault) == (422, "pings is on or off, not 'maybe'")
    assert console.node.records == []


def test_setting_isnt_changed_against_the_cluster(console: Console) -> None:
    console.node.refusal = SiphaError("z is no member")
    assert console.ask("PUT", "/v1/settings/preferred", {"value": "z"}).status == 409
    console.node.trouble = NoQuorum("no majority answers")
    assert console.ask("PUT", "/v1/settings/pings", {"value": "off"}).status == 503
