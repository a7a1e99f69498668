"""INVITEs forwarded at a glance: each is compared with what becomes of it when it is parsed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.proxy import invite
from sipha.sip import digest
from sipha.sip.headers import parse_auth_params
from sipha.sip.message import Request
from sipha.state.binding import BEHIND_NAT
from tests.proxy.ladder import PASSWORD, House, Phone
from tests.proxy.stage import Stage, edited

PLAIN = (
    ("Max-Forwards: 70", "Max-Forwards: 1"),
    ("Max-Forwards: 70", "User-Agent: phone/1.0 (x)\r\nMax-Forwards: 255"),
    ("From: <", 'From: "Alice A." <'),
    ("To: <", 'To: "Bob"<'),
    (";rport", ";alias;rport;keep=30"),
    ("Content-Length: 4", "Content-Length: 3"),
    ("Call-ID: ", "Record-Route: <sip:192.0.2.99;lr>\r\nReason: Q.850;cause=16\r\nCall-ID: "),
    ("X-Text: \r\n", "X-Text: \udcff\udcfe\r\n"),
    ("X-Text: \r\n", "CSeq-Like: 1\r\nTo-Do: x\r\n"),
    ("From: <", "Contact: <sip:alice@203.0.113.1>\r\nFrom: <"),
    ("@sipha.test>;tag", "@alias.test>;tag"),
    ("algorithm=MD5, ", ""),
    ("Call-ID", "Route: <sip:192.0.2.10;lr>\r\nCall-ID"),
    ("Call-ID", "Route: <sip:sipha.test:5060;transport=udp;lr>\r\nCall-ID"),
    ("203.0.113.1:5060;", "203.0.113.1;"),
    ("203.0.113.1:5060;", "198.51.100.7:5062;"),
)
"""What a phone may write otherwise, and is plain all the same."""

OTHER = (
    ("Max-Forwards: 70", "Max-Forwards: 0"),
    ("Max-Forwards: 70", "Max-Forwards: 256"),
    ("Max-Forwards: 70\r\n", ""),
    ("Max-Forwards: 70", "Max-Forwards: 70\r\nMax-Forwards: 70"),
    ("Max-Forwards: 70", "Max-Forwards: 70\r\nMAX-FORWARDS: 70"),
    ("From: ", "f: "),
    ("From: ", "From : "),
    ("From: ", "From:"),
    ("From: <sip:", "From: <tel:"),
    (";tag=", ";x=y;tag="),
    ("\r\nCall-ID", ";tag=1\r\nCall-ID"),
    ("Call-ID: ", "Call-ID:\r\n "),
    ("Content-Length: 4\r\n", ""),
    ("Content-Length: 4", "Content-Length: 99999"),
    ("CSeq: ", "CSeq: 0"),
    ("1 INVITE", "1 Invite"),
    ("CSeq: ", "CSeq: 1 INVITE\r\nCSeq: "),
    ("Call-ID: ", "Call-ID: other\r\nCall-ID: "),
    ("From: <", "From: <sip:alice@sipha.test>;tag=1\r\nFrom: <"),
    ("To: <", "To: <sip:bob@sipha.test>\r\nTo: <"),
    ("Content-Length: ", "Content-Length: 4\r\nContent-Length: "),
    ("Proxy-Authorization: ", 'Proxy-Authorization: Digest realm="x"\r\nProxy-Authorization: '),
    (";rport", ""),
    (";rport", ";rport=5"),
    (";rport", ";received=1.2.3.4;rport"),
    ("branch=z9hG4bK", "branch="),
    ("Call-ID", "Via: SIP/2.0/UDP 192.0.2.99;branch=z9hG4bKbelow\r\nCall-ID"),
    ("Call-ID", "Route: <sip:192.0.2.10>\r\nCall-ID"),
    ("Call-ID", "Route: <sip:192.0.2.10;lr>, <sip:192.0.2.10;lr>\r\nCall-ID"),
    ("Call-ID", "Route: <sip:192.0.2.10;lr>\r\nRoute: <sip:192.0.2.10;lr>\r\nCall-ID"),
    ("Call-ID", "Route: <sip:token@192.0.2.10;lr>\r\nCall-ID"),
    ("Call-ID", "route: <sip:192.0.2.10;lr>\r\nCall-ID"),
    ("Call-ID", "Proxy-Authorization: Digest x\r\nCall-ID"),
    ("Call-ID", "Proxy-Require: x\r\nCall-ID"),
    ("Call-ID", "Max-Breadth: 7\r\nCall-ID"),
    ("Call-ID", "Timestamp: 7\r\nCall-ID"),
    ("Call-ID", "p-asserted-identity: <sip:eve@sipha.test>\r\nCall-ID"),
    ("Call-ID", "P-Preferred-Identity: <sip:alice@sipha.test>\r\nCall-ID"),
    ("Proxy-Authorization: Digest", "Proxy-Authorization: Basic"),
    ('username="', 'username="x", username="'),
    (' uri="sip:bob', ' uri="sip:carol'),
    ("X-Text: ", "X-Text: \r"),
    ("X-Text: ", "X-Text: \n"),
)
"""What isn't plain."""

REFUSED = (('response="', 'response="0'), ("sip:alice@", "sip:bob@"), ("nc=00000002", "nc=00000001"))
"""What is plain, and for a caller who isn't who he says he is."""

URIS = ("sip:bob@sipha.test", "sip:bob@alias.test", "sip:bob@sipha.test;user=phone", "sip:bob@192.0.2.10:5060")
STRANGE_URIS = (
    "sip:bob@elsewhere.test",
    "sip:bob@sipha.test;lr",
    "sip:bob@sipha.test;maddr=192.0.2.77",
    "sip:sipha.test",
    "sips:bob@sipha.test",
    "tel:+4930123",
)


class Scene(Stage):
    """A house with a caller who has been challenged, and a callee; always the same one."""

    def __init__(self, uri: str = URIS[0], callee: str = "UDP") -> None:
        self.uri = uri
        super().__init__()
        self.bob = self._callee(callee)
        self.alice.invite("sip:carol@sipha.test")
        self.alice.expect(407)
        self.alice.authorize()  # nonce count 1
        self.alice.expect(100)
        self.alice.expect(404)
        self.house.advance(40)
        self.house.raw.clear()

    def _callee(self, kind: str) -> Phone:
        bob = self.house.phone("bob", "203.0.113.2", transport="TCP" if kind == "TCP" else "UDP")
        if kind == "twice":
            self.house.phone("bob", "203.0.113.3").register()
        return bob.register(
            cflags=BEHIND_NAT if kind == "NAT" else 0,
            contact={"NAT": "sip:bob@10.0.0.1:5060", "sips": "sips:bob@203.0.113.2"}.get(kind, ""),
            path=("<sip:192.0.2.55;lr>",) if kind == "path" else (),
            methods="INVITE,ACK,BYE" if kind == "methods" else "",
        )

    def invite(self, *edits: tuple[str, str]) -> bytes:
        assert self.alice.challenge is not None
        nonce = parse_auth_params(self.alice.challenge.headers.get("Proxy-Authenticate") or "")[1]["nonce"]
        ha1, ha2 = digest.ha1("MD5", "alice", "sipha.test", PASSWORD), digest.ha2("MD5", "INVITE", self.uri)
        proof = digest.response("MD5", ha1, ha2, nonce, nc="00000002", cnonce="c", qop="auth")
        text = (
            f"INVITE {self.uri} SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.1:5060;rport;branch=z9hG4bK-plain\r\n"
            "Max-Forwards: 70\r\nFrom: <sip:alice@sipha.test>;tag=tag-alice\r\n"
            f"To: <{self.uri}>\r\nCall-ID: plain@phone\r\nCSeq: 1 INVITE\r\nContact: <{self.alice.contact}>\r\n"
            f'Proxy-Authorization: Digest username="alice", realm="sipha.test", nonce="{nonce}", uri="{self.uri}", '
            f'response="{proof}", algorithm=MD5, qop=auth, cnonce="c", nc=00000002\r\n'
            "X-Text: \r\nContent-Length: 4\r\n\r\nbodyx"
        )
        return edited(text, edits)

    def outcome(self, end: str) -> tuple[object, ...]:
        """What is sent and told the other nodes, what goes on, and what is counted, if the call ends so."""
        house, bob = self.house, self.bob
        shadows = [house.standby]
        received = [message for message in bob.received if isinstance(message, Request)]
        if received and end != "silence":
            bob.answer(received[0], 180)
            house.advance(0.1)
            if end == "failover":
                house.fail_over()
            if end == "cancel":
                cancel = Request("CANCEL", self.uri, [("Via", str(house.raw[0][0], "utf-8", "replace"))])
                cancel.headers.set("Via", "SIP/2.0/UDP 203.0.113.1:5060;rport;branch=z9hG4bK-plain")
                for name, value in (
                    ("Max-Forwards", "70"),
                    ("From", "<sip:alice@sipha.test>;tag=tag-alice"),
                    ("To", f"<{self.uri}>"),
                    ("Call-ID", "plain@phone"),
                    ("CSeq", "1 CANCEL"),
                ):
                    cancel.headers.add(name, value)
                self.parse(cancel.render())
            bob.answer(received[0], {"cancel": 487, "busy": 486, "away": 302}.get(end, 200))
        shadows.append(house.standby)
        sent = list(house.raw)
        house.advance(200)
        counters = house.layer.counters, house.proxy.counters, house.layer.responses
        told = [(shadow._shadows, shadow.counters, shadow._bytes) for shadow in shadows]
        return sent, house.raw, house.layer.transactions, counters, told


ENDS = ("answer", "busy", "away", "cancel", "failover", "silence")


@pytest.mark.parametrize("edit", [("", ""), *PLAIN, *REFUSED])
@pytest.mark.parametrize("end", ENDS)
def test_plain_invite_is_forwarded_as_one_that_is_parsed(edit: tuple[str, str], end: str) -> None:
    one, other = Scene(), Scene()
    assert one.glance(one.invite(edit))
    other.parse(other.invite(edit))
    assert one.house.raw[0][0].startswith(b"SIP/2.0 40" if edit in REFUSED else b"SIP/2.0 100 ")
    assert one.outcome(end) == other.outcome(end)


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("callee", ["UDP", "TCP", "NAT"])
def test_invite_to_any_address_of_a_user_of_ours_is_plain(uri: str, callee: str) -> None:
    one, other = Scene(uri, callee), Scene(uri, callee)
    assert one.glance(one.invite())
    other.parse(other.invite())
    assert one.outcome("answer") == other.outcome("answer")


@pytest.mark.parametrize(
    ("uri", "callee"),
    [("sip:nobody@sipha.test", "UDP"), *[(URIS[0], callee) for callee in ("twice", "path", "methods", "sips")]],
)
def test_invite_to_more_or_less_than_a_phone_is_forwarded_as_one_that_is_parsed(uri: str, callee: str) -> None:
    one, other = Scene(uri, callee), Scene(uri, callee)
    assert one.glance(one.invite())
    other.parse(other.invite())
    assert one.outcome("answer") == other.outcome("answer")


@pytest.mark.parametrize("edit", OTHER)
def test_invite_that_is_not_plain_is_left_to_the_parser(edit: tuple[str, str]) -> None:
    scene = Scene()
    assert scene.invite(edit) != scene.invite()
    assert invite.read(scene.invite(edit)) is None


@pytest.mark.parametrize("uri", STRANGE_URIS)
def test_invite_to_anything_else_is_left_to_the_parser(uri: str) -> None:
    scene = Scene(uri)
    assert not scene.glance(scene.invite())
    assert not scene.house.raw


@given(
    st.sampled_from((*URIS, *STRANGE_URIS)),
    st.sampled_from(("UDP", "TCP", "NAT", "twice", "path", "methods", "sips")),
    st.lists(st.sampled_from((*PLAIN, *OTHER, *REFUSED)), max_size=4),
    st.sampled_from(ENDS),
)
@settings(max_examples=200, deadline=None)
def test_no_invite_is_forwarded_otherwise_for_being_plain(
    uri: str, callee: str, edits: list[tuple[str, str]], end: str
) -> None:
    one, other = Scene(uri, callee), Scene(uri, callee)
    data = one.invite(*edits)
    if one.glance(data):
        other.parse(data)
        assert one.outcome(end) == other.outcome(end)


def test_copy_of_a_plain_invite_is_left_to_its_transaction() -> None:
    scene = Scene()
    data = scene.invite()
    assert scene.glance(data)
    assert not scene.glance(data)


def test_plain_invite_that_has_been_here_before_is_left_to_the_parser() -> None:
    scene = Scene()
    data = scene.invite()
    assert scene.glance(data)
    [own] = [message.via.branch for message in scene.bob.received]
    again = data.replace(b"z9hG4bK-plain", b"z9hG4bK-again").replace(b"X-Text: ", f"X-Text: {own}".encode())
    assert not scene.glance(again)


@pytest.mark.parametrize("route", ["192.0.2.99", "192.0.2.10:5070", "elsewhere.test", "sipha.test:70000"])
def test_plain_invite_with_a_route_to_anybody_else_is_left_to_the_parser(route: str) -> None:
    scene = Scene()
    data = scene.invite(("Call-ID", f"Route: <sip:{route};lr>\r\nCall-ID"))
    assert invite.read(data) is not None
    assert not scene.glance(data)
    assert not scene.house.raw


def test_plain_invite_of_a_peer_is_left_to_the_parser() -> None:
    scene = Scene()
    scene.house.proxy.adopt(House(peers=["203.0.113.0/24"]).settings)
    assert not scene.glance(scene.invite())


def test_plain_invite_waits_for_the_calls_that_are_taken_over() -> None:
    scene = Scene()
    assert scene.glance(scene.invite())
    scene.house.begin_to_lead()
    scene.alice.invite("sip:carol@sipha.test")
    scene.alice.expect(100)
    scene.alice.expect(407)
    again = scene.invite(("z9hG4bK-plain", "z9hG4bK-again"))
    assert not scene.glance(again)
    scene.house.advance(1)
    assert scene.glance(scene.invite(("z9hG4bK-plain", "z9hG4bK-again")))
