from __future__ import annotations

from typing import Any, cast

import pytest

from sipha.errors import MalformedMessage
from sipha.service.sip import TransactionUser, refusal_tag
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.parser import ParseError, parse
from sipha.sip.token import Tokens

TOKENS = Tokens({1: bytes(32)})
REGISTER = (
    b"REGISTER sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n"
    b"From: <sip:alice@sipha.test>;tag=1\r\nTo: <sip:alice@sipha.test>\r\nCall-ID: a\r\nCSeq: 1 REGISTER\r\n\r\n"
)


@pytest.mark.parametrize(
    ("sound", "broken"),
    [(b"CSeq: 1 ", b"CSeq: 36893488147419103232 "), (b"From: <", b"From: Bell, Alexander <"), (b"To: <", b'To: "<')],
)
def test_a_request_with_a_broken_header_field_is_refused_with_a_tag(sound: bytes, broken: bytes) -> None:
    tags = set()
    for data in (REGISTER, REGISTER, REGISTER.replace(b"Call-ID: a", b"Call-ID: b")):
        with pytest.raises(ParseError) as caught:
            parse(data.replace(sound, broken))
        request = caught.value.request
        assert request is not None
        tags.add(refusal_tag(TOKENS, request))
    assert len(tags) == 2


def test_a_request_without_a_via_has_no_tag() -> None:
    request = parse(REGISTER)
    assert isinstance(request, Request)
    request.headers.set("Via", "nonsense")
    with pytest.raises(MalformedMessage):
        refusal_tag(TOKENS, request)


class Taker:
    """A registrar or proxy to which all is plain."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def datagram_received(self, data: bytes, _flow: Flow, _now: float) -> bool:
        self.taken.append(data)
        return True


def test_registrar_is_offered_registers_and_the_proxy_other_requests_but_none_without_the_lease() -> None:
    leads, registrar, proxy, served = True, Taker(), Taker(), list[str]()
    user = TransactionUser(cast("Any", registrar), cast("Any", proxy), lambda: leads, (), served.append)
    own, phone = ("192.0.2.10", 5060), ("192.0.2.1", 5060)
    bye = REGISTER.replace(b"REGISTER", b"BYE")
    assert not user.datagram_received(b"SIP/2.0 200 OK\r\n\r\n", Flow("UDP", own, phone), 0.0)
    assert user.datagram_received(bye, Flow("UDP", own, own), 0.0)
    assert not served  # it came from this node
    assert user.datagram_received(REGISTER, Flow("UDP", own, phone), 0.0)
    assert user.datagram_received(bye, Flow("UDP", own, phone), 0.0)
    assert served == ["REGISTER"]
    leads = False
    assert not user.datagram_received(REGISTER, Flow("UDP", own, phone), 0.0)
    assert not user.datagram_received(bye, Flow("UDP", own, phone), 0.0)
    assert registrar.taken == [REGISTER]
    assert proxy.taken == [bye] * 2
