from __future__ import annotations

import pytest

from sipha.sip.message import Request, Response
from sipha.sip.timers import Timers
from tests.proxy.ladder import House, Phone

ELSEWHERE = 'SIP;cause=200;text="Call completed elsewhere"'


def house_with(*q: int | None, methods: str = "") -> tuple[House, Phone, list[Phone]]:
    """A house in which alice calls bob, who has a phone for each q."""
    house = House()
    alice = house.phone("alice", "198.51.100.1").register()
    phones = [
        house.phone("bob", f"198.51.100.{10 + number}").register(q=value, methods=methods)
        for number, value in enumerate(q)
    ]
    return house, alice, phones


def invite(alice: Phone) -> None:
    alice.invite("sip:bob@sipha.test")
    alice.expect(407)
    alice.authorize()
    alice.expect(100)


class TestParallel:
    def test_first_to_answer_gets_the_call_and_the_other_is_cancelled_with_reason(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        assert at_desk.via.branch != at_mobile.via.branch
        desk.answer(at_desk, 180, tag="desk")
        mobile.answer(at_mobile, 180, tag="mobile")
        mobile.answer(at_mobile, 200, tag="mobile")
        assert [message.to.tag for message in (alice.expect(180), alice.expect(180), alice.expect(200))] == [
            "desk",
            "mobile",
            "mobile",
        ]
        cancel = desk.expect("CANCEL")
        assert cancel.headers.all("Reason") == [ELSEWHERE]
        assert str(cancel.via) == str(at_desk.via)
        assert cancel.uri == at_desk.uri
        desk.answer(cancel, 200)
        desk.answer(at_desk, 487, tag="desk")
        assert desk.expect("ACK").via.branch == at_desk.via.branch
        assert alice.silent()
        assert mobile.silent()

    def test_busy_phone_does_not_end_the_call_of_another_that_rings(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        desk.answer(at_desk, 486)
        mobile.answer(at_mobile, 180)
        alice.expect(180)
        assert alice.silent()
        mobile.answer(at_mobile, 200)
        alice.expect(200)

    def test_busy_comes_back_when_all_phones_are_busy_or_gone(self) -> None:
        house, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        desk.answer(desk.expect("INVITE"), 486)
        house.fail(mobile)
        alice.expect(486)

    def test_both_2xx_of_a_race_are_forwarded(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        desk.answer(at_desk, 200, tag="desk")
        mobile.answer(at_mobile, 200, tag="mobile")
        assert alice.expect(200).to.tag == "desk"
        assert alice.expect(200).to.tag == "mobile"

    def test_fork_that_was_silent_is_cancelled_once_it_rings(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        mobile.answer(at_mobile, 200)
        assert desk.silent()
        desk.answer(at_desk, 180)
        assert desk.expect("CANCEL").headers.all("Reason") == [ELSEWHERE]
        alice.expect(200)
        assert alice.silent()

    def test_6xx_cancels_the_others_and_comes_back_when_they_have_ended(self) -> None:
        _, alice, (desk, mobile, last) = house_with(500, 500, 100)
        invite(alice)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        mobile.answer(at_mobile, 180)
        alice.expect(180)
        desk.answer(at_desk, 603)
        assert alice.silent()
        mobile.answer(mobile.expect("CANCEL") and at_mobile, 487)
        alice.expect(603)
        assert last.silent()

    def test_challenges_of_all_forks_come_back_together(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        desk.answer(desk.expect("INVITE"), 401, ("WWW-Authenticate", 'Digest realm="desk", nonce="1"'))
        mobile.answer(mobile.expect("INVITE"), 407, ("Proxy-Authenticate", 'Digest realm="mobile", nonce="2"'))
        response = alice.expect(401)
        assert response.headers.all("WWW-Authenticate") == ['Digest realm="desk", nonce="1"']
        assert response.headers.all("Proxy-Authenticate") == ['Digest realm="mobile", nonce="2"']

    def test_non_invite_gets_one_final_response(self) -> None:
        house, alice, (desk, mobile) = house_with(None, None)
        alice.request("MESSAGE", "sip:bob@sipha.test", body="hello")
        alice.expect(407)
        alice.authorize()
        at_desk, at_mobile = desk.expect("MESSAGE"), mobile.expect("MESSAGE")
        assert at_desk.body == b"hello"
        desk.answer(at_desk, 200)
        mobile.answer(at_mobile, 200)
        alice.expect(200)
        assert alice.silent()
        assert not house.errors


class TestSerial:
    def test_next_q_is_tried_after_486(self) -> None:
        _, alice, (first, second) = house_with(1000, 500)
        invite(alice)
        at_first = first.expect("INVITE")
        assert second.silent()
        first.answer(at_first, 486)
        at_second = second.expect("INVITE")
        assert alice.silent()
        second.answer(at_second, 200)
        alice.expect(200)

    def test_contact_without_q_is_tried_with_the_best(self) -> None:
        _, alice, (plain, best, worse) = house_with(None, 1000, 900)
        invite(alice)
        assert (plain.kinds, best.kinds, worse.kinds) == (["INVITE"], ["INVITE"], [])

    def test_next_q_is_tried_when_nothing_comes_for_the_branch_timeout(self) -> None:
        house, alice, (_, second) = house_with(1000, 500)
        invite(alice)
        house.advance(5.9)
        assert second.silent()
        house.advance(0.2)
        second.answer(second.expect("INVITE"), 200)
        alice.expect(200)

    def test_ringing_phone_has_all_the_time_of_timer_c(self) -> None:
        house, alice, (first, second) = house_with(1000, 500)
        invite(alice)
        first.answer(first.expect("INVITE"), 180)
        house.advance(60)
        assert second.silent()
        alice.expect(180)

    def test_icmp_error_ends_a_branch_at_once(self) -> None:
        house, alice, (first, second) = house_with(1000, 500)
        invite(alice)
        house.fail(first)
        second.expect("INVITE")
        assert alice.silent()

    def test_no_further_group_is_tried_after_a_2xx(self) -> None:
        _, alice, (first, second) = house_with(1000, 500)
        invite(alice)
        first.answer(first.expect("INVITE"), 200)
        alice.expect(200)
        assert second.silent()

    @pytest.mark.parametrize(
        ("contact", "path"),
        [
            ("sip:bob@no-such-host.test", ()),
            ("sip:bob@198.51.100.77;transport=sctp", ()),
            ("sip:bob@198.51.100.77;transport=tls", ()),
            ("sips:bob@198.51.100.77", ()),
            ("tel:+123", ()),
            ("sip:bob@[zz]", ()),
            ("not a uri", ()),
            ("sip:bob@198.51.100.77", ("<sip:edge.test;lr>",)),
            ("sip:bob@198.51.100.77", ("rubbish",)),
        ],
    )
    def test_contact_that_leads_nowhere_fails_its_branch_only(self, contact: str, path: tuple[str, ...]) -> None:
        house, alice, (good,) = house_with(None)
        house.phone("bob", "198.51.100.66").register(contact=contact, path=path, received="sip:x.invalid")
        invite(alice)
        good.answer(good.expect("INVITE"), 200)
        alice.expect(200)
        assert not house.errors


class TestTimeouts:
    def test_silence_of_all_is_408_for_an_invite(self) -> None:
        house, alice, (_,) = house_with(None)
        invite(alice)
        house.advance(6.1)
        alice.expect(408)

    def test_silence_of_all_is_silence_for_a_non_invite(self) -> None:
        house, alice, (bob,) = house_with(None)
        alice.request("MESSAGE", "sip:bob@sipha.test")
        alice.expect(407)
        alice.authorize()
        bob.expect("MESSAGE")
        house.advance(60)
        assert [kind for kind in alice.kinds if kind != 100] == []

    def test_unreachable_phone_is_480(self) -> None:
        house, alice, (bob,) = house_with(None)
        invite(alice)
        house.fail(bob)
        alice.expect(480)

    def test_timer_c_cancels_a_phone_that_rings_too_long(self) -> None:
        house, alice, (bob,) = house_with(None)
        invite(alice)
        at_bob = bob.expect("INVITE")
        bob.answer(at_bob, 180)
        alice.expect(180)
        house.advance(Timers().timer_c - 1)
        assert bob.silent()
        bob.answer(at_bob, 183)
        alice.expect(183)
        house.advance(Timers().timer_c - 1)
        assert bob.silent()
        house.advance(2)
        bob.expect("CANCEL")
        bob.answer(at_bob, 487)
        alice.expect(487)

    def test_100_does_not_reset_timer_c(self) -> None:
        house, alice, (bob,) = house_with(None)
        invite(alice)
        at_bob = bob.expect("INVITE")
        bob.answer(at_bob, 100)
        house.advance(Timers().timer_c - 1)
        bob.answer(at_bob, 100)
        house.advance(2)
        bob.expect("CANCEL")
        assert alice.silent()

    def test_phone_that_does_not_end_after_cancel_is_given_up(self) -> None:
        house, alice, (bob,) = house_with(None)
        invite(alice)
        at_bob = bob.expect("INVITE")
        bob.answer(at_bob, 180)
        alice.expect(180)
        alice.cancel()
        alice.expect(200)
        bob.expect("CANCEL")
        house.advance(20)
        bob.answer(at_bob, 183)
        alice.expect(183)
        house.advance(13)
        alice.expect(487)

    @pytest.mark.parametrize("ending", ["answered", "busy", "cancelled", "silent"])
    def test_nothing_of_a_call_is_kept_after_its_transactions(self, ending: str) -> None:
        house, alice, phones = house_with(None, None, 200)
        invite(alice)
        if ending != "silent":
            phones[0].answer(phones[0].expect("INVITE"), {"answered": 200, "busy": 486}.get(ending, 180))
        if ending == "cancelled":
            alice.cancel()
        house.advance(400)
        assert house.layer.transactions == 0
        assert house.layer.next_timer() is None


class TestCancel:
    def test_cancel_reaches_both_forks_with_the_reason_of_the_caller(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None)
        invite(alice)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        desk.answer(at_desk, 180)
        mobile.answer(at_mobile, 180)
        alice.expect(180)
        alice.expect(180)
        alice.cancel(("Reason", 'SIP;cause=487;text="gone"'), ("Reason", "Q.850;cause=16"))
        alice.expect(200)
        for phone, request in ((desk, at_desk), (mobile, at_mobile)):
            cancel = phone.expect("CANCEL")
            assert cancel.headers.all("Reason") == ['SIP;cause=487;text="gone"', "Q.850;cause=16"]
            assert (cancel.call_id, cancel.cseq.number) == (request.call_id, request.cseq.number)
            phone.answer(cancel, 200)
            phone.answer(request, 487)
            phone.expect("ACK")
        alice.expect(487)

    def test_cancel_stops_the_search(self) -> None:
        _, alice, (first, second) = house_with(1000, 500)
        invite(alice)
        at_first = first.expect("INVITE")
        first.answer(at_first, 180)
        alice.expect(180)
        alice.cancel()
        alice.expect(200)
        first.expect("CANCEL")
        first.answer(at_first, 487)
        alice.expect(487)
        assert second.silent()

    def test_cancel_of_a_silent_fork_waits_for_its_provisional(self) -> None:
        _, alice, (bob,) = house_with(None)
        invite(alice)
        at_bob = bob.expect("INVITE")
        alice.cancel()
        alice.expect(200)
        assert bob.silent()
        bob.answer(at_bob, 100)
        bob.expect("CANCEL")

    def test_call_that_is_answered_while_it_is_cancelled_is_answered(self) -> None:
        _, alice, (bob,) = house_with(None)
        invite(alice)
        at_bob = bob.expect("INVITE")
        bob.answer(at_bob, 180)
        alice.expect(180)
        alice.cancel()
        bob.answer(at_bob, 200)
        alice.expect(200)
        alice.expect(200)

    def test_stray_cancel_gets_481_and_goes_nowhere(self) -> None:
        house, alice, _ = house_with(None)
        victim = house.phone("victim", "203.0.113.9")
        alice.last = alice.invite("sip:victim@203.0.113.9", routes=["<sip:203.0.113.9;lr>"])
        alice.expect(407)
        alice.last.headers.replace_value("Via", str(alice.last.via.with_params(("branch", "z9hG4bKnever"))))
        alice.cancel()
        alice.expect(481)
        assert victim.silent()


class TestMethods:
    def test_contact_that_does_not_allow_a_method_is_left_out(self) -> None:
        house, alice, (desk,) = house_with(None, methods="INVITE,ACK,BYE,CANCEL")
        mobile = house.phone("bob", "198.51.100.20").register(methods="INVITE, MESSAGE")
        alice.request("MESSAGE", "sip:bob@sipha.test")
        alice.expect(407)
        alice.authorize()
        mobile.expect("MESSAGE")
        assert desk.silent()

    def test_method_that_no_contact_allows_is_405_with_what_they_allow(self) -> None:
        _, alice, (desk, mobile) = house_with(None, None, methods="INVITE,ACK")
        alice.request("MESSAGE", "sip:bob@sipha.test")
        alice.expect(407)
        alice.authorize()
        assert alice.expect(405).headers.get("Allow") == "INVITE, ACK"
        assert desk.silent()
        assert mobile.silent()

    @pytest.mark.parametrize("method", ["SUBSCRIBE", "PUBLISH", "INFO", "REFER", "DO-IT", "x.y!"])
    def test_every_method_is_proxied(self, method: str) -> None:
        house, alice, (bob,) = house_with(None)
        alice.request(method, "sip:bob@sipha.test", headers=["X-Odd:   kept  ", "Event: presence"])
        alice.expect(407)
        alice.authorize()
        at_bob = bob.expect(method)
        assert "X-Odd:   kept  " in at_bob.headers.lines
        assert ("Record-Route" in at_bob.headers) == (method in {"SUBSCRIBE", "REFER"})
        bob.answer(at_bob, 200)
        assert isinstance(alice.take(), Response)
        assert not house.errors


class TestBreadth:
    def test_breadth_is_shared_between_parallel_forks(self) -> None:
        _, alice, phones = house_with(None, None, None)
        invite(alice)
        assert [phone.expect("INVITE").headers.get("Max-Breadth") for phone in phones] == ["20", "20", "20"]

    def test_more_forks_than_breadth_is_440(self) -> None:
        _, alice, phones = house_with(None, None, None)
        alice.invite("sip:bob@sipha.test", headers=["Max-Breadth: 2"])
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        alice.expect(440)
        assert all(phone.silent() for phone in phones)

    def test_serial_forks_need_no_breadth(self) -> None:
        _, alice, phones = house_with(1000, 500)
        alice.invite("sip:bob@sipha.test", headers=["Max-Breadth: 1"])
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        phones[0].answer(phones[0].expect("INVITE"), 486)
        assert phones[1].expect("INVITE").headers.get("Max-Breadth") == "1"


def test_retransmitted_invite_is_not_forked_again() -> None:
    house, alice, (bob,) = house_with(None)
    invite(alice)
    bob.expect("INVITE")
    assert isinstance(alice.last, Request)
    house.receive(alice.last.copy().render(), alice.flow)
    alice.expect(100)
    assert bob.silent()


def test_503_of_a_phone_comes_back_as_500() -> None:
    _, alice, (bob,) = house_with(None)
    invite(alice)
    bob.answer(bob.expect("INVITE"), 503, ("Retry-After", "600"))
    assert alice.expect(500).headers.get("Retry-After") is None
