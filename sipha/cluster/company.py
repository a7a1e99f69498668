"""Ends the wait of records for company in time, whatever else happens or doesn't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sipha.cluster.proposals import Proposals

_SHORTEST = 0.0001
"""Seconds; the two clocks differ by less, and a shorter wait might be none."""


class Company:
    """Kicks the log once the first record that waits has done so for long enough.

    What else drives the log mostly does before: another entry's acknowledgement, or its sync. So one timer stands for
    all records of its time, and is put again only for those that came meanwhile.
    """

    def __init__(self, reactor: Any, proposals: Proposals, kick: Callable[[], None]) -> None:
        self._reactor = reactor
        self._proposals = proposals
        self._kick = kick
        self._call: Any = None

    def expect(self) -> None:
        """A record may wait: look again when it has waited for long enough."""
        if self._call is None:
            patience = self._proposals.patience
            if patience > 0:
                self._call = self._reactor.callLater(max(patience, _SHORTEST), self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = None
        if self._proposals.ready:
            self._kick()
        else:
            self.expect()
