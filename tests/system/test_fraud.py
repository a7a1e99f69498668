"""Callers who try to slip through three real nodes: each is refused, and nothing reaches whom they were after.

The victim is a gateway that trusts the proxy, or bob's phone; both are sockets that see all that is sent to them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.ua import Call, UserAgent, authority, call

pytestmark = pytest.mark.system

Agents = Callable[..., UserAgent]
BOB = "sip:bob@sipha.test"
METHODS = ["INVITE", "BYE", "MESSAGE", "REFER", "FOO"]


@pytest.fixture
def evil(agents: Agents) -> UserAgent:
    """Somebody without an account."""
    return agents("evil", domain="evil.test")


@pytest.fixture
def alice(agents: Agents) -> UserAgent:
    return agents("alice")


@pytest.fixture
def bob(agents: Agents) -> UserAgent:
    return agents("bob").register()


@pytest.fixture
def gateway(agents: Agents) -> UserAgent:
    return agents("gateway")


@pytest.fixture
def established(alice: UserAgent, bob: UserAgent) -> Call:
    return call(alice, bob)


def premium(gateway: UserAgent) -> str:
    return f"sip:+1900@{authority(gateway.address)}"


class TestOutOfDialog:
    @pytest.mark.parametrize("method", METHODS)
    def test_stranger_reaches_neither_a_gateway_nor_a_user(
        self, evil: UserAgent, gateway: UserAgent, bob: UserAgent, method: str
    ) -> None:
        for uri in (premium(gateway), BOB, bob.contact):
            evil.request(method, uri)
            evil.expect(403)
            evil.request(method, uri, to=f"<{uri}>;tag=invented")
            evil.expect(403)
        assert gateway.silent
        assert bob.silent

    def test_alice_reaches_both(self, alice: UserAgent, gateway: UserAgent, bob: UserAgent) -> None:
        """Else the silence of the victims would prove nothing."""
        for victim, uri in ((gateway, premium(gateway)), (bob, BOB)):
            alice.invite(uri)
            victim.answer(victim.expect("INVITE"), 486)
            victim.expect("ACK")
            alice.expect(486)
        alice.invite("sip:anything@elsewhere.test", routes=[f"<{gateway.uri};lr>"])
        gateway.answer(gateway.expect("INVITE"), 486)
        alice.expect(486)

    @pytest.mark.parametrize("method", METHODS)
    def test_who_says_to_be_alice_is_challenged(
        self, evil: UserAgent, gateway: UserAgent, bob: UserAgent, method: str
    ) -> None:
        for uri in (premium(gateway), BOB):
            evil.request(method, uri, from_="<sip:alice@sipha.test>;tag=e")
            evil.expect(407)
        assert gateway.silent
        assert bob.silent

    @pytest.mark.parametrize("method", ["INVITE", "BYE"])
    def test_answering_the_challenge_with_an_ack_or_a_bye_opens_no_way(
        self, evil: UserAgent, gateway: UserAgent, bob: UserAgent, method: str
    ) -> None:
        """The To tag of our own 407 makes no dialog, and neither does an ACK that is never challenged."""
        for victim, uri in ((gateway, premium(gateway)), (bob, BOB)):
            invite = evil.request("INVITE", uri, from_="<sip:alice@sipha.test>;tag=e")
            refused = evil.expect(407)
            dialog = {
                "from_": "<sip:alice@sipha.test>;tag=e",
                "to": refused.headers.get("To") or "",
                "call_id": invite.call_id,
            }
            evil.request("ACK", uri, cseq=1, **dialog)  # type: ignore[arg-type]
            evil.request("ACK", uri, cseq=1, routes=[f"<{victim.uri};lr>"], **dialog)  # type: ignore[arg-type]
            evil.request(method, uri, cseq=2, **dialog)  # type: ignore[arg-type]
            evil.expect(407)
            evil.settle()
            assert victim.silent

    @pytest.mark.parametrize("method", METHODS)
    def test_preloaded_route_is_followed_for_nobody_unknown(
        self, evil: UserAgent, gateway: UserAgent, method: str
    ) -> None:
        ours, foreign = f"<sip:{authority(evil.server)};lr>", f"<{gateway.uri};lr>"
        for routes in ([foreign], [ours, foreign], [f"<sip:Zm9yZ2Vk@{authority(evil.server)};lr>", foreign]):
            for to in ("", f"<{BOB}>;tag=invented"):
                evil.request(method, BOB, routes=routes, to=to)
                evil.expect(403)
                evil.request(method, BOB, routes=routes, to=to, from_="<sip:alice@sipha.test>;tag=e")
                evil.expect(407)
        assert gateway.silent

    @pytest.mark.parametrize(
        "header",
        [
            "P-Asserted-Identity: <sip:bob@sipha.test>",
            "P-Preferred-Identity: <tel:+15551234>",
            'Remote-Party-ID: "Boss" <sip:carol@sipha.test>;privacy=off',
            "P-Asserted-Identity: <sip:alice@sipha.test>, <sip:ceo@elsewhere.test>",
        ],
    )
    def test_forged_identity_is_refused(self, alice: UserAgent, bob: UserAgent, header: str) -> None:
        alice.request("INVITE", BOB, headers=[header])
        alice.expect(407)
        alice.authorize()
        alice.expect(403)
        assert bob.silent

    def test_from_of_alice_with_the_credentials_of_carol_is_refused(
        self, agents: Agents, alice: UserAgent, bob: UserAgent
    ) -> None:
        alice.request("INVITE", BOB)
        alice.expect(407)
        alice.authorize(user="carol")
        alice.expect(403)
        assert bob.silent

    def test_wrong_password_is_challenged_again(self, alice: UserAgent, bob: UserAgent) -> None:
        alice.request("INVITE", BOB)
        alice.expect(407)
        alice.authorize(password="guessed")
        alice.expect(407)
        assert bob.silent

    def test_credentials_are_good_for_one_request(self, alice: UserAgent, evil: UserAgent, bob: UserAgent) -> None:
        alice.request("MESSAGE", BOB)
        alice.expect(407)
        sent = alice.authorize()
        seen = bob.expect("MESSAGE")
        assert "Proxy-Authorization" not in seen.headers
        bob.answer(seen, 200)
        alice.expect(200)
        # evil has seen it on the wire.
        header = sent.headers.get("Proxy-Authorization")
        evil.request("MESSAGE", BOB, from_=sent.headers.get("From") or "", headers=[f"Proxy-Authorization: {header}"])
        assert "stale=true" in (evil.expect(407).headers.get("Proxy-Authenticate") or "").lower()
        assert bob.silent

    def test_spoofed_via_makes_nobody_a_peer_and_brings_the_answer_to_the_sender(
        self, evil: UserAgent, gateway: UserAgent, bob: UserAgent
    ) -> None:
        for sent_by in (authority(gateway.address), authority(evil.server), "sipha.test", "127.0.0.1:5060"):
            evil.request("INVITE", BOB, via=sent_by)
            evil.expect(403)
        assert gateway.silent
        assert bob.silent

    def test_stray_cancel_is_481_and_goes_nowhere(self, evil: UserAgent, gateway: UserAgent, bob: UserAgent) -> None:
        for uri in (BOB, bob.contact, premium(gateway)):
            evil.request("CANCEL", uri)
            evil.expect(481)
        assert bob.silent
        assert gateway.silent

    def test_cancel_of_a_call_by_someone_else_is_481(self, alice: UserAgent, evil: UserAgent, bob: UserAgent) -> None:
        invite = alice.invite(BOB)
        at_bob = bob.expect("INVITE")
        bob.answer(at_bob, 180)
        alice.expect(180)
        evil.request(
            "CANCEL",
            BOB,
            from_=invite.headers.get("From") or "",
            to=invite.headers.get("To") or "",
            call_id=invite.call_id,
            cseq=invite.cseq.number,
        )
        evil.expect(481)
        assert bob.silent
        bob.answer(at_bob, 200)
        Call(alice, bob, at_bob, alice.expect(200)).acknowledge().exchange("BYE")


class TestInDialog:
    def test_token_is_worth_nothing_in_another_dialog(
        self, established: Call, evil: UserAgent, gateway: UserAgent
    ) -> None:
        bob, to = established.callee, established.response.headers.get("To") or ""
        for method in METHODS:
            evil.request(method, bob.contact, to=to, routes=established.route_of_caller)
            evil.expect(403)
            # The right Call-ID, but another tag, and the other way round.
            evil.request(
                method, bob.contact, to=to, call_id=established.invite.call_id, routes=established.route_of_caller
            )
            evil.expect(403)
            evil.request(
                method,
                bob.contact,
                to=to,
                from_=f"<sip:alice@sipha.test>;tag={established.caller.tag}",
                routes=established.route_of_caller,
            )
            evil.expect(407)
        evil.request("ACK", bob.contact, to=to, routes=established.route_of_caller)
        evil.settle()
        assert bob.silent
        assert gateway.silent

    def test_token_opens_no_new_dialog(self, established: Call, gateway: UserAgent) -> None:
        for uri in (premium(gateway), "sip:carol@sipha.test"):
            established.by_caller("INVITE", uri=uri, to=f"<{uri}>")
            established.caller.expect(407)
        assert gateway.silent
        assert established.callee.silent

    @pytest.mark.parametrize("method", ["INVITE", "BYE", "INFO", "FOO"])
    def test_token_leads_to_the_other_side_alone(self, established: Call, gateway: UserAgent, method: str) -> None:
        """Whatever Request-URI and Route stand behind it: bob gets it, and may refuse it."""
        established.by_caller(
            method, uri=premium(gateway), routes=[*established.route_of_caller, f"<{gateway.uri};lr>"]
        )
        if method == "INVITE":
            established.caller.expect(100)
        at_bob = established.callee.expect(method)
        established.callee.answer(at_bob, 481)
        established.caller.expect(481)
        assert gateway.silent

    def test_token_of_a_lost_connection_leads_to_no_other_user(self, agents: Agents, alice: UserAgent) -> None:
        """A dialog follows its phone to a new connection, but not to the phone that some other To names."""
        bob, carol = agents("bob", "TCP").register(), agents("carol", "TCP").register()
        established = call(alice, bob)
        bob.close()
        established.by_caller("INVITE", to="<sip:carol@sipha.test>;tag=invented")
        alice.expect(100)
        alice.expect(430)
        established.by_caller("INVITE", uri=carol.contact, to=f"<sip:bob@sipha.test>;tag={bob.tag}")
        alice.expect(100)
        alice.expect(430)
        assert carol.silent

    def test_identity_asserted_in_a_dialog_does_not_arrive(self, established: Call) -> None:
        established.by_caller("INVITE", headers=["P-Asserted-Identity: <sip:carol@sipha.test>"])
        established.caller.expect(100)
        reinvite = established.callee.expect("INVITE")
        assert "P-Asserted-Identity" not in reinvite.headers
        established.callee.answer(reinvite, 488)
        established.caller.expect(488)

    def test_altered_token_is_challenged(self, established: Call) -> None:
        user, _, host = established.route_of_caller[0].partition("@")
        for altered in (user[:-1] + ("A" if user[-1] != "A" else "B"), user + "A", user + "=", user[:-1], "<sip:"):
            established.by_caller("BYE", routes=[f"{altered}@{host}" if altered != "<sip:" else f"<sip:{host}"])
            established.caller.expect(407)
        assert established.callee.silent

    def test_caller_who_saw_no_token_finds_none_in_a_refusal(self, alice: UserAgent, bob: UserAgent) -> None:
        alice.invite(BOB)
        bob.answer(bob.expect("INVITE"), 486)
        assert "Record-Route" not in alice.expect(486).headers

    def test_record_route_that_the_callee_forged_gives_no_way(
        self, alice: UserAgent, bob: UserAgent, gateway: UserAgent
    ) -> None:
        """What a callee makes of our Record-Route in its 2xx harms itself: its token is void, or not ours."""
        alice.invite(BOB)
        at_bob = bob.expect("INVITE")
        ours = str(at_bob.record_routes[0])
        forged = ours.replace("sip:", "sip:A", 1)
        at_bob.headers.set("Record-Route", f"{forged}, <{gateway.uri};lr>")
        bob.answer(at_bob, 200)
        ok = alice.expect(200)
        # RFC 3261 §16.7 step 8 lets a proxy change its own value alone: what isn't ours passes as it came.
        assert [str(route) for route in ok.record_routes] == [forged, f"<{gateway.uri};lr>"]
        call_ = Call(alice, bob, at_bob, ok)
        call_.by_caller("ACK", cseq=ok.cseq.number)
        call_.by_caller("BYE")
        alice.expect(407)
        alice.settle()
        assert gateway.silent
        # bob repeats his 2xx for want of an ACK, and gives up: that is his affair.
        assert bob.silent

    def test_response_for_nobody_is_dropped(self, established: Call, gateway: UserAgent) -> None:
        """A response with a Via of ours on top and a victim's below is relayed only for a request we sent."""
        alice, server = established.caller, authority(established.caller.server)
        for status in ("180 Ringing", "200 OK", "486 Busy Here"):
            alice.send(
                (
                    f"SIP/2.0 {status}\r\nVia: SIP/2.0/UDP {server};branch=z9hG4bKforged\r\n"
                    f"Via: SIP/2.0/UDP {authority(gateway.address)};branch=z9hG4bKvictim\r\n"
                    f"From: <sip:a@b>;tag=1\r\nTo: <sip:c@d>;tag=2\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\n"
                    f"Content-Length: 0\r\n\r\n"
                ).encode()
            )
        alice.settle()
        assert gateway.silent

    def test_call_goes_on_after_all_attempts(self, established: Call, evil: UserAgent) -> None:
        for method in ("BYE", "CANCEL", "ACK"):
            evil.request(method, established.callee.contact, call_id=established.invite.call_id, cseq=2)
            if method != "ACK":
                evil.expect(403 if method == "BYE" else 481)
        established.exchange("INFO")
        established.exchange("BYE", by_callee=True)
