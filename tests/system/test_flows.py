"""Calls between transports, address families and networks, through three real nodes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sipha.sandbox import Sandbox
from sipha.sip.message import Request
from sipha.sip.uri import SipUri
from tests.system.ua import Call, UserAgent, call

pytestmark = pytest.mark.system

Agents = Callable[..., UserAgent]
BOB = "sip:bob@sipha.test"
V4, V6 = "127.0.21.10", "::1"


def record_routes(request: Request) -> list[tuple[str, str]]:
    """The host and transport of each Record-Route, whose users must be the same token."""
    uris = [route.parsed_uri for route in request.record_routes]
    assert all(isinstance(uri, SipUri) for uri in uris)
    assert len({uri.user for uri in uris if isinstance(uri, SipUri)}) == 1
    return [(uri.host, uri.transport) for uri in uris if isinstance(uri, SipUri)]


class TestTwoSides:
    @pytest.mark.parametrize(
        ("caller", "callee", "routes"),
        [
            ((V4, "UDP"), (V4, "UDP"), [(V4, "UDP")]),
            ((V4, "TCP"), (V4, "TCP"), [(V4, "TCP")]),
            ((V4, "UDP"), (V4, "TCP"), [(V4, "TCP"), (V4, "UDP")]),
            ((V4, "TCP"), (V4, "UDP"), [(V4, "UDP"), (V4, "TCP")]),
            ((V4, "UDP"), (V6, "UDP"), [("[::1]", "UDP"), (V4, "UDP")]),
            ((V6, "UDP"), (V4, "UDP"), [(V4, "UDP"), ("[::1]", "UDP")]),
            ((V6, "UDP"), (V6, "UDP"), [("[::1]", "UDP")]),
            ((V6, "TCP"), (V4, "UDP"), [(V4, "UDP"), ("[::1]", "TCP")]),
            ((V4, "TCP"), (V6, "TCP"), [("[::1]", "TCP"), (V4, "TCP")]),
        ],
    )
    def test_both_sides_talk_by_record_routes_of_their_own(
        self, agents: Agents, caller: tuple[str, str], callee: tuple[str, str], routes: list[tuple[str, str]]
    ) -> None:
        alice = agents("alice", caller[1], server=caller[0])
        bob = agents("bob", callee[1], server=callee[0]).register()
        established = call(alice, bob)
        assert record_routes(established.invite) == routes
        for method in ("INFO", "INVITE", "UPDATE"):
            for by_callee in (False, True):
                request = established.exchange(method, by_callee=by_callee)
                assert "Route" not in request.headers
                assert request.uri == (alice if by_callee else bob).contact
        established.exchange("BYE", by_callee=True)

    @pytest.mark.parametrize("server", [V4, V6])
    @pytest.mark.parametrize("transport", ["UDP", "TCP"])
    def test_request_uri_with_the_virtual_address_means_the_default_domain(
        self, agents: Agents, server: str, transport: str
    ) -> None:
        alice, bob = agents("alice", transport, server=server), agents("bob").register()
        host = f"[{server}]" if ":" in server else server
        alice.invite(f"sip:bob@{host}")
        bob.answer(bob.expect("INVITE"), 486)
        alice.expect(486)


class TestConnections:
    @pytest.fixture
    def alice(self, agents: Agents) -> UserAgent:
        return agents("alice")

    @pytest.fixture
    def bob(self, agents: Agents) -> UserAgent:
        """A phone that has connected and listens nowhere."""
        return agents("bob", "TCP").register()

    def test_keepalive_is_answered(self, alice: UserAgent, bob: UserAgent) -> None:
        bob.send(b"\r\n\r\n")
        bob.expect_pong()
        call(alice, bob).exchange("BYE")
        bob.send(b"\r\n\r\n")
        bob.expect_pong()

    def test_zeros_over_udp_are_not(self, alice: UserAgent) -> None:
        alice.send(bytes(4))
        alice.settle()
        assert alice.silent

    def test_message_may_come_in_pieces_and_several_at_once(self, alice: UserAgent, bob: UserAgent) -> None:
        alice.request("MESSAGE", BOB, body="hello")
        alice.expect(407)
        alice.authorize()
        message = bob.expect("MESSAGE")
        assert message.body == b"hello"
        server = f"sip:{V4}"
        options = [
            f"OPTIONS {server} SIP/2.0\r\nVia: SIP/2.0/TCP {bob.via};branch=z9hG4bK-piece-{number}\r\n"
            f"From: <sip:bob@sipha.test>;tag=p\r\nTo: <{server}>\r\nCall-ID: pieces\r\nCSeq: {number} OPTIONS\r\n"
            f"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
            for number in (1, 2, 3)
        ]
        data = "".join(options).encode()
        for begin in range(0, len(data), 150):
            bob.send(data[begin : begin + 150])
            time.sleep(0.005)
        assert [bob.expect(200).cseq.number for _ in options] == [1, 2, 3]
        bob.answer(message, 200)
        alice.expect(200)

    def test_contact_whose_connection_is_gone_is_480_at_once(self, alice: UserAgent, bob: UserAgent) -> None:
        bob.close()
        alice.invite(BOB)
        alice.expect(480, within=1)

    def test_contact_whose_connection_is_gone_leaves_the_other_fork_alone(
        self, agents: Agents, alice: UserAgent, bob: UserAgent
    ) -> None:
        desk = agents("bob").register()
        bob.close()
        call(alice, desk).exchange("BYE")

    def test_connection_that_breaks_while_it_rings_ends_its_fork_alone(
        self, agents: Agents, alice: UserAgent, bob: UserAgent
    ) -> None:
        desk = agents("bob").register()
        alice.invite(BOB)
        bob.answer(bob.expect("INVITE"), 180)
        alice.expect(180)
        at_desk = desk.expect("INVITE")
        bob.close()
        desk.answer(at_desk, 200)
        Call(alice, desk, at_desk, alice.expect(200)).acknowledge().exchange("BYE")

    def test_connection_that_breaks_while_it_rings_is_480(self, alice: UserAgent, bob: UserAgent) -> None:
        alice.invite(BOB)
        bob.answer(bob.expect("INVITE"), 180)
        alice.expect(180)
        bob.close()
        alice.expect(480, within=1)

    def test_dialog_whose_connection_is_gone_is_430(self, alice: UserAgent, bob: UserAgent) -> None:
        established = call(alice, bob)
        bob.close()
        established.by_caller("BYE")
        alice.expect(430, within=1)

    def test_dialog_goes_on_over_the_connection_of_a_new_registration(
        self, agents: Agents, alice: UserAgent, bob: UserAgent
    ) -> None:
        established = call(alice, bob)
        bob.close()
        again = agents("bob", "TCP", host=bob.host, contact=bob.contact).register()
        established.callee = again
        established.exchange("INFO")
        established.exchange("INFO", by_callee=True)
        established.exchange("BYE")

    def test_caller_over_tcp_is_reached_on_its_connection(self, agents: Agents, alice: UserAgent) -> None:
        carol, bob = agents("carol", "TCP"), agents("bob").register()
        established = call(carol, bob)
        established.exchange("INFO", by_callee=True)
        carol.close()
        established.by_callee("BYE")
        bob.expect(430, within=1)

    def test_two_users_on_one_host_have_their_calls_on_their_own_connections(self, agents: Agents) -> None:
        bob, carol = (agents(user, "TCP", host="127.0.21.77").register() for user in ("bob", "carol"))
        call(bob, carol).exchange("BYE")
        call(carol, bob).exchange("BYE")

    def test_phone_that_has_connected_anew_is_called_on_its_new_connection(
        self, agents: Agents, alice: UserAgent, bob: UserAgent
    ) -> None:
        again = agents("bob", "TCP", host=bob.host, contact=bob.contact).register()
        established = call(alice, again)
        established.exchange("INFO")
        established.exchange("BYE", by_callee=True)
        assert bob.silent

    def test_phone_that_will_send_no_more_is_answered(self, bob: UserAgent) -> None:
        bob.request("OPTIONS", f"sip:{V4}")
        bob.end()
        bob.expect(200)

    @pytest.mark.parametrize("transport", ["UDP", "TCP"])
    def test_large_body_arrives_whole(self, agents: Agents, transport: str) -> None:
        alice, bob = agents("alice", transport), agents("bob", transport).register()
        body = "0123456789abcdef\r\n" * 2000
        alice.request("MESSAGE", BOB, headers=["Content-Type: text/plain"], body=body)
        alice.expect(407)
        alice.authorize()
        message = bob.expect("MESSAGE")
        assert message.body == body.encode()
        bob.answer(message, 200, body=body.encode())
        assert alice.expect(200).body == body.encode()

    def test_caller_that_is_gone_leaves_the_callee_no_worse(self, agents: Agents, alice: UserAgent) -> None:
        carol, bob = agents("carol", "TCP"), agents("bob").register()
        carol.invite(BOB)
        at_bob = bob.expect("INVITE")
        carol.close()
        bob.answer(at_bob, 180)
        bob.answer(at_bob, 486)
        bob.expect("ACK")
        call(alice, bob).exchange("BYE")


class TestNextLeader:
    """What a token says, the next leader reads: dialogs outlive the process that saw them begin."""

    @pytest.fixture
    def fail_over(self, sandbox: Sandbox) -> Callable[[], None]:
        def fail_over() -> None:
            sandbox.kill(sandbox.wait_for_leader())
            sandbox.wait_for_leader()

        return fail_over

    @pytest.mark.parametrize(("server", "by_callee"), [(V4, True), (V6, False)])
    def test_dialog_goes_on_over_udp(
        self, agents: Agents, fail_over: Callable[[], None], server: str, by_callee: bool
    ) -> None:
        alice, bob = agents("alice"), agents("bob", server=server).register()
        established = call(alice, bob)
        fail_over()
        for method in ("INFO", "INVITE"):
            established.exchange(method, by_callee=not by_callee)
            established.exchange(method, by_callee=by_callee)
        established.exchange("BYE", by_callee=by_callee)

    def test_dialog_goes_on_over_tcp_once_the_phones_have_connected_anew(
        self, agents: Agents, fail_over: Callable[[], None]
    ) -> None:
        alice, bob = agents("alice", "TCP").register(), agents("bob", "TCP").register()
        established = call(alice, bob)
        fail_over()
        for phone in (alice, bob):
            phone.connect()
            phone.register()
        established.exchange("INFO")
        established.exchange("BYE", by_callee=True)

    def test_call_after_the_failover_needs_no_registration(self, agents: Agents, fail_over: Callable[[], None]) -> None:
        alice, bob = agents("alice"), agents("bob").register()
        fail_over()
        call(alice, bob).exchange("BYE")


class TestNat:
    """The Contact has a private address that nobody reaches; the phone is where its packets come from."""

    @pytest.mark.parametrize("transport", ["UDP", "TCP"])
    def test_phones_behind_nat_are_reached_where_they_are(self, agents: Agents, transport: str) -> None:
        suffix = ";transport=tcp" if transport == "TCP" else ""
        alice = agents("alice", transport, contact=f"sip:alice@10.255.1.2:5060{suffix}")
        bob = agents("bob", transport, contact=f"sip:bob@192.168.255.3:5060{suffix}").register()
        alice.via = bob.via = "10.255.1.2:5060"
        established = call(alice, bob)
        assert established.invite.uri == bob.contact
        for method in ("INFO", "INVITE"):
            assert established.exchange(method).uri == bob.contact
            assert established.exchange(method, by_callee=True).uri == alice.contact
        established.exchange("BYE", by_callee=True)

    def test_phone_behind_nat_hears_that_it_is_cancelled(self, agents: Agents) -> None:
        alice = agents("alice", contact="sip:alice@10.255.1.2:5060")
        bob = agents("bob", contact="sip:bob@192.168.255.3:5060").register()
        alice.via = "10.255.1.2:5060"
        invite = alice.invite(BOB)
        at_bob = bob.expect("INVITE")
        bob.answer(at_bob, 180)
        alice.expect(180)
        alice.cancel(invite)
        alice.expect(200)
        bob.answer(bob.expect("CANCEL"), 200)
        bob.answer(at_bob, 487)
        bob.expect("ACK")
        alice.expect(487)

    def test_phones_that_send_from_another_port_are_reached_where_they_listen(self, agents: Agents) -> None:
        alice, bob = agents("alice", asymmetric=True), agents("bob", asymmetric=True).register()
        established = call(alice, bob)
        for method in ("INFO", "INVITE"):
            established.exchange(method)
            established.exchange(method, by_callee=True)
        established.exchange("BYE", by_callee=True)

    def test_contact_that_points_at_someone_else_sends_nothing_there(self, agents: Agents) -> None:
        victim = agents("victim")
        bob = agents("bob", contact=f"sip:bob@{victim.via}").register()
        call(agents("alice"), bob).exchange("BYE")
        assert victim.silent
