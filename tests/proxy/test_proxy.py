from __future__ import annotations

import pytest

from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.state.binding import BEHIND_NAT
from tests.proxy.ladder import VIP, VIP6, House, Phone


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def alice(house: House) -> Phone:
    return house.phone("alice", "198.51.100.1").register()


@pytest.fixture
def bob(house: House) -> Phone:
    return house.phone("bob", "198.51.100.2").register()


def send(alice: Phone, method: str, uri: str, **options: object) -> None:
    """Send a request and answer the challenge."""
    alice.request(method, uri, **options)  # type: ignore[arg-type]
    alice.expect(407)
    alice.authorize()


class TestValidation:
    """§16.3."""

    @pytest.mark.parametrize(
        "uri", ["urn:service:sos", "http://example.com/", "mailto:bob@sipha.test", "im:bob@x.test"]
    )
    def test_unknown_scheme_is_416(self, alice: Phone, uri: str) -> None:
        alice.invite(uri)
        alice.expect(416)

    @pytest.mark.parametrize("method", ["INVITE", "OPTIONS", "MESSAGE", "FOO"])
    def test_no_hop_left_is_483(self, alice: Phone, bob: Phone, method: str) -> None:
        alice.request(method, bob.aor, max_forwards=0)
        alice.expect(483)

    @pytest.mark.parametrize("method", ["INVITE", "OPTIONS", "ACK"])
    @pytest.mark.parametrize("uri", ["sip:sipha.test;lr", "sip:bob@sipha.test;lr", f"sip:{VIP[0]};lr"])
    def test_route_without_a_value_is_no_strict_routers(
        self, house: House, alice: Phone, method: str, uri: str
    ) -> None:
        for routes in ([""], [","], [",", ", ,"]):
            alice.request(method, uri, routes=routes)
        assert not house.errors

    def test_request_for_us_needs_no_hop(self, alice: Phone) -> None:
        alice.request("OPTIONS", "sip:sipha.test", max_forwards=0)
        alice.expect(200)

    def test_ack_without_hop_left_is_dropped(self, house: House, alice: Phone, bob: Phone) -> None:
        call = house.call(alice, bob)
        call.by_caller("ACK", max_forwards=0)
        assert bob.silent()

    def test_hops_are_counted_down_and_begin_at_70(self, alice: Phone, bob: Phone) -> None:
        send(alice, "MESSAGE", bob.aor, max_forwards=5)
        send(alice, "MESSAGE", bob.aor, max_forwards=None)
        assert [bob.expect("MESSAGE").max_forwards for _ in range(2)] == [4, 70]

    def test_malformed_max_forwards_is_400(self, alice: Phone, bob: Phone) -> None:
        alice.invite(bob.aor, max_forwards=None, headers=["Max-Forwards: many"])
        alice.expect(400)

    def test_proxy_require_is_420_with_what_we_lack(self, alice: Phone, bob: Phone) -> None:
        alice.invite(bob.aor, headers=["Proxy-Require: foo, bar"])
        assert alice.expect(420).headers.get("Unsupported") == "foo, bar"

    def test_require_is_the_callees_business(self, alice: Phone, bob: Phone) -> None:
        send(alice, "INVITE", bob.aor, headers=["Require: foo"])
        bob.expect("INVITE")

    @pytest.mark.parametrize("breadth", ["many", "-1", "", "1" * 30])
    def test_malformed_max_breadth_is_400(self, alice: Phone, bob: Phone, breadth: str) -> None:
        send(alice, "MESSAGE", bob.aor, headers=[f"Max-Breadth: {breadth}"])
        alice.expect(400)

    @pytest.mark.parametrize("route", ["<sip:", "rubbish", '"', "<sip:192.0.2.10;lr>, @"])
    def test_malformed_route_is_400(self, house: House, alice: Phone, bob: Phone, route: str) -> None:
        alice.invite(bob.aor, routes=[route])
        alice.expect(400)
        alice.request("ACK", bob.aor, routes=[route])
        assert not house.errors
        assert bob.silent()

    def test_refusal_has_the_same_tag_for_each_copy(self, house: House, alice: Phone) -> None:
        request = alice.request("MESSAGE", "sip:x@y.test", max_forwards=0)
        house.receive(request.copy().render(), alice.flow)
        assert alice.expect(483).to.tag == alice.expect(483).to.tag


class TestTargets:
    """§16.5."""

    def test_unknown_user_is_404_and_known_one_without_binding_480(self, house: House, alice: Phone) -> None:
        house.phone("carol", "198.51.100.3").account()
        send(alice, "MESSAGE", "sip:nobody@sipha.test")
        alice.expect(404)
        send(alice, "MESSAGE", "sip:carol@sipha.test")
        alice.expect(480)

    @pytest.mark.parametrize(
        "uri",
        [
            "sip:bob@sipha.test",
            "sip:bob@SIPHA.test:5060;user=phone",
            "sip:%62ob@sipha.test",
            "sip:bob@alias.test",
            f"sip:bob@{VIP[0]}",
            f"sip:bob@{VIP[0]}:5060;transport=tcp",
            f"sip:bob@[{VIP6[0]}]",
            "sip:bob@[2001:0DB8:0:0:0:0:0:0010]:5060",
        ],
    )
    def test_user_is_found_by_every_name_of_ours(self, alice: Phone, bob: Phone, uri: str) -> None:
        send(alice, "MESSAGE", uri)
        assert bob.expect("MESSAGE").uri == bob.contact

    @pytest.mark.parametrize("uri", [f"sip:bob@{VIP[0]}:5070", "sip:bob@sipha.test.evil.test", "sip:bob@192.0.2.11"])
    def test_what_only_looks_like_us_is_elsewhere(self, alice: Phone, bob: Phone, uri: str) -> None:
        send(alice, "MESSAGE", uri)
        assert bob.silent()

    def test_number_of_a_tel_uri_is_looked_for_among_our_users(self, house: House, alice: Phone) -> None:
        dave = house.phone("+15550100", "198.51.100.4").register()
        send(alice, "INVITE", "tel:+1-555-0100;phone-context=x")
        alice.expect(100)
        assert dave.expect("INVITE").uri == dave.contact

    def test_other_tel_uri_is_416(self, alice: Phone) -> None:
        send(alice, "INVITE", "tel:+1-555-0199")
        alice.expect(100)
        alice.expect(416)

    @pytest.mark.parametrize(
        "uri", ["sips:bob@sipha.test", "sips:bob@198.51.100.2", "sips:bob@198.51.100.2;transport=tcp"]
    )
    def test_sips_never_leaves_without_tls(self, house: House, alice: Phone, bob: Phone, uri: str) -> None:
        send(alice, "MESSAGE", uri)
        alice.expect(480)
        assert bob.silent()
        assert house.inbox["TCP", bob.address] == []

    def test_sips_never_leaves_without_tls_in_a_dialog(self, house: House, alice: Phone, bob: Phone) -> None:
        call = house.call(alice, bob)
        call.by_caller("BYE", uri="sips:bob@198.51.100.2")
        alice.expect(430)
        assert bob.silent()

    def test_secure_contact_of_an_insecure_flow_is_unreachable(self, house: House, alice: Phone) -> None:
        house.phone("carol", "198.51.100.3").register(contact="sips:carol@198.51.100.3")
        send(alice, "MESSAGE", "sip:carol@sipha.test")
        alice.expect(480)

    def test_foreign_host_name_fails(self, alice: Phone) -> None:
        send(alice, "MESSAGE", "sip:x@example.org")
        alice.expect(500)

    def test_foreign_address_is_forwarded_as_written(self, house: House, alice: Phone) -> None:
        there = house.phone("x", "203.0.113.9", 5070)
        send(alice, "MESSAGE", "sip:x@203.0.113.9:5070;a=B;C")
        assert there.expect("MESSAGE").uri == "sip:x@203.0.113.9:5070;a=B;C"


class TestNextHop:
    """§16.6 step 7."""

    def test_nated_contact_is_reached_where_it_registered_from(self, house: House, alice: Phone) -> None:
        carol = house.phone("carol", "198.51.100.3", 43210).register(contact="sip:carol@10.1.1.1:5062;x=y")
        send(alice, "MESSAGE", carol.aor)
        assert carol.expect("MESSAGE").uri == "sip:carol@10.1.1.1:5062;x=y"

    def test_contact_on_the_host_that_registered_it_is_reached_at_its_own_port(
        self, house: House, alice: Phone
    ) -> None:
        registering = house.phone("carol", "198.51.100.3", 43210)
        registering.register(contact="sip:carol@198.51.100.3:5062")
        send(alice, "MESSAGE", registering.aor)
        house.phone("carol", "198.51.100.3", 5062).expect("MESSAGE")

    def test_phone_found_behind_nat_is_reached_at_no_other_port_than_it_registered_from(
        self, house: House, alice: Phone
    ) -> None:
        bob = house.phone("bob", "203.0.113.9", 40123).register(contact="sip:bob@203.0.113.9:5062", cflags=BEHIND_NAT)
        send(alice, "MESSAGE", bob.aor)
        assert bob.expect("MESSAGE").uri == "sip:bob@203.0.113.9:5062"

    def test_connection_of_a_tcp_phone_is_reused(self, house: House, alice: Phone) -> None:
        carol = house.phone("carol", "198.51.100.3", 43210, "TCP")
        carol.register(contact="sip:carol@198.51.100.3:5060;transport=tcp")
        send(alice, "MESSAGE", carol.aor)
        assert carol.expect("MESSAGE").via.transport == "TCP"
        assert house.raw[-1][1].connection == carol.flow.connection

    def test_tcp_phone_that_listens_is_connected_to(self, house: House, alice: Phone) -> None:
        carol = house.phone("carol", "198.51.100.3", 43210, "TCP")
        carol.register(contact="sip:carol@198.51.100.3:5060;transport=tcp")
        house.wires.connections.clear()
        send(alice, "MESSAGE", carol.aor)
        assert house.inbox["TCP", ("198.51.100.3", 5060)]

    @pytest.mark.parametrize("contact", ["sip:carol@10.1.1.1;transport=tcp", "sip:carol@abc.invalid;transport=tcp"])
    def test_tcp_phone_behind_nat_is_gone_with_its_connection(self, house: House, alice: Phone, contact: str) -> None:
        carol = house.phone("carol", "198.51.100.3", 43210, "TCP")
        carol.register(contact=contact)
        house.wires.connections.clear()
        send(alice, "MESSAGE", carol.aor)
        alice.expect(480)

    def test_path_is_pushed_as_route_and_leads(self, house: House, alice: Phone) -> None:
        edge = house.phone("edge", "203.0.113.5", 5080)
        house.phone("carol", "198.51.100.3").register(
            path=("<sip:token@203.0.113.5:5080;lr;ob>", "<sip:inner.test;lr>"), contact="sip:carol@10.0.0.9"
        )
        send(alice, "MESSAGE", "sip:carol@sipha.test")
        message = edge.expect("MESSAGE")
        assert message.uri == "sip:carol@10.0.0.9"
        assert [route.uri for route in message.routes] == ["sip:token@203.0.113.5:5080;lr;ob", "sip:inner.test;lr"]

    def test_strict_router_gets_its_own_uri_and_the_target_as_last_route(self, house: House, alice: Phone) -> None:
        strict = house.phone("strict", "203.0.113.5")
        send(
            alice,
            "INFO",
            "sip:x@203.0.113.9",
            routes=[f"<sip:{VIP[0]};lr>", "<sip:203.0.113.5>", "<sip:203.0.113.6;lr>"],
        )
        info = strict.expect("INFO")
        assert info.uri == "sip:203.0.113.5"
        assert [route.uri for route in info.routes] == ["sip:203.0.113.6;lr", "sip:x@203.0.113.9"]

    def test_loose_route_of_a_user_is_followed(self, house: House, alice: Phone, bob: Phone) -> None:
        outbound = house.phone("p", "203.0.113.5", 5080, "TCP")
        send(alice, "INFO", bob.aor, routes=["<sip:sipha.test;lr>, <sip:203.0.113.5:5080;lr;transport=TCP>"])
        info = outbound.expect("INFO")
        assert info.uri == bob.contact
        assert len(info.routes) == 1

    def test_maddr_of_ours_is_stripped(self, alice: Phone, bob: Phone) -> None:
        send(alice, "MESSAGE", f"sip:bob@sipha.test;maddr={VIP[0]};x")
        assert bob.expect("MESSAGE").uri == bob.contact

    @pytest.mark.parametrize(
        ("contact", "uri"),
        [
            ("sip:carol@198.51.100.3;method=BYE;x", "sip:carol@198.51.100.3;x"),
            ("sip:carol@198.51.100.3?Route=%3Csip:203.0.113.9%3E&Subject=x", "sip:carol@198.51.100.3"),
            ("sip:a;b=c+%2B@198.51.100.3", "sip:a;b=c+%2B@198.51.100.3"),
        ],
    )
    def test_contact_becomes_the_request_uri_without_what_may_not_stand_there(
        self, house: House, alice: Phone, contact: str, uri: str
    ) -> None:
        carol = house.phone("carol", "198.51.100.3").register(contact=contact)
        send(alice, "MESSAGE", carol.aor)
        message = carol.expect("MESSAGE")
        assert message.uri == uri
        assert "Route" not in message.headers
        assert "Subject" not in message.headers


class TestLoops:
    def test_request_that_comes_back_unchanged_is_482(self, house: House, alice: Phone) -> None:
        house.phone("loop", "198.51.100.3").register(contact=f"sip:loop@{VIP[0]}", received=f"sip:{VIP[0]}")
        send(alice, "MESSAGE", "sip:loop@sipha.test")
        alice.expect(482)
        # Once to sip:loop@192.0.2.10, which is a spiral, and once more, which is the loop.
        assert sum(data.startswith(b"MESSAGE") for data, _ in house.raw) == 2

    def test_spiral_reaches_its_end_unchallenged(self, house: House, alice: Phone, bob: Phone) -> None:
        house.phone("hunt", "198.51.100.3").register(contact=f"sip:bob@{VIP[0]}", received=f"sip:{VIP[0]}")
        send(alice, "INVITE", "sip:hunt@sipha.test")
        invite = bob.expect("INVITE")
        assert invite.headers.count("Via") == 3
        assert invite.headers.count("Record-Route") == 2
        bob.answer(invite, 200)
        alice.expect(100)
        ok = alice.expect(200)
        assert len(ok.vias) == 1

    def test_dialog_of_a_spiral_goes_on_in_both_directions(self, house: House, alice: Phone, bob: Phone) -> None:
        house.phone("hunt", "198.51.100.3").register(contact=f"sip:bob@{VIP[0]}", received=f"sip:{VIP[0]}")
        alice.invite("sip:hunt@sipha.test")
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        invite = bob.expect("INVITE")
        bob.answer(invite, 200)
        ok = alice.expect(200)
        alice.request(
            "BYE",
            ok.contacts[0].uri,
            to=str(ok.headers.get("To")),
            call_id=ok.call_id,
            cseq=9,
            routes=[str(route) for route in reversed(ok.record_routes)],
        )
        assert "Route" not in bob.expect("BYE").headers

    def test_spiral_to_somewhere_else_is_refused(self, house: House, alice: Phone) -> None:
        gateway = house.phone("g", "203.0.113.1")
        house.phone("hunt", "198.51.100.3").register(
            contact="sip:+1900@203.0.113.1", path=(f"<sip:{VIP[0]};lr>",), received=f"sip:{VIP[0]}"
        )
        send(alice, "MESSAGE", "sip:hunt@sipha.test")
        alice.expect(403)
        assert gateway.silent()

    def test_spiral_replayed_by_the_callee_is_challenged(self, house: House, alice: Phone, bob: Phone) -> None:
        """The callee sees the Via of the first passage, with its branch; it is worth nothing from elsewhere."""
        house.phone("hunt", "198.51.100.3").register(contact=f"sip:bob@{VIP[0]}", received=f"sip:{VIP[0]}")
        house.phone("carol", "198.51.100.4").register()
        send(alice, "MESSAGE", "sip:hunt@sipha.test")
        replay = bob.expect("MESSAGE")
        bob.answer(replay, 200)
        house.advance(40)
        assert house.layer.transactions == 0
        replay.headers.pop_value("Via")
        replay.uri = "sip:carol@sipha.test"
        house.receive(replay.render(), bob.flow)
        refusals = [data for data, _ in house.raw if data.startswith(b"SIP/2.0 407")]
        assert len(refusals) == 2
        assert house.inbox["UDP", ("198.51.100.4", 5060)] == []

    def test_forged_spiral_is_challenged(self, house: House, alice: Phone, bob: Phone) -> None:
        """Our own address as the source proves nothing without our branch."""
        data = (
            f"MESSAGE {bob.aor} SIP/2.0\r\nVia: SIP/2.0/UDP {VIP[0]}:5060;branch=z9hG4bKAAAA.0123456789abcdef\r\n"
            "Via: SIP/2.0/UDP 203.0.113.66:5060;branch=z9hG4bKx\r\nMax-Forwards: 70\r\n"
            f"From: <{alice.aor}>;tag=1\r\nTo: <{bob.aor}>\r\nCall-ID: x\r\nCSeq: 1 MESSAGE\r\n\r\n"
        ).encode()
        house.receive(data, Flow("UDP", VIP, (VIP[0], 5061)))
        assert [
            message.status for message in house.inbox["UDP", (VIP[0], 5061)] if not isinstance(message, Request)
        ] in (
            [],
            [407],
        )
        assert bob.silent()


class TestOurselves:
    @pytest.mark.parametrize("uri", ["sip:sipha.test", f"sip:{VIP[0]}", f"sip:[{VIP6[0]}]:5060", "sip:alias.test;x=y"])
    def test_options_to_us_is_answered_to_anyone(self, house: House, uri: str) -> None:
        stranger = house.phone("eve", "203.0.113.66", domain="evil.test")
        stranger.request("OPTIONS", uri)
        response = stranger.expect(200)
        assert all(name in response.headers for name in ("Allow", "Accept", "Supported"))
        assert response.to.tag
        assert house.layer.transactions == 0

    def test_options_by_way_of_us_is_answered(self, alice: Phone) -> None:
        alice.request("OPTIONS", "sip:sipha.test", routes=[f"<sip:{VIP[0]};lr>"])
        alice.expect(200)

    def test_options_that_requires_something_is_420(self, alice: Phone) -> None:
        alice.request("OPTIONS", "sip:sipha.test", headers=["Require: foo"])
        assert alice.expect(420).headers.get("Unsupported") == "foo"

    @pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "NOTIFY", "PUBLISH", "FOO"])
    def test_other_methods_to_us_are_405(self, alice: Phone, method: str) -> None:
        alice.request(method, "sip:sipha.test")
        assert alice.expect(405).headers.get("Allow") == "OPTIONS, REGISTER"

    @pytest.mark.parametrize("method", ["BYE", "INVITE", "NOTIFY"])
    def test_dialog_with_us_does_not_exist(self, alice: Phone, method: str) -> None:
        alice.request(method, "sip:sipha.test", to="<sip:sipha.test>;tag=x")
        alice.expect(481)

    def test_options_to_a_user_is_proxied(self, alice: Phone, bob: Phone) -> None:
        send(alice, "OPTIONS", bob.aor)
        bob.expect("OPTIONS")


class TestCopy:
    def test_what_we_do_not_know_is_forwarded_byte_for_byte(self, house: House, alice: Phone, bob: Phone) -> None:
        odd = [
            "x-Odd :  spaced,  out  ",
            "Subject: folded\r\n  over lines",
            "s: compact",
            "Date: nonsense",
            "X-Odd: again",
            "X-Bytes: \udcff\udcfe",
        ]
        alice.invite(bob.aor, headers=odd, body="v=0\r\n\x00\u00e9")
        alice.expect(407)
        alice.authorize()
        data, _ = next((data, flow) for data, flow in house.raw if data.startswith(b"INVITE"))
        head, _, body = data.partition(b"\r\n\r\n")
        assert body == "v=0\r\n\x00\u00e9".encode()
        at = [head.index(line.encode("utf-8", "surrogateescape") + b"\r\n") for line in odd]
        assert at == sorted(at)

    def test_response_is_forwarded_byte_for_byte_but_for_its_via(self, house: House, alice: Phone, bob: Phone) -> None:
        send(alice, "INVITE", bob.aor)
        alice.expect(100)
        bob.answer(bob.expect("INVITE"), 200, ("X-Odd", "a,  b"), ("Via-Not", "x"), body=b"\xff\x00")
        ok = alice.expect(200)
        assert ok.body == b"\xff\x00"
        assert "X-Odd: a,  b" in ok.headers.lines
        assert len(ok.vias) == 1

    def test_via_of_ours_names_the_listener_of_the_flow(self, house: House, alice: Phone) -> None:
        carol = house.phone("carol", "2001:db8::3").register()
        send(alice, "MESSAGE", carol.aor)
        via = carol.expect("MESSAGE").via
        assert (via.host, via.port, via.transport) == ("[2001:db8::10]", 5060, "UDP")

    def test_branch_is_the_same_for_invite_cancel_and_ack_alone(self, house: House, alice: Phone, bob: Phone) -> None:
        send(alice, "INVITE", bob.aor)
        invite = bob.expect("INVITE")
        bob.answer(invite, 180)
        alice.expect(100)
        alice.expect(180)
        alice.cancel()
        cancel = bob.expect("CANCEL")
        bob.answer(invite, 487)
        ack = bob.expect("ACK")
        alice.expect(200)
        alice.expect(487)
        send(alice, "INVITE", bob.aor)
        assert invite.via.branch == cancel.via.branch == ack.via.branch != bob.expect("INVITE").via.branch

    def test_reason_of_a_cancel_injects_nothing(self, alice: Phone, bob: Phone) -> None:
        send(alice, "INVITE", bob.aor)
        bob.answer(bob.expect("INVITE"), 180)
        alice.expect(100)
        alice.expect(180)
        alice.cancel(("Reason", 'SIP;cause=487;text="a"\r\n X-Injected: 1'))
        cancel = bob.expect("CANCEL")
        assert "X-Injected" not in cancel.headers
        assert len(cancel.headers.all("Reason")) == 1


class TestAck:
    def test_ack_with_the_branch_of_its_invite_reaches_the_fork_that_answered(self, house: House, alice: Phone) -> None:
        """What an old client does: it ignores Record-Route and keeps the branch."""
        desk = house.phone("bob", "198.51.100.2").register()
        mobile = house.phone("bob", "198.51.100.3").register()
        send(alice, "INVITE", "sip:bob@sipha.test")
        at_desk, _ = desk.expect("INVITE"), mobile.expect("INVITE")
        desk.answer(at_desk, 200, tag="desk")
        alice.expect(100)
        ok = alice.expect(200)
        invite = alice.last
        assert invite is not None
        alice.ack(invite, ok)
        ack = desk.expect("ACK")
        assert ack.to.tag == "desk"
        assert ack.via.branch != at_desk.via.branch
        assert mobile.silent()

    def test_ack_for_a_tag_that_nobody_answered_with_is_dropped(self, house: House, alice: Phone, bob: Phone) -> None:
        send(alice, "INVITE", bob.aor)
        bob.answer(bob.expect("INVITE"), 200)
        alice.expect(100)
        ok = alice.expect(200)
        ok.headers.set("To", "<sip:bob@sipha.test>;tag=forged")
        assert alice.last is not None
        alice.ack(alice.last, ok)
        assert bob.silent()


class TestStray:
    @pytest.mark.parametrize("status", [100, 180, 200, 404])
    def test_stray_response_goes_nowhere(self, house: House, alice: Phone, status: int) -> None:
        data = (
            f"SIP/2.0 {status} x\r\nVia: SIP/2.0/UDP {VIP[0]}:5060;branch=z9hG4bKnone\r\n"
            "Via: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKx\r\n"
            "From: <sip:a@b>;tag=1\r\nTo: <sip:a@b>;tag=2\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\n\r\n"
        ).encode()
        house.receive(data, Flow("UDP", VIP, ("203.0.113.66", 5060)))
        assert alice.silent()
        assert house.proxy.counters.dropped == 1

    def test_response_without_a_further_via_is_dropped(self, house: House, alice: Phone, bob: Phone) -> None:
        send(alice, "INVITE", bob.aor)
        alice.expect(100)
        invite = bob.expect("INVITE")
        invite.headers.set("Via", str(invite.via))
        bob.answer(invite, 180)
        assert alice.silent()
        assert not house.errors

    @pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
    @pytest.mark.parametrize("status", [200, 486])
    def test_final_response_without_a_further_via_is_a_bad_gateways(
        self, house: House, alice: Phone, bob: Phone, method: str, status: int
    ) -> None:
        send(alice, method, bob.aor)
        if method == "INVITE":
            alice.expect(100)
        request = bob.expect(method)
        sound = request.copy()
        request.headers.set("Via", str(request.via))
        bob.answer(request, status)
        alice.expect(502)
        bob.answer(sound, status)
        assert alice.silent()
        assert not house.errors
