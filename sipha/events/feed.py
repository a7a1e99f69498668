"""What a node tells of: the changes that its log makes, and what happens to itself, to all who follow it.

Nobody is waited for. Who follows reads from a ring when it can; who has fallen behind the ring is told so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from sipha.errors import SiphaError
from sipha.events.event import (
    GAP,
    REFRESHED,
    AlarmCleared,
    AlarmRaised,
    Event,
    Gap,
    Moment,
    Position,
    gap,
    own_position,
    refreshes_of,
    stamp,
)
from sipha.events.ring import Item, Ring, item, run_of, run_of_one
from sipha.events.told import Told, told
from sipha.state.changes import Change, Refreshed, TermBegun
from sipha.state.interfaces import IObserver

KEPT = 10_000
"""Events that are kept for who comes back."""

KEPT_BYTES = 8 << 20
"""Bytes of them."""

REFRESHES = 5_000
"""Plain refreshes that are kept for who follows them and is a little behind."""

READERS = 64
"""Who may follow at a time."""

_SCAN = 500
"""Events that are looked at in one turn for one reader."""


class Overrun(SiphaError):
    """Who follows has fallen so far behind that what it has not seen is gone."""


class TooMany(SiphaError):
    """As many follow as may."""


class Source(NamedTuple):
    """What the feed asks of the replica: who it is, and what it knows of the log and of time.

    `applied` is the index up to which the log is applied; `time` is cluster time, `wall` what the wall clock shows, in
    seconds. `leader_of` says who led when the entry at an index was written, None if that isn't known.
    """

    node: str
    applied: Callable[[], int]
    time: Callable[[], float]
    wall: Callable[[], float]
    leader_of: Callable[[int], str | None]


class Archive(Protocol):
    """Who keeps what the log has changed; never raises."""

    def keep(self, told: Told) -> None:
        """Take what an entry has changed, which is more than refreshes."""

    def skipped(self, gap: Gap) -> None:
        """Take note that this node doesn't know what some entries have changed."""


@implementer(IObserver)
class Feed:
    """Follows the machine, and is followed by readers."""

    def __init__(self, reactor: IReactorTime, source: Source) -> None:
        self.refreshes = False
        self.source = source
        self._reactor = reactor
        self.archive: Archive | None = None
        self._run = f"{source.node}-{os.urandom(3).hex()}"
        self._own = 0
        self._told = source.applied()
        self._whole_after = own_position(self._told)
        """Behind this position all that has happened is here."""
        self._leader: str | None = None  # who leads the term of the entry that was applied last
        self._kept = Ring(KEPT, KEPT_BYTES)
        self._refreshed = Ring(REFRESHES, KEPT_BYTES)
        self._turn = self._count = 0
        self._overruns = 0
        self._readers: dict[Reader, Callable[[], None]] = {}
        self._waking: IDelayedCall | None = None
        self._alarms: tuple[str, ...] = ()
        self._log = Logger(namespace="sipha.events")

    # What happens

    def applied(self, index: int, time: int, changes: Sequence[Change]) -> None:
        """See IObserver."""
        if index <= self._told:  # after another table was installed, entries are applied again
            return
        try:
            self._applied(index, time, changes)
        except Exception:  # noqa: BLE001  whatever it is, the log goes on
            self._log.failure("what entry {index} has changed can't be told", index=index)
        self._told = index

    def _applied(self, index: int, time: int, changes: Sequence[Change]) -> None:
        moment = self._moment(index, time, self._leader or self.source.leader_of(index))
        for change in changes:
            if isinstance(change, TermBegun):
                self._leader = change.node
        self._turn += 1
        if self.refreshes:
            for position, event in refreshes_of(moment, changes):
                self._refreshed.append(run_of_one(item(self._turn, position, event)))
                self._count += 1
            changes = [change for change in changes if not isinstance(change, Refreshed)]
        if changes:
            made = told(moment, changes)
            self._whole_after = self._kept.append(run_of(self._turn, made)) or self._whole_after
            self._count += len(changes)
            if self.archive is not None:
                self.archive.keep(made)
        self._call()

    def adopted(self, index: int) -> None:
        """See IObserver."""
        self._leader = None
        if index > self._told:
            self._miss(index, "a snapshot was installed")

    def reach(self) -> int:
        """The index up to which all that the log has changed was told."""
        self._told = max(self._told, self.source.applied())
        return self._told

    def _miss(self, index: int, why: str) -> None:
        missing = self.gap(self._told, index, why)
        self._told = index
        self._add(own_position(index), missing)
        if self.archive is not None:
            self.archive.skipped(missing)

    def gap(self, after: int, until: int, why: str) -> Gap:
        """What says that nothing is known of the entries after one index, up to another."""
        return self._gap(after, own_position(until), why)

    def _gap(self, after: int, until: Position, why: str) -> Gap:
        moment = self._moment(until.entry, int(self.source.time() * 1000), self.source.node)
        return gap(moment, until.id, after, why)

    def tell(self, kind: Callable[..., Event], **fields: Any) -> None:
        """Something of this kind has happened to this node."""
        index = self.reach()
        self._own += 1
        moment = self._moment(index, int(self.source.time() * 1000), self.source.node)
        self._add(own_position(index), kind(*stamp(moment, f"{index}.{self._run}.{self._own}"), **fields))

    def compare_alarms(self, alarms: Collection[str]) -> None:
        """Tell which alarms have come, and which have gone, since the last look."""
        self.reach()
        before, self._alarms = self._alarms, tuple(dict.fromkeys(alarms))
        for alarm in before:
            if alarm not in self._alarms:
                self.tell(AlarmCleared, alarm=alarm)
        for alarm in self._alarms:
            if alarm not in before:
                self.tell(AlarmRaised, alarm=alarm)

    def _moment(self, index: int, time: int, node: str | None) -> Moment:
        ago = max(self.source.time() - time / 1000, 0.0)  # after a restart, entries of long ago may be applied
        return Moment(index, time, self.source.wall() - ago, node)

    def _add(self, position: Position, event: Event) -> None:
        """Tell of an event that isn't of an entry."""
        self._turn += 1
        self._count += 1
        self._whole_after = self._kept.append(run_of_one(item(self._turn, position, event))) or self._whole_after
        self._call()

    def _call(self) -> None:
        """Let those know who follow, in a later turn."""
        if self._readers and self._waking is None:
            self._waking = self._reactor.callLater(0, self._wake)

    # Who follows

    @property
    def counters(self) -> dict[str, int]:
        """How many events were told, and how many readers were too slow for them, by name."""
        return {"events_told": self._count, "events_overruns": self._overruns}

    @property
    def followers(self) -> int:
        """How many follow."""
        return len(self._readers)

    def follow(self, news: Callable[[], None], since: str | None, kinds: Collection[str], aor: str = "") -> Reader:
        """Let a reader begin after the event of an id or after an index, or with what comes from now on.

        `news` is called when there is something to read, in a later turn. Only events of these kinds are read, and with
        `aor` only those that concern it, or no AOR. Raises ValueError for what isn't an id, and TooMany.
        """
        after = own_position(self.source.applied()) if since is None else Position.parse(since)
        if len(self._readers) >= READERS:
            raise TooMany(f"{READERS} follow the events of this node already")
        place = self._kept.next
        missing: Item | None = None
        if since is not None:
            here = self._kept.place_of(since, after)
            place = self._kept.after(after) if here is None else here + 1
            if after < self._whole_after and here is None:
                why = "this node doesn't have what came so long ago any more"
                missing = item(0, self._whole_after, self._gap(after.entry, self._whole_after, why))
        places = [(self._kept, place)]
        if REFRESHED in kinds:
            places.append((self._refreshed, self._refreshed.next))
        reader = Reader(self, places, after, kinds, aor, missing)
        self._readers[reader] = news
        self._see_who_wants_refreshes()
        return reader

    def overrun(self) -> Overrun:
        """A reader is too slow."""
        self._overruns += 1
        return Overrun("you have taken events more slowly than they came")

    def leave(self, reader: Reader) -> None:
        """Let a reader follow no more."""
        self._readers.pop(reader, None)
        self._see_who_wants_refreshes()

    def _see_who_wants_refreshes(self) -> None:
        self.refreshes = any(REFRESHED in reader.kinds for reader in self._readers)
        if not self.refreshes:
            self._refreshed.clear()

    def _wake(self) -> None:
        self._waking = None
        for reader, news in tuple(self._readers.items()):
            if reader in self._readers:
                news()


class Reader:
    """Where one that follows is; made by Feed.follow."""

    def __init__(  # noqa: PLR0917  one caller
        self,
        feed: Feed,
        places: list[tuple[Ring, int]],
        after: Position,
        kinds: Collection[str],
        aor: str,
        missing: Item | None,
    ) -> None:
        self.kinds = frozenset(kinds) | {GAP}
        self._feed = feed
        self._places = places
        self._after = after
        self._aor = aor
        self._missing = missing

    def take(self) -> tuple[list[Item], bool]:
        """What comes next, and whether there is more; raises Overrun."""
        if any(place < ring.first for ring, place in self._places):
            raise self._feed.overrun()
        missing, self._missing = self._missing, None
        taken = [] if missing is None else [missing]
        for _ in range(_SCAN):
            following = self._next()
            if following is None:
                return taken, False
            if self._wants(following):
                taken.append(following)
        return taken, True

    def stop(self) -> None:
        """Follow no more."""
        self._feed.leave(self)

    def _next(self) -> Item | None:
        """The next event of the rings, in the order in which they came."""
        candidates = [
            (ring[place].turn, ring[place].position, -which)  # a refresh before what it stands before
            for which, (ring, place) in enumerate(self._places)
            if place < ring.next
        ]
        if not candidates:
            return None
        which = -min(candidates)[2]
        ring, place = self._places[which]
        self._places[which] = ring, place + 1
        return ring[place]

    def _wants(self, told: Item) -> bool:
        if told.kind not in self.kinds or (self._aor and told.aor not in {self._aor, ""}):
            return False
        # A node that is behind another one, which was followed before, tells nothing twice.
        return told.position > self._after or told.position == own_position(told.position.entry)
