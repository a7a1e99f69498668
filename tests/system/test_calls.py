"""Calls that fork, are cancelled or loop, through three real nodes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sipha.sip.message import Request
from tests.system.ua import Call, UserAgent, call

pytestmark = pytest.mark.system

Agents = Callable[..., UserAgent]
ELSEWHERE = 'SIP;cause=200;text="Call completed elsewhere"'
BOB = "sip:bob@sipha.test"


@pytest.fixture
def alice(agents: Agents) -> UserAgent:
    return agents("alice")


def end(fork: UserAgent, invite: Request, reason: str | None) -> None:
    """A fork is cancelled with this Reason and ends."""
    cancel = fork.expect("CANCEL")
    assert cancel.headers.get("Reason") == reason
    assert (cancel.via.branch, cancel.uri) == (invite.via.branch, invite.uri)
    fork.answer(cancel, 200)
    fork.answer(invite, 487)
    assert fork.expect("ACK").via.branch == invite.via.branch


class TestParallel:
    @pytest.fixture
    def desk(self, agents: Agents) -> UserAgent:
        return agents("bob").register()

    @pytest.fixture
    def mobile(self, agents: Agents) -> UserAgent:
        return agents("bob", "TCP").register()

    def test_other_phone_answers_when_one_is_busy(self, alice: UserAgent, desk: UserAgent, mobile: UserAgent) -> None:
        alice.invite(BOB)
        desk.answer(desk.expect("INVITE"), 486)
        desk.expect("ACK")
        invite = mobile.expect("INVITE")
        mobile.answer(invite, 180)
        alice.expect(180)
        mobile.answer(invite, 200)
        Call(alice, mobile, invite, alice.expect(200)).acknowledge().exchange("BYE")
        assert desk.silent

    def test_busy_comes_back_when_both_are(self, alice: UserAgent, desk: UserAgent, mobile: UserAgent) -> None:
        alice.invite(BOB)
        desk.answer(desk.expect("INVITE"), 486)
        mobile.answer(mobile.expect("INVITE"), 480)
        assert alice.expect(486).to.tag == desk.tag

    def test_caller_cancels_both(self, alice: UserAgent, desk: UserAgent, mobile: UserAgent) -> None:
        invite = alice.invite(BOB)
        forks = [(fork, fork.expect("INVITE")) for fork in (desk, mobile)]
        for fork, at_fork in forks:
            fork.answer(at_fork, 180)
            alice.expect(180)
        alice.cancel(invite, ("Reason", "SIP;cause=600"))
        alice.expect(200)
        for fork, at_fork in forks:
            end(fork, at_fork, "SIP;cause=600")
        alice.expect(487)

    def test_caller_cancels_before_a_phone_has_said_anything(self, alice: UserAgent, desk: UserAgent) -> None:
        invite = alice.invite(BOB)
        at_desk = desk.expect("INVITE")
        alice.cancel(invite)
        alice.expect(200)
        assert desk.silent  # "no CANCEL before a provisional response", RFC 3261 §9.1
        desk.answer(at_desk, 180)
        alice.expect(180)
        end(desk, at_desk, None)
        alice.expect(487)

    def test_answered_call_stops_ringing_elsewhere(self, alice: UserAgent, desk: UserAgent, mobile: UserAgent) -> None:
        alice.invite(BOB)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        desk.answer(at_desk, 180)
        alice.expect(180)
        mobile.answer(at_mobile, 200)
        established = Call(alice, mobile, at_mobile, alice.expect(200))
        end(desk, at_desk, ELSEWHERE)
        established.acknowledge().exchange("BYE", by_callee=True)

    def test_decline_stops_all(self, alice: UserAgent, desk: UserAgent, mobile: UserAgent) -> None:
        alice.invite(BOB)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        mobile.answer(at_mobile, 180)
        alice.expect(180)
        desk.answer(at_desk, 603)
        end(mobile, at_mobile, "SIP;cause=603")
        alice.expect(603)

    def test_unreachable_phone_leaves_the_other_alone(self, agents: Agents, alice: UserAgent, desk: UserAgent) -> None:
        gone = agents("bob").register()
        gone.close()
        call(alice, desk).exchange("BYE")


class TestSerial:
    @pytest.fixture
    def first(self, agents: Agents) -> UserAgent:
        return agents("bob").register(q="1.0")

    @pytest.fixture
    def second(self, agents: Agents) -> UserAgent:
        return agents("bob").register(q="0.5")

    def test_next_phone_rings_when_the_first_is_busy(
        self, alice: UserAgent, first: UserAgent, second: UserAgent
    ) -> None:
        alice.invite(BOB)
        at_first = first.expect("INVITE")
        first.answer(at_first, 180)
        alice.expect(180)
        assert second.silent
        first.answer(at_first, 486)
        at_second = second.expect("INVITE")
        second.answer(at_second, 200)
        Call(alice, second, at_second, alice.expect(200)).acknowledge().exchange("BYE")

    def test_next_phone_rings_when_the_first_is_silent_for_the_branch_timeout(
        self, alice: UserAgent, first: UserAgent, second: UserAgent
    ) -> None:
        alice.invite(BOB)
        begin = time.monotonic()
        at_second = second.expect("INVITE", within=9)
        assert 5 < time.monotonic() - begin < 8
        second.answer(at_second, 200)
        Call(alice, second, at_second, alice.expect(200)).acknowledge().exchange("BYE")

    def test_next_phone_rings_at_once_when_the_first_is_dead(
        self, alice: UserAgent, first: UserAgent, second: UserAgent
    ) -> None:
        first.close()
        alice.invite(BOB)
        at_second = second.expect("INVITE", within=1)
        second.answer(at_second, 486)
        alice.expect(486)

    def test_no_other_phone_rings_after_a_cancel(self, alice: UserAgent, first: UserAgent, second: UserAgent) -> None:
        invite = alice.invite(BOB)
        at_first = first.expect("INVITE")
        first.answer(at_first, 180)
        alice.expect(180)
        alice.cancel(invite)
        alice.expect(200)
        end(first, at_first, None)
        alice.expect(487)
        assert second.silent


class TestHops:
    @pytest.fixture
    def bob(self, agents: Agents) -> UserAgent:
        return agents("bob").register()

    @pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "FOO"])
    def test_request_without_a_hop_left_is_483(self, alice: UserAgent, bob: UserAgent, method: str) -> None:
        alice.request(method, BOB, max_forwards=0)
        alice.expect(483)
        assert bob.silent

    def test_hops_are_counted_down_to_the_phone(self, alice: UserAgent, bob: UserAgent) -> None:
        alice.request("MESSAGE", BOB, max_forwards=1)
        alice.expect(407)
        alice.authorize()
        message = bob.expect("MESSAGE")
        assert message.max_forwards == 0
        bob.answer(message, 200)
        alice.expect(200)

    def test_in_dialog_request_without_a_hop_left_is_483(self, alice: UserAgent, bob: UserAgent) -> None:
        established = call(alice, bob)
        established.by_caller("INFO", max_forwards=0)
        alice.expect(483)
        established.exchange("BYE")

    def test_request_that_comes_back_is_482(self, alice: UserAgent, bob: UserAgent) -> None:
        alice.request("MESSAGE", BOB)
        alice.expect(407)
        alice.authorize()
        looping = bob.expect("MESSAGE").copy()
        # bob sends what he got back to its AOR, as a proxy that is wired in a circle would.
        looping.uri = BOB
        looping.headers.prepend("Via", f"SIP/2.0/UDP {bob.via};branch=z9hG4bK-circle;rport")
        bob.send(looping.render())
        bob.expect(482)

    @pytest.mark.parametrize("contact", ["sip:bob@127.0.21.10:5060", "sip:bob@sipha.test"])
    def test_contact_that_names_us_leads_to_the_phone_all_the_same(
        self, agents: Agents, alice: UserAgent, contact: str
    ) -> None:
        bob = agents("bob", contact=contact).register()
        alice.request("MESSAGE", BOB)
        alice.expect(407)
        alice.authorize()
        bob.answer(bob.expect("MESSAGE"), 200)
        alice.expect(200)
