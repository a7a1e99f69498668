"""A feed on a machine of its own, at a time that the test sets."""

from __future__ import annotations

from twisted.internet.task import Clock

from sipha.events.event import AnyEvent, Gap, decode, kind_of
from sipha.events.feed import Feed, Reader, Source
from sipha.events.told import Told, events_in
from sipha.state.entries import SCHEMA, Barrier, Batch, Contact, Policy, Record, Register, encode
from sipha.state.machine import Machine

ALICE, BOB = "sip:alice@x", "sip:bob@x"
WALL = 1_764_380_000.0


class Archive:
    """Takes down what is to be kept."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, int, list[str]]] = []
        self.gaps: list[Gap] = []

    def keep(self, told: Told) -> None:
        self.kept.append((told.entry, told.time, [kind_of(event) for _, event in events_in(told.data)]))

    def skipped(self, gap: Gap) -> None:
        self.gaps.append(gap)


class Site:
    """A node: its log, its clocks, and its feed. `machine` may have a table already."""

    def __init__(self, machine: Machine | None = None, node: str = "n1") -> None:
        self.machine = machine or Machine()
        self.clock = Clock()
        self.now = 1000.0
        self.wall = WALL
        self.leader: str | None = None
        self.archive = Archive()
        source = Source(node, lambda: self.machine.index, lambda: self.now, lambda: self.wall, lambda _: self.leader)
        self.feed = Feed(self.clock, source)
        self.feed.archive = self.archive
        self.machine.observer = self.feed
        self.cseq = 0

    def apply(self, *records: Record, ago: float = 0.0) -> None:
        """Apply one entry, which was written so many seconds ago."""
        entry = encode(Batch(SCHEMA, int((self.now - ago) * 1000), Policy(), records))
        self.machine.apply(self.machine.index + 1, entry)

    def register(self, aor: str, expires: int = 600, **fields: str) -> None:
        """Apply an entry in which a phone registers, or refreshes."""
        self.cseq += 1
        self.apply(Register(aor, f"call-{aor}", self.cseq, (Contact(f"{aor}:5070", expires),), **fields))  # type: ignore[arg-type]

    def elect(self, node: str, term: int = 2) -> None:
        """Apply an entry in which a node begins to lead."""
        self.apply(Barrier(term, node))


def read(reader: Reader) -> list[AnyEvent]:
    """What a reader gets at once."""
    items, more = reader.take()
    assert not more
    return [decode(item.data) for item in items]


def ids(reader: Reader) -> list[str]:
    """The ids of what a reader gets at once."""
    return [event.id for event in read(reader)]
