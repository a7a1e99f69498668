from __future__ import annotations

import pytest

from tests.proxy.ladder import VIP, House, Phone

GATEWAY = "203.0.113.1"


@pytest.fixture
def house() -> House:
    house = House()
    house.phone("bob", "198.51.100.2").register()
    return house


def phone_at_gateway(house: House) -> Phone:
    return house.phone("gateway", GATEWAY, domain="carrier.test")


class TestOpenRelay:
    """Nobody uses us to reach a third party whom we don't know."""

    @pytest.mark.parametrize("method", ["INVITE", "BYE", "MESSAGE", "OPTIONS", "REFER", "PRACK", "FOO"])
    @pytest.mark.parametrize(
        ("uri", "routes"),
        [
            (f"sip:+1900@{GATEWAY}", []),
            (f"sip:+1900@{GATEWAY};transport=tcp", []),
            (f"sip:bob@sipha.test;maddr={GATEWAY}", []),
            (f"sip:+1900@{VIP[0]};maddr={GATEWAY}", []),
            ("sip:bob@sipha.test", [f"<sip:{GATEWAY};lr>"]),
            ("sip:bob@sipha.test", [f"<sip:{VIP[0]};lr>", f"<sip:{GATEWAY};lr>"]),
            ("sip:bob@sipha.test", [f"<sip:sipha.test;lr>,<sip:{GATEWAY}>"]),
            ("sip:sipha.test", [f"<sip:{GATEWAY};lr>"]),
            (f"sip:x@{VIP[0]};lr", [f"<sip:+1900@{GATEWAY}>"]),
            (f"sip:{VIP[0]};lr", [f"<sip:{VIP[0]};lr>", f"<sip:+1900@{GATEWAY}>"]),
            ("sip:bob@sipha.test;lr", [f"<sip:+1900@{GATEWAY};lr>"]),
            ("sip:bob@sipha.test", [",", f"<sip:{GATEWAY};lr>"]),
        ],
    )
    @pytest.mark.parametrize("allow_inbound", [False, True])
    @pytest.mark.parametrize("to", ["", "<sip:bob@sipha.test>;tag=x"])
    def test_stranger_reaches_nobody_elsewhere(
        self, method: str, uri: str, routes: list[str], allow_inbound: bool, to: str
    ) -> None:
        house = House(allow_inbound=allow_inbound)
        gateway = phone_at_gateway(house)
        stranger = house.phone("eve", "203.0.113.66", domain="evil.test")
        stranger.request(method, uri, routes=routes, to=to)
        assert gateway.silent()
        assert house.inbox["TCP", (GATEWAY, 5060)] == []
        assert stranger.kinds in ([403], [400])
        assert not house.errors

    @pytest.mark.parametrize(
        ("uri", "routes"),
        [(f"sip:+1900@{GATEWAY}", []), ("sip:bob@sipha.test", [f"<sip:{GATEWAY};lr>"])],
    )
    def test_user_is_challenged_first_and_then_may(self, house: House, uri: str, routes: list[str]) -> None:
        gateway = phone_at_gateway(house)
        alice = house.phone("alice", "198.51.100.1").account()
        alice.invite(uri, routes=routes)
        alice.expect(407)
        assert gateway.silent()
        alice.authorize()
        alice.expect(100)
        gateway.expect("INVITE")

    def test_peer_may_have_requests_forwarded_anywhere(self) -> None:
        house = House(peers=["203.0.113.128/25"])
        gateway = phone_at_gateway(house)
        peer = house.phone("x", "203.0.113.200", domain="carrier.test")
        peer.invite(f"sip:+1900@{GATEWAY}", headers=["P-Asserted-Identity: <sip:+44@carrier.test>"])
        peer.expect(100)
        assert gateway.expect("INVITE").headers.get("P-Asserted-Identity") == "<sip:+44@carrier.test>"

    def test_from_of_a_peer_does_not_make_a_peer(self) -> None:
        house = House(peers=["203.0.113.128/25"])
        stranger = house.phone("x", "203.0.113.100", domain="carrier.test")
        stranger.invite("sip:bob@sipha.test", headers=["Via: SIP/2.0/UDP 203.0.113.200;branch=z9hG4bKx"])
        stranger.expect(403)


class TestInbound:
    def test_stranger_may_not_call_a_user_by_default(self, house: House) -> None:
        stranger = house.phone("eve", "203.0.113.66", domain="evil.test")
        stranger.invite("sip:bob@sipha.test")
        stranger.expect(403)

    def test_stranger_learns_nothing_of_who_exists(self, house: House) -> None:
        stranger = house.phone("eve", "203.0.113.66", domain="evil.test")
        for user in ("bob", "nobody"):
            stranger.invite(f"sip:{user}@sipha.test")
            stranger.expect(403)

    def test_anyone_may_call_a_user_where_it_is_allowed_but_asserts_nothing(self) -> None:
        house = House(allow_inbound=True)
        bob = house.phone("bob", "198.51.100.2").register()
        stranger = house.phone("eve", "203.0.113.66", domain="evil.test")
        stranger.invite(
            "sip:bob@sipha.test",
            headers=["P-Asserted-Identity: <sip:ceo@sipha.test>", "Remote-Party-ID: <sip:ceo@sipha.test>"],
        )
        stranger.expect(100)
        at_bob = bob.expect("INVITE")
        assert "P-Asserted-Identity" not in at_bob.headers
        assert "Remote-Party-ID" not in at_bob.headers

    @pytest.mark.parametrize(
        "from_",
        [
            "<sip:alice@sipha.test>;tag=1",
            "<sip:alice@SIPHA.TEST>;tag=1",
            "<sip:alice@alias.test>;tag=1",
            f"<sip:alice@{VIP[0]}>;tag=1",
            "<sip:alice@[2001:DB8::10]>;tag=1",
            '"alice" <sip:anonymous@anonymous.invalid>;tag=1',
            "<sips:alice@sipha.test>;tag=1",
            "sip:alice@sipha.test;tag=1",
            "<sip:sipha.test>;tag=1",
            "<sip:alice@sipha.test.>;tag=1",
            "<sip:alice@sipha.test:5999;transport=tls>;tag=1",
            "<sip:alice@sipha.test;maddr=203.0.113.66>;tag=1",
            f"<sip:alice@{VIP[0]}:5999>;tag=1",
            f"<sip:alice@{VIP[0]};transport=tls>;tag=1",
            "<tel:+15550100>;tag=1",
        ],
    )
    def test_who_says_to_be_ours_is_challenged(self, from_: str) -> None:
        house = House(allow_inbound=True)
        house.phone("bob", "198.51.100.2").register()
        house.phone("+15550100", "198.51.100.3").register()
        stranger = house.phone("eve", "203.0.113.66")
        stranger.invite("sip:bob@sipha.test", from_=from_)
        stranger.expect(407)

    @pytest.mark.parametrize(
        "from_",
        ["<sip:alice@sipha.test.evil.test>;tag=1", "<sip:alice@evil.test;maddr=192.0.2.10>;tag=1", "<tel:+1>;tag=1"],
    )
    def test_who_does_not_say_to_be_ours_is_a_stranger(self, house: House, from_: str) -> None:
        stranger = house.phone("eve", "203.0.113.66")
        stranger.invite("sip:bob@sipha.test", from_=from_)
        stranger.expect(403)


class TestIdentity:
    @pytest.mark.parametrize(
        "headers",
        [
            ["P-Asserted-Identity: <sip:ceo@sipha.test>"],
            ["P-Asserted-Identity: <sip:alice@sipha.test>, <tel:+15550100>"],
            ["P-Asserted-Identity: <sip:alice@sipha.test>", "P-Asserted-Identity: <sip:ceo@sipha.test>"],
            ["p-asserted-IDENTITY : <sip:ceo@sipha.test>"],
            ["P-Preferred-Identity: <sip:ceo@sipha.test>"],
            ["Remote-Party-ID: <sip:ceo@sipha.test>;party=calling"],
        ],
    )
    def test_forged_identity_is_403(self, house: House, headers: list[str]) -> None:
        alice = house.phone("alice", "198.51.100.1").account()
        alice.invite("sip:bob@sipha.test", headers=headers)
        alice.expect(407)
        alice.authorize()
        alice.expect(403)

    @pytest.mark.parametrize("identity", ["alice@sipha.test", "alice@alias.test", "%61lice@192.0.2.10"])
    def test_own_identity_passes_in_any_spelling(self, house: House, identity: str) -> None:
        alice = house.phone("alice", "198.51.100.1").account()
        alice.invite(
            "sip:bob@sipha.test",
            from_=f"<sip:{identity}>;tag=1",
            headers=[f"P-Asserted-Identity: <sip:{identity}>"],
        )
        alice.expect(407)
        alice.authorize()
        alice.expect(100)

    def test_from_of_someone_else_is_403_with_valid_credentials(self, house: House) -> None:
        mallory = house.phone("mallory", "198.51.100.1").account()
        mallory.invite("sip:bob@sipha.test", from_="<sip:alice@sipha.test>;tag=1")
        mallory.expect(407)
        mallory.authorize()
        mallory.expect(403)

    def test_account_of_another_domain_does_not_speak_for_this_one(self, house: House) -> None:
        mallory = house.phone("mallory", "198.51.100.1", domain="other.test").account()
        mallory.invite("sip:bob@sipha.test", from_="<sip:mallory@sipha.test>;tag=1")
        mallory.expect(407)
        mallory.authorize()
        mallory.expect(407)

    def test_anonymous_user_calls_once_authenticated(self, house: House) -> None:
        bob = house.phone("bob", "198.51.100.2")
        alice = house.phone("alice", "198.51.100.1").account()
        alice.invite(
            "sip:bob@sipha.test",
            from_='"Anonymous" <sip:anonymous@anonymous.invalid>;tag=1',
            headers=["P-Asserted-Identity: <sip:alice@sipha.test>", "Privacy: id"],
        )
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        assert bob.expect("INVITE").from_.uri == "sip:anonymous@anonymous.invalid"


class TestCredentials:
    def test_wrong_password_is_challenged_again(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1")
        alice.invite("sip:bob@sipha.test")
        alice.expect(407)
        alice.authorize(user="nobody")
        alice.expect(407)

    def test_captured_credentials_are_good_once(self, house: House) -> None:
        bob = house.phone("bob", "198.51.100.2")
        alice = house.phone("alice", "198.51.100.1").account()
        alice.invite("sip:bob@sipha.test")
        alice.expect(407)
        captured = alice.authorize()
        bob.expect("INVITE")
        thief = house.phone("thief", "203.0.113.66")
        replay = captured.copy()
        replay.headers.replace_value("Via", "SIP/2.0/UDP 203.0.113.66:5060;branch=z9hG4bKthief")
        thief.send(replay)
        assert "stale=true" in (thief.expect(407).headers.get("Proxy-Authenticate") or "").lower()

    def test_own_credentials_are_stripped_and_foreign_ones_are_not(self, house: House) -> None:
        bob = house.phone("bob", "198.51.100.2")
        alice = house.phone("alice", "198.51.100.1").account()
        foreign = 'Digest username="a", realm="elsewhere", nonce="n", uri="sip:x", response="r"'
        alice.invite("sip:bob@sipha.test")
        alice.expect(407)
        assert alice.last is not None
        alice.last.headers.add("X-Last", "1")
        retry = alice.last.copy()
        retry.headers.add("Proxy-Authorization", foreign)
        retry.headers.add("Proxy-Authorization", alice.credentials(retry))
        retry.headers.replace_value("Via", str(retry.via.with_params(("branch", "z9hG4bKretry"))))
        alice.send(retry)
        alice.expect(100)
        assert bob.expect("INVITE").headers.all("Proxy-Authorization") == [foreign]

    def test_refusals_before_admission_keep_nothing(self, house: House) -> None:
        alice = house.phone("alice", "198.51.100.1")
        for _ in range(3):
            alice.request("MESSAGE", "sip:bob@sipha.test")
            alice.expect(407)
        assert house.layer.transactions == 0
        assert house.layer.next_timer() is None

    def test_no_key_in_the_log_is_503_of_the_endpoint(self, house: House) -> None:
        house.proxy._authenticator._tokens = lambda: None
        alice = house.phone("alice", "198.51.100.1")
        alice.invite("sip:bob@sipha.test")
        assert [error.response_status for error in house.errors] == [503]
