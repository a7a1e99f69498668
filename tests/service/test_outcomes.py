from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.service.outcomes import RegisterOutcomes
from sipha.sip.flow import Flow
from sipha.transport.endpoint import Tap
from sipha.transport.hep import Capture

FLOW = Flow("UDP", ("192.0.2.10", 5060), ("198.51.100.7", 40000))


def response(status: str = "200 OK", method: str = "REGISTER", *fields: str) -> bytes:
    lines = [
        f"SIP/2.0 {status}",
        "Via: SIP/2.0/UDP 198.51.100.7:40000;branch=z9hG4bKa",
        "From: <sip:alice@sipha.test>;tag=a",
        "To: <sip:alice@sipha.test>;tag=b",
        "Call-ID: c1",
        f"CSeq: 1 {method}",
        *fields,
        "Content-Length: 0",
    ]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_each_outcome_is_one_line(lines: list[str]) -> None:
    outcomes = RegisterOutcomes()
    outcomes.passed(response("200 OK", "REGISTER", "Contact: <sip:a@1.2.3.4>, <sip:a@5.6.7.8>"), FLOW, sent=True)
    challenge = 'WWW-Authenticate: Digest realm="sipha.test", nonce="n"'
    outcomes.passed(response("401 Unauthorized", "REGISTER", challenge), FLOW, sent=True)
    assert lines == [
        "REGISTER of sip:alice@sipha.test from 198.51.100.7:40000: 200 OK, 2 contacts, Call-ID c1",
        "REGISTER of sip:alice@sipha.test from 198.51.100.7:40000: 401 Unauthorized, 0 contacts, Call-ID c1",
    ]


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (response(), False),
        (response(method="INVITE"), True),
        (response("200 OK", "OPTIONS", "X: 1 REGISTER"), True),
        (b"SIP/2.0 400 Bad Request\r\nCSeq: 1 REGISTER\r\n\r\n", True),
        (b"REGISTER sip:a SIP/2.0\r\nCSeq: 1 REGISTER\r\n\r\n", True),
    ],
)
def test_nothing_else_is_logged(lines: list[str], data: bytes, sent: bool) -> None:
    RegisterOutcomes().passed(data, FLOW, sent=sent)
    assert lines == []


def test_outcomes_are_a_tap_as_long_as_they_are_asked_for() -> None:
    outcomes, taps = RegisterOutcomes(), list[Tap]()
    other = Capture(("127.0.0.1", 9060), 1, "", lambda: 0.0)
    taps.append(other.passed)
    for _ in range(2):
        outcomes.adopt(taps, on=True)
        assert taps == [other.passed, outcomes.passed]
    outcomes.adopt(taps, on=False)
    assert taps == [other.passed]
    other.close()
