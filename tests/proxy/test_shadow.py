from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.proxy.context import ForkState
from sipha.proxy.shadow import MAX_RECORD, Advanced, Call, Closed, ForkShadow, Opened, Record, Shadows, key_of
from sipha.proxy.target import Target
from sipha.sip.flow import Flow
from sipha.sip.headers import parse_via
from tests.proxy.ladder import VIP, House

FLOW = Flow("UDP", VIP, ("198.51.100.1", 5060))
CALLING = (ForkShadow("z9hG4bKfork", ForkState.CALLING, 1_000_006),)
RINGING = (ForkShadow("z9hG4bKfork", ForkState.PROCEEDING, 1_000_185),)


def opened(number: int, request: bytes = b"INVITE") -> Opened:
    call = Call(request, FLOW, 1_000_000.5, "loop", (b"\0" * 4, b"\1" * 4), 60, ((Target("sip:bob@192.0.2.7"),),))
    return Opened((f"z9hG4bK{number}", "198.51.100.1:5060"), call, CALLING, cancelled=False)


def tell(shadows: Shadows, *records: Record, now: float = 0.0) -> None:
    """Have another node publish these."""
    node = Shadows(100)
    for record in records:
        node.publish(record, now, urgent=True)
    shadows.received(node.take_records(), now)


def test_shadow_is_what_was_told_last() -> None:
    shadows, record = Shadows(100), opened(1)
    tell(shadows, record, Advanced(record.key, RINGING, cancelled=True))
    shadow = shadows.take(record.key)
    assert shadow is not None
    assert (shadow.call, shadow.forks, shadow.cancelled) == (record.call, RINGING, True)
    assert shadows.take(record.key) is None


def test_call_that_is_closed_or_was_never_opened_has_no_shadow() -> None:
    shadows = Shadows(100)
    tell(shadows, opened(1), Closed(opened(1).key), Advanced(opened(1).key, RINGING, cancelled=False))
    assert not shadows


def test_shadow_is_forgotten_a_while_after_the_last_word() -> None:
    shadows = Shadows(100)
    tell(shadows, opened(1), opened(2))
    tell(shadows, Advanced(opened(1).key, RINGING, cancelled=False), now=50)
    assert shadows.first(99) == opened(2).key
    assert shadows.first(100) == opened(1).key
    assert shadows.first(150) is None


def test_oldest_shadows_give_way_when_there_are_too_many() -> None:
    shadows = Shadows(100, max_count=10)
    tell(shadows, *map(opened, range(12)))
    assert len(shadows) == 10
    assert shadows.counters.evicted == 2
    assert shadows.take(opened(1).key) is None
    assert shadows.take(opened(2).key) is not None


def test_oldest_shadows_give_way_when_they_are_too_large() -> None:
    shadows = Shadows(100, max_bytes=100_000)
    tell(shadows, *[opened(number, bytes(30_000)) for number in range(5)])
    assert len(shadows) == 3
    assert shadows.take(opened(4).key) is not None
    for number in range(4):
        shadows.take(opened(number).key)
    tell(shadows, *[opened(number, bytes(30_000)) for number in range(3)])
    assert len(shadows) == 3


def test_call_that_is_too_long_or_no_text_is_not_shared() -> None:
    shadows = Shadows(100)
    shadows.publish(opened(1, bytes(MAX_RECORD)), 0.0, urgent=True)
    shadows.publish(Closed(("z9hG4bK\udcff", "198.51.100.1:5060")), 0.0, urgent=True)
    assert not shadows.waiting
    assert shadows.counters.unshareable == 2


def test_node_that_ceases_to_lead_keeps_its_own_calls_as_those_of_others() -> None:
    shadows = Shadows(100)
    for number in range(4):
        shadows.publish(opened(number), 30.0 * number, urgent=True)
    shadows.publish(Advanced(opened(3).key, RINGING, cancelled=True), 100.0, urgent=False)
    shadows.publish(Closed(opened(2).key), 100.0, urgent=False)
    assert not shadows
    shadows.cease(105)
    tell(shadows, opened(1), Closed(opened(1).key), now=110)  # by the node that leads now
    assert len(shadows) == 1
    assert shadows.first(199) == opened(3).key
    shadow = shadows.take(opened(3).key)
    assert shadow is not None
    assert (shadow.forks, shadow.cancelled) == (RINGING, True)


def test_calls_of_a_node_that_leads_no_more_are_forgotten_like_others() -> None:
    shadows = Shadows(100, max_count=2)
    for number in range(3):
        shadows.publish(opened(number), 0.0, urgent=True)
    shadows.cease(1)
    assert len(shadows) == 2
    assert shadows.first(100) is None


def test_node_that_connects_is_told_of_all_calls_as_they_are() -> None:
    shadows, newcomer = Shadows(100), Shadows(100)
    tell(shadows, opened(1))  # and not yet taken over
    for number in (2, 3, 4):
        shadows.publish(opened(number), 0.0, urgent=True)
    shadows.publish(Advanced(opened(3).key, RINGING, cancelled=True), 1.0, urgent=True)
    tell(newcomer, opened(5))  # by someone who has led before
    records = shadows.records()
    told = [next(records), next(records)]
    shadows.publish(Closed(opened(4).key), 2.0, urgent=True)
    newcomer.received([*told, *records], 3.0)
    assert len(newcomer) == 3
    assert [newcomer.take(opened(number).key) is not None for number in (1, 2)] == [True, True]
    shadow = newcomer.take(opened(3).key)
    assert shadow is not None
    assert (shadow.call, shadow.forks, shadow.cancelled) == (opened(3).call, RINGING, True)


def test_what_is_not_urgent_waits_for_what_is() -> None:
    shadows = Shadows(100)
    shadows.publish(Closed(opened(1).key), 0.0, urgent=False)
    assert shadows.waiting
    assert not shadows.urgent
    shadows.publish(opened(2), 0.0, urgent=True)
    assert shadows.urgent
    assert len(shadows.take_records()) == 2
    assert not shadows.urgent
    assert not shadows.waiting


def test_client_of_rfc_2543_has_no_key() -> None:
    for params in ("", ";branch=1", ";branch=z9hG4bK"):
        assert key_of(parse_via(f"SIP/2.0/UDP 198.51.100.1{params}")) is None
    assert key_of(parse_via("SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKa")) == ("z9hG4bKa", "198.51.100.1:5060")


INVITE = (
    b"INVITE sip:bob@sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKa\r\n"
    b"From: <sip:alice@sipha.test>;tag=1\r\nTo: <sip:bob@sipha.test>\r\nCall-ID: a\r\nCSeq: 1 INVITE\r\n\r\n"
)
PLAIN = msgspec.msgpack.decode(msgspec.msgpack.encode(opened(1, INVITE)))


@given(st.data())
def test_record_with_a_field_of_another_kind_is_counted_and_kept_by_nobody(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(PLAIN) - 1))
    value = data.draw(
        st.one_of(st.none(), st.integers(0, 99), st.text(max_size=3), st.lists(st.integers(0, 9), min_size=1))
    )
    shadows = Shadows(100)
    shadows.received([msgspec.msgpack.encode([*PLAIN[:place], value, *PLAIN[place + 1 :]])], 0.0)
    assert shadows.counters.undecodable == 1
    assert not shadows


@given(st.integers(0, len(msgspec.msgpack.encode(PLAIN)) - 1))
def test_record_that_is_cut_is_counted_and_kept_by_nobody(size: int) -> None:
    shadows = Shadows(100)
    shadows.received([msgspec.msgpack.encode(PLAIN)[:size]], 0.0)
    assert shadows.counters.undecodable == 1
    assert not shadows


def test_call_that_cannot_be_taken_over_does_not_keep_the_others_from_it() -> None:
    house = House()
    good = opened(2, INVITE).call
    calls = [
        msgspec.structs.replace(good, request=b"BYE"),
        msgspec.structs.replace(good, flow=FLOW._replace(transport="SCTP")),
        msgspec.structs.replace(good, groups=((*good.groups[0], *good.groups[0]),)),  # and one fork of the two
        good,
    ]
    for number, call in enumerate(calls):
        record = Opened((f"z9hG4bK{number}", "198.51.100.1:5060"), call, CALLING, cancelled=False)
        tell(house.standby, record)
    house.fail_over()
    counters = house.proxy.takeover_counters
    assert (counters.failed, counters.resumed) == (3, 1)
    house.advance(60)
    assert house.layer.transactions == 0


def test_mistake_about_one_call_does_not_keep_the_others_from_being_taken_over() -> None:
    house = House()
    good = opened(2, INVITE).call
    nowhere = Target("sip:bob@192.0.2.7", flow=FLOW._replace(remote=("192.0.2.7", 70_000)))
    for number, call in enumerate((msgspec.structs.replace(good, groups=((nowhere,),)), good)):
        tell(house.standby, Opened((f"z9hG4bK{number}", "198.51.100.1:5060"), call, CALLING, cancelled=False))
    with pytest.raises(struct.error):
        house.fail_over()
    house.advance(1)
    assert house.proxy.takeover_counters.resumed == 1
