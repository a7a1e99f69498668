from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.nat.schedule import CATCH_UP, SLOT, Schedule

INTERVAL = 1000
LIMIT = 7
BINDINGS = [(f"sip:{number}@x", number << 20) for number in range(60)]


def filled(since: int, now: int) -> Schedule:
    schedule = Schedule(INTERVAL, since, now)
    for aor, contact_id in BINDINGS:
        schedule.add(aor, contact_id)
    return schedule


@given(
    start=st.integers(0, 10**9),
    turns=st.lists(st.integers(1, 60), min_size=100, max_size=200),
    leaders=st.lists(st.tuples(st.integers(1, 199), st.integers(0, INTERVAL // 2)), max_size=3),
)
@settings(max_examples=60)
def test_each_binding_has_its_turn_once_an_interval_whoever_leads(
    start: int, turns: list[int], leaders: list[tuple[int, int]]
) -> None:
    """A new leader goes on where the one before it stopped, some time later."""
    schedule = filled(start, start)
    had: dict[str, list[int]] = {aor: [] for aor, _ in BINDINGS}
    gaps = dict(leaders)
    now = start
    resumed = set()  # slots in which a leader stopped half-way
    for number, elapsed in enumerate(turns):
        now += elapsed
        if number in gaps:
            now += gaps[number]
            resumed.add(schedule.until)
            schedule = filled(schedule.until, now)
        for slot, aors in schedule.due(now, LIMIT):
            for aor in aors:
                assert slot * SLOT <= now
                had[aor].append(slot * SLOT)
    assert schedule.until <= now + SLOT
    for aor, contact_id in BINDINGS:
        slots = had[aor]
        # No slot comes twice, none is left out, and all are the binding's own.
        for earlier, later in pairwise(slots):
            assert later - earlier == INTERVAL or (later == earlier and later in resumed)
        assert all(slot // SLOT % schedule.slots == schedule.remainder(aor, contact_id) for slot in slots)
        assert len(slots) >= (schedule.until - start) // INTERVAL


def test_bindings_are_spread_evenly() -> None:
    schedule = Schedule(25_000, 0, 0)
    found = Counter(schedule.remainder(f"sip:user{number}@sipha.test", number << 20) for number in range(125_000))
    assert len(found) == schedule.slots == 1250
    assert min(found.values()) > 50
    assert max(found.values()) < 160


def test_every_node_gives_a_binding_the_same_slots() -> None:
    # Of another process, whose hash() differs; the AOR and the contact id count.
    schedule = Schedule(25_000, 0, 0)
    assert schedule.remainder("sip:alice@sipha.test", 5 << 20) == 272
    assert schedule.remainder("sip:alice@sipha.test", 6 << 20) != 272


def test_what_is_overdue_is_caught_up_at_a_bounded_pace() -> None:
    schedule = filled(0, 800)
    slots = [[slot for slot, _ in schedule.due(800 + turn * SLOT, 1000)] for turn in range(12)]
    assert slots[0] == list(range(CATCH_UP))
    assert [slot for turn in slots for slot in turn] == list(range(800 // SLOT + 12))
    assert max(map(len, slots)) == CATCH_UP


def test_after_a_long_pause_each_binding_comes_once_within_an_eighth_of_the_interval() -> None:
    now = 10 * INTERVAL
    schedule = filled(0, now)
    found: Counter[str] = Counter()
    for turn in range(schedule.slots // CATCH_UP + 1):
        for _, aors in schedule.due(now + turn * SLOT, 1000):
            found.update(aors)
    assert found == Counter(aor for aor, _ in BINDINGS)


def test_slot_with_more_than_the_limit_is_handed_out_in_several_turns() -> None:
    schedule = Schedule(SLOT, 0, 0)
    for aor, contact_id in BINDINGS:
        schedule.add(aor, contact_id)
    turns = [schedule.due(SLOT - 1, 25) for _ in range(4)]
    assert [sum(len(aors) for _, aors in turn) for turn in turns] == [25, 25, 10, 0]
    assert sorted(aor for turn in turns for _, aors in turn for aor in aors) == sorted(aor for aor, _ in BINDINGS)


def test_binding_that_is_discarded_has_no_turn() -> None:
    schedule = filled(0, 0)
    aor, contact_id = BINDINGS[3]
    schedule.discard(aor, schedule.remainder(aor, contact_id) + 5 * schedule.slots)
    schedule.discard(aor, 0)
    found = [aor for turn in range(200) for _, aors in schedule.due(turn * SLOT, 1000) for aor in aors]
    assert aor not in found
    assert len(set(found)) == len(BINDINGS) - 1


def test_what_is_skipped_does_not_come() -> None:
    schedule = filled(0, 0)
    schedule.skip(500)
    assert schedule.due(500, 1000) == []
    assert [slot for slot, _ in schedule.due(500 + SLOT, 1000)] == [500 // SLOT + 1]
