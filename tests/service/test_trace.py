from __future__ import annotations

import pytest

from sipha.admin.trace import Traced
from sipha.auth.domain import Domain, Domains
from sipha.errors import QueueFull
from sipha.service.trace import CALLS, TRACES, Tracing
from sipha.sip.flow import Flow
from sipha.transport.endpoint import Tap

FLOW = Flow("UDP", ("192.0.2.10", 5060), ("198.51.100.7", 40000))
ALICE = "sip:alice@sipha.test"


def request(
    *,
    method: str = "INVITE",
    uri: str = "sip:bob@sipha.test",
    sender: str = ALICE,
    call_id: str = "c1",
    fields: str = "",
) -> bytes:
    return (
        f"{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKa\r\nMax-Forwards: 70\r\n"
        f"From: <{sender}>;tag=a\r\nTo: <{uri}>\r\nCall-ID: {call_id}\r\nCSeq: 1 {method}\r\n{fields}"
        f"Content-Length: 0\r\n\r\n"
    ).encode()


class Site:
    def __init__(self) -> None:
        self.taps: list[Tap] = []
        domains = Domains([Domain("sipha.test", "sipha.test", frozenset({"alias.test"}))], [])
        self.tracing = Tracing(self.taps, domains, lambda: 1289645282.25)
        self.told: list[Traced] = []

    def passes(self, data: bytes, *, sent: bool = False) -> None:
        for tap in tuple(self.taps):
            tap(data, FLOW, sent=sent)


@pytest.fixture
def site() -> Site:
    return Site()


def test_message_of_the_aor_is_told(site: Site) -> None:
    site.tracing.follow(ALICE, site.told.append)
    site.passes(request())
    site.passes(request(), sent=True)
    received, sent = site.told
    assert received == Traced(
        "2010-11-13T10:48:02.250+00:00", False, "UDP", "192.0.2.10:5060", "198.51.100.7:40000", request().decode()
    )
    assert sent.sent


@pytest.mark.parametrize(
    "options",
    [
        {"sender": "sip:carol@elsewhere.test", "uri": "sip:alice@alias.test"},
        {"uri": ALICE, "sender": "sip:bob@sipha.test"},
        {"method": "REGISTER", "uri": "sip:sipha.test"},
    ],
)
def test_message_is_of_whom_it_names(site: Site, options: dict[str, str]) -> None:
    site.tracing.follow(ALICE, site.told.append)
    site.passes(request(**options))
    assert len(site.told) == 1


def test_messages_of_others_are_not_told(site: Site) -> None:
    site.tracing.follow(ALICE, site.told.append)
    site.passes(request(sender="sip:bob@sipha.test"))
    site.passes(request(sender="sip:alice@elsewhere.test"))
    site.passes(b"nonsense")
    assert not site.told


def test_message_of_the_same_call_is_told_though_it_does_not_name_the_aor(site: Site) -> None:
    site.tracing.follow(ALICE, site.told.append)
    later = request(method="BYE", uri="sip:a@198.51.100.7", sender="sip:b@198.51.100.8")
    site.passes(later)
    assert not site.told
    site.passes(request())
    site.passes(later)
    assert len(site.told) == 2
    for number in range(CALLS):
        site.passes(request(call_id=f"other{number}"))
    site.told.clear()
    site.passes(later)
    assert not site.told, "it is forgotten"


def test_digest_is_left_out(site: Site) -> None:
    site.tracing.follow(ALICE, site.told.append)
    site.passes(request(fields='Authorization: Digest username="alice", nonce="n", response="0123abcd"\r\n'))
    (told,) = site.told
    assert "0123abcd" not in told.message
    assert 'nonce="n", response="…"' in told.message


def test_endpoint_is_tapped_only_while_somebody_looks_on(site: Site) -> None:
    first = site.tracing.follow(ALICE, site.told.append)
    second = site.tracing.follow(ALICE, site.told.append)
    assert len(site.taps) == 1
    first()
    site.passes(request())
    assert len(site.told) == 1
    second()
    assert site.taps == []


def test_few_may_look_on_at_a_time(site: Site) -> None:
    stops = [site.tracing.follow(ALICE, site.told.append) for _ in range(TRACES)]
    with pytest.raises(QueueFull):
        site.tracing.follow(ALICE, site.told.append)
    stops[0]()
    site.tracing.follow(ALICE, site.told.append)
