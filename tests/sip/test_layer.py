from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.errors import SipError
from sipha.sip.events import (
    AckReceived,
    CancelReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StrayResponse,
    TimerFired,
    TransactionEnded,
    TransactionFailed,
    TransactionTimedOut,
)
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import parse
from sipha.sip.timers import Timers
from sipha.sip.transaction import ClientTransaction, ServerTransaction, State

CLIENT = ("192.0.2.1", 5060)
SERVER = ("192.0.2.2", 5060)
OUT = Flow("UDP", CLIENT, SERVER)
IN = Flow("UDP", SERVER, CLIENT)
OUT_TCP = Flow("TCP", CLIENT, SERVER, 3)
IN_TCP = Flow("TCP", SERVER, CLIENT, 4)


def request(method: str = "INVITE", branch: str = "z9hG4bK1", *, to_tag: str = "", via: str = "") -> Request:
    message = parse(
        (
            f"{method} sip:bob@192.0.2.2 SIP/2.0\r\nVia: {via or f'SIP/2.0/UDP 192.0.2.1:5060;branch={branch}'}\r\n"
            f"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=a\r\nTo: <sip:bob@example.com>{to_tag}\r\n"
            f"Call-ID: c1\r\nCSeq: 7 {method}\r\nContent-Length: 0\r\n\r\n"
        ).encode()
    )
    assert isinstance(message, Request)
    return message


def events(layer: TransactionLayer) -> list[Event]:
    return list(iter(layer.next_event, None))


def kinds(found: Iterable[Event]) -> list[type[Event]]:
    return [type(event) for event in found]


def sent(layer: TransactionLayer) -> list[str]:
    return [first_word(data) for data, _ in layer.messages_to_send()]


def first_word(data: bytes) -> str:
    words = data.decode().split(" ")
    return words[1] if words[0] == "SIP/2.0" else words[0]


def sending_times(layer: TransactionLayer, until: float) -> list[float]:
    """Let time pass; return when each message was sent."""
    times = []
    while (when := layer.next_timer()) is not None and when <= until:
        layer.handle_timer(when)
        times += [when] * len(layer.messages_to_send())
    return times


def test_response_goes_back_where_the_request_came_from_if_rport_is_forced() -> None:
    for force in (True, False):
        layer = TransactionLayer(force_rport=lambda request, flow, force=force: force and flow is IN)  # type: ignore[misc]
        layer.receive(request("OPTIONS"), IN, 0.0)
        [event] = events(layer)
        assert isinstance(event, RequestReceived)
        assert event.request.via.rport == (IN.remote[1] if force else None)


class TestSchedule:
    """When is what retransmitted: §17.1.1.2, §17.1.2.2, §17.2.1."""

    def test_invite_is_sent_seven_times_in_32_seconds_then_times_out(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 100.0)
        assert sent(layer) == ["INVITE"]
        assert sending_times(layer, 131.9) == [100.5, 101.5, 103.5, 107.5, 115.5, 131.5]
        assert events(layer) == []
        assert layer.next_timer() == 132.0
        layer.handle_timer(132.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]
        assert sending_times(layer, 1000.0) == []
        assert layer.transactions == 0

    def test_other_request_is_sent_eleven_times_at_most_4_seconds_apart(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request("OPTIONS"), OUT, 0.0)
        assert sent(layer) == ["OPTIONS"]
        assert sending_times(layer, 31.9) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
        layer.handle_timer(32.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]

    def test_final_response_to_invite_is_sent_until_timer_h(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request(), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 486, to_tag="b"), 10.0)
        assert sent(layer) == ["486"]
        times = [10.5, 11.5, 13.5, 17.5, 21.5, 25.5, 29.5, 33.5, 37.5, 41.5]
        assert sending_times(layer, 41.9) == times
        layer.handle_timer(42.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]

    @pytest.mark.parametrize(("method", "flow"), [("INVITE", OUT_TCP), ("OPTIONS", OUT_TCP)])
    def test_nothing_is_retransmitted_over_a_connection_but_the_timeout_is_the_same(
        self, method: str, flow: Flow
    ) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(method), flow, 0.0)
        assert sent(layer) == [method]
        assert layer.next_timer() == 32.0
        layer.handle_timer(32.0)
        assert sent(layer) == []
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]

    def test_100_stops_an_invite_and_its_timeout(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 0.0)
        assert sent(layer) == ["INVITE"]
        layer.receive(response_to(transaction.request, 100), OUT, 0.1)
        assert kinds(events(layer)) == [ResponseReceived]
        assert layer.next_timer() is None
        assert sending_times(layer, 1000.0) == []

    def test_100_slows_another_request_down_to_t2_from_its_next_transmission(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request("OPTIONS"), OUT, 0.0)
        assert sent(layer) == ["OPTIONS"]
        assert sending_times(layer, 0.6) == [0.5]
        layer.receive(response_to(transaction.request, 100), OUT, 0.7)
        assert kinds(events(layer)) == [ResponseReceived]
        assert sending_times(layer, 31.9) == [1.5, 5.5, 9.5, 13.5, 17.5, 21.5, 25.5, 29.5]
        layer.handle_timer(32.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]

    def test_retransmissions_that_were_held_up_are_not_made_up_for(self) -> None:
        layer = TransactionLayer()
        layer.start(request(), OUT, 0.0)
        assert sent(layer) == ["INVITE"]
        layer.handle_timer(20.0)
        assert sent(layer) == ["INVITE"]
        assert layer.next_timer() == 21.0

    @pytest.mark.parametrize(
        ("statuses", "lasts"),
        [((486,), 32.0), ((200,), 32.0), ((180, 200), 32.0)],
    )
    def test_invite_client_transaction_absorbs_for_its_time(self, statuses: tuple[int, ...], lasts: float) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 0.0)
        for status in statuses:
            layer.receive(response_to(transaction.request, status, to_tag="b"), OUT, 3.0)
            assert kinds(events(layer)) == [ResponseReceived]
        assert layer.next_timer() == 3.0 + lasts
        layer.handle_timer(3.0 + lasts)
        assert events(layer) == [TransactionEnded(transaction)]

    def test_other_client_transaction_absorbs_for_t4(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request("BYE"), OUT, 0.0)
        layer.receive(response_to(transaction.request, 200, to_tag="b"), OUT, 1.0)
        assert kinds(events(layer)) == [ResponseReceived]
        assert layer.next_timer() == 6.0

    def test_accepted_lasts_as_long_over_a_connection(self) -> None:
        # RFC 6026: Timers L and M are 64*T1 for all transports.
        layer = TransactionLayer()
        client = layer.start(request(), OUT_TCP, 0.0)
        layer.receive(response_to(client.request, 200, to_tag="b"), OUT_TCP, 1.0)
        server = layer.accept(request(), IN_TCP, 2.0)
        layer.respond(server, response_to(server.request, 200, to_tag="b"), 2.0)
        assert kinds(events(layer)) == [ResponseReceived]
        layer.handle_timer(33.0)
        assert events(layer) == [TransactionEnded(client)]
        layer.handle_timer(34.0)
        assert events(layer) == [TransactionEnded(server)]


class TestBranchTimeout:
    @pytest.mark.parametrize("method", ["INVITE", "OPTIONS"])
    def test_silent_branch_times_out_early(self, method: str) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(method), OUT, 0.0, branch_timeout=layer.timers.branch_timeout)
        layer.handle_timer(5.9)
        assert events(layer) == []
        layer.handle_timer(6.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]
        assert layer.next_timer() is None

    def test_answered_invite_rings_on(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 0.0, branch_timeout=6.0)
        layer.receive(response_to(transaction.request, 180, to_tag="b"), OUT, 5.0)
        assert kinds(events(layer)) == [ResponseReceived]
        layer.handle_timer(500.0)
        assert events(layer) == []
        assert transaction.state is State.PROCEEDING

    def test_answered_other_request_has_64_t1_from_its_start(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request("OPTIONS"), OUT, 0.0, branch_timeout=6.0)
        layer.receive(response_to(transaction.request, 100), OUT, 5.0)
        assert kinds(events(layer)) == [ResponseReceived]
        assert sending_times(layer, 31.9) != []
        assert events(layer) == []
        layer.handle_timer(32.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]

    def test_longer_branch_timeout_than_timer_b_makes_no_difference(self) -> None:
        layer = TransactionLayer(Timers(t1=0.05))
        layer.start(request(), OUT_TCP, 0.0, branch_timeout=6.0)
        assert layer.next_timer() == pytest.approx(3.2)


class TestInviteClient:
    def test_each_2xx_is_passed_up_and_none_is_acknowledged(self) -> None:
        layer = TransactionLayer()
        invite = request()
        layer.start(invite, OUT, 0.0)
        assert sent(layer) == ["INVITE"]
        for tag in ("b1", "b2", "b1"):
            layer.receive(response_to(invite, 200, to_tag=tag), OUT, 1.0)
            (event,) = events(layer)
            assert isinstance(event, ResponseReceived)
            assert event.response.to.tag == tag
        # After the first 2xx, nothing else counts.
        for status in (180, 486, 603):
            layer.receive(response_to(invite, status, to_tag="b3"), OUT, 2.0)
        assert events(layer) == []
        assert sent(layer) == []

    def test_transaction_at_rest_keeps_no_more_than_the_method(self) -> None:
        layer = TransactionLayer()
        invite = request()
        transaction = layer.start(invite, OUT, 0.0)
        layer.receive(response_to(invite, 200, to_tag="b"), OUT, 1.0)
        assert kinds(events(layer)) == [ResponseReceived]
        assert transaction.request.method == "INVITE"
        assert transaction.request.headers.lines == []
        assert transaction.branch == invite.via.branch

    def test_2xx_after_timer_m_is_a_stray(self) -> None:
        layer = TransactionLayer()
        invite = request()
        layer.start(invite, OUT, 0.0)
        layer.receive(response_to(invite, 200, to_tag="b"), OUT, 1.0)
        assert kinds(events(layer)) == [ResponseReceived]
        layer.handle_timer(33.0)
        assert kinds(events(layer)) == [TransactionEnded]
        late = response_to(invite, 200, to_tag="b")
        layer.receive(late, OUT, 33.1)
        assert events(layer) == [StrayResponse(late, OUT)]
        assert layer.counters.stray_responses == 1

    def test_each_final_is_acknowledged_with_its_own_to_tag_but_passed_up_once(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 0.0)
        assert sent(layer) == ["INVITE"]
        acknowledged = []
        for tag in ("b1", "b1", "b2"):
            layer.receive(response_to(transaction.request, 486, to_tag=tag), OUT, 1.0)
        assert kinds(events(layer)) == [ResponseReceived]
        for data, flow in layer.messages_to_send():
            ack = parse(data)
            assert isinstance(ack, Request)
            assert (ack.method, flow) == ("ACK", OUT)
            assert ack.via.branch == transaction.branch
            acknowledged.append(ack.to.tag)
        assert acknowledged == ["b1", "b1", "b2"]

    def test_request_bytes_are_forgotten_once_they_are_not_sent_again(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 0.0)
        assert transaction.last_sent
        layer.receive(response_to(transaction.request, 180, to_tag="b"), OUT, 1.0)
        assert kinds(events(layer)) == [ResponseReceived]
        assert not transaction.last_sent

    def test_no_ack_and_no_repeated_branch_is_started(self) -> None:
        layer = TransactionLayer()
        layer.start(request(), OUT, 0.0)
        layer.start(request("CANCEL"), OUT, 0.0)
        with pytest.raises(SipError) as caught:
            layer.start(request(), OUT, 0.0)
        assert caught.value.response_status == 482
        with pytest.raises(ValueError, match="ACK"):
            layer.start(request("ACK"), OUT, 0.0)
        assert layer.transactions == 2


class TestAdopted:
    """What another node has begun."""

    def test_adopted_invite_is_not_sent_and_goes_on_in_proceeding(self) -> None:
        layer, invite = TransactionLayer(), request()
        transaction = layer.adopt(invite, OUT, 0.0)
        assert transaction.state is State.PROCEEDING
        assert layer.next_timer() is None
        busy = response_to(invite, 486, to_tag="b")
        layer.receive(busy, OUT, 1.0)
        assert events(layer) == [ResponseReceived(transaction, busy)]
        assert sent(layer) == ["ACK"]
        assert sending_times(layer, 100.0) == []
        assert events(layer) == [TransactionEnded(transaction)]

    def test_adopted_invite_hears_of_its_flow(self) -> None:
        layer = TransactionLayer()
        transaction = layer.adopt(request(), OUT, 0.0)
        layer.flow_failed(OUT, 1.0)
        assert events(layer) == [TransactionFailed(transaction), TransactionEnded(transaction)]

    def test_branch_is_adopted_once(self) -> None:
        layer = TransactionLayer()
        layer.adopt(request(), OUT, 0.0)
        with pytest.raises(SipError, match="sent before"):
            layer.adopt(request(), OUT, 0.0)

    def test_message_that_is_reconsidered_meets_its_transaction_before_what_came_later(self) -> None:
        layer, invite = TransactionLayer(), request()
        ringing, ok = (response_to(invite, status, to_tag="b") for status in (180, 200))
        layer.receive(ringing, OUT, 0.0)
        layer.receive(ok, OUT, 0.0)
        assert layer.next_event() == StrayResponse(ringing, OUT)
        transaction = layer.adopt(invite, OUT, 0.0)
        layer.reconsider(ringing, OUT, 0.0)
        assert events(layer) == [ResponseReceived(transaction, ringing), ResponseReceived(transaction, ok)]


def test_layer_counts_each_response_once_by_method_and_status() -> None:
    layer, invite = TransactionLayer(), request()
    server = layer.accept(invite, OUT, 0.0)
    layer.respond(server, response_to(invite, 180, to_tag="b"), 0.0)
    layer.receive(invite, OUT, 0.1)  # a retransmission is answered again
    strange = request(method="FROBNICATE")
    layer.reply(response_to(strange, 405, to_tag="b"), OUT)
    assert events(layer) == []
    assert layer.responses == {("INVITE", 180): 1, ("other", 405): 1}


class TestServer:
    def test_nothing_is_kept_before_accept(self) -> None:
        layer = TransactionLayer()
        for _ in range(2):
            layer.receive(request("OPTIONS"), IN, 0.0)
            (event,) = events(layer)
            assert isinstance(event, RequestReceived)
            layer.reply(response_to(event.request, 401, to_tag="x"), event.flow)
        assert sent(layer) == ["401", "401"]
        assert layer.transactions == 0
        assert layer.next_timer() is None

    def test_copy_in_the_same_wake_up_meets_the_transaction_of_the_first(self) -> None:
        layer = TransactionLayer()
        layer.receive(request(), IN, 0.0)
        layer.receive(request(), IN, 0.0)
        layer.receive(request("CANCEL"), IN, 0.0)
        event = layer.next_event()
        assert isinstance(event, RequestReceived)
        transaction = layer.accept(event.request, event.flow, 0.0)
        layer.respond(transaction, response_to(event.request, 100), 0.0)
        cancel = layer.next_event()
        assert isinstance(cancel, CancelReceived)
        assert cancel.transaction is transaction
        assert layer.next_event() is None
        assert sent(layer) == ["100", "100", "200"]

    def test_register_always_comes_to_the_tu(self) -> None:
        layer = TransactionLayer()
        for _ in range(3):
            layer.receive(request("REGISTER"), IN, 0.0)
        assert kinds(events(layer)) == [RequestReceived] * 3

    def test_copy_before_any_response_is_absorbed(self) -> None:
        layer = TransactionLayer()
        for method in ("INVITE", "OPTIONS"):
            layer.accept(request(method), IN, 0.0)
            layer.receive(request(method), IN, 0.5)
        assert events(layer) == []
        assert sent(layer) == []
        assert layer.counters.retransmissions_received == 2

    def test_same_branch_from_another_client_is_another_transaction(self) -> None:
        layer = TransactionLayer()
        layer.accept(request(), IN, 0.0)
        layer.receive(request(via="SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1"), IN, 0.0)
        layer.receive(request(via="SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1"), IN, 0.0)
        assert kinds(events(layer)) == [RequestReceived]

    def test_ack_with_the_branch_after_a_2xx_goes_to_the_tu_with_its_transaction(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request(), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 200, to_tag="b"), 0.0)
        ack = request("ACK", to_tag=";tag=b")
        layer.receive(ack, IN, 0.1)
        assert events(layer) == [AckReceived(transaction, ack)]

    def test_ack_with_its_own_branch_goes_to_the_tu(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request(), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 200, to_tag="b"), 0.0)
        ack = request("ACK", "z9hG4bK2", to_tag=";tag=b")
        layer.receive(ack, IN, 0.1)
        assert events(layer) == [RequestReceived(ack, IN)]

    def test_responses_go_where_the_via_says_whatever_way_the_copies_come(self) -> None:
        layer = TransactionLayer()
        flow = Flow("UDP", SERVER, ("203.0.113.5", 40000))
        layer.receive(request(via="SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK1"), flow, 0.0)
        event = layer.next_event()
        assert isinstance(event, RequestReceived)
        assert event.request.via.received == "203.0.113.5"
        assert event.request.via.rport == 40000
        transaction = layer.accept(event.request, event.flow, 0.0)
        layer.respond(transaction, response_to(event.request, 100), 0.0)
        other = flow._replace(remote=("203.0.113.6", 40001))
        layer.receive(request(via="SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK1"), other, 0.5)
        assert layer.next_event() is None
        assert [to for _, to in layer.messages_to_send()] == [flow, flow]

    def test_responses_without_rport_go_to_the_port_of_the_sent_by(self) -> None:
        layer = TransactionLayer()
        flow = Flow("UDP", SERVER, ("203.0.113.5", 40000))
        layer.receive(request(via="SIP/2.0/UDP phone.example.com:5066;branch=z9hG4bK1"), flow, 0.0)
        event = layer.next_event()
        assert isinstance(event, RequestReceived)
        transaction = layer.accept(event.request, event.flow, 0.0)
        layer.respond(transaction, response_to(event.request, 100), 0.0)
        ((_, to),) = layer.messages_to_send()
        assert to == flow._replace(remote=("203.0.113.5", 5066))

    def test_second_final_response_of_the_tu_is_discarded(self) -> None:
        layer = TransactionLayer()
        for method in ("INVITE", "OPTIONS"):
            transaction = layer.accept(request(method), IN, 0.0)
            for status in (486, 180, 200, 500):
                layer.respond(transaction, response_to(transaction.request, status, to_tag="b"), 1.0)
            assert sent(layer) == ["486"]

    @pytest.mark.parametrize("method", ["ACK", "CANCEL", "REGISTER"])
    def test_ack_cancel_and_register_are_never_accepted(self, method: str) -> None:
        with pytest.raises(ValueError, match=method):
            TransactionLayer().accept(request(method), IN, 0.0)

    def test_accepting_a_request_twice_is_refused(self) -> None:
        layer = TransactionLayer()
        layer.accept(request(), IN, 0.0)
        with pytest.raises(SipError) as caught:
            layer.accept(request(), IN, 0.0)
        assert caught.value.response_status == 482

    def test_too_many_transactions_are_refused_without_retry_after(self) -> None:
        layer = TransactionLayer(max_transactions=2)
        for branch in ("z9hG4bK1", "z9hG4bK2"):
            layer.accept(request(branch=branch), IN, 0.0)
            layer.start(request(branch=branch), OUT, 0.0)
        refused: list[Callable[[], object]] = [
            lambda: layer.accept(request(branch="z9hG4bK3"), IN, 0.0),
            lambda: layer.start(request(branch="z9hG4bK3"), OUT, 0.0),
        ]
        for attempt in refused:
            with pytest.raises(SipError) as caught:
                attempt()
            assert (caught.value.response_status, caught.value.headers) == (503, ())
        assert layer.counters.transactions_refused == 2
        layer.start(request("CANCEL"), OUT, 0.0)
        layer.receive(request("CANCEL"), IN, 0.0)
        assert kinds(events(layer)) == [CancelReceived]


def test_calls_being_set_up_over_streams_are_counted() -> None:
    layer = TransactionLayer()
    over_udp = layer.accept(request(), IN, 0.0)
    ringing = layer.accept(request(branch="z9hG4bK2"), OUT_TCP, 0.0)
    layer.accept(request("OPTIONS", branch="z9hG4bK3"), OUT_TCP, 0.0)
    assert layer.stream_calls == 1
    layer.respond(over_udp, response_to(over_udp.request, 180, to_tag="b"), 1.0)
    layer.respond(ringing, response_to(ringing.request, 180, to_tag="b"), 1.0)
    assert layer.stream_calls == 1
    layer.respond(ringing, response_to(ringing.request, 200, to_tag="b"), 2.0)
    assert layer.stream_calls == 0


class TestNonInviteServer:
    """RFC 4320 §4."""

    def test_slow_tu_has_its_100_sent_when_timer_e_has_grown_to_t2(self) -> None:
        layer = TransactionLayer()
        layer.accept(request("OPTIONS"), IN, 10.0)
        assert sending_times(layer, 100.0) == [13.5]

    def test_quick_tu_needs_no_100(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request("OPTIONS"), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 200, to_tag="b"), 0.1)
        assert sent(layer) == ["200"]
        assert sending_times(layer, 100.0) == []

    @pytest.mark.parametrize("status", [100, 180, 183, 408])
    def test_neither_provisional_responses_nor_408_are_sent(self, status: int) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request("OPTIONS"), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, status), 0.1)
        layer.receive(request("OPTIONS"), IN, 0.2)
        assert events(layer) == []
        assert sent(layer) == []

    def test_408_of_the_tu_ends_it_in_silence(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request("OPTIONS"), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 408, to_tag="b"), 32.0)
        assert sending_times(layer, 64.0) == []
        assert events(layer) == [TransactionEnded(transaction)]


class TestRfc2543:
    VIA = "SIP/2.0/UDP 192.0.2.1:5060"

    def test_copy_matches_and_ack_matches_by_the_to_tag_of_the_response(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request(via=self.VIA), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 486, to_tag="b"), 0.0)
        layer.receive(request(via=self.VIA), IN, 0.1)
        assert events(layer) == []
        assert sent(layer) == ["486", "486"]
        other = request("ACK", via=self.VIA, to_tag=";tag=z")
        layer.receive(other, IN, 0.2)
        assert events(layer) == [RequestReceived(other, IN)]
        assert str(transaction.state) == "Completed"
        layer.receive(request("ACK", via=self.VIA, to_tag=";tag=b"), IN, 0.3)
        assert events(layer) == []
        assert str(transaction.state) == "Confirmed"

    def test_request_with_another_to_tag_is_another(self) -> None:
        layer = TransactionLayer()
        layer.accept(request(via=self.VIA), IN, 0.0)
        layer.receive(request(via=self.VIA, to_tag=";tag=z"), IN, 0.1)
        assert kinds(events(layer)) == [RequestReceived]

    def test_cancels_that_differ_in_the_to_tag_are_told_apart(self) -> None:
        layer = TransactionLayer()
        first = layer.accept(request(via=self.VIA, to_tag=";tag=x"), IN, 0.0)
        layer.receive(request("CANCEL", via=self.VIA, to_tag=";tag=x"), IN, 0.1)
        assert kinds(events(layer)) == [CancelReceived]
        layer.terminate(first)
        assert kinds(events(layer)) == [TransactionEnded]
        layer.accept(request(via=self.VIA, to_tag=";tag=y"), IN, 0.2)
        layer.receive(request("CANCEL", via=self.VIA, to_tag=";tag=y"), IN, 0.3)
        assert kinds(events(layer)) == [RequestReceived]

    def test_cancel_matches(self) -> None:
        layer = TransactionLayer()
        layer.accept(request(via=self.VIA), IN, 0.0)
        layer.receive(request("CANCEL", via=self.VIA), IN, 0.1)
        assert kinds(events(layer)) == [CancelReceived]
        assert sent(layer) == ["200"]


class TestCancel:
    def test_cancel_is_answered_each_time_and_told_once(self) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request(), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, 180, to_tag="b"), 0.0)
        cancel = request("CANCEL")
        layer.receive(cancel, IN, 1.0)
        layer.receive(request("CANCEL"), IN, 1.5)
        assert events(layer) == [CancelReceived(transaction, cancel, IN)]
        answers = [parse(data) for data, _ in layer.messages_to_send()]
        assert [getattr(answer, "status", None) for answer in answers] == [180, 200, 200]
        assert answers[1].cseq.method == "CANCEL"
        assert answers[1].to.tag
        assert answers[1].to.tag == answers[2].to.tag
        # Nobody hears of the CANCEL's own transaction.
        layer.handle_timer(33.0)
        assert events(layer) == []
        assert layer.transactions == 1

    @pytest.mark.parametrize("status", [200, 486])
    def test_cancel_after_the_final_response_is_answered_but_has_no_effect(self, status: int) -> None:
        layer = TransactionLayer()
        transaction = layer.accept(request(), IN, 0.0)
        layer.respond(transaction, response_to(transaction.request, status, to_tag="b"), 0.0)
        layer.receive(request("CANCEL"), IN, 0.1)
        assert events(layer) == []
        assert sent(layer) == [str(status), "200"]

    def test_cancel_that_matches_nothing_comes_to_the_tu(self) -> None:
        layer = TransactionLayer()
        layer.accept(request("OPTIONS"), IN, 0.0)
        for cancel in (request("CANCEL"), request("CANCEL", "z9hG4bK2")):
            layer.receive(cancel, IN, 0.0)
            assert events(layer) == [RequestReceived(cancel, IN)]

    def test_cancel_and_invite_of_one_branch_are_two_client_transactions(self) -> None:
        layer = TransactionLayer()
        invite = layer.start(request(), OUT, 0.0)
        cancel = layer.start(request("CANCEL"), OUT, 0.1)
        layer.receive(response_to(cancel.request, 200, to_tag="b"), OUT, 0.2)
        (event,) = events(layer)
        assert isinstance(event, ResponseReceived)
        assert event.transaction is cancel
        assert invite.state is State.CALLING


class TestFlowFailed:
    def test_icmp_error_fails_the_client_transactions_to_that_address_only(self) -> None:
        layer = TransactionLayer()
        dead = [layer.start(request(branch=f"z9hG4bK{i}"), OUT, 0.0) for i in range(2)]
        elsewhere = layer.start(request(branch="z9hG4bK9"), OUT._replace(remote=("192.0.2.2", 5062)), 0.0)
        layer.flow_failed(OUT, 1.0)
        assert events(layer) == [
            told for transaction in dead for told in (TransactionFailed(transaction), TransactionEnded(transaction))
        ]
        assert elsewhere.state is State.CALLING
        assert layer.transactions == 1

    def test_broken_connection_fails_what_used_it_or_was_to_open_one(self) -> None:
        layer = TransactionLayer()
        layer.start(request(branch="z9hG4bK1"), OUT_TCP, 0.0)
        layer.start(request(branch="z9hG4bK2"), OUT_TCP._replace(connection=0), 0.0)
        other = layer.start(request(branch="z9hG4bK3"), OUT_TCP._replace(connection=99), 0.0)
        udp = layer.start(request(branch="z9hG4bK4"), OUT, 0.0)
        layer.flow_failed(OUT_TCP, 1.0)
        assert kinds(events(layer)) == [TransactionFailed, TransactionEnded] * 2
        assert (other.state, udp.state) == (State.CALLING, State.CALLING)
        layer.flow_failed(OUT_TCP._replace(connection=0), 1.0)
        assert events(layer) == []

    def test_server_transaction_is_told_and_stays(self) -> None:
        # RFC 6026 §8.8: it "MUST remain in the current state".
        layer = TransactionLayer()
        transaction = layer.accept(request(), IN_TCP, 0.0)
        layer.flow_failed(IN_TCP, 1.0)
        assert events(layer) == [TransactionFailed(transaction)]
        assert transaction.state is State.PROCEEDING
        layer.respond(transaction, response_to(transaction.request, 487, to_tag="b"), 1.0)
        layer.handle_timer(33.0)
        assert events(layer) == [TransactionTimedOut(transaction), TransactionEnded(transaction)]

    def test_failure_where_nothing_is_does_nothing(self) -> None:
        layer = TransactionLayer()
        layer.flow_failed(OUT, 1.0)
        assert events(layer) == []


class TestTransactionUser:
    def test_tu_ends_a_transaction(self) -> None:
        layer = TransactionLayer()
        client, server = layer.start(request(), OUT, 0.0), layer.accept(request(), IN, 0.0)
        layer.terminate(client)
        layer.terminate(server)
        layer.terminate(server)
        assert events(layer) == [TransactionEnded(client), TransactionEnded(server)]
        assert layer.transactions == 0
        assert layer.next_timer() is None

    def test_tu_sets_and_stops_timers(self) -> None:
        layer = TransactionLayer()
        timer, stopped = layer.set_timer(3.0, "C"), layer.set_timer(2.0, "max")
        layer.stop_timer(stopped)
        assert layer.next_timer() == 3.0
        layer.handle_timer(3.0)
        assert timer.running
        assert events(layer) == [TimerFired(timer, "C")]
        assert not timer.running
        layer.stop_timer(timer)

    def test_timer_that_is_stopped_before_its_event_is_taken_is_not_heard_of(self) -> None:
        layer = TransactionLayer()
        first, second = layer.set_timer(1.0, "first"), layer.set_timer(1.0, "second")
        layer.handle_timer(1.0)
        assert layer.next_event() == TimerFired(first, "first")
        layer.stop_timer(second)
        assert layer.next_event() is None

    def test_message_is_sent_once_without_transaction(self) -> None:
        layer = TransactionLayer()
        layer.send(request("ACK"), OUT)
        assert sent(layer) == ["ACK"]
        assert sent(layer) == []
        assert layer.next_timer() is None

    def test_context_is_the_tus(self) -> None:
        layer = TransactionLayer()
        transaction = layer.start(request(), OUT, 0.0)
        assert transaction.context is None
        transaction.context = "fork 1"
        layer.receive(response_to(transaction.request, 180), OUT, 1.0)
        (event,) = events(layer)
        assert isinstance(event, ResponseReceived)
        assert event.transaction.context == "fork 1"


class Ends:
    """Two layers joined by bytes, 20 ms apart, in a time of their own; the n-th datagram of a side may be lost.

    The callee answers what it is told to, after `delay`, and repeats a 2xx to an INVITE until it has the ACK
    (§13.3.1.4). The caller acknowledges each 2xx (§13.2.2.4), sends a CANCEL at `cancel_at`, or at the first response
    after, and waits no longer than Timer C.
    """

    def __init__(
        self,
        method: str,
        status: int,
        *,
        delay: float = 1.0,
        ring: bool = True,
        reliable: bool = False,
        cancel_at: float | None = None,
        lost: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
    ) -> None:
        self.caller, self.callee = TransactionLayer(), TransactionLayer()
        self.flows = (OUT_TCP, IN_TCP) if reliable else (OUT, IN)
        self.status, self.delay, self.ring, self.cancel_at = status, delay, ring, cancel_at
        self.lost = lost
        self.now = 0.0
        self.log: list[tuple[float, str, str]] = []  # when, which side sent, what
        self.heard: list[int] = []
        self.timed_out = self.gave_up = self.acknowledged = self.cancelled = self.accepted = 0
        self.ended: list[ClientTransaction | ServerTransaction] = []
        self._wire: list[tuple[float, int, int, bytes]] = []
        self._serial = 0
        self._counts = [0, 0]
        self._wants_cancel = False
        self._final: Response | None = None
        self._interval = 0.5
        self.invite = request(method)
        self.transaction = self.caller.start(self.invite, self.flows[0], 0.0)
        self.caller.set_timer(self.caller.timers.timer_c, "C")
        if cancel_at is not None:
            self.caller.set_timer(cancel_at, "cancel")
        self._run()

    def _run(self) -> None:
        self._settle()
        while (when := self._next()) is not None:
            assert when >= self.now
            assert when < 400.0, "it does not end"
            self.now = when
            while self._wire and self._wire[0][0] <= when:
                _, _, side, data = heappop(self._wire)
                layer = (self.caller, self.callee)[side]
                layer.receive(parse(data), self.flows[side], when)
            self._settle()
            self.caller.handle_timer(when)
            self.callee.handle_timer(when)
            self._settle()

    def _next(self) -> float | None:
        times = [self.caller.next_timer(), self.callee.next_timer(), self._wire[0][0] if self._wire else None]
        return min((time for time in times if time is not None), default=None)

    def _settle(self) -> None:
        while (event := self.caller.next_event()) is not None:
            self._caller_hears(event)
        while (event := self.callee.next_event()) is not None:
            self._callee_hears(event)
        for side, layer in enumerate((self.caller, self.callee)):
            for data, flow in layer.messages_to_send():
                assert flow == self.flows[side]
                self.log.append((self.now, ("caller", "callee")[side], first_word(data)))
                if self._counts[side] not in self.lost[side]:
                    self._serial += 1
                    heappush(self._wire, (self.now + 0.02, self._serial, 1 - side, data))
                self._counts[side] += 1

    def _caller_hears(self, event: Event) -> None:
        match event:
            case ResponseReceived(transaction, response) if transaction is self.transaction:
                self.heard.append(response.status)
                if self._wants_cancel and response.status < 200:
                    self._cancel()
                if self.invite.method == "INVITE" and 200 <= response.status < 300:
                    self.caller.send(request("ACK", "z9hG4bKack", to_tag=";tag=b"), self.flows[0])
            case TimerFired(_, "C"):
                if self.transaction.state is State.PROCEEDING:
                    self.gave_up += 1
                    self.caller.terminate(self.transaction)
            case TimerFired():
                # "If no provisional response has been received, the CANCEL request MUST NOT be sent" (§9.1)
                self._wants_cancel = True
                if self.transaction.state is State.PROCEEDING:
                    self._cancel()
            case TransactionTimedOut(transaction) if transaction is self.transaction:
                self.timed_out += 1
            case TransactionEnded(transaction):
                assert isinstance(transaction, ClientTransaction)
                self.ended.append(transaction)

    def _cancel(self) -> None:
        self._wants_cancel = False
        self.caller.start(request("CANCEL"), self.flows[0], self.now)

    def _callee_hears(self, event: Event) -> None:
        match event:
            case RequestReceived(ack, _) if ack.method == "ACK":
                self.acknowledged += 1
            case RequestReceived(cancel, flow) if cancel.method == "CANCEL":
                self.callee.reply(response_to(cancel, 481, to_tag="x"), flow)
            case RequestReceived(received, flow):
                self.accepted += 1
                transaction = self.callee.accept(received, flow, self.now)
                if received.method == "INVITE" and self.ring:
                    self.callee.respond(transaction, response_to(received, 180, to_tag="b"), self.now)
                self.callee.set_timer(self.now + self.delay, transaction)
            case CancelReceived(transaction):
                self.cancelled += 1
                self._answer(transaction, 487)
            case TimerFired(_, ServerTransaction() as transaction):
                if transaction.state is State.PROCEEDING or transaction.state is State.TRYING:
                    self._answer(transaction, self.status)
                elif transaction.state is State.ACCEPTED and not self.acknowledged and self._interval < 64:
                    self.callee.respond(transaction, self._answered(), self.now)
                    self.callee.set_timer(self.now + self._interval, transaction)
                    self._interval *= 2
            case TransactionEnded(transaction):
                assert isinstance(transaction, ServerTransaction)
                self.ended.append(transaction)

    def _answer(self, transaction: ServerTransaction, status: int) -> None:
        self._final = response_to(transaction.request, status, to_tag="b")
        self.callee.respond(transaction, self._final, self.now)
        if transaction.state is State.ACCEPTED:
            self.callee.set_timer(self.now + self._interval, transaction)

    def _answered(self) -> Response:
        assert self._final is not None
        return self._final

    def times(self, side: str, what: str) -> list[float]:
        return [round(when, 6) for when, who, sent_what in self.log if (who, sent_what) == (side, what)]

    @property
    def finals(self) -> list[int]:
        return [status for status in self.heard if status >= 200]

    def assert_over(self) -> None:
        for layer in (self.caller, self.callee):
            assert layer.transactions == 0
            assert layer.next_timer() is None
            assert layer._destinations == {}
        assert len(set(self.ended)) == len(self.ended)


def lost(caller: Iterable[int] = (), callee: Iterable[int] = ()) -> tuple[frozenset[int], frozenset[int]]:
    return frozenset(caller), frozenset(callee)


class TestTwoEnds:
    def test_invite_succeeds(self) -> None:
        ends = Ends("INVITE", 200)
        assert ends.heard == [180, 200]
        assert ends.acknowledged == 1
        assert [what for _, _, what in ends.log] == ["INVITE", "180", "200", "ACK"]
        ends.assert_over()

    def test_invite_succeeds_although_everything_is_lost_once(self) -> None:
        # INVITE; 180 to the first; then two of the 200; and the ACK to the first 200 that arrives.
        ends = Ends("INVITE", 200, lost=lost(caller=(0, 2), callee=(1, 2)))
        assert set(ends.heard) == {180, 200}
        assert ends.accepted == 1
        assert ends.acknowledged == 1
        assert ends.timed_out == 0
        ends.assert_over()

    def test_lost_ack_of_a_2xx_brings_the_2xx_up_again(self) -> None:
        ends = Ends("INVITE", 200, lost=lost(caller=(1,)))
        assert ends.finals == [200, 200]
        assert ends.times("caller", "ACK") == [1.04, 1.54]
        ends.assert_over()

    def test_lost_ack_of_a_486_is_repeated_unheard_by_the_tus(self) -> None:
        ends = Ends("INVITE", 486, lost=lost(caller=(1, 2)))
        assert ends.finals == [486]
        assert ends.acknowledged == 0
        assert ends.times("callee", "486") == [1.02, 1.52, 2.52]
        assert len(ends.times("caller", "ACK")) == 3
        ends.assert_over()

    def test_callee_that_never_gets_the_ack_gives_up(self) -> None:
        ends = Ends("INVITE", 486, lost=lost(caller=range(1, 50)))
        assert ends.finals == [486]
        gaps = [later - earlier for earlier, later in pairwise(ends.times("callee", "486"))]
        assert gaps == pytest.approx([0.5, 1, 2] + [4.0] * 7)
        ends.assert_over()

    def test_invite_to_nobody_times_out(self) -> None:
        ends = Ends("INVITE", 200, lost=lost(caller=range(50)))
        assert (ends.heard, ends.timed_out) == ([], 1)
        assert ends.times("caller", "INVITE") == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
        ends.assert_over()

    def test_lost_180_is_sent_again_for_the_invite(self) -> None:
        ends = Ends("INVITE", 200, delay=5.0, lost=lost(callee=(0,)))
        assert ends.heard == [180, 200]
        assert ends.times("caller", "INVITE") == [0, 0.5]
        assert ends.times("callee", "180") == [0.02, 0.52]
        ends.assert_over()

    def test_cancel_brings_487(self) -> None:
        ends = Ends("INVITE", 200, delay=10.0, cancel_at=2.0)
        assert ends.heard == [180, 487]
        assert ends.cancelled == 1
        ends.assert_over()

    def test_cancel_that_crosses_the_2xx_has_no_effect(self) -> None:
        ends = Ends("INVITE", 200, delay=2.0, cancel_at=2.03)
        assert ends.heard == [180, 200]
        assert ends.cancelled == 0
        assert ends.acknowledged == 1
        ends.assert_over()

    def test_lost_cancel_and_lost_answer_are_repeated(self) -> None:
        ends = Ends("INVITE", 200, delay=30.0, cancel_at=2.0, lost=lost(caller=(1,), callee=(1,)))
        assert ends.heard == [180, 487]
        assert ends.cancelled == 1
        assert len(ends.times("caller", "CANCEL")) == 3
        ends.assert_over()

    def test_other_request_is_answered_again_for_its_copies(self) -> None:
        ends = Ends("OPTIONS", 200, delay=0.1, lost=lost(callee=(0, 1)))
        assert ends.heard == [200]
        assert ends.times("callee", "200") == [0.12, 0.52, 1.52]
        assert ends.accepted == 1
        ends.assert_over()

    def test_slow_answer_to_another_request_is_preceded_by_100(self) -> None:
        ends = Ends("OPTIONS", 200, delay=20.0)
        assert ends.heard == [100, 100, 100, 100, 100, 200]
        assert ends.times("caller", "OPTIONS") == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5]
        ends.assert_over()

    def test_408_to_another_request_is_never_sent(self) -> None:
        ends = Ends("OPTIONS", 408, delay=31.0)
        assert ends.finals == []
        assert ends.timed_out == 1
        ends.assert_over()

    @pytest.mark.parametrize(("method", "status"), [("INVITE", 200), ("INVITE", 486), ("OPTIONS", 200)])
    def test_nothing_is_sent_twice_over_a_connection(self, method: str, status: int) -> None:
        ends = Ends(method, status, reliable=True)
        assert ends.finals == [status]
        assert len({what for _, _, what in ends.log}) == len(ends.log)
        ends.assert_over()

    @given(
        method=st.sampled_from(["INVITE", "OPTIONS"]),
        status=st.sampled_from([200, 302, 408, 486, 603]),
        delay=st.floats(0, 40),
        ring=st.booleans(),
        cancel_at=st.none() | st.floats(0, 40),
        caller=st.frozensets(st.integers(0, 15)),
        callee=st.frozensets(st.integers(0, 15)),
    )
    def test_every_transaction_ends_and_each_final_is_heard_as_often_as_it_should(  # noqa: PLR0917 - by hypothesis
        self,
        method: str,
        status: int,
        delay: float,
        ring: bool,
        cancel_at: float | None,
        caller: frozenset[int],
        callee: frozenset[int],
    ) -> None:
        cancel_at = cancel_at if method == "INVITE" else None
        ends = Ends(method, status, delay=delay, ring=ring, cancel_at=cancel_at, lost=(caller, callee))
        ends.assert_over()
        # A request is accepted once, unless its copies come when even Timer J is over.
        assert ends.accepted <= 1
        # A 2xx to an INVITE is heard as often as it arrives, any other final at most once, and always how it ended.
        if method != "INVITE" or ends.finals[:1] != [200]:
            assert len(ends.finals) <= 1
        assert len(set(ends.finals)) + ends.timed_out + ends.gave_up == 1
        # Nothing provisional is heard after the final.
        assert all(status >= 200 for status in ends.heard[len(ends.heard) - len(ends.finals) :])

    @given(
        method=st.sampled_from(["INVITE", "OPTIONS"]),
        status=st.sampled_from([200, 486]),
        delay=st.floats(0, 8),
        caller=st.frozensets(st.integers(0, 15), max_size=3),
        callee=st.frozensets(st.integers(0, 15), max_size=3),
    )
    def test_three_losses_a_side_never_keep_the_final_from_the_tu(
        self, method: str, status: int, delay: float, caller: frozenset[int], callee: frozenset[int]
    ) -> None:
        ends = Ends(method, status, delay=delay, lost=(caller, callee))
        assert ends.finals
        assert set(ends.finals) == {status}
        assert ends.timed_out == 0
        if (method, status) == ("INVITE", 200):
            assert ends.acknowledged >= 1
        else:
            assert ends.finals == [status]
        ends.assert_over()


VIAS = ("SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1", "SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK2")
OLD_VIAS = ("SIP/2.0/UDP 192.0.2.1:5060", "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK")
METHODS = ("INVITE", "ACK", "CANCEL", "OPTIONS", "REGISTER", "x-new")

request_steps = st.builds(
    lambda method, via, to_tag, flow: ("request", request(method, via=via, to_tag=to_tag), flow),
    st.sampled_from(METHODS),
    st.sampled_from(VIAS + OLD_VIAS),
    st.sampled_from(["", ";tag=b", ";tag=z"]),
    st.sampled_from([IN, IN_TCP]),
)
start_steps = st.builds(
    lambda method, via, flow: ("start", request(method, via=via), flow),
    st.sampled_from([method for method in METHODS if method != "ACK"]),
    st.sampled_from(VIAS),
    st.sampled_from([OUT, OUT_TCP]),
)
response_steps = st.builds(
    lambda method, via, status: ("response", response_to(request(method, via=via), status, to_tag="b"), OUT),
    st.sampled_from(METHODS),
    st.sampled_from(VIAS + OLD_VIAS),
    st.sampled_from([100, 183, 200, 302, 408, 699]),
)
other_steps = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 9), st.sampled_from([100, 183, 200, 408, 487, 699])),
    st.tuples(st.just("wait"), st.floats(0, 70)),
    st.tuples(st.just("failed"), st.sampled_from([IN, IN_TCP, OUT, OUT_TCP])),
    st.tuples(st.just("end"), st.integers(0, 9)),
)


def take_step(layer: TransactionLayer, step: tuple[object, ...], now: float) -> float:
    match step:
        case ("request" | "response", Request() | Response() as message, Flow() as flow):
            layer.receive(message, flow, now)
        case ("start", Request() as message, Flow() as flow):
            with suppress(SipError):  # the branch has been started before
                layer.start(message, flow, now, branch_timeout=6.0)
        case ("answer", int() as index, int() as status) if layer._servers:
            server = list(layer._servers.values())[index % len(layer._servers)]
            assert isinstance(server.context, Request)  # a transaction at rest has let go of its own
            layer.respond(server, response_to(server.context, status, to_tag="b"), now)
        case ("wait", float() as seconds):
            layer.handle_timer(now + seconds)
            return now + seconds
        case ("failed", Flow() as flow):
            layer.flow_failed(flow, now)
        case ("end", int() as index) if layer._clients:
            layer.terminate(list(layer._clients.values())[index % len(layer._clients)])
    return now


def accept_all(layer: TransactionLayer, now: float) -> list[object]:
    """Take all events, accept what can be, and return the transactions that have ended."""
    ended: list[object] = []
    for event in iter(layer.next_event, None):
        match event:
            case RequestReceived(received, flow) if received.method not in {"ACK", "CANCEL", "REGISTER"}:
                with suppress(SipError):  # the key of an RFC 2543 client leaves out the To tag
                    layer.accept(received, flow, now).context = received
            case TransactionEnded(transaction):
                ended.append(transaction)
    return ended


@given(st.lists(st.one_of(request_steps, start_steps, response_steps, other_steps), max_size=40))
def test_no_sequence_of_messages_calls_and_time_breaks_the_layer(steps: list[tuple[object, ...]]) -> None:
    layer = TransactionLayer()
    now = 0.0
    ended: list[object] = []
    for step in steps:
        now = take_step(layer, step, now)
        ended += accept_all(layer, now)
        for data, _ in layer.messages_to_send():
            parse(data)
    for transaction in (*layer._servers.values(), *layer._clients.values()):
        layer.terminate(transaction)
    ended += accept_all(layer, now)
    assert len(ended) == len(set(ended))
    assert layer.transactions == 0
    assert layer._destinations == {}
    assert layer.next_timer() is None
