"""What an operator hears when more comes than a node can serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.exposition import generate_latest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.service.metrics import Metrics
from sipha.sip.flow import Flow
from sipha.sip.overload import ADMITTED
from tests.service.alone import Alone
from tests.sip.test_overload import KNOWN

PHONE = Flow("UDP", ("127.0.0.50", 5060), ("127.0.0.1", 40000))


@pytest.fixture
def told() -> Iterator[list[str]]:
    told: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "comes than can be served" in (sentence := formatEvent(event)):
            told.append(sentence)

    globalLogPublisher.addObserver(observe)
    yield told
    globalLogPublisher.removeObserver(observe)


def flood(alone: Alone, seconds: float) -> None:
    """Let REGISTERs come that have waited for so long, of which three are refused."""
    endpoint, overload = alone.node.sip._endpoint, alone.node.sip.overload
    assert endpoint is not None
    late = overload.tallies["register"].late
    endpoint._datagrams_received([(KNOWN, PHONE)] * (ADMITTED + 2 - min(late, ADMITTED - 1)), seconds, 0.0)


def test_operator_is_told_once_that_it_begins_and_ends(
    alone: Alone, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipha.service.overload.QUIET", 0.5)
    monkeypatch.setattr("sipha.sip.overload.QUIET", 0.5)
    view = alone.node.view
    assert not view.status().alarms
    flood(alone, 0.42)
    flood(alone, 0.43)
    assert told == ["more comes than can be served: requests wait for 0.42 s"]
    (alarm,) = view.status().alarms
    assert alarm.startswith("more requests come than this node can serve")
    text = generate_latest(Metrics(view)).decode()
    refused = alone.node.sip.overload.tallies["register"].refused
    assert f'sipha_shed_total{{answer="503",priority="register",reason="wait"}} {float(refused)}' in text
    assert "sipha_overloaded 1.0" in text
    assert refused > 0
    alone.world.until(lambda: not view.status().alarms)
    assert told[1:] == [f"no more comes than can be served; in this leadership {refused} were refused, 0 not answered"]
    assert alone.node.sip.responses()["REGISTER", 503] == refused


def test_leader_that_is_stopped_says_what_it_refused(alone: Alone, told: list[str]) -> None:
    flood(alone, 1.0)
    alone.node.sip.stopService()
    assert len(told) == 2
    assert not alone.node.sip.overloaded
    alone.node.sip.startService()
