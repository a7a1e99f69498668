from __future__ import annotations

from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator


def test_operator_sees_and_changes_settings(node: FakeNode, operator: Operator) -> None:
    lines = operator.types("settings").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["setting", "pings", "preferred", "standby/a"]
    assert operator.types("settings", "pings").stdout == "on\n"
    assert operator.types("settings", "pings", "off").stdout == "pings is off\n"
    assert not node.pings()
    assert operator.types("settings", "preferred", "a").stdout == "preferred is a\n"
    assert operator.types("settings", "preferred", "").stdout == "preferred is empty\n"
    assert [one["value"] for one in operator.reads("settings")["settings"]] == ["off", "", "off"]
    assert operator.reads("settings", "pings")["value"] == "off"


def test_setting_that_cant_be_is_status_1(operator: Operator) -> None:
    assert operator.types("settings", "colour", "red").exit_code == 1
    result = operator.types("settings", "pings", "maybe")
    assert (result.exit_code, result.stderr) == (1, "siphactl: pings is on or off, not 'maybe'\n")
