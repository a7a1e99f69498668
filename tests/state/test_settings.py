"""The cluster-wide settings."""

from __future__ import annotations

from sipha.state.entries import PutSetting
from sipha.state.outcomes import Done
from sipha.state.settings import PREFERRED, Settings, standby


def test_setting_is_set_replaced_and_removed() -> None:
    settings = Settings()
    assert settings.get("nat_ping", "on") == "on"
    assert settings.put(PutSetting("nat_ping", "off")) == Done(1)
    assert settings.get("nat_ping", "on") == "off"
    assert settings.put(PutSetting("nat_ping", "off")) == Done(0)
    assert settings.put(PutSetting("standby", "node2")) == Done(1)
    assert settings.items() == [("nat_ping", "off"), ("standby", "node2")]
    assert settings.hash == sum(summand for _, summand in settings.freeze()) != 0
    assert settings.put(PutSetting("nat_ping", "")) == Done(1)
    assert settings.put(PutSetting("nat_ping", "")) == Done(0)
    assert settings.put(PutSetting("standby", "")) == Done(1)
    assert settings.hash == 0


def test_nodes_are_put_in_standby_and_one_is_preferred() -> None:
    settings = Settings()
    settings.put(standby("n1", on=True))
    settings.put(PutSetting(PREFERRED, "n2"))
    assert [settings.in_standby(node) for node in ("n1", "n2")] == [True, False]
    assert settings.preferred == "n2"
    settings.put(standby("n1", on=False))
    settings.put(PutSetting(PREFERRED, ""))
    assert settings.items() == []
    assert settings.preferred == ""
