"""The probe measures how long a server is away: with one that is away for a known time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.network import Network
from tests.system.probe import INTERVAL, Probe, make_probe

pytestmark = pytest.mark.system

AWAY = 0.4
LONG_AWAY = 0.8
"""Longer than it takes until a request is repeated."""


class Responder:
    """Answers every request with 200 while it is `well`."""

    def __init__(self, network: Network, place: str) -> None:
        with network.inside(place):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((network.host(place), 5060))
        self.well = True
        self.received: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(4096)
            if data == b"end":
                return
            self.received.append(data)
            if self.well:
                self._socket.sendto(data.replace(data.split(b"\r\n")[0], b"SIP/2.0 200 OK"), source)

    def away(self, seconds: float) -> None:
        self.well = False
        time.sleep(seconds)
        self.well = True

    def close(self) -> None:
        self._socket.sendto(b"end", self._socket.getsockname())


@pytest.fixture
def server(network: Network) -> Iterator[Responder]:
    responder = Responder(network, "n1")
    yield responder
    responder.close()


@pytest.fixture
def probe(network: Network) -> Probe:
    return make_probe(network, (network.host("n1"), 5060))


def test_probe_sees_no_outage_where_there_is_none(server: Responder, probe: Probe) -> None:
    with probe:
        assert probe.wait_for_answer(1.0)
        time.sleep(0.5)
    assert probe.outages == []
    assert probe.unanswered == 0
    assert len(set(server.received)) == len(probe.questions) > 20


def test_probe_measures_an_outage(server: Responder, probe: Probe) -> None:
    with probe:
        time.sleep(0.2)
        server.away(AWAY)
        assert probe.wait_for_answer(1.0)
    print(f"away for {AWAY} s, measured {probe.outages}, longest time between two requests {probe.pace:.3f} s")
    assert len(probe.outages) == 1
    assert AWAY - probe.pace <= probe.outage <= AWAY + 3 * INTERVAL + probe.pace


def test_probe_repeats_what_is_not_answered_once(server: Responder, probe: Probe) -> None:
    with probe:
        time.sleep(0.2)
        server.away(AWAY)
        assert probe.wait_for_answer(1.0)
    repeated = [question for question in probe.questions if question.repeated]
    assert repeated
    assert all(question.answers and not question.answered for question in repeated)
    assert probe.unanswered == 0


def test_probe_counts_requests_that_are_never_answered(server: Responder, probe: Probe) -> None:
    with probe:
        time.sleep(0.2)
        server.away(LONG_AWAY)
        assert probe.wait_for_answer(1.0)
    # Those of the first 0.3 s are repeated while the server is still away.
    assert 0 < probe.unanswered < (LONG_AWAY - 0.5) / INTERVAL + 5


def test_probe_does_not_fail_where_nobody_is(probe: Probe) -> None:
    with probe:
        time.sleep(0.3)
    assert len(probe.outages) == 1
    assert probe.unanswered == len(probe.questions)
