"""Group commit: what is proposed within one turn of the reactor becomes one entry of the log."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Any

from twisted.logger import Logger

from sipha.cluster.guards import MAX_COMMAND
from sipha.errors import NotLeader, QueueFull, Unavailable, UnknownOutcome
from sipha.histogram import Histogram
from sipha.state.entries import Record
from sipha.state.outcomes import Invalid, Outcome, Outdated

DEADLINE = 2.0
"""Seconds after which a proposer hears that the outcome is unknown."""

LONGEST_WAIT = 0.5
"""Seconds for which a record may have waited for an entry while others may still come to wait."""

MAX_PROPOSALS = 20_000
"""Records that may wait for their outcome."""

MAX_BATCH = 48 * 1024
"""Bytes of a batch of several records."""

MAX_RECORDS = 160
"""Records of a batch."""

MAX_RECORD = MAX_COMMAND - 1024
"""Bytes of an entry with a single record."""

MAX_UNDER_WAY = 8
"""Entries that may wait for their majority."""

SEVERAL = 4
"""Records that make an entry while another is under way; while more are, only as many as fit do.

What comes meanwhile makes the next one larger, since an entry costs each node what 30 records do.
"""

COMPANY = 0.002
"""Seconds for which a record waits for others, once an entry is under way."""

Done = Callable[[Outcome | Unavailable], None]
"""What a proposer is told by, once."""

Tell = Callable[[list[tuple[Any, Outcome | Unavailable]]], None]
"""What a proposer of many records is told by of those whose outcomes come together: by what it knows each, and that."""

Proposal = tuple[Record, Any, Tell, float]
"""A record, by what its proposer knows it, who that is, and until when it waits."""

_FAILED = "told of an outcome, a proposer failed"
_log = Logger(namespace="sipha.cluster")


class _Group:
    """What is proposed in one entry, nothing once its proposers are told."""

    __slots__ = ("deadline", "proposals")

    def __init__(self, proposals: list[Proposal]) -> None:
        self.proposals = proposals
        self.deadline = proposals[0][3]

    def take(self) -> list[Proposal]:
        """The proposals, each of whose proposers must be told now."""
        proposals, self.proposals = self.proposals, []
        return proposals


class Proposals:
    """The records that wait, first for an entry, then for its outcome; `count` of them.

    `latencies` are the seconds that the first proposer of each entry waited until it was applied.

    `encode` makes an entry of records; `append` appends it to the log and calls back with the outcomes, with None
    if another entry took its place, or never. `shorten` says which record has the effect of another on what is applied
    now; if an entry that is under way changes that, it is found Outdated, and what it was made of is proposed in full.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        encode: Callable[[tuple[Record, ...]], bytes],
        append: Callable[[bytes, Callable[[Sequence[Outcome] | None], None]], None],
        shorten: Callable[[list[Record]], list[Record]] = lambda records: records,
    ) -> None:
        self.count = 0
        self.latencies = Histogram()
        self._clock = clock
        self._encode = encode
        self._append = append
        self._shorten = shorten
        self._outdated: list[Proposal] = []  # were shortened in vain
        self._waiting: deque[Proposal] = deque()
        self._under_way: deque[_Group] = deque()
        self._held = False
        self._fit = MAX_RECORDS  # records that make a batch, by the last one's size

    def add(self, records: Sequence[tuple[Record, Any]], tell: Tell) -> None:
        """Let records wait for the next entry, each with what `tell` knows it by; refused at once if too many do."""
        deadline = self._clock() + DEADLINE
        if self._waiting and deadline - self._waiting[0][3] > LONGEST_WAIT and not self._held:
            room, refusal = 0, QueueFull(f"others have waited for the log for {LONGEST_WAIT:g} s already")
        else:
            room = max(MAX_PROPOSALS - self.count, 0)
            refusal = QueueFull(f"{MAX_PROPOSALS} records wait for the log already")
        self._waiting += [(record, waiting, tell, deadline) for record, waiting in records[:room]]
        self.count += min(len(records), room)
        if len(records) > room:
            tell([(waiting, refusal) for _, waiting in records[room:]])

    def add_internal(self, record: Record, done: Done) -> None:
        """As `add`, without a deadline and whatever else waits."""
        self.count += 1
        self._waiting.append((record, done, tell_each, math.inf))

    @property
    def under_way(self) -> bool:
        """True while an entry waits for its majority."""
        return any(group.proposals for group in self._under_way)

    @property
    def ready(self) -> bool:
        """True if there is what `flush` would make an entry of."""
        under_way = len(self._under_way)
        if self._held or under_way >= MAX_UNDER_WAY:
            return False
        if self._outdated or not self._waiting:
            return bool(self._outdated)
        if not under_way or len(self._waiting) >= (min(SEVERAL, self._fit) if under_way == 1 else self._fit):
            return True
        return self.patience <= 0

    @property
    def patience(self) -> float:
        """Seconds for which the first record that waits may still wait for company; 0 or less if it is to go."""
        if not self._waiting or math.isinf(deadline := self._waiting[0][3]):
            return 0.0
        return deadline - self._clock() - (DEADLINE - COMPANY)

    @property
    def few(self) -> bool:
        """True if less than several wait: a turn of the reactor costs more than what it adds to them saves."""
        return len(self._waiting) < SEVERAL

    def hold(self) -> None:
        """Make no more entries until `resume`: what comes meanwhile waits."""
        self._held = True

    def resume(self) -> None:
        """Make entries again."""
        self._held = False

    def flush(self) -> None:
        """Make entries of what waits."""
        while self.ready:
            if self._outdated:
                proposals, self._outdated = self._outdated[: self._fit], self._outdated[self._fit :]
                self._submit(proposals, [proposal[0] for proposal in proposals])
            else:
                proposals = self._next()
                self._submit(proposals, self._shortened([proposal[0] for proposal in proposals]))

    def _shortened(self, records: list[Record]) -> list[Record]:
        """The records as they go into an entry: in full if what is applied now can't be read, which apply finds out."""
        try:
            return self._shorten(records)
        except Exception:  # noqa: BLE001  whatever it is, their proposers are still to be told
            _log.failure("records can't be shortened")
            return records

    def expire(self) -> None:
        """Tell those who have waited long enough; the library may never do."""
        now, groups = self._clock(), self._under_way
        for group in groups:
            if group.deadline <= now:
                self._refuse(group.take(), UnknownOutcome(f"no majority had the record within {DEADLINE:g} s"))
        while groups and not groups[0].proposals:
            groups.popleft()
        if any(proposal[3] <= now for proposal in islice(self._waiting, 2)):  # the first may be one without
            late = [proposal for proposal in self._waiting if proposal[3] <= now]
            self._waiting = deque(proposal for proposal in self._waiting if proposal[3] > now)
            self._refuse(late, QueueFull(f"the record waited for {DEADLINE:g} s"))

    def refuse_waiting(self, refusal: Unavailable) -> None:
        """Tell those whose record is in no entry yet that it won't be in one."""
        self._refuse(self._take_waiting(), refusal)

    def withdraw(self) -> None:
        """We lead no more: what is under way may be applied or not, what waits won't."""
        self.withdraw_under_way()
        self.refuse_waiting(NotLeader("another node has taken over"))

    def withdraw_under_way(self) -> None:
        """We lead no more: what is under way may be applied or not."""
        self._refuse_under_way(
            UnknownOutcome("another node has taken over before a majority was known to have the record")
        )

    def take_waiting(self) -> list[tuple[Record, Any, Tell]]:
        """Those that wait and are in no entry, for another to tell them; what we wanted ourselves is forgotten."""
        waiting = self._take_waiting()
        self.count -= len(waiting)
        return [(record, who, tell) for record, who, tell, deadline in waiting if math.isfinite(deadline)]

    def refuse_all(self, unknown: UnknownOutcome, refusal: Unavailable) -> None:
        """Tell `unknown` to those whose record is in an entry, which may yet be applied, `refusal` to the others."""
        self._refuse_under_way(unknown)
        self.refuse_waiting(refusal)

    def _take_waiting(self) -> list[Proposal]:
        waiting, self._outdated, self._waiting = [*self._outdated, *self._waiting], [], deque()
        return waiting

    def _refuse_under_way(self, unknown: UnknownOutcome) -> None:
        groups, self._under_way = self._under_way, deque()
        for group in groups:
            self._refuse(group.take(), unknown)

    def _next(self) -> list[Proposal]:
        """The records of the next entry; one without a deadline has an entry of its own."""
        waiting = self._waiting
        proposals = [waiting.popleft()]
        if proposals[0][3] != math.inf:
            for _ in range(min(self._fit - 1, len(waiting))):
                if waiting[0][3] == math.inf:
                    break
                proposals.append(waiting.popleft())
        return proposals

    def _submit(self, proposals: list[Proposal], records: list[Record]) -> None:
        """Append one entry; if it would be too long, or has a record that can't be encoded, one for each half."""
        try:
            entry = self._encode(tuple(records))
        except (ValueError, TypeError, OverflowError) as error:  # a lone surrogate, an integer of more than 64 bits
            refusal: Outcome | Unavailable | None = Invalid(f"the record can't be encoded: {error}")
        else:
            too_long = len(entry) > (MAX_BATCH if len(proposals) > 1 else MAX_RECORD)
            refusal = Unavailable(f"the record is longer than {MAX_RECORD} bytes") if too_long else None
        if refusal is None:
            self._fit = min(MAX_RECORDS, max(1, MAX_BATCH * len(proposals) // len(entry)))
            group = _Group(proposals)
            self._under_way.append(group)
            self._append(entry, lambda outcomes: self._settle(group, outcomes))
        elif len(proposals) > 1:
            half = len(proposals) // 2
            self._submit(proposals[:half], records[:half])
            self._submit(proposals[half:], records[half:])
        else:
            self._tell(proposals, [refusal])

    def _settle(self, group: _Group, outcomes: Sequence[Outcome] | None) -> None:
        """Tell the proposers what became of their entry: applied, or (None) another's is in its place."""
        proposals = group.take()
        if outcomes is None:
            self._refuse(proposals, NotLeader("another node has taken over"))
        elif len(outcomes) != len(proposals):
            self._refuse(proposals, UnknownOutcome("the entry was not understood"))
        else:
            if math.isfinite(group.deadline):
                self.latencies.observe(self._clock() + DEADLINE - group.deadline)
            self._tell(proposals, outcomes)

    def _refuse(self, proposals: Sequence[Proposal], refusal: Unavailable) -> None:
        self._tell(proposals, repeat(refusal))

    def _tell(self, proposals: Sequence[Proposal], outcomes: Iterable[Outcome | Unavailable]) -> None:
        """Tell each proposer of all its records at once, but for those that are to be proposed in full.

        One proposer's failure is not the others', and least of all the log's, which would apply the entry twice.
        """
        told: defaultdict[Tell, list[tuple[Any, Outcome | Unavailable]]] = defaultdict(list)
        self.count -= len(proposals)
        for proposal, outcome in zip(proposals, outcomes, strict=False):
            if isinstance(outcome, Outdated):
                self.count += 1
                self._outdated.append(proposal)
            else:
                told[proposal[2]].append((proposal[1], outcome))
        for tell, those in told.items():
            try:
                tell(those)
            except Exception:  # noqa: BLE001  whatever it is, it is logged
                _log.failure(_FAILED)


def tell_each(outcomes: list[tuple[Done, Outcome | Unavailable]]) -> None:
    """Tell proposers of a single record each; one's failure is not the others'."""
    for done, outcome in outcomes:
        try:
            done(outcome)
        except Exception:  # noqa: BLE001  whatever it is, it is logged
            _log.failure(_FAILED)
