"""What a REGISTER comes to once its sender is known: its nonce count is used up, and its record goes to the log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zope.interface import Attribute, Interface, implementer

from sipha.auth.authenticator import Authenticator
from sipha.auth.claim import Claim
from sipha.errors import QueueFull, SipError, Unavailable
from sipha.histogram import Histogram
from sipha.registrar import response
from sipha.registrar.record import RegistrarSettings, full, is_repeat
from sipha.sip.flow import Address
from sipha.state.binding import Binding
from sipha.state.entries import Register
from sipha.state.interfaces import IBatchLog, ILocation
from sipha.state.outcomes import Outcome, Registered, Rejected

Key = tuple[str, Address]
"""What each copy of a REGISTER has, and no other: the To tag of its response, and where it came from."""

Verdict = str | SipError | None
"""What a REGISTER has come to: the Contact lines of its 200, why it is refused, or None if its nonce count was used
before."""

Answer = Callable[[list[tuple[Any, Verdict]]], None]
"""What answers REGISTERs whose verdicts come together: by what it knows each, and its verdict."""

_Pending = tuple[Key, str, float, Answer, Any]
"""A REGISTER that waits for the log: its key and AOR, when it came, who answers it, and by what that knows it."""


@dataclass(slots=True)
class Counters:
    """What the registrar has done since it was made."""

    requests: int = 0
    absorbed: int = 0
    challenged: int = 0
    repeated: int = 0
    queried: int = 0
    proposed: int = 0
    registered: int = 0
    refused: int = 0
    unavailable: int = 0


class IRegistry(Interface):
    """Where a registrar has REGISTERs carried out."""

    counters: Counters = Attribute("What was done.")

    def awaits(key: Key) -> bool:
        """Return True if a REGISTER with this key waits for its verdict."""

    def carry_out(  # noqa: PLR0917  who, what, and when
        key: Key,
        aor: str,
        record: Register | None,
        claim: Claim | None,
        now: float,
        received: float,
        answer: Answer,
        waiting: Any,
    ) -> None:
        """Carry out a REGISTER and tell `answer` once, perhaps before this returns; one without a record only asks.

        The claim is None if its count was used up. `now` is the cluster time in seconds, `received` when it came,
        `waiting` is what `answer` is to know it by.
        """


@implementer(IRegistry)
class Registry:
    """Carries out REGISTERs by the log and the table.

    Stateless as RFC 3261 §8.2.7 allows: what waits for the log is remembered until it is answered, and a repeat after
    that is answered from the bindings. Records are gathered until `propose`. `latencies` are the seconds, on `clock`,
    from when a REGISTER came to its 200 from the log.
    """

    def __init__(
        self,
        log: IBatchLog,
        location: ILocation,
        authenticator: Authenticator,
        settings: RegistrarSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.latencies = Histogram()
        self._log = log
        self._location = location
        self._authenticator = authenticator
        self._settings = settings or RegistrarSettings()
        self._clock = clock
        self._pending: set[Key] = set()
        self._gathered: list[tuple[Register, _Pending]] = []

    def adopt(self, settings: RegistrarSettings) -> None:
        """Decide by these from the next REGISTER on."""
        self._settings = settings

    @property
    def pending(self) -> int:
        """How many REGISTERs wait for the log."""
        return len(self._pending)

    def awaits(self, key: Key) -> bool:
        """See IRegistry."""
        return key in self._pending

    def carry_out(  # noqa: PLR0917  see IRegistry
        self,
        key: Key,
        aor: str,
        record: Register | None,
        claim: Claim | None,
        now: float,
        received: float,
        answer: Answer,
        waiting: Any,
    ) -> None:
        """See IRegistry."""
        fresh = claim is None or self._authenticator.use_up(claim, now)
        # A copy of what was answered already brings its nonce count again, or has none: that is matched before the
        # count is held against it (pitfalls-sip 7).
        if (
            record is not None
            and not (fresh and (claim is None or claim.count is not None))
            and is_repeat(record, self._location.bindings(aor))
        ):
            self.counters.repeated += 1
            answer([(waiting, self._bindings(aor))])
        elif not fresh:
            answer([(waiting, None)])
        elif record is None:
            self.counters.queried += 1
            answer([(waiting, self._bindings(aor))])
        elif len(self._pending) >= self._settings.max_pending:
            answer([(waiting, QueueFull("Too many REGISTERs wait for the log"))])
        else:
            self.counters.proposed += 1
            self._pending.add(key)
            self._gathered.append((record, (key, aor, received, answer, waiting)))

    def propose(self) -> None:
        """Hand over to the log what was gathered since the last time: at the end of each turn of who carries out."""
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._log.propose_all(gathered, self._applied)

    def _applied(self, outcomes: list[tuple[_Pending, Outcome | Unavailable]]) -> None:
        """Say what became of records."""
        now = self._clock()
        verdicts: defaultdict[Answer, list[tuple[Any, Verdict]]] = defaultdict(list)
        for (key, aor, received, answer, waiting), outcome in outcomes:
            self._pending.discard(key)
            if isinstance(outcome, Registered):
                self.counters.registered += 1
                self.latencies.observe(now - received)
                verdicts[answer].append((waiting, response.contacts(outcome.bindings, outcome.time)))
            else:
                verdicts[answer].append((waiting, self._refused(aor, outcome)))
        for answer, settled in verdicts.items():
            answer(settled)

    def _refused(self, aor: str, outcome: Outcome | Unavailable) -> Verdict:
        """What a REGISTER comes to that has changed nothing."""
        if isinstance(outcome, Unavailable):
            return outcome
        if not isinstance(outcome, Rejected):
            return SipError(f"The log made {outcome} of a REGISTER")
        if outcome.status == 500 and self._settings.out_of_order == 200:
            return self._bindings(aor)
        if outcome.status == 403:
            return full(self._settings)
        return SipError(outcome.reason, status=outcome.status, reason=outcome.reason)

    def _bindings(self, aor: str) -> str:
        """The Contact lines for the bindings as they are now."""
        bindings: Sequence[Binding] = self._location.bindings(aor)
        return response.contacts(bindings, int(self._log.cluster_time() * 1000))
