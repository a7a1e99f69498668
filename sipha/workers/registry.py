"""The daemon's registry, as a worker sees it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from zope.interface import implementer

from sipha.auth.authenticator import Authenticator
from sipha.auth.claim import Claim
from sipha.registrar.interfaces import Answer, Counters, IRegistry, Key, Verdict
from sipha.state.entries import Register

Handed = tuple[str, str, int, Register, Claim | None]
"""A REGISTER as it is handed over: the tag of its response, host and port, its record, and what has yet to be used
up."""


@implementer(IRegistry)
class DistantRegistry:
    """Gathers what is to be carried out until somebody takes it and hands it over.

    What `authenticator` can't use up is left to the daemon: it knows a copy of what was answered, and other windows.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self.counters = Counters()
        self._waiting: dict[str, tuple[Answer, Any]] = {}
        self._handed: list[Handed] = []

    def awaits(self, key: Key) -> bool:
        """See IRegistry."""
        return key[0] in self._waiting

    def carry_out(  # noqa: PLR0917  see IRegistry
        self,
        key: Key,
        aor: str,  # noqa: ARG002  the record's
        record: Register | None,
        claim: Claim | None,
        now: float,
        received: float,  # noqa: ARG002  the same for all that are taken together
        answer: Answer,
        waiting: Any,
    ) -> None:
        """See IRegistry; a REGISTER that is read at a glance has a record."""
        if record is not None:
            tag, (host, port) = key
            self._waiting[tag] = answer, waiting
            if claim is not None and claim.count is not None and self._authenticator.use_up(claim, now):
                claim = None
            self._handed.append((tag, host, port, record, claim))

    def take(self) -> list[Handed]:
        """What has been gathered since the last time."""
        handed, self._handed = self._handed, []
        return handed

    def settle(self, verdicts: Iterable[tuple[str, Verdict]]) -> None:
        """Tell what became of REGISTERs that were handed over."""
        settled: defaultdict[Answer, list[tuple[Any, Verdict]]] = defaultdict(list)
        for tag, verdict in verdicts:
            if tag in self._waiting:
                answer, waiting = self._waiting.pop(tag)
                settled[answer].append((waiting, verdict))
        for answer, those in settled.items():
            answer(those)
