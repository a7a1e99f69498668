"""Proposes the removal of bindings that ran out; runs on the leader only, because expiry is an entry of the log."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service

from sipha.cluster.replica import Replica
from sipha.errors import Unavailable
from sipha.state.entries import Expire
from sipha.state.outcomes import Outcome

PERIOD = 0.5
"""Seconds between two looks, and before the first one: what the sockets hold of refreshes is read by then."""

SOON = 0.02
"""Seconds until the next look if there is more to look at than one takes."""

GAP = 0.1
"""Seconds by which a look may be late; after more this process was held up, and refreshes wait in its sockets."""

LIMIT = 500
"""Bindings in one entry; with more to remove, the next entry follows at once."""


class Expirer(Service):
    """A child of LeaderServices. Until its entry is applied lookups hide an expired binding; this frees its memory."""

    def __init__(self, reactor: Any, replica: Replica) -> None:
        self._reactor = reactor
        self._replica = replica
        self._next: Any = None

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._wait(PERIOD)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _wait(self, seconds: float) -> None:
        self._next = self._reactor.callLater(seconds, self._look, self._reactor.seconds() + seconds)

    def _look(self, due: float) -> None:
        self._next = None
        if self._reactor.seconds() > due + GAP:
            self._wait(PERIOD)
            return
        replica = self._replica
        bindings, more = replica.machine.location.expired(int(replica.cluster_time() * 1000), LIMIT)
        if bindings:
            again = 0.0 if more else PERIOD
            replica.propose(Expire(bindings), lambda outcome: self._proposed(outcome, again))
        else:
            self._wait(SOON if more else PERIOD)

    def _proposed(self, outcome: Outcome | Unavailable, again: float) -> None:
        if self.running and self._next is None:
            self._wait(PERIOD if isinstance(outcome, Unavailable) else again)
