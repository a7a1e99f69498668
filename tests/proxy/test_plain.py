"""Requests within dialogs, forwarded at a glance: each is compared with what becomes of it when it is parsed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.proxy import plain
from tests.proxy.stage import Stage, edited

METHODS = ("ACK", "BYE", "INFO", "PRACK", "UPDATE")

PLAIN = (
    ("Max-Forwards: 70", "Max-Forwards: 1"),
    ("Max-Forwards: 70", "User-Agent: phone/1.0 (x)\r\nMax-Forwards: 255"),
    ("From: <", 'From: "Alice A." <'),
    ("To: <", 'To: "Bob"<'),
    (";rport", ";alias;rport;keep=30"),
    ("Content-Length: 0", "Content-Length: 1"),
    ("Call-ID", "Via: SIP/2.0/UDP 192.0.2.99;branch=z9hG4bKbelow\r\nReason: Q.850;cause=16\r\nCall-ID"),
    (" SIP/2.0\r\n", ";ob;transport=udp SIP/2.0\r\n"),
    ("X-Text: \r\n", "X-Text: \udcff\udcfe\r\n"),
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
    ("From: <", 'From: "A \\"" <'),
    ("Call-ID: ", "Call-ID:\r\n "),
    ("Content-Length: 0\r\n", ""),
    ("Content-Length: 0", "Content-Length: 99999"),
    ("CSeq: ", "CSeq: 0"),
    ("CSeq: ", "CSeq: 2 BYE\r\nCSeq: "),
    ("Call-ID: ", "Call-ID: other\r\nCall-ID: "),
    ("From: <", "From: <sip:alice@sipha.test>;tag=1\r\nFrom: <"),
    ("To: <", "To: <sip:bob@sipha.test>;tag=1\r\nTo: <"),
    ("Content-Length: ", "Content-Length: 0\r\nContent-Length: "),
    (";rport", ""),
    (";rport", ";rport=5"),
    (";rport", ";received=1.2.3.4;rport"),
    ("branch=z9hG4bK", "branch="),
    ("z9hG4bK-plain", "z9hG4bK-plain;"),
    (" SIP/2.0\r\n", ";ob; SIP/2.0\r\n"),
    (";lr>", ";lr;r2=on>"),
    (";lr>", ";lr>, <sip:192.0.2.77;lr>"),
    (";lr>\r\n", ";lr>\r\nRoute: <sip:192.0.2.77;lr>\r\n"),
    (" SIP/2.0\r\n", ";lr SIP/2.0\r\n"),
    (" SIP/2.0\r\n", ";maddr=192.0.2.10 SIP/2.0\r\n"),
    (" SIP/2.0\r\n", "?Subject=x SIP/2.0\r\n"),
    ("Call-ID", "Proxy-Authorization: Digest x\r\nCall-ID"),
    ("Call-ID", "Proxy-Require: x\r\nCall-ID"),
    ("Call-ID", "p-asserted-identity: <sip:eve@sipha.test>\r\nCall-ID"),
    ("Call-ID", "P-Asserted-Identity: <sip:eve@sipha.test>\r\nCall-ID"),
    ("X-Text: ", "X-Text: \r"),
    ("X-Text: ", "X-Text: \n"),
)
"""What isn't plain."""


class Scene(Stage):
    """A house in which a call is established, always the same one."""

    def __init__(self, transport: str = "UDP") -> None:
        super().__init__()
        self.bob = self.house.phone("bob", "203.0.113.2", transport=transport).register()
        self.call = self.house.call(self.alice, self.bob)
        self.house.raw.clear()

    def request(self, method: str, *edits: tuple[str, str]) -> bytes:
        """A request of the caller's, with a single Route even where there were two Record-Routes."""
        token = self.call.route_of_caller[0].partition(":")[2].partition("@")[0]
        text = (
            f"{method} {self.bob.contact} SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.1:5060;rport;branch=z9hG4bK-plain\r\n"
            f"Max-Forwards: 70\r\nRoute: <sip:{token}@192.0.2.10:5060;lr>\r\n"
            f"From: {self.call.ok.headers.get('From')}\r\nTo: {self.call.ok.headers.get('To')}\r\n"
            f"Call-ID: {self.call.invite.call_id}\r\nCSeq: 2 {method}\r\nX-Text: \r\nContent-Length: 0\r\n\r\nx"
        )
        return edited(text, edits)

    def outcome(self) -> tuple[object, ...]:
        """What has been sent, what goes on, and what was counted."""
        house = self.house
        sent = list(house.raw)
        house.advance(40)
        counters = house.layer.counters, house.proxy.counters, house.layer.responses
        return sent, house.raw, house.layer.transactions, counters


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("edit", [("", ""), *PLAIN])
def test_plain_request_is_forwarded_as_one_that_is_parsed(method: str, edit: tuple[str, str]) -> None:
    one, other = Scene(), Scene()
    assert one.glance(one.request(method, edit))
    other.parse(other.request(method, edit))
    assert one.outcome() == other.outcome()
    assert one.house.raw[0][0].startswith(method.encode())


@pytest.mark.parametrize("edit", OTHER)
def test_request_that_is_not_plain_is_left_to_the_parser(edit: tuple[str, str]) -> None:
    scene = Scene()
    assert scene.request("BYE", edit) != scene.request("BYE")
    assert plain.read(scene.request("BYE", edit)) is None


@given(
    st.sampled_from(METHODS), st.lists(st.sampled_from((*PLAIN, *OTHER)), max_size=4), st.sampled_from(("UDP", "TCP"))
)
@settings(max_examples=150, deadline=None)
def test_no_request_is_forwarded_otherwise_for_being_plain(
    method: str, edits: list[tuple[str, str]], transport: str
) -> None:
    one, other = Scene(transport), Scene(transport)
    data = one.request(method, *edits)
    if one.glance(data):
        other.parse(data)
        assert one.outcome() == other.outcome()


def test_copy_of_a_plain_request_is_left_to_its_transaction() -> None:
    scene = Scene()
    data = scene.request("BYE")
    assert scene.glance(data)
    assert not scene.glance(data)


def test_ack_with_the_branch_of_its_invite_is_left_to_its_transaction() -> None:
    scene = Scene()
    branch = scene.call.invite.vias[1].branch or ""
    assert not scene.glance(scene.request("ACK", ("z9hG4bK-plain", branch)))
    assert scene.glance(scene.request("BYE", ("z9hG4bK-plain", branch)))


@pytest.mark.parametrize(
    "edit", [("Call-ID: ", "Call-ID: x"), (";tag=tag-alice", ";tag=eve"), (":5060;lr", ":5061;lr")]
)
def test_plain_request_whose_route_proves_no_dialog_is_left_to_the_parser(edit: tuple[str, str]) -> None:
    scene = Scene()
    data = scene.request("BYE", edit)
    assert plain.read(data) is not None
    assert not scene.glance(data)


def test_plain_request_to_a_connection_that_is_gone_is_left_to_the_parser() -> None:
    scene = Scene("TCP")
    assert scene.glance(scene.request("INFO"))
    scene.house.wires.connections.clear()
    assert not scene.glance(scene.request("INFO", ("z9hG4bK-plain", "z9hG4bK-again")))


def test_ack_for_a_response_of_our_own_is_not_forwarded() -> None:
    scene = Scene()
    call, tokens = scene.call, scene.house.tokens
    own = tokens.tag(call.invite.call_id, "tag-alice", 2, "203.0.113.1:5060 z9hG4bK-plain")
    assert not scene.glance(scene.request("ACK", (";tag=tag-bob", f";tag={own}")))


def test_plain_request_waits_for_the_calls_that_are_taken_over() -> None:
    scene = Scene()
    data = scene.request("BYE")
    scene.alice.invite(scene.bob.aor)
    scene.alice.expect(407)
    scene.alice.authorize()
    scene.house.begin_to_lead()
    assert not scene.glance(data)
    scene.house.advance(1)
    assert scene.glance(data)
