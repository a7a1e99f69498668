"""Brings what the log changes into the history, on a thread, so that neither the log nor the reactor waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha.events.event import Gap
from sipha.events.history import History, HistoryError, Page
from sipha.events.told import Told

FLUSH = 0.25
"""Seconds for which events are gathered before they are written."""

MARK = 10.0
"""Seconds after which it is written how far the log has come, even if it has changed nothing that is kept."""

RETRY = 60.0
"""Seconds after which a history that failed is opened anew."""

MOST = 100_000
"""Events that may wait to be written."""

MOST_BYTES = 32 << 20
"""Bytes of them."""

Run = Callable[..., "Deferred[Any]"]
"""Runs a function with its arguments on the thread, after those before it."""


class Place(NamedTuple):
    """Where the node is: in which cluster (empty if in none), up to which index all was told, at which cluster time."""

    cluster: str
    reached: int
    time: int


class Recorder:
    """Writes what it is given to the history that `open_` opens, anew with True after it has failed, by `run`.

    What comes while the queue is full is dropped and counted, and the history gets what `gap(after, until, why)` makes
    of it.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        run: Run,
        open_: Callable[[bool], History],
        place: Callable[[], Place],
        gap: Callable[[int, int, str], Gap],
    ) -> None:
        self.counters = {"history_written": 0, "history_dropped": 0}
        self._reactor = reactor
        self._run = run
        self._open = open_
        self._place = place
        self._gap = gap
        self._past = self._given = place().reached  # up to `_past`, what the history hasn't never comes any more
        self._history: History | None = None
        self._trouble = ""
        self._suspect = False
        self._rests_until = -math.inf
        self._waiting: list[Told | Gap] = []
        self._events = self._bytes = 0  # of what waits
        self._lost: tuple[int, int] | None = None  # what was dropped since the last gap: after and until which index
        self._marked = -math.inf
        self._lock = DeferredLock()
        self._next: IDelayedCall | None = None
        self._log = Logger(namespace="sipha.events")

    # What happens

    def keep(self, told: Told) -> None:
        """Take what an entry has changed, if that concerns an AOR."""
        events, size = told.events, len(told.data)
        if not events:
            return
        if self._events + events > MOST or self._bytes + size > MOST_BYTES:
            self.counters["history_dropped"] += events
            self._lost = (self._given if self._lost is None else self._lost[0]), told.entry
        else:
            self._own_up()
            self._waiting.append(told)
            self._events += events
            self._bytes += size
            self._given = told.entry

    def skipped(self, gap: Gap) -> None:
        """Take note that this node doesn't know what some entries have changed."""
        self._waiting.append(gap)

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        if self._trouble:
            yield (
                f"the history of AORs can't be written: {self._trouble}; look after the disk: what happens waits in "
                "memory, and what is too much for that will be missing in the history, and nowhere else"
            )

    # Writing and reading

    def start(self) -> None:
        """Open the history, and write from now on."""
        self._next = self._reactor.callLater(0.0, self._turn)

    def stop(self) -> Deferred[Any]:
        """Write what waits, and close the history."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._marked = -math.inf
        return self._lock.run(self._write).addCallback(lambda _: self._close())

    def read(self, aor: str, cursor: str, limit: int) -> Deferred[Page]:
        """A page of the history of an AOR, with all that has happened by now.

        Fails with HistoryError, and with ValueError for what is no cursor.
        """
        return self._lock.run(self._write).addCallback(lambda _: self._read(aor, cursor, limit))

    def _read(self, aor: str, cursor: str, limit: int) -> Deferred[Page]:
        if self._history is None:
            raise HistoryError(f"the history can't be read: {self._trouble or 'this node is in no cluster yet'}")
        return self._run(self._history.page, aor, cursor, limit)

    def _turn(self) -> None:
        self._next = self._reactor.callLater(FLUSH, self._turn)
        if not self._lock.locked:
            self._lock.run(self._write)

    def _write(self) -> Deferred[Any]:
        """Open the history if it isn't, and write what waits; fires when that is done or has failed."""
        place = self._place()
        if self._reactor.seconds() < self._rests_until or not place.cluster:
            return succeed(None)
        if self._history is not None:
            return self._write_waiting()
        opened = self._run(_enter, self._open, place, self._suspect)
        return opened.addCallbacks(self._opened, self._failed).addCallback(lambda _: self._write_waiting())

    def _write_waiting(self) -> Deferred[Any]:
        self._own_up()
        now, place = self._reactor.seconds(), self._place()
        if self._history is None or (not self._waiting and now < self._marked + MARK):
            return succeed(None)
        told, self._waiting = self._waiting, []
        self._events = self._bytes = 0
        self._marked = now
        written = self._run(_write, self._history, place, told)
        return written.addCallbacks(self._counted, lambda failure: self._failed(failure, told))

    def _opened(self, history: History) -> None:
        self._history, self._suspect = history, False
        if self._past > history.reached:  # the table that this process began with was a later one, or all was damaged
            self.skipped(self._gap(history.reached, self._past, "no history was written"))

    def _counted(self, count: int) -> None:
        self.counters["history_written"] += count
        self._trouble = ""

    def _failed(self, failure: Failure, told: Sequence[Told | Gap] = ()) -> Deferred[Any]:
        """Keep what wasn't written, as far as there is room, until the history is opened anew."""
        self._log.error("the history of AORs can't be written: {reason}", reason=failure.value)
        self._trouble, self._suspect = str(failure.value), True
        self._rests_until = self._reactor.seconds() + RETRY
        if self._history is not None:
            self._past = self._history.reached
        self._waiting[:0] = told
        entries = [each for each in self._waiting if isinstance(each, Told)]
        self._events = sum([entry.events for entry in entries])
        self._bytes = sum([len(entry.data) for entry in entries])
        return self._close()

    def _own_up(self) -> None:
        """Put a gap into the history for what was dropped."""
        if self._lost is not None:
            (after, until), self._lost = self._lost, None
            self.skipped(self._gap(after, until, "more happened than could be written"))
            self._given = until

    def _close(self) -> Deferred[Any]:
        history, self._history = self._history, None
        return succeed(None) if history is None else self._run(history.close)


def _enter(open_: Callable[[bool], History], place: Place, suspect: bool) -> History:
    history = open_(suspect)
    history.enter(place.cluster, place.time)
    return history


def _write(history: History, place: Place, told: Sequence[Told | Gap]) -> int:
    history.enter(place.cluster, place.time)
    return history.write(told, place.reached, place.time)
