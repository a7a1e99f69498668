"""Calls whose leader dies: at each step of the ladder, with and without shadows, and what strangers make of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.proxy.takeover import PORTION, longest_setup
from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response, response_to
from sipha.sip.timers import Timers
from sipha.sip.token import BRANCH_STEP, Tokens
from tests.proxy.agents import Callee, Caller, Network, Step
from tests.proxy.ladder import VIP, Call, House, Phone

ALICE = "198.51.100.1"
RING, BUSY, ANSWER, TRYING = Step(0.2, 180), Step(1, 486), Step(2, 200), Step(0.1, 100)
LIVES = 10_000
"""A fuse that doesn't burn down."""

SOON = 0.1
"""Seconds in which what isn't urgent has been shared."""

Fork = tuple[int | None, Sequence[Step]]


def network(
    *forks: Fork,
    fuse: int = LIVES,
    next_fuse: int | None = None,
    cancels_after: float | None = None,
    shadows: bool = True,
    seconds: float = 300,
) -> Network:
    """Alice calls bob, who has a phone for each q and script; the leader dies when it has sent `fuse` messages."""
    house = House(peers=[f"{ALICE}/32"])
    caller = Caller(house.phone("alice", ALICE), cancels_after)
    callees = [
        Callee(house.phone("bob", f"198.51.100.{10 + number}").register(q=q), script)
        for number, (q, script) in enumerate(forks)
    ]
    house.fuse = fuse
    made = Network(house, caller, callees, next_fuse=next_fuse, shadows=shadows)
    caller.call("sip:bob@sipha.test", house.now)
    made.run(seconds)
    return made


def sent(network: Network) -> int:
    """How many messages the leader has sent that doesn't die."""
    assert network.house.fuse is not None
    return LIVES - network.house.fuse


def seen(network: Network) -> list[tuple[object, ...]]:
    """What a call has come to, for each of its phones."""
    return [
        (callee.rings, len(callee.invites), callee.final, callee.cancelled, callee.acknowledged)
        for callee in network.callees
    ]


CALLS: dict[str, tuple[list[Fork], float | None]] = {
    "one target answers": ([(None, [RING, ANSWER])], None),
    "one target is busy": ([(None, [RING, BUSY])], None),
    "one target answers at once": ([(None, [Step(0, 200)])], None),
    "one of three answers": ([(None, [RING]), (None, [RING, ANSWER]), (None, [RING])], None),
    "one of three is busy": ([(None, [RING]), (None, [RING, BUSY]), (None, [RING, ANSWER])], None),
    "all of three are busy": ([(None, [RING, BUSY]), (None, [Step(0.5, 480)]), (None, [RING, Step(2, 486)])], None),
    "one declines": ([(None, [RING]), (None, [RING, Step(1, 603)])], None),
    "the second group answers": ([(900, [RING, BUSY]), (500, [RING, ANSWER])], None),
    "the first group is silent": ([(900, []), (500, [RING, ANSWER])], None),
    "nobody answers": ([(None, [RING]), (None, [])], None),
    "the caller cancels one": ([(None, [RING])], 1.5),
    "the caller cancels three": ([(None, [RING]), (None, [TRYING]), (None, [RING])], 1.5),
    "the caller cancels the first group": ([(900, [RING]), (500, [RING, ANSWER])], 1.5),
}


class TestLadder:
    @pytest.mark.parametrize("name", CALLS)
    def test_call_ends_as_ever_wherever_the_leader_dies(self, name: str) -> None:
        forks, cancels_after = CALLS[name]
        calm = network(*forks, cancels_after=cancels_after)
        for fuse in range(sent(calm)):
            made = network(*forks, fuse=fuse, cancels_after=cancels_after)
            logs = fuse, [(agent.phone.address, agent.log) for agent in (made.caller, *made.callees)]
            assert made.failed_over
            assert made.caller.finals == calm.caller.finals, logs
            assert not made.caller.timed_out
            # A phone may be cancelled twice, or in vain: what counts is that it ends as ever.
            assert [phone[:3] for phone in seen(made)] == [phone[:3] for phone in seen(calm)], logs
            assert [phone[-1] for phone in seen(made)] == [phone[-1] for phone in seen(calm)], logs
            assert made.house.layer.transactions == 0

    @pytest.mark.parametrize(
        "name", ["one target answers", "one target is busy", "one target answers at once", "all of three are busy"]
    )
    def test_call_without_shadow_ends_as_ever_by_its_branches(self, name: str) -> None:
        forks, _ = CALLS[name]
        calm = network(*forks)
        # Without a shadow the INVITEs are lost that were to be sent after the 100.
        for fuse in (0, *range(2 + len(forks), sent(calm))):
            made = network(*forks, fuse=fuse, shadows=False)
            logs = fuse, [(agent.phone.address, agent.log) for agent in (made.caller, *made.callees)]
            assert [phone[:3] for phone in seen(made)] == [phone[:3] for phone in seen(calm)], logs
            assert not made.caller.timed_out

    @pytest.mark.parametrize("name", ["one of three answers", "one of three is busy"])
    def test_answer_is_forwarded_without_shadow_and_a_busy_phone_ends_nothing(self, name: str) -> None:
        forks, _ = CALLS[name]
        for fuse in range(2 + len(forks), sent(network(*forks))):
            made = network(*forks, fuse=fuse, shadows=False)
            assert made.caller.finals == [200], fuse
            assert all(len(callee.invites) == 1 for callee in made.callees)


STEPS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from([1000, 700, 300])),
        st.lists(
            st.builds(Step, st.sampled_from([0.0, 0.1, 0.6, 1.5, 3.0]), st.sampled_from([100, 180, 200, 486, 603])),
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(
    STEPS, st.integers(0, 40), st.none() | st.integers(0, 20), st.one_of(st.none(), st.sampled_from([0.3, 1.0, 2.5]))
)
def test_caller_hears_one_final_response_and_no_phone_rings_for_ever(
    forks: list[Fork], fuse: int, next_fuse: int | None, cancels_after: float | None
) -> None:
    made = network(*forks, fuse=fuse, next_fuse=next_fuse, cancels_after=cancels_after, seconds=900)
    logs = [(agent.phone.address, agent.log) for agent in (made.caller, *made.callees)]
    finals = made.caller.finals
    assert finals, logs
    assert len(finals) == 1 or all(200 <= final < 300 for final in finals), logs
    for callee in made.callees:
        assert not callee.rings, logs
        assert len(callee.invites) <= 1, logs
        assert callee.acknowledged or callee.final is None or callee.final >= 300, logs
    assert made.house.layer.transactions == 0


def setup(*q: int | None, timers: Timers | None = None) -> tuple[House, Phone, list[tuple[Phone, Request]]]:
    """Alice calls bob, and each of his phones rings that is tried first."""
    house = House(timers=timers)
    alice = house.phone("alice", ALICE).register()
    phones = [
        house.phone("bob", f"198.51.100.{10 + number}").register(q=value) for number, value in enumerate(q or (None,))
    ]
    alice.invite("sip:bob@sipha.test")
    alice.expect(407)
    alice.authorize()
    alice.expect(100)
    ringing = []
    for phone in phones:
        if phone.received:
            ringing.append((phone, phone.expect("INVITE")))
            phone.answer(ringing[-1][1], 180, tag=phone.via)
            alice.expect(180)
    house.advance(SOON)
    return house, alice, ringing


def quiet(*phones: Phone) -> bool:
    return all(phone.silent() for phone in phones)


class TestShadow:
    def test_new_leader_lets_the_caller_know_that_it_goes_on(self) -> None:
        house, alice, ((desk, _),) = setup()
        house.fail_over()
        alice.expect(100)
        assert quiet(alice, desk)

    def test_cancel_reaches_every_fork_with_its_uri_branch_and_route(self) -> None:
        house, alice, forks = setup(None, None, None)
        house.fail_over()
        alice.expect(100)
        alice.cancel(("Reason", "SIP;cause=600"))
        assert alice.expect(200).cseq.method == "CANCEL"
        for fork, invite in forks:
            cancel = fork.expect("CANCEL")
            assert (cancel.uri, str(cancel.via)) == (invite.uri, str(invite.via))
            assert cancel.headers.get("Reason") == "SIP;cause=600"
            fork.answer(cancel, 200)
            fork.answer(invite, 487)
            ack = fork.expect("ACK")
            assert (ack.uri, str(ack.via)) == (invite.uri, str(invite.via))
        alice.expect(487)

    def test_node_that_loses_the_lead_and_wins_it_again_goes_on(self) -> None:
        house, alice, ((desk, invite),) = setup()
        house.lead_anew()
        alice.expect(100)
        desk.answer(invite, 200)
        alice.expect(200)
        house.lead_anew()
        assert alice.silent()

    def test_call_that_was_answered_before_one_leader_died_is_known_when_the_next_dies(self) -> None:
        house, alice, ((desk, at_desk), (mobile, at_mobile)) = setup(None, None)
        mobile.answer(at_mobile, 200)
        alice.expect(200)
        desk.expect("CANCEL")
        house.fail_over()
        desk.answer(desk.expect("CANCEL"), 200)
        desk.answer(at_desk, 487)
        desk.expect("ACK")
        house.advance(SOON)
        house.fail_over()
        assert quiet(alice, desk, mobile)

    def test_retransmitted_invite_forks_nothing_again(self) -> None:
        house, alice, ((desk, _),) = setup()
        house.fail_over()
        alice.expect(100)
        assert alice.last is not None
        alice.send(alice.last)
        alice.expect(100)
        assert quiet(alice, desk)

    def test_call_is_taken_over_by_the_first_message_that_concerns_it(self) -> None:
        house, alice, ((desk, invite),) = setup()
        house.fuse = 0
        house.begin_to_lead()
        desk.answer(invite, 200)
        alice.expect(100)
        alice.expect(200)

    def test_many_calls_are_taken_over_little_by_little(self) -> None:
        house = House(peers=[f"{ALICE}/32"])
        alice = house.phone("alice", ALICE)
        bob = house.phone("bob", "198.51.100.10").register()
        for _ in range(3 * PORTION):
            alice.invite("sip:bob@sipha.test")
            alice.expect(100)
            bob.answer(bob.expect("INVITE"), 180)
            alice.expect(180)
        house.fail_over()
        assert alice.kinds == [100] * PORTION
        house.advance(1)
        assert alice.kinds == [100] * 3 * PORTION

    def test_timer_c_goes_on(self) -> None:
        house, _, ((desk, _),) = setup()
        house.advance(100)
        house.fail_over()
        house.advance(83)
        assert desk.silent()
        house.advance(3)
        desk.expect("CANCEL")

    def test_provisional_response_goes_on_putting_off_timer_c(self) -> None:
        house, _, ((desk, invite),) = setup()
        house.advance(100)
        desk.answer(invite, 182)
        house.advance(100)
        house.fail_over()
        house.advance(80)
        assert desk.silent()

    def test_busy_phone_of_before_is_what_the_caller_hears_of(self) -> None:
        house, alice, ((desk, at_desk), (mobile, at_mobile)) = setup(None, None)
        desk.answer(at_desk, 486, ("Warning", "399 desk gone"), tag="desk")
        desk.expect("ACK")
        house.fail_over()
        alice.expect(100)
        mobile.answer(at_mobile, 480)
        mobile.expect("ACK")
        busy = alice.expect(486)
        assert (busy.to.tag, busy.headers.get("Warning")) == ("desk", "399 desk gone")

    def test_retransmitted_final_response_of_before_is_acknowledged(self) -> None:
        house, alice, ((desk, at_desk), (mobile, _)) = setup(None, None)
        desk.answer(at_desk, 486)
        desk.expect("ACK")
        house.fail_over()
        alice.expect(100)
        desk.answer(at_desk, 486)
        ack = desk.expect("ACK")
        assert (ack.uri, str(ack.via)) == (at_desk.uri, str(at_desk.via))
        assert quiet(alice, mobile)

    def test_fork_that_was_given_up_is_not_waited_for_when_it_rings_after_all(self) -> None:
        house = House(peers=[f"{ALICE}/32"])
        alice = house.phone("alice", ALICE)
        desk, mobile = (house.phone("bob", f"198.51.100.{host}").register() for host in (10, 11))
        alice.invite("sip:bob@sipha.test")
        alice.expect(100)
        at_desk, at_mobile = desk.expect("INVITE"), mobile.expect("INVITE")
        desk.answer(at_desk, 180)
        alice.expect(180)
        house.advance(house.timers.branch_timeout + 1)
        house.fail_over()
        alice.expect(100)
        mobile.answer(at_mobile, 180)
        desk.answer(at_desk, 200)
        assert alice.expect(200).cseq.method == "INVITE"
        house.advance(300)
        assert house.layer.transactions == 0

    def test_call_survives_one_leader_after_the_other(self) -> None:
        house, alice, ((desk, at_desk),) = setup(900, 500)
        for _ in range(3):
            house.fail_over()
            alice.expect(100)
        desk.answer(at_desk, 486)
        house.fail_over()
        house.state.now += 1
        alice.expect(100)
        assert alice.last is not None
        mobile = house.phone("bob", "198.51.100.11")
        invite = mobile.expect("INVITE")
        assert mobile.expect("INVITE").via.branch == invite.via.branch
        mobile.answer(invite, 200)
        alice.expect(200)

    def test_branch_outlives_the_key_that_it_was_made_with(self) -> None:
        house, alice, ((desk, invite),) = setup()
        house.tokens = Tokens({1: bytes(range(32)), 2: bytes([2]) * 32})
        house.fail_over()
        alice.expect(100)
        alice.cancel()
        alice.expect(200)
        assert desk.expect("CANCEL").via.branch == invite.via.branch

    def test_nothing_is_kept_of_a_call_that_is_over(self) -> None:
        house, alice, ((desk, invite),) = setup()
        assert len(house.standby) == 1
        desk.answer(invite, 200)
        alice.expect(200)
        house.advance(SOON)
        assert not house.standby

    def test_shadow_of_a_refused_call_ends_with_its_transaction(self) -> None:
        house, alice, ((desk, invite),) = setup()
        desk.answer(invite, 486)
        alice.expect(486)
        assert len(house.standby) == 1
        house.advance(6)
        assert not house.standby

    def test_phone_is_silenced_whose_caller_had_a_connection_with_the_dead_node(self) -> None:
        house = House()
        alice = house.phone("alice", ALICE, transport="TCP").register()
        bob = house.phone("bob", "198.51.100.10").register()
        alice.invite("sip:bob@sipha.test")
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        bob.answer(bob.expect("INVITE"), 180)
        house.advance(SOON)
        house.fail_over()
        bob.expect("CANCEL")

    def test_established_call_goes_on(self) -> None:
        house = House()
        alice = house.phone("alice", ALICE).register()
        bob = house.phone("bob", "198.51.100.10").register()
        call: Call = house.call(alice, bob)
        call.ack()
        bob.expect("ACK")
        house.advance(SOON)
        house.fail_over()
        call.by_caller("INVITE")
        alice.expect(100)
        bob.answer(bob.expect("INVITE"), 200)
        alice.expect(200)
        call.by_callee("BYE")
        alice.expect("BYE")

    def test_message_that_is_no_call_has_no_shadow(self) -> None:
        house = House(peers=[f"{ALICE}/32"])
        alice = house.phone("alice", ALICE)
        bob = house.phone("bob", "198.51.100.10").register()
        alice.request("MESSAGE", "sip:bob@sipha.test")
        bob.expect("MESSAGE")
        assert house.shadows.counters.shared == 0

    def test_call_of_an_rfc_2543_client_has_no_shadow(self) -> None:
        house = House(peers=[f"{ALICE}/32"])
        alice = house.phone("alice", ALICE)
        bob = house.phone("bob", "198.51.100.10").register()
        alice.invite("sip:bob@sipha.test", branch="1")
        alice.expect(100)
        bob.expect("INVITE")
        assert house.shadows.counters.shared == 0


class TestBranch:
    """Without a shadow."""

    @pytest.fixture
    def ringing(self) -> tuple[House, Phone, Phone, Request]:
        house, alice, ((desk, invite),) = setup()
        house.fail_over(shadows=False)
        return house, alice, desk, invite

    def test_busy_phone_that_is_the_only_one_is_acknowledged_and_ends_the_call(
        self, ringing: tuple[House, Phone, Phone, Request]
    ) -> None:
        house, alice, desk, invite = ringing
        desk.answer(invite, 486)
        assert str(desk.expect("ACK").via) == str(invite.via)
        alice.expect(486)
        assert house.proxy.takeover_counters.recreated == 1

    def test_cancel_silences_a_phone_that_was_heard(self, ringing: tuple[House, Phone, Phone, Request]) -> None:
        _, alice, desk, invite = ringing
        desk.answer(invite, 183)
        alice.expect(183)
        alice.cancel()
        alice.expect(200)
        assert str(desk.expect("CANCEL").via) == str(invite.via)
        desk.answer(invite, 487)
        desk.expect("ACK")
        alice.expect(487)

    def test_caller_hears_of_a_phone_that_falls_silent(self, ringing: tuple[House, Phone, Phone, Request]) -> None:
        house, alice, desk, invite = ringing
        desk.answer(invite, 183)
        alice.expect(183)
        house.advance(186)
        desk.expect("CANCEL")
        house.advance(33)
        alice.expect(408)
        house.advance(60)
        assert house.layer.transactions == 0

    def test_cancel_of_what_nothing_is_known_of_is_481(self, ringing: tuple[House, Phone, Phone, Request]) -> None:
        _, alice, desk, _ = ringing
        alice.cancel()
        alice.expect(481)
        assert desk.silent()

    @pytest.mark.parametrize("status", [180, 200, 486])
    def test_response_that_proves_nothing_is_dropped(self, status: int) -> None:
        house, alice, ((desk, invite),) = setup()
        house.fail_over(shadows=False)
        genuine = response_to(invite, status, to_tag="bob")

        def forge(change: str, to: str, host: str = desk.address[0]) -> None:
            data = genuine.render().decode().replace(change, to, 1)
            assert change == to or change in genuine.render().decode()
            house.receive(data.encode(), Flow("UDP", VIP, (host, 5060)))

        branch = invite.via.branch or ""
        forge(branch, branch[:-1] + ("0" if branch[-1] != "0" else "1"))
        forge(branch, "z9hG4bKguessed")
        forge(invite.call_id, "another")
        forge(f";tag={alice.tag}", ";tag=another")
        forge(f"CSeq: {invite.cseq.number}", "CSeq: 77")
        forge(f"{alice.via};", "203.0.113.66:5060;")
        forge(invite.vias[1].branch or "", "z9hG4bKother")
        forge("", "", host="203.0.113.66")
        assert quiet(alice, desk)
        assert house.layer.transactions == 0
        assert house.proxy.counters.dropped == 8

    def test_response_to_a_call_of_long_ago_is_dropped(self, ringing: tuple[House, Phone, Phone, Request]) -> None:
        house, alice, desk, invite = ringing
        house.state.now += longest_setup(Timers()) + 2 * BRANCH_STEP
        desk.answer(invite, 200)
        assert quiet(alice, desk)
        assert house.layer.transactions == 0

    def test_leader_of_long_standing_takes_nothing_over(self, ringing: tuple[House, Phone, Phone, Request]) -> None:
        house, alice, desk, invite = ringing
        house.advance(longest_setup(Timers()) + 1)
        desk.answer(invite, 200)
        assert quiet(alice, desk)

    def test_invite_that_comes_again_is_the_same_to_the_phones(self) -> None:
        house = House(peers=[f"{ALICE}/32"])
        alice = house.phone("alice", ALICE)
        forks = [house.phone("bob", f"198.51.100.{10 + number}").register() for number in range(3)]
        invite = alice.invite("sip:bob@sipha.test")
        alice.expect(100)
        first = [fork.expect("INVITE").render() for fork in forks]
        house.fail_over(shadows=False)
        house.state.now += 2
        alice.send(invite)
        alice.expect(100)
        assert [fork.expect("INVITE").render() for fork in forks] == first


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_from_a_peer_changes_nothing(records: list[bytes]) -> None:
    house, alice, ((desk, invite),) = setup()
    house.standby.received(records, house.now)
    house.fail_over()
    alice.expect(100)
    desk.answer(invite, 200)
    assert isinstance(alice.expect(200), Response)
