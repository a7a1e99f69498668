"""Records proposed to the log, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, gatherResults

from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.errors import Unavailable
from sipha.state.entries import Record
from sipha.state.outcomes import Done, Outcome

_AT_ONCE = 256
"""The proposals of one bulk request that are under way at a time."""


def outcome_of(node: INode, record: Record) -> Deferred[Outcome | Unavailable]:
    """Propose a record; the Deferred fires with what apply returned, or why it didn't come."""
    deferred: Deferred[Outcome | Unavailable] = Deferred()
    node.propose(record, deferred.callback)
    return deferred


async def outcomes_of(node: INode, records: Sequence[Record]) -> list[Outcome | Unavailable]:
    """Propose many records, some at a time, and return what became of each."""
    outcomes: list[Outcome | Unavailable] = []
    for start in range(0, len(records), _AT_ONCE):
        outcomes += await gatherResults([outcome_of(node, record) for record in records[start : start + _AT_ONCE]])
    return outcomes


async def propose(node: INode, record: Record) -> Outcome:
    """Propose a record and return what apply returned; raises Unavailable."""
    return available(await outcome_of(node, record))


async def turn_pings(node: INode, *, on: bool) -> None:
    """Have the cluster ping phones behind NAT, or not; raises Unavailable."""
    turned: Deferred[Outcome | Unavailable] = Deferred()
    node.turn_pings(turned.callback, on=on)
    count(available(await turned))


def available(outcome: Outcome | Unavailable) -> Outcome:
    """The outcome; raises Unavailable if there is none."""
    if isinstance(outcome, Unavailable):
        raise outcome
    return outcome


def count(outcome: Outcome) -> int:
    """How many a record has changed; raises Refusal if it is another kind of outcome."""
    if not isinstance(outcome, Done):
        raise Refusal(500, f"the log answered {outcome!r}")
    return outcome.count
