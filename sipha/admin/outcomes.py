"""Records proposed to the log, and what became of them."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.errors import Unavailable
from sipha.state.entries import Record
from sipha.state.outcomes import Done, Outcome


def outcome_of(node: INode, record: Record) -> Deferred[Outcome | Unavailable]:
    """Propose a record; the Deferred fires with what apply returned, or why it didn't come."""
    deferred: Deferred[Outcome | Unavailable] = Deferred()
    node.propose(record, deferred.callback)
    return deferred


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
