"""Who should lead, and who may: the operators' word, which stands in the log, before each node's wish and condition.

A node in standby, like a witness, leads only to bring another up to date and hand leadership on (pitfalls-log-vip 6).
An unwell one leads if no other can. The leader alone decides what operators ask for, so that two who each put a node in
standby don't leave none that could lead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sipha.cluster.checkpoint import Checkpoints
from sipha.cluster.handover import UNWELL, Handover
from sipha.cluster.kinship import Kinship
from sipha.cluster.membership import Membership
from sipha.cluster.voter import Voter
from sipha.errors import NotLeader, SiphaError, Unavailable
from sipha.state.entries import PutSetting, Record
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome
from sipha.state.settings import PREFERRED, standby

_MOST = 1 << 16
"""The wish of the preferred node, above every priority."""

Done = Callable[[Outcome | Unavailable], None]


class CandidacyRefused(SiphaError):
    """What an operator asks for can't be, or would leave the phones without a leader; nothing was changed."""


class Candidacy:
    """The wishes to lead of node `node` and the others.

    A wish is 0 for who must not lead, UNWELL for who is, more by priority for the rest. `propose(record, done)`
    appends a record of the leader's own; `done` may never be called.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        node: str,
        machine: Machine,
        voter: Voter,
        membership: Membership,
        kinship: Kinship,
        checkpoints: Checkpoints,
        handover: Handover,
        propose: Callable[[Record, Done], None],
    ) -> None:
        self._node = node
        self._machine = machine
        self._voter = voter
        self._membership = membership
        self._kinship = kinship
        self._checkpoints = checkpoints
        self._handover = handover
        self._propose = propose
        self._asked: tuple[int, set[str]] = (0, set())  # whom we have begun to put in standby in this term

    # Wishes

    def wish(self, name: str) -> int:
        """The wish to lead of a node, of this one or one that is connected."""
        if self._barred(name):
            return 0
        if self._kinship.trouble(name):
            return UNWELL
        if self._machine.settings.preferred == name:
            return _MOST
        return UNWELL + self._kinship.priority(name)

    @property
    def own_wish(self) -> int:
        """The wish to lead of this node."""
        return self.wish(self._node)

    def wishes(self) -> dict[str, int]:
        """Those of the other voters that are up to date, as the leader knows it."""
        return {name: self.wish(name) for name in self._connected_voters() if self._voter.is_ready(name)}

    @property
    def successor(self) -> str | None:
        """Who would lead if we handed leadership on now; an unwell node only if we should not lead ourselves."""
        least = UNWELL if self.own_wish > UNWELL else 0
        ready = [(wish, name) for name, wish in self.wishes().items() if wish > least]
        return max(ready)[1] if ready and self._voter.raft.leads else None

    @property
    def gives_precedence(self) -> bool:
        """True if there is a voter that should rather be elected than this node."""
        own = self.own_wish
        return own <= UNWELL and any(self.wish(name) > own for name in self._connected_voters())

    def may_claim(self, *, serves: bool) -> bool:
        """True if this node may have the address.

        One that is put in standby while it `serves` goes on until another takes over, unless all are in standby.
        """
        if not self._kinship.own_priority or self._checkpoints.diverged:
            return False
        return not self.in_standby(self._node) or (serves and self._has_heir())

    def unfit(self, name: str) -> str:
        """Why leadership mustn't be handed to a node, whatever else is so of it; empty if it may be."""
        member = self._membership.get(name)
        if member is not None and (member.role == "witness" or self._kinship.is_witness(name)):
            return "is a witness"
        if self.in_standby(name):
            return "is in standby"
        if self._checkpoints.is_odd(name):
            return "has another table than the majority"
        trouble = self._kinship.trouble(name)
        return f"is unwell: {trouble}" if trouble else ""

    def obstacle(self, name: str) -> str:
        """Why a member could not lead now, as the leader knows it; empty if it could."""
        member = self._membership.get(name)
        if member is None:
            return "is no member"
        if member.role == "learner":
            return "doesn't vote yet"
        unfit = self.unfit(name)
        if unfit or name == self._node:
            return unfit
        if name not in self._kinship.kin:
            return "isn't connected"
        return "" if self._voter.is_ready(name) else "isn't up to date"

    def reason(self, to: str) -> str:
        """Why this node gives leadership up in favour of another, by their wishes."""
        if self.in_standby(self._node):
            return "it is in standby"
        trouble = self._kinship.trouble(self._node)
        if trouble:
            return f"it is unwell: {trouble}"
        if self.own_wish:
            return f"{to} is preferred"
        return "its table is odd" if self._checkpoints.diverged else "it is a witness"

    def in_standby(self, name: str) -> bool:
        """True if an operator has put the node in standby."""
        return self._machine.settings.in_standby(name)

    @property
    def preferred(self) -> str:
        """The node that is to lead whenever it can; empty if it may be any."""
        return self._machine.settings.preferred

    def alarms(self) -> Iterator[str]:
        """What an operator must know about who could lead."""
        trouble = self._kinship.trouble(self._node)
        if trouble:
            yield f"this node is unwell, and leads only if no other can: {trouble}"
        voter = self._voter
        if voter.raft.leads and not (voter.lease.usable or self.own_wish or any(self.wishes().values())):
            names = [member.name for member in self._membership.members]
            yield f"no node may serve phones: {self._obstacles(names)}; siphactl online brings one back from standby"

    # What operators ask for, decided by the leader

    def put_in_standby(self, name: str, done: Done, *, force: bool = False) -> None:
        """Let a node not lead any more; raises CandidacyRefused if, without `force`, no other could."""
        self._check_decides()
        if self._membership.get(name) is None:
            raise CandidacyRefused(f"{name} is no member")
        if not (force or self._will_be_in_standby(name)):
            self._check_others(name)
        if self._asked[0] != self._voter.raft.term:
            self._asked = (self._voter.raft.term, set())
        asked = self._asked[1]
        asked.add(name)

        def settled(outcome: Outcome | Unavailable) -> None:
            if not isinstance(outcome, Unavailable):
                asked.discard(name)
            done(outcome)

        self._propose(standby(name, on=True), settled)

    def bring_online(self, name: str, done: Done) -> None:
        """Let a node lead again; raises CandidacyRefused."""
        self._check_decides()
        if self._membership.get(name) is None and not self.in_standby(name):
            raise CandidacyRefused(f"{name} is no member")
        self._propose(standby(name, on=False), done)

    def prefer(self, name: str, done: Done) -> None:
        """Let a node lead whenever it can, or (empty) none more than another; raises CandidacyRefused."""
        self._check_decides()
        member = self._membership.get(name)
        if name and member is None:
            raise CandidacyRefused(f"{name} is no member")
        if member is not None and (member.role == "witness" or self._kinship.is_witness(name)):
            raise CandidacyRefused(f"{name} is a witness, which never serves phones")
        self._propose(PutSetting(PREFERRED, name), done)

    def _check_decides(self) -> None:
        raft = self._voter.raft
        if not raft.leads or raft.term_at(raft.applied_index) != raft.term:
            raise NotLeader(f"{self._node} doesn't lead the cluster", retry_after=1)
        if self._handover.under_way:
            raise NotLeader("leadership is being handed on", retry_after=1)

    def _check_others(self, name: str) -> None:
        others = [member.name for member in self._membership.members if member.name != name]
        if all(map(self._coming_obstacle, others)):
            why = self._obstacles(others) or "it is the only node"
            raise CandidacyRefused(f"without {name} no node could lead: {why}; --force does it all the same")

    def _will_be_in_standby(self, name: str) -> bool:
        term, asked = self._asked
        return self.in_standby(name) or (term == self._voter.raft.term and name in asked)

    def _coming_obstacle(self, name: str) -> str:
        return "is in standby" if self._will_be_in_standby(name) else self.obstacle(name)

    def _obstacles(self, names: list[str]) -> str:
        return "; ".join(f"{name} {self._coming_obstacle(name)}" for name in names)

    # Who is who

    def _connected_voters(self) -> list[str]:
        return sorted(self._kinship.kin & self._voter.others)

    def _barred(self, name: str) -> bool:
        return not self._kinship.priority(name) or self.in_standby(name) or self._checkpoints.is_odd(name)

    def _has_heir(self) -> bool:
        """Return True if another voter may lead, be it up or not."""
        return any(
            member.role == "voter" and member.name != self._node and not self.in_standby(member.name)
            for member in self._membership.members
        )
