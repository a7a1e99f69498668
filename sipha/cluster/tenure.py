"""One node's terms as leader: what it must do before it may act, and what it sees to while it leads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from sipha.cluster.candidacy import Candidacy
from sipha.cluster.handover import Handover, HandoverFailed
from sipha.cluster.kinship import Kinship
from sipha.cluster.membership import Membership
from sipha.cluster.proposals import Proposals
from sipha.cluster.voter import Voter
from sipha.cluster.wire import MAX_REASON, Condition
from sipha.errors import Unavailable
from sipha.state.entries import SCHEMA, Barrier, PutKey, RaiseSchema
from sipha.state.machine import Machine
from sipha.state.outcomes import Done, Outcome

_KEY_SIZE = 32


class Tenure:
    """The terms that this node leads; `term` is the present one, 0 if it leads none.

    `kick` has the log driven at the end of this turn.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        machine: Machine,
        voter: Voter,
        proposals: Proposals,
        membership: Membership,
        candidacy: Candidacy,
        kinship: Kinship,
        handover: Handover,
        kick: Callable[[], None],
    ) -> None:
        self.term = 0
        self._whole_term = 0  # the term whose barrier is applied
        self._served_term = 0  # the last term in which this node had the address
        self._raising = False  # the schema
        self._adding = False  # an entry for who has lost what it held
        self._machine = machine
        self._voter = voter
        self._raft = voter.raft
        self._proposals = proposals
        self._membership = membership
        self._candidacy = candidacy
        self._kinship = kinship
        self._handover = handover
        self._kick = kick
        self._log = Logger(namespace="sipha.cluster")

    def begin(self) -> None:
        """Put a barrier behind all that earlier leaders have left; when it is applied, so is that."""
        self.term = self._raft.term
        self._voter.succession.elected(self.term)
        self._add_barrier(self._barrier_applied)

    def end(self) -> None:
        """We lead no more."""
        self.term = self._whole_term = 0

    @property
    def usable(self) -> bool:
        """True if the lease, as long as it lasts, lets this node act: its state is whole, and it may have the address.

        A witness, a node in standby and one whose table is odd lead only until they have handed leadership on.
        """
        serves = self._served_term == self.term
        return self._voter.lease.held and self._whole and self._candidacy.may_claim(serves=serves)

    @property
    def _whole(self) -> bool:
        return self._raft.leads and self._whole_term == self._raft.term

    def _add_barrier(self, done: Callable[[Outcome | Unavailable], None]) -> None:
        self._proposals.add_internal(Barrier(self.term, self._voter.name), done)
        self._kick()

    def _barrier_applied(self, outcome: Outcome | Unavailable) -> None:
        """The state is whole; the first leader of all adds the first key."""
        if isinstance(outcome, Unavailable):
            return
        if not isinstance(outcome, Done):
            self._log.error("{node} can't begin its term: {outcome}", node=self._voter.name, outcome=outcome)
            return
        if self._machine.keys.current is None:
            self._proposals.add_internal(PutKey(os.urandom(_KEY_SIZE)), self._barrier_applied)
        else:
            self._whole_term = self.term
        self._kick()

    # While we lead

    def step(self, now: float) -> None:
        """See to members, schema, and who should lead."""
        if not self._whole or self._handover.under_way:
            return
        if self._voter.lease.usable:
            self._served_term = self.term
        self._membership.promote(self._wanted_role)
        self._raise_schema()
        self._membership.record()
        if not self._adding and any(barrier > self._raft.last_index for barrier in self._voter.forgetful.values()):
            self._adding = True
            self._add_barrier(self._added)
        better = self._handover.preferred(self._candidacy.wishes(), self._candidacy.own_wish, now)
        if better is not None:
            self._hand_on(better, now, self._candidacy.reason(better)).addErrback(lambda _: None)  # logged there

    def transfer(self, to: str | None, now: float, reason: str) -> Deferred[str]:
        """Hand leadership to the voter `to`, or to the one that wishes most to lead; `reason` is for the logs."""
        if not self._raft.leads:
            return fail(HandoverFailed(f"{self._voter.name} doesn't lead"))
        if to is None:
            to = self._candidacy.successor
            if to is None:
                return fail(HandoverFailed("no other voter is connected, up to date and well"))
        elif unfit := self._candidacy.unfit(to):
            return fail(HandoverFailed(f"{to} {unfit}"))
        return self._hand_on(to, now, reason)

    def _hand_on(self, to: str, now: float, reason: str) -> Deferred[str]:
        handed = self._handover.begin(to, now)
        if handed.called:
            return handed  # it can't be
        self._kinship.declare(Condition(self._kinship.condition.trouble, reason[:MAX_REASON]))
        self._kick()
        return handed.addBoth(self._handed_on)

    def _handed_on(self, result: Any) -> Any:
        self._kinship.declare(Condition(self._kinship.condition.trouble))
        return result

    def _wanted_role(self, peer: str) -> Literal["voter", "witness"] | None:
        if peer not in self._kinship.kin:
            return None
        return "voter" if self._kinship.hello(peer).priority else "witness"

    def _raise_schema(self) -> None:
        """Let all use what this release knows, once every member has said that it knows it (pitfalls-log-vip 17)."""
        others = [member.name for member in self._membership.members if member.name != self._voter.name]
        known = min([SCHEMA, *(self._kinship.hello(name).schema for name in others)])
        if known > self._machine.schema and not self._raising:
            self._raising = True
            self._proposals.add_internal(RaiseSchema(known), self._raised)
            self._kick()

    def _added(self, _: Any) -> None:
        self._adding = False

    def _raised(self, _: Any) -> None:
        self._raising = False
