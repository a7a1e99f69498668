from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from sipha.nat.interfaces import IPingTransport
from sipha.nat.keepalive import SUSPENDED_AFTER
from sipha.nat.schedule import SLOT
from sipha.sip.flow import Flow
from sipha.sip.message import Request, response_to
from sipha.sip.parser import parse
from sipha.state.binding import PINGED
from sipha.state.entries import SCHEMA, Batch, Policy, Refresh, RemoveUnreachable, encode
from sipha.state.machine import Machine
from tests.nat.site import STEP, VIP, Node, Site, address, aor
from tests.state.snapshots import loaded, taken

USERS = tuple(f"u{number}" for number in range(40))


@pytest.fixture
def site() -> Site:
    return Site(interval=5.0, timeout=1.0)


def lost(node: Node) -> int:
    return node.keepalive.counters.lost


def all_fail(_: Flow) -> bool:
    return True


def parsed(data: bytes) -> Request:
    message = parse(data)
    assert isinstance(message, Request)
    return message


# What a ping is


def test_ping_goes_where_the_phone_registered_from_by_the_address_that_it_knows(site: Site) -> None:
    site.register("u1")
    site.register("u2", socket="udp:198.51.100.10:5060")
    site.register("u3", socket="udp:198.51.100.99:5060")  # no listener of ours any more
    node = site.lead("a")
    verifyObject(IPingTransport, node)
    site.run(5.0)
    flows = {flow.remote: flow for _, _, flow in node.sent}
    assert flows == {
        (address("u1"), 40000): Flow("UDP", VIP, (address("u1"), 40000)),
        (address("u2"), 40000): Flow("UDP", ("198.51.100.10", 5060), (address("u2"), 40000)),
        (address("u3"), 40000): Flow("UDP", VIP, (address("u3"), 40000)),
    }


def test_ping_is_a_sound_request_to_the_contact_as_the_phone_wrote_it() -> None:
    site = Site(interval=5.0, sender="sip:pinger@sipha.test")
    site.register("u1", contact="sip:u1@192.168.1.7:5060;ob?Subject=x")
    node = site.lead("a")
    site.run(5.0)
    [ping] = node.requests
    assert (ping.method, ping.uri, ping.to.uri) == ("OPTIONS", "sip:u1@192.168.1.7:5060;ob", ping.uri)
    assert (ping.from_.uri, ping.cseq.method, ping.max_forwards, ping.body) == (
        "sip:pinger@sipha.test",
        "OPTIONS",
        70,
        b"",
    )
    assert ping.via.sent_by == "192.0.2.10:5060"
    assert ping.from_.tag


def test_no_two_pings_have_anything_in_common_that_tells_them_apart(site: Site) -> None:
    site.register(*USERS[:3])
    node = site.lead("a")
    site.run(25.0)
    pings = node.requests
    assert len(pings) == 15
    for identity in (
        lambda ping: ping.via.branch,
        lambda ping: ping.call_id,
        lambda ping: ping.cseq.number,
        lambda ping: ping.from_.tag,
    ):
        assert len({identity(ping) for ping in pings}) == len(pings)


@pytest.mark.parametrize(
    ("scope", "pinged"), [("nated", {"u1", "u3"}), ("all", {"u1", "u2", "u3"}), ("flagged", {"u3"}), ("none", set())]
)
def test_scope_says_who_is_pinged(scope: str, pinged: set[str]) -> None:
    site = Site(interval=5.0, scope=scope)
    site.register("u1")
    node = site.lead("a")
    site.register("u2", cflags=0)
    site.register("u3", cflags=PINGED)
    site.run(6.0)
    assert set(site.heard) == {address(user) for user in pinged}
    assert node.keepalive.state == ("off" if scope == "none" else "on")


def test_udp_pings_are_four_zero_bytes_and_wait_for_nothing() -> None:
    site = Site(interval=5.0, method="udp", remove=True, max_lost=1)
    site.register("u1")
    site.register("u2", received="sip:203.0.113.3:40000;transport=tcp")
    site.register("u3", path=("<sip:203.0.113.9;lr>",))
    node = site.lead("a")
    node.connections["203.0.113.3", 40000] = 1
    site.run(50.0)
    assert {(data, flow.transport) for _, data, flow in node.sent} == {(bytes(4), "UDP"), (b"\r\n\r\n", "TCP")}
    assert len(node.sent) == node.keepalive.counters.sent == 20
    assert lost(node) == 0
    assert len(site.contacts()) == 3


def test_stream_is_pinged_on_its_connection_and_none_is_opened_for_it(site: Site) -> None:
    site.register("u1", received="sip:203.0.113.2:40000;transport=tcp")
    node = site.lead("a")
    site.run(5.0)
    assert node.sent == []
    node.connections["203.0.113.2", 40000] = 7
    site.run(5.0)
    [(_, data, flow)] = node.sent
    assert flow == Flow("TCP", VIP, ("203.0.113.2", 40000), 7)
    assert b"Via: SIP/2.0/TCP 192.0.2.10:5060;branch=" in data
    assert node.keepalive.counters.unsent == 0


def test_ping_through_an_edge_follows_the_path_but_not_to_ourselves(site: Site) -> None:
    site.register("u1", path=("<sip:192.0.2.10;lr>", "<sip:edge@203.0.113.9:5070;lr;ob>", "<sip:203.0.113.8;lr>"))
    site.register("u2", path=("<sip:edge.test;lr>",))
    site.register("u3", path=("<sip:192.0.2.10;lr>",))
    site.register("u4", path=("<sip:203.0.113.9:5071;transport=tcp;lr>",))
    node = site.lead("a")
    site.run(5.0)
    assert Flow("TCP", VIP, ("203.0.113.9", 5071)) in [flow for _, _, flow in node.sent]  # it can be opened
    node.sent = [sent for sent in node.sent if sent[2].transport == "UDP"]
    direct, through = sorted(node.sent, key=lambda sent: sent[2].remote[1], reverse=True)
    assert through[2].remote == ("203.0.113.9", 5070)
    ping = parse(through[1])
    assert isinstance(ping, Request)
    assert [str(route) for route in ping.routes] == ["<sip:edge@203.0.113.9:5070;lr;ob>", "<sip:203.0.113.8;lr>"]
    assert direct[2].remote == (address("u3"), 40000)
    assert b"Route:" not in direct[1]


# When


def test_each_phone_hears_one_ping_in_each_interval(site: Site) -> None:
    users = [f"u{number}" for number in range(200)]
    site.register(*users)
    node = site.lead("a")
    site.run(60.0)
    assert set(site.heard) == set(map(address, users))
    for heard in site.heard.values():
        assert 11 <= len(heard) <= 12
        assert all(4.9 < later - earlier < 5.1 for earlier, later in pairwise(heard))
    # No bursts: in no tenth of a second more than a few times what is usual.
    tenths = [round(when * 10) for when, _, _ in node.sent]
    assert max(tenths.count(tenth) for tenth in set(tenths)) <= 4 * len(users) // 50
    assert node.keepalive.counters.answered == pytest.approx(node.keepalive.counters.sent, abs=5)


def test_other_settings_are_taken_in_the_phase_that_was_reached(site: Site) -> None:
    site.register(*USERS)
    node = site.lead("a")
    site.run(12.0)
    node.keepalive.adopt(replace(site.settings, sender="sip:other@sipha.test"))
    site.run(6.0)
    for user in USERS:
        heard = site.heard[address(user)]
        assert len(heard) >= 3
        assert all(later - earlier == pytest.approx(5.0, abs=0.1) for earlier, later in pairwise(heard))
    assert b"sip:other@sipha.test" in node.sent[-1][1]
    node.keepalive.adopt(replace(site.settings, scope="none"))
    pinged = len(node.sent)
    site.run(12.0)
    assert len(node.sent) == pinged


def test_settings_that_come_before_leadership_are_kept(site: Site) -> None:
    site.register(*USERS)
    site.nodes["a"].keepalive.adopt(replace(site.settings, scope="none"))
    assert not site.lead("a").sent


@given(
    spans=st.lists(st.floats(1.0, 12.0), min_size=1, max_size=4),
    gaps=st.lists(st.floats(0.0, 3.0), min_size=4, max_size=4),
)
@settings(max_examples=10, deadline=None)
def test_each_phone_hears_one_ping_in_each_interval_across_leaders(spans: list[float], gaps: list[float]) -> None:
    site = Site(interval=5.0)
    site.register(*USERS)
    names = "abababab"
    site.lead("a")
    site.run(6.0)
    faults = []
    for number, (span, gap) in enumerate(zip(spans, gaps, strict=False)):
        faults.append(site.clock.seconds())
        site.fail(names[number])
        site.run(gap)
        site.lead(names[number + 1])
        site.run(span)
    site.run(6.0)
    longest = max(gaps[: len(spans)])
    for user in USERS:
        for earlier, later in pairwise(site.heard[address(user)]):
            if any(fault - 0.05 < earlier <= fault for fault in faults):
                continue  # whether the leader before has still pinged it, nobody can know
            # One that a failover has delayed comes up to a second after it; the next one comes on time again.
            assert 5.0 - longest - 1.0 <= later - earlier <= 5.0 + longest + 1.0
            assert later - earlier > 1.0


def test_phone_pinged_long_before_the_fault_is_pinged_soon_after_it() -> None:
    site = Site(interval=25.0)
    users = [f"u{number}" for number in range(200)]
    site.register(*users)
    site.lead("a")
    site.run(60.0)
    fault = site.clock.seconds()
    site.fail("a")
    site.run(1.0)
    site.lead("b")
    site.run(30.0)
    late = [heard for heard in site.heard.values() if max(when for when in heard if when < fault) < fault - 24.0]
    assert late
    for heard in late:
        assert min(when for when in heard if when > fault) < fault + 5.0


@pytest.mark.parametrize("heard", [True, False])
def test_leader_after_a_long_outage_pings_everyone_once_in_an_eighth_of_the_interval(site: Site, heard: bool) -> None:
    site.register(*USERS)
    site.served_until = site.served_until if heard else 0
    site.clock.advance(500.0)
    site.lead("a")
    site.run(0.75)
    assert set(site.heard) == set(map(address, USERS))
    site.run(20.0)
    for user in USERS:
        first, *rest = site.heard[address(user)]
        assert rest[0] - first > 0.55
        assert all(later - earlier == pytest.approx(5.0, abs=0.1) for earlier, later in pairwise(rest))


@pytest.mark.interpreted
def test_phone_that_registers_while_its_leader_looks_through_the_table_is_pinged(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipha.nat.keepalive.PER_STEP", 1)
    site.register(*USERS[::2])
    late = list(USERS[1::2])
    aors = site.machine.location.aors

    def aors_while_another_registers(after: str, limit: int) -> list[str]:
        if late:
            site.register(late.pop())
        return aors(after, limit)

    monkeypatch.setattr(site.machine.location, "aors", aors_while_another_registers)
    site.lead("a")
    site.run(6.0)
    assert not late
    assert set(site.heard) == set(map(address, USERS))


def test_phone_that_is_gone_is_not_pinged(site: Site) -> None:
    site.register("u1", "u2")
    site.register("u3", expires=60)
    site.lead("a")
    site.run(5.0)
    site.register("u1", expires=0)
    site.register("u2", cflags=0)  # it has a public address now
    site.run(60.0)
    assert len(site.heard[address("u1")]) <= 2
    assert len(site.heard[address("u2")]) <= 2
    assert 11 <= len(site.heard[address("u3")]) <= 14


def test_phone_is_pinged_that_an_earlier_entry_refreshes_after_its_binding_ran_out(site: Site) -> None:
    site.register("u1", expires=60)
    now = int(site.clock.seconds() * 1000)
    (binding,) = site.machine.location.bindings(aor("u1"), now)
    site.lead("a")
    site.run(66.0)
    site.heard.clear()
    site.run(6.0)
    assert not site.heard
    refresh = Refresh(aor("u1"), binding.version, binding.cseq + 1, 3600)
    site.machine.apply(site.machine.index + 1, encode(Batch(SCHEMA, now + 59_000, Policy(), (refresh,))))
    site.run(6.0)
    assert set(site.heard) == {address("u1")}


def test_phone_is_pinged_where_it_is_now(site: Site) -> None:
    site.register("u1")
    site.lead("a")
    site.run(5.0)
    site.register("u1", received="sip:203.0.113.200:1234;transport=udp")
    before = len(site.heard[address("u1")])
    site.run(5.0)
    assert len(site.heard["203.0.113.200"]) == 1
    assert len(site.heard[address("u1")]) == before


def test_pings_go_on_with_the_table_of_a_snapshot(site: Site) -> None:
    site.register("u1")
    node = site.lead("a")
    site.run(5.0)
    other = Site()
    other.register("u7", "u8")
    for _ in site.machine.adopt(loaded(taken(other.machine))):
        pass
    site.register("u9")
    node.sent.clear()
    site.heard.clear()
    site.run(6.0)
    assert set(site.heard) == {address("u7"), address("u8"), address("u9")}


def test_leader_that_stops_sends_nothing_more_and_costs_nothing(site: Site) -> None:
    site.register(*USERS)
    node = site.lead("a")
    site.run(3.0)
    site.fail("a")
    node.sent.clear()
    assert site.machine.location.bound is None
    site.clock.advance(1.0)  # the answers
    assert site.clock.getDelayedCalls() == []
    assert node.sent == []


def test_nothing_is_sent_before_the_addresses_are_open_and_there_is_a_key(site: Site) -> None:
    site.register("u1")
    node = site.nodes["a"]
    tokens, site.tokens, node.open = site.tokens, None, False
    site.lead("a")
    site.run(6.0)
    node.open = True
    site.run(6.0)
    assert node.sent == []
    site.tokens = tokens
    site.run(5.0)
    assert len(node.sent) in {1, 2}


# An operator's switch


def test_pings_that_are_turned_off_stop_at_once_and_go_on_in_their_phase(site: Site) -> None:
    site.register(*USERS)
    node = site.lead("a")
    site.run(7.0)
    before = dict(site.heard)
    site.switch("off")
    node.sent.clear()
    site.run(7.5)
    assert node.sent == []
    assert node.keepalive.state == "off"
    site.switch("")
    assert node.keepalive.state == "on"
    site.run(0.2)
    assert len(node.sent) < 8
    site.run(4.8)
    assert len(node.sent) == len(USERS)
    for user in USERS:
        first, *_, last = before[address(user)] + site.heard[address(user)]
        assert abs((last - first + 2.5) % 5.0 - 2.5) < 0.1


# Answers


def test_answers_are_known_by_their_branch_and_others_left_alone(site: Site) -> None:
    site.register("u1")
    node = site.lead("a")
    site.run(5.0)
    [ping] = node.requests
    _, _, flow = node.sent[0]
    received = node.keepalive.response_received
    assert node.keepalive.counters.answered == 1
    assert received(response_to(ping, 200), flow)  # a copy
    assert node.keepalive.counters.answered == 1
    assert site.nodes["b"].keepalive.response_received(response_to(ping, 200), flow)  # another leads by now
    branch = ping.via.branch or ""
    for other in ("z9hG4bKabc", branch[:-1] + ("A" if branch[-1] != "A" else "Q"), ""):
        foreign = ping.copy()
        foreign.headers.set("Via", f"SIP/2.0/UDP 192.0.2.10:5060;branch={other}")
        assert not received(response_to(foreign, 200), flow)
    site.tokens = None
    assert not received(response_to(ping, 200), flow)


@pytest.mark.parametrize("status", [100, 200, 404, 405, 408, 480, 481, 501, 503, 603])
def test_phone_that_says_anything_is_there(status: int) -> None:
    site = Site(interval=5.0, timeout=1.0, remove=True, max_lost=2)
    site.status = status
    site.register("u1")
    node = site.lead("a")
    site.run(40.0)
    assert site.contacts() == [aor("u1")]
    assert lost(node) == 0


@pytest.mark.parametrize("status", [100, 200, 404, 408, 430, 480, 483, 503])
def test_edge_that_speaks_for_a_phone_may_say_that_it_is_lost(status: int) -> None:
    site = Site(interval=5.0, timeout=1.0, remove=True, max_lost=2)
    site.status = status
    site.register("u1", path=("<sip:203.0.113.9;lr>",))
    site.lead("a")
    site.run(40.0)
    assert bool(site.contacts()) == (status in {200, 404, 483})


# Removal


def removing(**more: object) -> Site:
    return Site(**{"interval": 5.0, "timeout": 1.0, "remove": True, "max_lost": 3, **more})


def test_phone_that_is_switched_off_is_removed_when_due_and_no_other_is() -> None:
    site = removing()
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    off = site.clock.seconds()
    site.dead.add(address("u7"))
    site.run(3 * 5.0 - 0.1)
    assert aor("u7") in site.contacts()
    while aor("u7") in site.contacts():
        site.run(0.1)
    assert site.clock.seconds() - off + 5.0 >= 3 * 5.0
    assert site.clock.seconds() - off <= 3 * 5.0 + 1.2
    site.run(60.0)
    assert sorted(site.contacts()) == sorted(aor(user) for user in USERS if user != "u7")
    assert [type(record) for record in site.records] == [RemoveUnreachable]
    assert lost(node) == 3


def test_nobody_is_removed_unless_that_is_asked_for() -> None:
    site = removing(remove=False)
    site.register("u1")
    node = site.lead("a")
    site.dead.add(address("u1"))
    site.run(60.0)
    assert site.contacts() == [aor("u1")]
    assert lost(node) >= 10


def test_phone_that_answers_now_and_then_stays() -> None:
    site = removing()
    site.register("u1", "u2")
    site.lead("a")
    site.run(6.0)
    for _ in range(4):
        site.dead.add(address("u1"))
        site.run(10.0)
        site.dead.clear()
        site.run(5.0)
    assert len(site.contacts()) == 2


def test_phone_that_registers_again_begins_anew() -> None:
    site = removing()
    site.register("u1", "u2")
    site.lead("a")
    site.run(6.0)
    site.dead.add(address("u1"))
    for _ in range(5):
        site.run(10.0)
        site.register("u1")
    assert aor("u1") in site.contacts()
    site.run(20.0)
    assert site.contacts() == [aor("u2")]


def test_binding_refreshed_while_its_removal_is_under_way_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    site = removing()
    site.register("u1", "u2")
    site.lead("a")
    site.dead.add(address("u1"))
    propose = site.propose
    waiting: list[Callable[[], None]] = []
    monkeypatch.setattr(site, "propose", lambda record, done: waiting.append(lambda: propose(record, done)))
    while not waiting:
        site.run(1.0)
    site.register("u1")
    waiting[0]()
    assert aor("u1") in site.contacts()


def test_new_leader_spares_phones_for_one_interval() -> None:
    site = removing(max_lost=1)
    site.register(*USERS)
    site.dead = set(map(address, USERS[1:]))
    node = site.lead("a")
    site.run(5.9)
    assert lost(node) > 30
    assert len(site.contacts()) == len(USERS)
    site.run(6.0)
    assert site.contacts() == [aor(USERS[0])]


def test_pings_that_are_turned_on_again_spare_phones_for_one_interval() -> None:
    site = removing(max_lost=1)
    site.register(*USERS)
    site.lead("a")
    site.run(20.0)
    site.switch("off")
    site.dead = set(map(address, USERS[1:]))
    site.run(20.0)
    site.switch("")
    site.run(5.9)
    assert len(site.contacts()) == len(USERS)


def test_what_was_missed_before_pings_were_turned_off_counts_no_more() -> None:
    site = removing()
    site.register(*USERS)
    site.lead("a")
    site.run(20.0)
    site.dead = set(map(address, USERS[1:]))
    site.run(11.0)  # two misses each
    site.switch("off")
    site.run(60.0)
    site.switch("")
    site.run(5.0 + 2 * 5.0)
    assert len(site.contacts()) == len(USERS)
    site.run(6.5)
    assert site.contacts() == [aor(USERS[0])]


@pytest.mark.parametrize("remaining", [[], ["u2"]])
def test_answer_that_comes_late_shows_that_the_phone_is_there(remaining: list[str]) -> None:
    site = removing(max_lost=2)
    site.register("u1", *remaining)
    node = site.lead("a")
    site.round_trip = 1.5
    site.run(40.0)
    assert lost(node) >= 7
    assert site.contacts() == [aor(user) for user in ("u1", *remaining)]


def test_answer_of_an_edge_that_comes_late_may_be_its_own_word() -> None:
    site = removing(max_lost=2)
    site.register("u1", path=("<sip:203.0.113.9;lr>",))
    site.register("u2")
    site.lead("a")
    site.round_trip, site.status = 1.5, 408
    site.run(10.0)
    site.round_trip = 0.5
    site.run(20.0)
    assert site.contacts() == [aor("u2")]


def test_old_answer_that_is_sent_again_keeps_no_phone() -> None:
    site = removing()
    site.register("u1", "u2")
    node = site.lead("a")
    site.run(20.0)
    site.dead.add(address("u1"))
    first = next(data for _, data, flow in node.sent if flow.remote[0] == address("u1"))
    answer = response_to(parsed(first), 200)
    for _ in range(30):
        site.run(1.0)
        assert node.keepalive.response_received(answer, node.sent[0][2])
    assert site.contacts() == [aor("u2")]


def test_nobody_is_removed_while_nobody_at_all_answers() -> None:
    site = removing(max_lost=2)
    site.register(*USERS)
    site.lead("a")
    site.run(20.0)
    site.dead = set(map(address, USERS))  # the router before this node is down
    site.run(60.0)
    assert len(site.contacts()) == len(USERS)
    site.dead = set(map(address, USERS[:1]))
    site.run(5.0 + 2 * 5.0)
    assert len(site.contacts()) == len(USERS)
    site.run(6.5)
    assert sorted(site.contacts()) == sorted(map(aor, USERS[1:]))


def test_node_that_is_unwell_removes_nobody() -> None:
    site = removing(max_lost=1)
    site.register("u1", "u2")
    site.lead("a")
    site.run(10.0)
    site.well = False
    site.dead.add(address("u1"))
    site.run(30.0)
    assert len(site.contacts()) == 2
    site.well = True
    site.run(6.0)
    assert site.contacts() == [aor("u2")]


def test_nobody_is_removed_while_a_node_of_an_earlier_release_may_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    site = removing(max_lost=1)
    monkeypatch.setattr(site.machine, "schema", 2)
    site.register("u1", "u2")
    site.lead("a")
    site.dead.add(address("u1"))
    site.run(30.0)
    assert site.records == []


def test_answers_that_wait_while_the_process_stands_still_are_not_missed() -> None:
    site = removing(max_lost=1)
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    for _ in range(4):
        site.clock.advance(4.0)  # no turn for so long
        site.run(1.0)
    assert lost(node) == 0
    assert len(site.contacts()) == len(USERS)


def test_answers_that_the_kernel_may_have_dropped_are_not_missed() -> None:
    site = removing(max_lost=1)
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    site.dead = set(map(address, USERS[1:]))
    for _ in range(20):
        node.dropped += 1
        site.run(0.9)
    assert lost(node) == 0
    assert len(site.contacts()) == len(USERS)
    site.run(6.5)
    assert site.contacts() == [aor(USERS[0])]


# When a phone last answered


def last_answered(site: Site, node: Node, user: str) -> int | None:
    [binding] = site.machine.location.bindings(aor(user), 0)
    return node.keepalive.last_answered(binding)


def test_leader_knows_when_the_ping_was_sent_that_a_phone_answered_last(site: Site) -> None:
    site.register("u1", "u2")
    node = site.lead("a")
    assert last_answered(site, node, "u1") is None
    site.run(20.0)
    site.dead.add(address("u1"))
    site.register("u1", "u2")  # a refresh is no answer, and forgets none
    site.run(20.0)
    for user in ("u1", "u2"):
        assert last_answered(site, node, user) == pytest.approx(site.heard[address(user)][-1] * 1000, abs=SLOT)
    assert site.clock.seconds() - site.heard[address("u1")][-1] > 19


def test_new_leader_knows_of_no_answer_before_it_has_heard_one(site: Site) -> None:
    site.register("u1")
    former, new = site.lead("a"), site.nodes["b"]
    site.run(10.0)
    site.fail("a")
    site.lead("b")
    assert last_answered(site, former, "u1") is last_answered(site, new, "u1") is None
    site.run(6.0)
    assert last_answered(site, new, "u1") == pytest.approx(site.heard[address("u1")][-1] * 1000, abs=SLOT)


def test_answer_is_forgotten_with_its_binding(site: Site) -> None:
    site.register("u1")
    node = site.lead("a")
    site.run(10.0)
    [binding] = site.machine.location.bindings(aor("u1"), 0)
    site.register("u1", expires=0)
    site.run(6.0)
    assert node.keepalive.last_answered(binding) is None


# This node's own failures


def test_failed_send_is_never_a_lost_ping() -> None:
    site = removing()
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    node.failing = all_fail
    site.run(60.0)
    assert len(site.contacts()) == len(USERS)
    assert lost(node) == 0
    assert node.keepalive.counters.unsent == 12 * len(USERS)
    assert node.keepalive.state == "suspended: local send failure"
    [alarm] = node.keepalive.alarms()
    assert "routes and its firewall" in alarm
    node.failing = lambda _: False
    site.run(10.0)
    assert node.keepalive.state == "on"
    assert list(node.keepalive.alarms()) == []
    assert len(site.contacts()) == len(USERS)


def test_pings_sent_just_before_sends_fail_are_not_held_against_phones() -> None:
    site = removing(max_lost=1)
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    site.dead = set(map(address, USERS))  # the cable is out, and the kernel notices it half a second later
    site.run(0.5)
    node.failing = all_fail
    site.run(10.0)
    assert lost(node) == 0
    assert len(site.contacts()) == len(USERS)


def test_phones_are_spared_for_one_interval_after_sends_have_failed() -> None:
    site = removing(max_lost=1)
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    node.failing = all_fail
    site.run(20.0)
    node.failing = lambda _: False
    site.dead = set(map(address, USERS[1:]))  # the NATs have forgotten them
    site.run(5.5)
    assert len(site.contacts()) == len(USERS)


def test_family_that_can_not_be_sent_to_suspends_nothing() -> None:
    site = removing()
    users = [f"u{number}" for number in range(400)]
    site.register(*users)
    node = site.lead("a")
    site.run(20.0)
    half = set(map(address, users[::2]))
    node.failing = lambda flow: flow.remote[0] in half
    site.dead.add(address("u7"))
    for _ in range(300):
        site.run(0.1)
        assert node.keepalive.state == "on"
    assert sorted(site.contacts()) == sorted(aor(user) for user in users if user != "u7")


def test_phones_that_can_not_be_sent_to_do_not_keep_others_from_being_removed() -> None:
    site = removing()
    site.register(*USERS)
    node = site.lead("a")
    site.run(20.0)
    bad = {address("u3"), address("u30")}
    node.failing = lambda flow: flow.remote[0] in bad
    site.dead.add(address("u7"))
    site.run(30.0)
    assert sorted(site.contacts()) == sorted(aor(user) for user in USERS if user != "u7")
    assert node.keepalive.state == "on"


def test_stream_that_breaks_is_no_failure_of_ours(site: Site) -> None:
    for number in range(1, SUSPENDED_AFTER + 3):
        site.register(f"u{number}", received=f"sip:{address(f'u{number}')}:40000;transport=tcp")
    node = site.lead("a")
    node.connections = {(address(f"u{number}"), 40000): number for number in range(1, SUSPENDED_AFTER + 3)}
    node.failing = all_fail
    site.run(6.0)
    assert node.keepalive.state == "on"


def test_end_of_leadership_is_no_failure(site: Site) -> None:
    site.register(*USERS)
    node = site.lead("a")
    site.run(6.0)
    sent = len(node.sent)

    def fail(_: Flow) -> bool:
        node.open = False  # the lease has ended within the turn
        return True

    node.failing = fail
    site.run(6.0)
    assert len(node.sent) == sent
    assert node.keepalive.counters.unsent == 0
    assert list(node.keepalive.alarms()) == []


def test_node_that_can_not_send_from_the_virtual_address_removes_nobody_from_the_other_ones_table() -> None:
    """The incumbents' flaw: the standby's failing pings delete half of the live contacts cluster-wide."""
    site = removing(interval=4.0, max_lost=2)
    site.register(*USERS)
    standby = site.nodes["b"]
    standby.failing = all_fail
    site.lead("a")
    site.run(30.0)
    assert standby.keepalive.counters == type(standby.keepalive.counters)()
    assert not standby.sent
    # Even if it is taken for the leader, with an address that it can't send from.
    site.lead("b")
    site.run(30.0)
    assert len(site.contacts()) == len(USERS) == 40
    assert set(site.heard) == set(map(address, USERS))
    assert site.records == []


def test_counters_have_names(site: Site) -> None:
    assert site.nodes["a"].keepalive.counted() == dict.fromkeys(
        ("pings_sent", "pings_answered", "pings_lost", "pings_unsent"), 0
    )


def test_step_of_the_tests_is_finer_than_a_slot() -> None:
    assert STEP < 0.02
    assert isinstance(Site().machine, Machine)
