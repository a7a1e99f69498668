from __future__ import annotations

import pytest

from sipha.events import feed as feed_module
from sipha.events.event import (
    KINDS,
    AlarmCleared,
    AlarmRaised,
    BindingAdded,
    BindingRefreshed,
    Gap,
    LeaseGained,
    VipGained,
)
from sipha.events.feed import READERS, Overrun, TooMany
from sipha.events.told import Told
from sipha.state.entries import PutSetting
from tests.events.site import ALICE, BOB, Site, ids, read
from tests.state.snapshots import copied, loaded, taken

USUAL = frozenset(KINDS) - {"binding-refreshed"}


def nothing() -> None:
    pass


def test_reader_gets_what_comes_from_now_on() -> None:
    site = Site()
    site.register(ALICE)
    reader = site.feed.follow(nothing, None, USUAL)
    site.register(BOB)
    (event,) = read(reader)
    assert isinstance(event, BindingAdded)
    assert (event.id, event.aor, event.time) == ("2.0", BOB, 1000.0)
    assert read(reader) == []


def test_reader_is_woken_once_in_a_later_turn() -> None:
    site = Site()
    woken: list[int] = []
    site.feed.follow(lambda: woken.append(1), None, USUAL)
    site.register(ALICE)
    site.register(BOB)
    assert not woken
    site.clock.advance(0)
    assert woken == [1]


@pytest.mark.parametrize(
    ("since", "expected"),
    [("0", ["1.0", "2.0", "2.1", "3.0"]), ("1", ["2.0", "2.1", "3.0"]), ("2.0", ["2.1", "3.0"]), ("7.3", [])],
)
def test_reader_goes_on_where_it_was(since: str, expected: list[str]) -> None:
    site = Site()
    site.register(ALICE)
    site.apply(PutSetting("a", "b"), PutSetting("c", "d"))
    site.register(BOB)
    assert ids(site.feed.follow(nothing, since, USUAL)) == expected


def test_nodes_tell_the_same_under_the_same_ids_whoever_follows_refreshes() -> None:
    one, other = Site(), Site()
    one.feed.follow(nothing, None, KINDS)
    for site in (one, other):
        site.elect("n2")
        site.register(ALICE)
        site.register(ALICE)
        site.register(BOB)
    told = [read(site.feed.follow(nothing, "0", USUAL)) for site in (one, other)]
    assert told[0] == told[1]
    assert [event.node for event in told[0]] == ["n2"] * 3


def test_reader_that_was_told_more_by_another_node_hears_nothing_twice() -> None:
    site = Site()
    reader = site.feed.follow(nothing, "2.0", USUAL)
    for aor in (ALICE, BOB, "sip:carol@x"):
        site.register(aor)
    assert ids(reader) == ["3.0"]


def test_reader_chooses_kinds_and_aor() -> None:
    site = Site()
    added = site.feed.follow(nothing, None, {"binding-added"})
    alice = site.feed.follow(nothing, None, USUAL, ALICE)
    site.register(ALICE)
    site.register(BOB)
    site.apply(PutSetting("a", "b"))
    assert ids(added) == ["1.0", "2.0"]
    assert ids(alice) == ["1.0", "3.0"]


def test_refreshes_are_told_only_while_someone_asks_for_them() -> None:
    site = Site()
    site.register(ALICE)
    assert not site.feed.refreshes
    reader = site.feed.follow(nothing, None, {"binding-refreshed", "binding-added"})
    assert site.feed.refreshes
    site.register(ALICE)
    site.register(BOB)
    refreshed, added = read(reader)
    assert isinstance(refreshed, BindingRefreshed)
    assert (refreshed.id, added.id) == ("1", "3.0")
    reader.stop()
    assert not site.feed.refreshes
    assert [kinds for _, _, kinds in site.archive.kept] == [["binding-added"]] * 2


def test_own_events_stand_after_the_entry_that_they_follow() -> None:
    site = Site()
    site.register(ALICE)
    site.feed.tell(LeaseGained)
    site.feed.tell(VipGained, addresses=("192.0.2.10",))
    site.register(BOB)
    added, lease, vip, last = ids(site.feed.follow(nothing, "0", USUAL))
    assert (added, last) == ("1.0", "2.0")
    assert lease.startswith("1.n1-")
    assert ids(site.feed.follow(nothing, lease, USUAL)) == [vip, last]
    assert ids(site.feed.follow(nothing, vip, USUAL)) == [last]
    assert ids(site.feed.follow(nothing, "1.n2-00ff00.7", USUAL)) == [last], "another node's own event"


def test_reader_from_now_on_gets_own_events() -> None:
    site = Site()
    site.register(ALICE)
    reader = site.feed.follow(nothing, None, USUAL)
    site.feed.tell(LeaseGained)
    assert [type(event) for event in read(reader)] == [LeaseGained]


def test_alarms_are_told_when_they_come_and_go() -> None:
    site = Site()
    reader = site.feed.follow(nothing, None, USUAL)
    site.feed.compare_alarms(["a", "b"])
    site.feed.compare_alarms(["b", "c", "c"])
    site.feed.compare_alarms(["b", "c"])
    told = [(type(event), event.alarm) for event in read(reader) if isinstance(event, AlarmRaised | AlarmCleared)]
    assert told == [(AlarmRaised, "a"), (AlarmRaised, "b"), (AlarmCleared, "a"), (AlarmRaised, "c")]


def test_reader_that_comes_back_too_late_is_told_of_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "KEPT", 2)
    site = Site()
    for number in range(5):
        site.register(f"sip:u{number}@x")
    gap, *rest = read(site.feed.follow(nothing, "1.0", USUAL))
    assert isinstance(gap, Gap)
    assert (gap.after, gap.index, gap.id) == (1, 3, "3.0")
    assert [event.id for event in rest] == ["4.0", "5.0"]
    assert ids(site.feed.follow(nothing, "3.0", USUAL)) == ["4.0", "5.0"]


def test_node_that_was_restarted_tells_of_the_gap_once() -> None:
    before = Site()
    before.register(ALICE)
    before.register(BOB)
    site = Site(copied(before.machine))
    site.register("sip:carol@x")
    gap, carol = read(site.feed.follow(nothing, "1.0", {"binding-added"}))
    assert isinstance(gap, Gap)
    assert (gap.after, gap.index, gap.id, carol.id) == (1, 2, "2", "3.0")
    assert ids(site.feed.follow(nothing, gap.id, USUAL)) == ["3.0"]


def test_reader_that_is_too_slow_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "KEPT", 2)
    site = Site()
    reader = site.feed.follow(nothing, None, USUAL)
    for number in range(3):
        site.register(f"sip:u{number}@x")
    with pytest.raises(Overrun):
        reader.take()
    assert site.feed.counters == {"events_told": 3, "events_overruns": 1}


def test_reader_that_wants_no_refreshes_isnt_harmed_by_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "REFRESHES", 2)
    site = Site()
    site.register(ALICE)
    slow, usual = site.feed.follow(nothing, None, KINDS), site.feed.follow(nothing, None, USUAL)
    for _ in range(3):
        site.register(ALICE)
    assert read(usual) == []
    with pytest.raises(Overrun):
        slow.take()


def test_reader_takes_no_more_than_some_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_SCAN", 2)
    site = Site()
    reader = site.feed.follow(nothing, None, USUAL)
    for number in range(3):
        site.register(f"sip:u{number}@x")
    items, more = reader.take()
    assert ([item.id for item in items], more) == (["1.0", "2.0"], True)
    assert ids(reader) == ["3.0"]


def test_snapshot_leaves_a_gap_and_what_was_told_is_not_told_again() -> None:
    leader, site = Site(), Site()
    for aor in (ALICE, BOB):
        leader.register(aor)
    site.register(ALICE)
    reader = site.feed.follow(nothing, "0", USUAL)
    site.machine.adopt(loaded(taken(leader.machine)))
    site.register("sip:carol@x")
    added, gap, carol = read(reader)
    assert isinstance(gap, Gap)
    assert (added.id, gap.after, gap.index, carol.id) == ("1.0", 1, 2, "3.0")
    assert site.archive.gaps == [gap]
    site.machine.adopt(loaded(taken(leader.machine)))  # it is an earlier one: what follows is applied again
    site.register("sip:carol@x")
    assert read(reader) == []
    assert [index for index, _, _ in site.archive.kept] == [1, 3]


def test_who_led_is_known_from_the_term_or_else_from_the_replica() -> None:
    site = Site()
    reader = site.feed.follow(nothing, None, {"binding-added"})
    site.register(ALICE)
    site.leader = "n3"
    site.register(BOB)
    site.elect("n1")
    site.register("sip:carol@x")
    assert [event.node for event in read(reader)] == [None, "n3", "n1"]


def test_entry_of_long_ago_bears_the_wall_time_of_long_ago() -> None:
    site = Site()
    reader = site.feed.follow(nothing, None, USUAL)
    site.apply(PutSetting("a", "b"), ago=80.0)
    (event,) = read(reader)
    assert (event.time, event.at) == (920.0, "2025-11-29T01:32:00.000Z")


def test_there_is_an_end_to_who_may_follow() -> None:
    site = Site()
    readers = [site.feed.follow(nothing, None, USUAL) for _ in range(READERS)]
    with pytest.raises(TooMany):
        site.feed.follow(nothing, None, USUAL)
    readers[0].stop()
    readers[0].stop()
    assert site.feed.followers == READERS - 1
    site.feed.follow(nothing, None, USUAL)


def test_mistake_in_telling_is_not_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()

    def fail(_: object, __: object) -> Told:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(feed_module, "told", fail)
    site.register(ALICE)
    assert site.machine.index == 1
    monkeypatch.undo()
    reader = site.feed.follow(nothing, None, USUAL)
    site.register(BOB)
    assert ids(reader) == ["2.0"]
