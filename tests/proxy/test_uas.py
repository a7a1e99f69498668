from __future__ import annotations

import pytest

from sipha.errors import MalformedMessage
from sipha.proxy.uas import refusal_tag
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
