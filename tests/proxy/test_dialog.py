from __future__ import annotations

import pytest

from sipha.sip.message import Request
from sipha.sip.uri import SipUri, parse_uri
from tests.proxy.ladder import VIP, Call, House, Phone

EVIL = ("203.0.113.66", 5060)


def users(request: Request) -> list[str | None]:
    found = []
    for route in request.record_routes:
        uri = route.parsed_uri
        assert isinstance(uri, SipUri)
        found.append(uri.user)
    return found


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def call(house: House) -> Call:
    """Alice calls bob, each behind a NAT that shows another address than their Contact has."""
    alice, bob = house.phone("alice", "198.51.100.1", 40001), house.phone("bob", "198.51.100.2", 40002)
    alice.contact, bob.contact = "sip:alice@10.0.0.1:5060", "sip:bob@10.0.0.2:5060"
    alice.register()
    bob.register()
    call = house.call(alice, bob)
    call.ack()
    bob.expect("ACK")
    return call


@pytest.fixture
def evil(house: House) -> Phone:
    return house.phone("evil", *EVIL, domain="evil.test")


class TestToken:
    def test_request_of_the_caller_reaches_the_flow_of_the_callee_unchallenged(self, call: Call) -> None:
        call.by_caller("BYE")
        bye = call.callee.expect("BYE")
        assert bye.uri == "sip:bob@10.0.0.2:5060"
        assert "Route" not in bye.headers
        call.callee.answer(bye, 200)
        call.caller.expect(200)

    def test_request_of_the_callee_reaches_the_flow_of_the_caller_unchallenged(self, call: Call) -> None:
        call.by_callee("BYE")
        bye = call.caller.expect("BYE")
        assert bye.uri == "sip:alice@10.0.0.1:5060"
        call.caller.answer(bye, 200)
        call.callee.expect(200)

    def test_caller_that_sends_from_elsewhere_is_reached_where_it_listens(self, house: House) -> None:
        """A phone without rport (RFC 3581) has its answers, and so its requests, at the port of its Via (§18.2.2)."""
        alice = house.phone("alice", "198.51.100.1", 5060).account()
        alice.flow = alice.flow._replace(remote=("198.51.100.1", 49160))
        call = house.call(alice, house.phone("bob", "198.51.100.2").register())
        call.by_callee("BYE")
        bye = alice.expect("BYE")
        alice.answer(bye, 200)
        call.callee.expect(200)

    def test_caller_behind_nat_is_reached_where_it_sends_from(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1", 40001).account()
        alice.via, alice.contact = "10.0.0.1;rport", "sip:alice@10.0.0.1"
        call = house.call(alice, house.phone("bob", "198.51.100.2").register())
        call.by_callee("BYE")
        alice.expect("BYE")

    def test_via_of_the_caller_names_no_other_host(self, house: House) -> None:
        """Neither answers nor the requests of a dialog go where nobody has sent from."""
        alice, victim = house.phone("alice", "198.51.100.1", 5080).account(), house.phone("victim", EVIL[0], 5080)
        bob = house.phone("bob", "198.51.100.2").register()
        alice.invite(bob.aor)
        alice.expect(407)
        alice.via = f"{EVIL[0]}:5080;maddr={EVIL[0]}"
        alice.authorize()
        invite = bob.expect("INVITE")
        alice.expect(100)
        bob.request(
            "BYE",
            invite.contacts[0].uri,
            to="<sip:alice@sipha.test>;tag=tag-alice",
            call_id=invite.call_id,
            routes=[str(route) for route in invite.record_routes],
        )
        alice.expect("BYE")
        assert victim.silent()

    def test_reinvite_is_record_routed_with_a_token_that_works(self, call: Call) -> None:
        call.by_callee("INVITE")
        call.callee.expect(100)
        reinvite = call.caller.expect("INVITE")
        call.caller.answer(reinvite, 200)
        ok = call.callee.expect(200)
        routes = [str(route) for route in reversed(ok.record_routes)]
        call.by_callee("ACK", routes=routes)
        call.caller.expect("ACK")
        call.by_caller("INFO", routes=[str(route) for route in reinvite.record_routes])
        call.callee.expect("INFO")

    def test_update_and_prack_pass_before_the_2xx(self, house: House) -> None:
        alice, bob = house.phone("alice", "198.51.100.1").register(), house.phone("bob", "198.51.100.2").register()
        alice.invite(bob.aor)
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        invite = bob.expect("INVITE")
        bob.answer(invite, 183, ("Require", "100rel"), ("RSeq", "1"), body=b"sdp")
        early = alice.expect(183)
        assert early.body == b"sdp"
        call = Call(alice, bob, invite, early)
        call.by_caller("PRACK", headers=["RAck: 1 1 INVITE"])
        bob.answer(bob.expect("PRACK"), 200)
        alice.expect(200)
        call.by_callee("UPDATE")
        alice.expect("UPDATE")
        call.by_callee("NOTIFY", cseq=11, headers=["Event: refer"])
        alice.expect("NOTIFY")
        bob.answer(invite, 200)
        alice.expect(200)

    def test_credentials_sent_along_in_a_dialog_go_no_further(self, call: Call) -> None:
        call.by_caller(
            "BYE",
            headers=[
                'Proxy-Authorization: Digest username="alice", realm="sipha.test", nonce="n", uri="u", response="r"'
            ],
        )
        assert "Proxy-Authorization" not in call.callee.expect("BYE").headers

    def test_identity_asserted_in_a_dialog_by_no_peer_is_removed(self, call: Call) -> None:
        call.by_caller("INVITE", headers=["P-Asserted-Identity: <sip:ceo@sipha.test>"])
        assert "P-Asserted-Identity" not in call.callee.expect("INVITE").headers

    def test_strict_router_before_us_is_repaired(self, call: Call) -> None:
        # §16.4: what a strict router makes of Route: us, target bob.
        own = parse_uri(call.ok.record_routes[0].uri)
        call.by_caller("BYE", uri=str(own), routes=[f"<{call.ok.contacts[0].uri}>"])
        bye = call.callee.expect("BYE")
        assert bye.uri == "sip:bob@10.0.0.2:5060"
        assert "Route" not in bye.headers

    def test_dead_udp_flow_of_a_dialog_is_430(self, house: House, call: Call) -> None:
        call.by_caller("BYE")
        house.fail(call.callee)
        call.caller.expect(430)

    def test_failure_of_a_dialog_request_in_progress_is_a_timeout_for_invite_only(
        self, house: House, call: Call
    ) -> None:
        call.by_caller("INVITE", cseq=20)
        call.caller.expect(100)
        house.advance(7)
        call.caller.expect(408)


class TestForgery:
    @pytest.mark.parametrize("method", ["INVITE", "BYE", "INFO", "REFER", "MESSAGE", "UPDATE"])
    def test_token_of_another_dialog_is_worth_nothing(self, call: Call, evil: Phone, method: str) -> None:
        evil.request(
            method,
            "sip:bob@10.0.0.2:5060",
            to="<sip:bob@sipha.test>;tag=tag-bob",
            from_="<sip:evil@evil.test>;tag=evil",
            routes=call.route_of_caller,
        )
        evil.expect(403)
        assert call.callee.silent()

    @pytest.mark.parametrize("method", ["INVITE", "BYE", "INFO"])
    def test_forged_token_with_a_from_of_ours_is_challenged(self, call: Call, evil: Phone, method: str) -> None:
        evil.request(
            method,
            "sip:+1900@203.0.113.1",
            to="<sip:+1900@203.0.113.1>;tag=x",
            from_="<sip:alice@sipha.test>;tag=tag-alice",
            routes=[f"<sip:Zm9yZ2Vk@{VIP[0]};lr>", "<sip:203.0.113.1;lr>"],
        )
        evil.expect(407)

    def test_token_does_not_begin_a_call(self, call: Call) -> None:
        """A request without To tag is out of dialog, whatever Route it shows."""
        call.by_caller("INVITE", to="<sip:+1900@sipha.test>")
        call.caller.expect(407)
        assert call.callee.silent()

    @pytest.mark.parametrize("method", ["BYE", "INVITE", "ACK"])
    def test_route_added_behind_a_valid_token_leads_nowhere_else(
        self, house: House, call: Call, evil: Phone, method: str
    ) -> None:
        victim = house.phone("victim", "203.0.113.1")
        call.by_caller(
            method, uri="sip:+1900@203.0.113.1", routes=[*call.route_of_caller, "<sip:203.0.113.1;lr>"], cseq=30
        )
        assert victim.silent()
        assert evil.silent()
        # It goes to the other side, who is free to think of it what it likes.
        assert call.callee.expect(method).headers.all("Route") == ["<sip:203.0.113.1;lr>"]

    def test_request_uri_in_a_dialog_leads_nowhere_else(self, house: House, call: Call) -> None:
        victim = house.phone("victim", "203.0.113.1")
        call.by_caller("INFO", uri="sip:victim@203.0.113.1")
        call.callee.expect("INFO")
        assert victim.silent()

    def test_altered_token_is_refused(self, call: Call, evil: Phone) -> None:
        route = call.route_of_caller[0]
        altered = route.replace("sip:", "sip:A", 1)
        call.by_caller("BYE", routes=[altered])
        call.caller.expect(407)
        assert call.callee.silent()

    @pytest.mark.parametrize(
        "routes",
        [
            [],
            [f"<sip:Zm9yZ2Vk@{VIP[0]};lr>"],
            [f"<sip:{VIP[0]};lr>", "<sip:203.0.113.1;lr>"],
            ["<sip:203.0.113.1;lr>"],
        ],
    )
    def test_ack_without_valid_token_is_dropped(self, house: House, evil: Phone, routes: list[str]) -> None:
        victim = house.phone("bob", "203.0.113.1").register()
        evil.request("ACK", "sip:bob@203.0.113.1", to="<sip:bob@sipha.test>;tag=x", routes=routes)
        evil.request("ACK", "sip:bob@sipha.test", to="<sip:bob@sipha.test>;tag=x", routes=routes)
        assert victim.silent()
        assert evil.silent()
        assert house.dropped == 2

    def test_ack_for_a_refusal_without_state_is_absorbed(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1").account()
        alice.invite("sip:bob@sipha.test")
        alice.expect(407)
        assert house.layer.transactions == 0
        assert house.dropped == 1

    @pytest.mark.parametrize("method", ["BYE", "ACK"])
    def test_caller_that_challenges_to_slip_through_is_refused(self, call: Call, evil: Phone, method: str) -> None:
        """A BYE or an ACK with a To tag and a foreign Request-URI is no way through us."""
        evil.request(method, call.invite.uri, to="<sip:bob@sipha.test>;tag=tag-bob", call_id=call.invite.call_id)
        assert call.callee.silent()
        if method == "BYE":
            evil.expect(403)


class TestTwoSides:
    def test_one_record_route_where_nothing_changes(self, call: Call) -> None:
        assert call.invite.headers.count("Record-Route") == 1
        assert call.invite.record_routes[0].uri.endswith("@192.0.2.10:5060;lr")

    @pytest.mark.parametrize(
        ("caller", "callee", "outside", "inside"),
        [
            (("198.51.100.1", "UDP"), ("198.51.100.2", "TCP"), "192.0.2.10:5060;transport=tcp", "192.0.2.10:5060"),
            (("198.51.100.1", "TCP"), ("198.51.100.2", "UDP"), "192.0.2.10:5060", "192.0.2.10:5060;transport=tcp"),
            (("198.51.100.1", "UDP"), ("2001:db8::2", "UDP"), "[2001:db8::10]:5060", "192.0.2.10:5060"),
            (
                ("2001:db8::1", "TCP"),
                ("198.51.100.2", "UDP"),
                "192.0.2.10:5060",
                "[2001:db8::10]:5060;transport=tcp",
            ),
        ],
    )
    def test_two_record_routes_where_transport_or_family_changes(
        self, house: House, caller: tuple[str, str], callee: tuple[str, str], outside: str, inside: str
    ) -> None:
        alice = house.phone("alice", caller[0], 40001, caller[1]).register()
        bob = house.phone("bob", callee[0], 40002, callee[1]).register()
        call = house.call(alice, bob)
        token = users(call.invite)[0]
        assert users(call.invite) == [token, token]
        assert [route.uri for route in call.invite.record_routes] == [
            f"sip:{token}@{outside};lr;r2=on",
            f"sip:{token}@{inside};lr;r2=on",
        ]
        call.ack()
        assert "Route" not in bob.expect("ACK").headers
        call.by_callee("BYE")
        bye = alice.expect("BYE")
        assert "Route" not in bye.headers
        alice.answer(bye, 200)
        bob.expect(200)

    def test_one_record_route_over_tcp_alone_names_tcp(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1", 40001, "TCP").register()
        bob = house.phone("bob", "198.51.100.2", 40002, "TCP").register()
        call = house.call(alice, bob)
        assert [route.uri for route in call.invite.record_routes] == [
            f"sip:{users(call.invite)[0]}@192.0.2.10:5060;transport=tcp;lr"
        ]
        call.by_caller("BYE")
        bob.expect("BYE")


class TestStreams:
    @pytest.fixture
    def tcp_call(self, house: House) -> Call:
        alice = house.phone("alice", "198.51.100.1", 40001).register()
        bob = house.phone("bob", "198.51.100.2", 40002, "TCP")
        bob.contact = "sip:bob@10.0.0.2:5060;transport=tcp"
        bob.register()
        return house.call(alice, bob)

    def test_existing_connection_is_used(self, tcp_call: Call) -> None:
        tcp_call.by_caller("BYE")
        assert tcp_call.callee.expect("BYE").via.transport == "TCP"

    def test_lost_connection_is_430_when_nothing_else_leads_there(self, house: House, tcp_call: Call) -> None:
        house.wires.connections.clear()
        house.state.table.clear()
        tcp_call.by_caller("BYE")
        tcp_call.caller.expect(430)

    def test_dialog_goes_on_over_the_connection_of_a_new_registration(self, house: House, tcp_call: Call) -> None:
        house.wires.connections.clear()
        house.state.table.clear()
        again = house.phone("bob", "198.51.100.2", 40777, "TCP")
        again.register(contact="sip:bob@10.0.0.2:5060;transport=tcp")
        tcp_call.by_caller("BYE")
        bye = again.expect("BYE")
        assert bye.uri == "sip:bob@10.0.0.2:5060;transport=tcp"
        assert tcp_call.callee.silent()

    def test_right_one_of_several_contacts_is_found_again(self, house: House, tcp_call: Call) -> None:
        house.wires.connections.clear()
        house.state.table.clear()
        other = house.phone("bob", "198.51.100.9", 40555, "TCP").register()
        again = house.phone("bob", "198.51.100.2", 40777, "TCP")
        again.register(contact="sip:bob@10.0.0.2;transport=TCP")
        third = house.phone("bob", "198.51.100.2", 40778, "TCP").register(contact=tcp_call.callee.contact)
        tcp_call.by_caller("BYE")
        third.expect("BYE")
        assert other.silent()
        assert again.silent()

    def test_token_of_a_lost_connection_leads_to_no_other_user(self, house: House, tcp_call: Call) -> None:
        house.wires.connections.clear()
        carol = house.phone("carol", "198.51.100.2", 40003, "TCP").register()
        tcp_call.by_caller("INVITE", to="<sip:carol@sipha.test>;tag=invented")
        tcp_call.caller.expect(100)
        tcp_call.caller.expect(430)
        assert carol.silent()

    def test_token_names_who_was_called_and_not_whom_the_to_names(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1", 40001).register()
        bob = house.phone("bob", "198.51.100.2", 40002, "TCP")
        bob.contact = "sip:bob@10.0.0.2:5060;transport=tcp"
        bob.register()
        alice.invite(bob.aor, to="<sip:carol@sipha.test>")
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        invite = bob.expect("INVITE")
        bob.answer(invite, 200)
        call = Call(alice, bob, invite, alice.expect(200))
        house.wires.connections.clear()
        house.state.table.clear()
        carol = house.phone("carol", "198.51.100.3", 40003, "TCP").register()
        call.by_caller("BYE")
        alice.expect(430)
        assert carol.silent()

    def test_anonymous_caller_is_not_reached_by_the_name_of_another(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1", 40001, "TCP").account()
        alice.contact = "sip:alice@10.0.0.1:5060;transport=tcp"
        bob = house.phone("bob", "198.51.100.2", 40002).register()
        alice.invite(bob.aor, from_="<sip:anonymous@anonymous.invalid>;tag=tag-alice")
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        invite = bob.expect("INVITE")
        bob.answer(invite, 200)
        call = Call(alice, bob, invite, alice.expect(200))
        house.wires.connections.clear()
        house.state.table.clear()
        carol = house.phone("carol", "198.51.100.3", 40003, "TCP").register()
        bob.request(
            "BYE",
            invite.contacts[0].uri,
            from_="<sip:bob@sipha.test>;tag=tag-bob",
            to="<sip:carol@sipha.test>;tag=tag-alice",
            call_id=invite.call_id,
            routes=call.route_of_callee,
        )
        bob.expect(430)
        assert carol.silent()

    def test_number_in_the_from_of_a_stranger_makes_it_nobody_of_ours(self) -> None:
        house = House(allow_inbound=True)
        evil = house.phone("evil", *EVIL, "TCP", domain="evil.test")
        evil.contact = "sip:evil@10.0.0.6:5060;transport=tcp"
        bob = house.phone("bob", "198.51.100.2", 40002).register()
        evil.invite(bob.aor, from_="<tel:+15551234>;tag=tag-evil")
        evil.expect(100)
        invite = bob.expect("INVITE")
        bob.answer(invite, 200)
        call = Call(evil, bob, invite, evil.expect(200))
        house.wires.connections.clear()
        carol = house.phone("+15551234", "198.51.100.3", 40003, "TCP").register()
        bob.request(
            "BYE",
            invite.contacts[0].uri,
            from_="<sip:bob@sipha.test>;tag=tag-bob",
            to="<tel:+15551234>;tag=tag-evil",
            call_id=invite.call_id,
            routes=call.route_of_callee,
        )
        bob.expect(430)
        assert carol.silent()

    def test_caller_is_found_again_by_the_route_of_a_reinvite(self, house: House) -> None:
        """The token that a request within the dialog gets says whose phones they are, too."""
        alice = house.phone("alice", "198.51.100.1", 40001, "TCP")
        alice.contact = "sip:alice@10.0.0.1:5060;transport=tcp"
        alice.register()
        bob = house.phone("bob", "198.51.100.2", 40002).register()
        call = house.call(alice, bob)
        call.by_caller("INVITE")
        alice.expect(100)
        routes = [str(route) for route in bob.expect("INVITE").record_routes]
        house.wires.connections.clear()
        house.state.table.clear()
        again = house.phone("alice", "198.51.100.9", 40777, "TCP")
        again.register(contact=alice.contact)
        call.by_callee("INFO", routes=routes)
        again.expect("INFO")

    def test_listener_of_the_other_side_is_connected_to(self, house: House) -> None:
        """A phone that isn't behind NAT listens at its Contact, whatever port it called from."""
        alice = house.phone("alice", "198.51.100.1", 40001, "TCP")
        alice.contact = "sip:alice@198.51.100.1:5060;transport=tcp"
        alice.account()
        bob = house.phone("bob", "198.51.100.2").register()
        call = house.call(alice, bob)
        house.wires.connections.clear()
        call.by_callee("BYE")
        listener = house.phone("alice", "198.51.100.1", 5060, "TCP")
        listener.expect("BYE")
