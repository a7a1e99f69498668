"""The latest events, in the memory of a node: who lags too far behind has missed some, and nobody waits for it."""

from __future__ import annotations

from typing import NamedTuple

from sipha.events.event import Event, Position, encode, kind_of


class Item(NamedTuple):
    """An event in a ring, with its place among all that this node has told of, and as JSON."""

    number: int
    position: Position
    kind: str
    aor: str
    id: str
    data: bytes


def item(number: int, position: Position, event: Event) -> Item:
    """An event as a ring holds it."""
    return Item(number, position, kind_of(event), getattr(event, "aor", ""), event.id, encode(event))


class Ring:
    """Up to `most` events of `most_bytes` in all, by their places in here: `first` to `next`, which isn't there yet."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.first = self.next = 0
        self._most = most
        self._most_bytes = most_bytes
        self._items: dict[int, Item] = {}
        self._bytes = 0

    def __getitem__(self, place: int) -> Item:
        """The event at a place, which must be there."""
        return self._items[place]

    def append(self, item: Item) -> Position | None:
        """Add an event; returns where the last one stood that had to go for it."""
        self._items[self.next] = item
        self.next += 1
        self._bytes += len(item.data)
        gone = None
        while self.next - self.first > self._most or self._bytes > self._most_bytes:
            oldest = self._items.pop(self.first)
            self.first += 1
            self._bytes -= len(oldest.data)
            gone = oldest.position
        return gone

    def clear(self) -> None:
        """Forget all."""
        self._items.clear()
        self.first, self._bytes = self.next, 0

    def after(self, position: Position) -> int:
        """The place of the first event that stands after a position."""
        low, high = self.first, self.next
        while low < high:
            middle = (low + high) // 2
            if self._items[middle].position > position:
                high = middle
            else:
                low = middle + 1
        return low

    def place_of(self, event_id: str, position: Position) -> int | None:
        """The place of the event with this id, which stands at the position; None if it isn't here."""
        place = self.after(position) - 1
        while place >= self.first and self._items[place].position == position:
            if self._items[place].id == event_id:
                return place
            place -= 1
        return None
