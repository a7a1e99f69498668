"""The latest events, in the memory of a node: who lags too far behind has missed some, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sipha.events.event import Event, Position, encode, kind_of
from sipha.events.told import Told, events_in


class Item(NamedTuple):
    """An event as JSON, and its position; `turn` rises with each time that this node has told something."""

    turn: int
    position: Position
    kind: str
    aor: str
    id: str
    data: bytes


def item(turn: int, position: Position, event: Event) -> Item:
    """An event as who follows takes it."""
    return Item(turn, position, kind_of(event), getattr(event, "aor", ""), event.id, encode(event))


class Run(NamedTuple):
    """So many events that were told at once, up to a position; they are made of `size` bytes for who wants to see."""

    last: Position
    events: int
    size: int
    items: Callable[[], Sequence[Item]]


def run_of_one(item: Item) -> Run:
    """One event."""
    return Run(item.position, 1, len(item.data), lambda: (item,))


def run_of(turn: int, told: Told) -> Run:
    """Those of an entry."""

    def items() -> list[Item]:
        return [item(turn, Position(told.entry, number), event) for number, event in events_in(told.data)]

    events = len(told.aors)
    return Run(Position(told.entry, events - 1), events, len(told.data), items)


class Ring:
    """Up to `most` events of `most_bytes` in all, by their places in here: `first` to `next`, which isn't there yet.

    They come and go in runs.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.first = self.next = 0
        self._most = most
        self._most_bytes = most_bytes
        self._runs: dict[int, tuple[int, Run]] = {}  # by their numbers, each with the place of its first event
        self._oldest = self._newest = 0
        self._bytes = 0
        self._seen: tuple[int, Sequence[Item]] = (-1, ())  # the run that was looked at last, and its events

    def __getitem__(self, place: int) -> Item:
        """The event at a place, which must be there."""
        number = self._search(lambda first, _: first > place) - 1
        return self._items(number)[place - self._runs[number][0]]

    def append(self, run: Run) -> Position | None:
        """Add events; returns where the last one stood that had to go for them."""
        self._runs[self._newest] = self.next, run
        self._newest += 1
        self.next += run.events
        self._bytes += run.size
        gone = None
        while self.next - self.first > self._most or self._bytes > self._most_bytes:
            _, oldest = self._runs.pop(self._oldest)
            self._oldest += 1
            self.first += oldest.events
            self._bytes -= oldest.size
            gone = oldest.last
        return gone

    def clear(self) -> None:
        """Forget all."""
        self._runs.clear()
        self._oldest, self.first, self._bytes = self._newest, self.next, 0

    def after(self, position: Position) -> int:
        """The place of the first event that stands after a position."""
        number = self._search(lambda _, run: run.last > position)
        if number == self._newest:
            return self.next
        first, _ = self._runs[number]
        return first + sum(item.position <= position for item in self._items(number))

    def place_of(self, event_id: str, position: Position) -> int | None:
        """The place of the event with this id, which stands at the position; None if it isn't here."""
        place = self.after(position) - 1
        while place >= self.first and (found := self[place]).position == position:
            if found.id == event_id:
                return place
            place -= 1
        return None

    def _search(self, is_past: Callable[[int, Run], bool]) -> int:
        """The number of the first run that is past something, as all after it are."""
        low, high = self._oldest, self._newest
        while low < high:
            middle = (low + high) // 2
            if is_past(*self._runs[middle]):
                high = middle
            else:
                low = middle + 1
        return low

    def _items(self, number: int) -> Sequence[Item]:
        if self._seen[0] != number:
            self._seen = number, self._runs[number][1].items()
        return self._seen[1]
