"""Calls in workers: what they keep, what the daemon gets of them, and what becomes of them when a worker dies."""

from __future__ import annotations

import pytest

from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.workers.mark import read_mark, seat_of
from tests.proxy import test_takeover
from tests.proxy.ladder import VIP, Call, Phone
from tests.proxy.test_takeover import CALLS, seen
from tests.workers.house import WORKERS, WorkerHouse

ONE, OTHER = "198.51.100.1", "198.51.100.2"
"""Hosts whose datagrams are read by one worker, and by the other."""


@pytest.fixture(params=["", ";rport"], ids=["parsed", "plain"])
def house(request: pytest.FixtureRequest) -> WorkerHouse:
    made = WorkerHouse()
    made.rport = request.param
    assert made.divide((ONE, 5060)) == made.divide((OTHER, 5061)) != made.divide((OTHER, 5060))
    return made


@pytest.fixture
def alice(house: WorkerHouse) -> Phone:
    return house.phone("alice", ONE).register()


@pytest.fixture
def bob(house: WorkerHouse) -> Phone:
    return house.phone("bob", OTHER).register()


def ring(alice: Phone, bob: Phone) -> Request:
    """Alice calls bob, whose phone rings; the INVITE that he got."""
    alice.invite(bob.aor)
    alice.expect(407)
    alice.authorize()
    alice.expect(100)
    invite = bob.expect("INVITE")
    bob.answer(invite, 180)
    alice.expect(180)
    return invite


def transactions(house: WorkerHouse) -> list[int]:
    return [front.calls.transactions for front in house.workers.values()]


class TestWay:
    @pytest.mark.parametrize("room", [True, False])
    def test_call_is_its_workers_and_the_daemon_sees_only_what_the_other_worker_can_not_give_it(
        self, house: WorkerHouse, alice: Phone, bob: Phone, *, room: bool
    ) -> None:
        house.room = room
        call = house.call(alice, bob)
        passed = [] if room else [b"SIP/2.0 180 Ringing", b"SIP/2.0 200 OK"]
        assert [data.split(b"\r\n")[0] for data in house.passed] == passed
        assert house.passed == house.handed
        call.ack()
        bob.expect("ACK")
        call.by_callee("BYE")
        alice.answer(alice.expect("BYE"), 200)
        bob.expect(200)
        assert house.layer.counters.server_transactions == house.layer.counters.client_transactions == 0
        assert house.proxy.counters.requests == 0

    def test_vias_of_a_worker_bear_its_mark(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        house.room = False
        invite = ring(alice, bob)
        mark = house.mark(house.divide(alice.address))
        assert invite.via.param("w") == mark == read_mark(house.passed[-1])
        assert seat_of(mark) == house.divide(alice.address)

    def test_response_that_begins_with_an_empty_line_is_its_workers(
        self, house: WorkerHouse, alice: Phone, bob: Phone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house.room = False
        receive = house.receive
        monkeypatch.setattr(house, "receive", lambda data, flow: receive(b"\r\n" + data, flow))
        ring(alice, bob)
        assert [data.split(b"\r\n")[0] for data in house.passed] == [b"SIP/2.0 180 Ringing"]

    def test_copy_of_an_invite_from_another_port_is_its_workers(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        ring(alice, bob)
        assert alice.last is not None
        sent = len(house.raw)
        for port in range(40000, 40004):  # as a NAT may have it
            house.receive(alice.last.render(), Flow("UDP", VIP, (ONE, port)))
        answers = {data.split(b"\r\n")[0] for data, _ in house.raw[sent:]}
        assert answers == {b"SIP/2.0 180 Ringing"}
        assert not bob.received

    @pytest.mark.parametrize("transport", ["UDP", "TCP"])
    def test_request_with_the_branch_of_a_call_that_rings_is_none_of_that_call(
        self, house: WorkerHouse, alice: Phone, bob: Phone, transport: str
    ) -> None:
        carol = house.phone("carol", "198.51.100.3", 5060, transport).register()
        ring(alice, bob)
        assert alice.last is not None
        branch = alice.last.via.branch or ""
        asked = alice.request("MESSAGE", carol.aor)
        alice.expect(407)
        proof = f"Proxy-Authorization: {alice.credentials(asked)}"
        alice.request("MESSAGE", carol.aor, branch=branch, headers=[proof])
        carol.answer(carol.expect("MESSAGE"), 200)
        alice.expect(200)

    def test_copy_of_an_invite_that_its_worker_has_forgotten_is_nobodys(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        number = house.divide(alice.address)
        house.kill(number)  # so that the nonce is one of the daemon's
        ring(alice, bob)
        house.layer._servers.clear()
        house.start(number)
        for shadow in house.shadows._ours.values():
            shadow.holder = house.mark(number)
        assert alice.last is not None
        for port in range(40000, 40004):
            house.receive(alice.last.render(), Flow("UDP", VIP, (ONE, port)))
        assert alice.silent()
        assert not bob.received

    def test_nonce_count_that_was_used_with_one_worker_is_used_with_all(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        ring(alice, bob)
        assert alice.last is not None
        thief = house.phone("alice", OTHER, 6666)
        stolen = alice.last.copy()
        stolen.headers.replace_value("Via", f"SIP/2.0/UDP {thief.via};branch=z9hG4bK-stolen")
        thief.send(stolen)
        assert "stale=true" in (thief.expect(407).headers.get("Proxy-Authenticate") or "")
        assert bob.silent()

    def test_nonce_count_that_was_used_with_a_worker_is_used_with_the_daemon(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        ring(alice, bob)
        assert alice.last is not None
        stolen = alice.last.copy()
        stolen.headers.replace_value("Via", f"SIP/2.0/UDP {alice.via};branch=z9hG4bK-stolen")
        house.kill(house.divide(alice.address))
        alice.received.clear()
        alice.send(stolen)
        assert "stale=true" in (alice.expect(407).headers.get("Proxy-Authenticate") or "")
        assert bob.silent()

    def test_nonce_count_that_comes_twice_before_the_answer_is_good_once(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        alice.invite(bob.aor)
        alice.expect(407)
        house.held_up = True
        twin = alice.authorize().copy()
        twin.headers.replace_value("Via", f"SIP/2.0/UDP {alice.via};branch=z9hG4bK-twin")
        alice.send(twin)
        house.held_up = False
        house.settle()
        assert alice.kinds == [100, 407]
        bob.expect("INVITE")
        assert bob.silent()

    def test_second_call_needs_no_question(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        house.call(alice, bob)
        house.held_up = True
        alice.invite(bob.aor)
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        bob.expect("INVITE")
        assert not house.said

    def test_call_by_a_nonce_of_the_daemon_is_asked_about(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        house.call(alice, bob)
        number = house.divide(alice.address)
        house.kill(number)
        alice.invite(bob.aor)
        alice.expect(407)  # by the daemon
        house.start(number)
        house.held_up = True
        alice.authorize()
        assert alice.silent()
        house.held_up = False
        house.settle()
        alice.expect(100)
        bob.expect("INVITE")

    def test_phone_that_is_gone_is_not_called_by_whoever_knew_it(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        house.call(alice, bob)
        house.state.table[bob.aor].clear()
        for _ in range(2):  # the second time it is known that nobody is there
            alice.invite(bob.aor)
            alice.expect(407)
            alice.authorize()
            alice.expect(100)
            alice.expect(480)
        assert bob.silent()

    def test_caller_without_an_account_is_asked_about_by_whoever_has_not_heard_of_it(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        house.call(alice, bob)
        house.table.begin_version(1)
        house.held_up = True
        alice.invite(bob.aor)
        alice.expect(407)
        alice.authorize()
        assert alice.silent()
        assert bob.silent()

    def test_copies_that_come_before_the_answer_are_absorbed(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        alice.invite(bob.aor)
        alice.expect(407)
        house.held_up = True
        invite = alice.authorize()
        alice.send(invite)
        assert alice.silent()
        house.held_up = False
        house.settle()
        alice.expect(100)
        bob.expect("INVITE")
        assert alice.silent()
        assert bob.silent()

    def test_cancel_that_overtakes_the_answer_cancels_the_call(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        alice.invite(bob.aor)
        alice.expect(407)
        house.held_up = True
        alice.authorize()
        alice.cancel()
        house.held_up = False
        house.settle()
        assert alice.kinds == [100, 200]
        invite = bob.expect("INVITE")
        bob.answer(invite, 180)
        bob.answer(bob.expect("CANCEL"), 200)
        bob.answer(invite, 487)
        assert alice.kinds == [100, 200, 180, 487]

    def test_cancel_from_another_port_finds_its_call(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        house.rport = ""  # else it would be answered there
        invite = ring(alice, bob)
        alice.flow = Flow("UDP", VIP, (ONE, 5061))  # read by the other worker
        alice.cancel()
        alice.expect(200)
        bob.answer(bob.expect("CANCEL"), 200)
        bob.answer(invite, 487)
        alice.expect(487)

    def test_flow_that_failed_anywhere_ends_its_forks(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        ring(alice, bob)
        house.fail(bob)
        assert alice.take().start_line.startswith("SIP/2.0 480")

    def test_call_that_goes_on_is_not_refused_for_overload(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        ring(alice, bob)
        assert alice.last is not None
        front = house.workers[house.divide(alice.address)]
        before = len(house.passed)
        front.datagrams_received([(alice.last.render(), alice.flow)] * 3, 5.0, 1.0)
        house.settle()
        assert set(alice.kinds) <= {100, 180}
        assert len(house.passed) == before

    def test_counts_are_of_what_was_not_passed_on(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        house.call(alice, bob)
        for front in house.workers.values():
            counts, report = front.calls.counts(), front.report()
            assert report.transactions == front.calls.transactions
            if counts["proxy"]["requests"]:
                assert report.counts["proxy/requests"] == 3
                assert report.counts["transaction/requests_received"] == 3  # and the ACK for the 407
                assert report.counts["answered/INVITE 200"] == report.counts["answered/INVITE 407"] == 1
                assert sum(report.invited[0]) == 1
            else:
                assert not report.counts
        assert not any(front.report().counts for front in house.workers.values())

    def test_whoever_looks_on_sees_what_a_worker_keeps_and_sends(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        for front in house.workers.values():
            front.watch(watched=True)
        house.call(alice, bob)
        lines = [(data.split(b"\r\n")[0], flow.remote, sent) for data, flow, sent in house.looked_at]
        uri, contact = bob.aor.encode(), bob.contact.encode()
        assert lines == [
            (b"INVITE %b SIP/2.0" % uri, alice.address, False),
            (b"SIP/2.0 407 Proxy Authentication Required", alice.address, True),
            (b"ACK %b SIP/2.0" % uri, alice.address, False),
            (b"INVITE %b SIP/2.0" % uri, alice.address, False),
            (b"SIP/2.0 100 Trying", alice.address, True),
            (b"INVITE %b SIP/2.0" % contact, bob.address, True),
            (b"SIP/2.0 180 Ringing", alice.address, True),  # what came is seen by the daemon, which hands it on
            (b"SIP/2.0 200 OK", alice.address, True),
        ]
        for front in house.workers.values():
            front.watch(watched=False)
        house.call(alice, bob)
        assert len(house.looked_at) == len(lines)

    def test_whoever_looks_on_sees_what_another_worker_hands_over(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        house.workers[house.divide(alice.address)].watch(watched=True)  # the other one hasn't heard of it yet
        house.call(alice, bob)
        came = [
            data.split(b"\r\n")[0] for data, flow, sent in house.looked_at if not sent and flow.remote == bob.address
        ]
        assert came == [b"SIP/2.0 180 Ringing", b"SIP/2.0 200 OK"]


class TestElsewhere:
    @pytest.fixture
    def carol(self, house: WorkerHouse) -> Phone:
        return house.phone("carol", "198.51.100.3", 5060, "TCP").register()

    def test_call_to_a_stream_is_the_daemons(self, house: WorkerHouse, alice: Phone, carol: Phone) -> None:
        call = house.call(alice, carol)
        assert transactions(house) == [0, 0]
        call.ack()
        carol.expect("ACK")
        call.by_caller("BYE")
        carol.answer(carol.expect("BYE"), 200)
        alice.expect(200)
        assert transactions(house) == [0, 0]
        assert house.layer.responses["INVITE", 200] == 1

    def test_copies_and_cancel_follow_it(self, house: WorkerHouse, alice: Phone, carol: Phone) -> None:
        invite = ring(alice, carol)
        assert alice.last is not None
        alice.send(alice.last)
        alice.expect(180)
        alice.cancel()
        alice.expect(200)
        carol.answer(carol.expect("CANCEL"), 200)
        carol.answer(invite, 487)
        alice.expect(487)
        house.advance(1)  # no other 487: the ACK has found its way
        assert alice.silent()
        assert transactions(house) == [0, 0]

    def test_whoever_looks_on_sees_it_once(self, house: WorkerHouse, alice: Phone, carol: Phone) -> None:
        for front in house.workers.values():
            front.watch(watched=True)
        ring(alice, carol)  # the INVITE with credentials is seen by the daemon
        came = [data.split(b"\r\n")[0] for data, _, sent in house.looked_at if not sent]
        uri = carol.aor.encode()
        assert came == [b"INVITE %b SIP/2.0" % uri, b"ACK %b SIP/2.0" % uri]

    def test_nothing_is_used_up_by_asking(self, house: WorkerHouse, alice: Phone, carol: Phone) -> None:
        ring(alice, carol)  # by the same nonce count

    def test_call_to_phones_of_both_kinds_is_the_daemons(self, house: WorkerHouse, alice: Phone, carol: Phone) -> None:
        desk = house.phone("carol", OTHER, 5090).register()
        alice.invite(carol.aor)
        alice.expect(407)
        alice.authorize()
        alice.expect(100)
        carol.expect("INVITE")
        desk.expect("INVITE")
        assert transactions(house) == [0, 0]

    def test_call_that_reaches_but_one_of_them_is_asked_about_each_time(self, house: WorkerHouse, alice: Phone) -> None:
        house.phone("carol", "198.51.100.3", 5060, "TCP").register(methods="MESSAGE")
        desk = house.phone("carol", OTHER, 5090).register()
        for _ in range(2):
            alice.invite(desk.aor)
            alice.expect(407)
            house.held_up = True
            alice.authorize()
            assert desk.silent()
            house.held_up = False
            house.settle()
            alice.expect(100)
            desk.answer(desk.expect("INVITE"), 486)
            desk.expect("ACK")
            alice.expect(486)

    def test_question_of_bytes_that_are_no_text_is_not_asked(self, house: WorkerHouse, alice: Phone) -> None:
        alice.request("MESSAGE", "sip:b%ffb\udcff@sipha.test")
        assert not house.errors
        assert not alice.silent()


class TestDeath:
    def test_call_goes_on_with_the_daemon(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        invite = ring(alice, bob)
        house.kill(house.divide(alice.address))
        bob.answer(invite, 200)
        assert alice.kinds[-1] == 200
        call = Call(alice, bob, invite, alice.received[-1])  # type: ignore[arg-type]
        alice.received.clear()
        call.ack()
        bob.expect("ACK")
        assert bob.silent()
        assert house.proxy.takeover_counters.resumed == 1

    def test_call_of_the_other_worker_stays_with_it(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        invite = ring(alice, bob)
        house.kill(house.divide(bob.address))
        bob.answer(invite, 200)
        alice.expect(200)
        assert house.proxy.takeover_counters.resumed == 0

    def test_letter_to_who_is_gone_is_acted_on_by_the_daemon(
        self, house: WorkerHouse, alice: Phone, bob: Phone
    ) -> None:
        invite = ring(alice, bob)
        number = house.divide(alice.address)
        house.held_up = True
        bob.answer(invite, 200)
        house.kill(number)
        house.start(number)  # who finds the letter
        house.held_up = False
        house.settle()
        assert alice.kinds[-1] == 200

    def test_another_worker_leaves_the_daemon_its_calls(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        invite = ring(alice, bob)
        number = house.divide(alice.address)
        house.kill(number)
        alice.received.clear()
        house.start(number)
        assert alice.last is not None
        alice.send(alice.last)
        alice.received.clear()
        assert bob.silent()
        alice.cancel()
        alice.expect(200)
        bob.answer(bob.expect("CANCEL"), 200)
        bob.answer(invite, 487)
        alice.expect(487)
        house.advance(1)
        assert alice.silent()

    def test_worker_may_die_before_it_is_answered(self, house: WorkerHouse, alice: Phone, bob: Phone) -> None:
        alice.invite(bob.aor)
        alice.expect(407)
        house.held_up = True
        alice.authorize()
        assert alice.last is not None
        house.said.clear()
        house.kill(house.divide(alice.address))
        house.held_up = False
        alice.send(alice.last)
        alice.expect(407)  # nobody knows any more which counts of that nonce were used
        alice.authorize()
        alice.expect(100)
        bob.expect("INVITE")


@pytest.mark.interpreted
def test_plain_invite_is_asked_about_and_forwarded_at_a_glance(
    house: WorkerHouse, alice: Phone, bob: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = house.workers[house.divide(alice.address)]
    parsed: list[bytes] = []
    receive = front.calls.endpoint.receive

    def note(data: bytes, flow: Flow, now: float) -> None:
        parsed.append(data)
        receive(data, flow, now)

    monkeypatch.setattr(front.calls.endpoint, "receive", note)
    ring(alice, bob)
    invites = [data for data in parsed if data.startswith(b"INVITE ")]
    assert len(invites) == (1 if house.rport else 2)  # the one without credentials is never plain


class MortalHouse(WorkerHouse):
    """Where it is the workers that die; others take their places."""

    def begin_to_lead(self, *, shadows: bool = True) -> None:
        self.fuse = None
        for number in WORKERS:
            self.kill(number)
            self.start(number)


@pytest.mark.parametrize("name", CALLS)
def test_call_ends_as_ever_wherever_its_worker_dies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_takeover, "House", MortalHouse)
    forks, cancels_after = CALLS[name]
    calm = test_takeover.network(*forks, fuse=test_takeover.LIVES, cancels_after=cancels_after)
    for fuse in range(test_takeover.sent(calm)):
        made = test_takeover.network(*forks, fuse=fuse, cancels_after=cancels_after)
        assert made.caller.finals == calm.caller.finals, fuse
        assert [phone[:3] for phone in seen(made)] == [phone[:3] for phone in seen(calm)], fuse


def test_caller_hears_one_final_response_wherever_workers_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_takeover, "House", MortalHouse)
    test_takeover.test_caller_hears_one_final_response_and_no_phone_rings_for_ever()
