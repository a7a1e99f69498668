from __future__ import annotations

from typing import Any, cast

from sipha.proxy.invite import Invite
from sipha.proxy.plain import Plain
from sipha.service.user import TransactionUser
from sipha.sip.flow import Flow

REGISTER = (
    b"REGISTER sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n"
    b"From: <sip:alice@sipha.test>;tag=1\r\nTo: <sip:alice@sipha.test>\r\nCall-ID: a\r\nCSeq: 1 REGISTER\r\n\r\n"
)
BYE = (
    b"BYE sip:bob@192.0.2.2:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bKbye\r\n"
    b"Max-Forwards: 70\r\nRoute: <sip:token@192.0.2.10:5060;lr>\r\nFrom: <sip:alice@sipha.test>;tag=1\r\n"
    b"To: <sip:bob@sipha.test>;tag=2\r\n"
    b"Call-ID: call\r\nCSeq: 2 BYE\r\nContent-Length: 0\r\n\r\n"
)
INVITE = (
    b"INVITE sip:bob@sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bKinvite\r\n"
    b"Max-Forwards: 70\r\nFrom: <sip:alice@sipha.test>;tag=1\r\nTo: <sip:bob@sipha.test>\r\nCall-ID: call\r\n"
    b'CSeq: 2 INVITE\r\nProxy-Authorization: Digest username="alice", realm="r", nonce="n", '
    b'uri="sip:bob@sipha.test", response="0"\r\nContent-Length: 0\r\n\r\n'
)


class Taker:
    """A registrar and proxy to which all is plain."""

    def __init__(self) -> None:
        self.taken: list[object] = []

    def datagram_received(self, data: bytes, _flow: Flow, _now: float) -> bool:
        self.taken.append(data)
        return True

    def plain_received(self, plain: Plain, _flow: Flow, _now: float) -> bool:
        self.taken.append(plain.method)
        return True

    def invite_received(self, invite: Invite, _flow: Flow, _now: float) -> bool:
        self.taken.append(invite.uri)
        return True


def test_registrar_is_offered_registers_and_the_proxy_what_is_plain() -> None:
    taker, served = Taker(), list[str]()
    user = TransactionUser(
        cast("Any", taker),
        cast("Any", taker),
        lambda: True,
        (),
        served=served.append,
        catch_up=lambda _now: taker.taken.append("all"),
    )
    own, phone = ("192.0.2.10", 5060), ("192.0.2.1", 5060)
    assert not user.datagram_received(REGISTER.replace(b"REGISTER", b"OPTIONS"), Flow("UDP", own, phone), 0.0)
    assert not user.datagram_received(b"SIP/2.0 200 OK\r\n\r\n", Flow("UDP", own, phone), 0.0)
    assert user.datagram_received(BYE, Flow("UDP", own, own), 0.0)
    assert not served  # it came from this node
    assert user.datagram_received(REGISTER, Flow("UDP", own, phone), 0.0)
    assert user.datagram_received(BYE, Flow("UDP", own, phone), 0.0)
    assert user.datagram_received(INVITE, Flow("UDP", own, phone), 0.0)
    assert served == ["REGISTER"]
    assert taker.taken == ["all", "BYE", REGISTER, "all", "BYE", "all", "sip:bob@sipha.test"]
