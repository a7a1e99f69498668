"""The ring, beside a list of all that was ever put into it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sipha.events.event import KeyAdded, Moment, Position, own_position, stamp
from sipha.events.ring import Item, Ring, Run, item, run_of, run_of_one
from sipha.events.told import told
from sipha.state import changes

MOST = 6


def event(entry: int, number: int) -> KeyAdded:
    return KeyAdded(*stamp(Moment(entry, 0, 1.0, None), f"{entry}.{number}"))


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(100, 2000))
def test_ring_has_the_latest_in_their_order(sizes: list[int], most_bytes: int) -> None:
    ring, runs, places = Ring(MOST, most_bytes), list[tuple[Run, list[Item]]](), dict[int, Item]()
    for entry, size in enumerate(sizes, 1):
        if size:
            run = run_of(entry, told(Moment(entry, 0, 1.0, None), [changes.KeyAdded()] * size))
            items = [item(entry, Position(entry, number), event(entry, number)) for number in range(size)]
        else:
            items = [item(entry, own_position(entry), event(entry, 0))]
            run = run_of_one(items[0])
        places |= {ring.next + number: each for number, each in enumerate(items)}
        gone = ring.append(run)
        runs.append((run, items))
        former = len(runs)
        while sum(run.events for run, _ in runs) > MOST or sum(run.size for run, _ in runs) > most_bytes:
            last, _ = runs.pop(0)
        assert gone == (last.last if len(runs) < former else None)
        held = [each for _, items in runs for each in items]
        assert [ring[place] for place in range(ring.first, ring.next)] == held
        assert [places[place] for place in range(ring.first, ring.next)] == held
        for position in [Position(number, place) for number in range(entry + 2) for place in range(-1, 5)]:
            assert ring.next - ring.after(position) == len([each for each in held if each.position > position])
        for place, each in places.items():
            assert ring.place_of(each.id, each.position) == (place if place >= ring.first else None)
    ring.clear()
    assert ring.first == ring.next == ring.after(Position(0, 0))
