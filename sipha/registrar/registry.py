"""What a REGISTER comes to once its sender is known: its nonce count is used up, and its record goes to the log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from twisted.logger import Logger
from zope.interface import classImplements

from sipha.auth.authenticator import Authenticator
from sipha.auth.claim import Claim
from sipha.errors import QueueFull, SipError, Unavailable
from sipha.histogram import Histogram
from sipha.registrar import response
from sipha.registrar.interfaces import Answer, Counters, IRegistry, Key, Verdict
from sipha.registrar.record import RegistrarSettings, full, is_repeat
from sipha.state.binding import Binding
from sipha.state.entries import Register
from sipha.state.interfaces import IBatchLog, ILocation
from sipha.state.outcomes import Outcome, Registered, Rejected

_Pending = tuple[Key, str, float, Answer, Any]
"""A REGISTER that waits for the log: its key and AOR, when it came, who answers it, and by what that knows it."""


class Registry:
    """Carries out REGISTERs by the log and the table.

    Stateless as RFC 3261 §8.2.7 allows: what waits for the log is remembered until it is answered, and a repeat after
    that is answered from the bindings. Records are gathered until `propose`. `latencies` are the seconds, on `clock`,
    from when a REGISTER came to its 200 from the log.
    """

    log: ClassVar = Logger()

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
            verdict: Verdict
            try:
                if isinstance(outcome, Registered):
                    verdict = response.contacts(outcome.bindings, outcome.time)
                    self.counters.registered += 1
                    self.latencies.observe(now - received)
                else:
                    verdict = self._refused(aor, outcome)
            except Exception:  # noqa: BLE001 - what can't be told of one must not keep the others waiting
                self.log.failure("a mistake of ours in what became of a REGISTER")
                verdict = SipError("a mistake of ours")
            verdicts[answer].append((waiting, verdict))
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


classImplements(Registry, IRegistry)  # a class under a decorator isn't compiled
