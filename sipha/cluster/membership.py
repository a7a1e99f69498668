"""Who the members of the cluster are: the latest membership entry in the log says, committed or not (Raft §6).

One change at a time, and each adds or removes one voter, so that any majority before and after have a node in common.
A new node is a learner first, and becomes a voter when it has all that is committed (pitfalls-log-vip 14).
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Literal

from sipha.cluster.authority import check_name
from sipha.cluster.guards import members_of
from sipha.cluster.journal import Journal
from sipha.cluster.voter import Voter
from sipha.errors import ConfigError, SiphaError
from sipha.sip.flow import Address
from sipha.state.entries import Member, PutMembers, Record
from sipha.state.machine import Machine

SCHEMA_OF_MEMBERS = 2
"""The first schema whose table has the members in it."""

Propose = Callable[[Record, Callable[[Any], None]], None]


class MembershipRefused(SiphaError):
    """The change would endanger the cluster, or another one is under way; nothing was changed."""


def address_of(member: Member) -> Address:
    """The address at which the others reach a member; raises ValueError."""
    host, _, port = member.address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_address(address: str) -> None:
    try:
        host, port = address_of(Member("new", address, "learner"))
        literal = ip_address(host)
        fits = 0 < port < 1 << 16 and not (literal.is_unspecified or literal.is_multicast)
    except ValueError:
        fits = False
    if not fits:
        raise MembershipRefused(f"{address!r} is not an IP address and a port, such as 192.0.2.14:7000 or [::1]:7000")


class Membership:
    """The members as node `node` knows them; `changed` is told each time when there are others.

    `propose(record, done)` appends a membership entry.
    """

    def __init__(  # noqa: PLR0917  one caller
        self, node: str, journal: Journal, machine: Machine, voter: Voter, propose: Propose, changed: Callable[[], None]
    ) -> None:
        self.members: tuple[Member, ...] = ()
        self._node = node
        self._journal = journal
        self._machine = machine
        self._voter = voter
        self._propose = propose
        self._changed = changed
        self._base: tuple[int, tuple[Member, ...]] = (0, ())  # index and members of the newest snapshot
        journal.on_membership = self.recompute

    @property
    def voters(self) -> tuple[str, ...]:
        """The names of those that vote."""
        return tuple(member.name for member in self.members if member.role != "learner")

    @property
    def learners(self) -> tuple[str, ...]:
        """The names of those that only store the log."""
        return tuple(member.name for member in self.members if member.role == "learner")

    def get(self, name: str) -> Member | None:
        """The member of a name."""
        return next((member for member in self.members if member.name == name), None)

    def rebase(self, index: int, members: tuple[Member, ...]) -> None:
        """Take these for the members at `index`, as a snapshot says: the log needn't have what came before."""
        self._base = (index, members)
        self.recompute()

    def recompute(self) -> None:
        """Look which entry is the latest, after the log has changed."""
        index, members = self._base
        latest = self._journal.membership
        if latest is not None and latest[0] > index:
            members = members_of(latest[1])
        if members != self.members:
            self.members = members
            self._voter.set_members(self.voters, self.learners)
            self._changed()

    # Changes, by the leader

    def add(self, name: str, address: str, done: Callable[[Any], None]) -> None:
        """Make a node a learner, which will be a voter when it has the log; raises MembershipRefused."""
        self._check_idle()
        if self.get(name) is not None:
            raise MembershipRefused(f"{name} is a member already")
        try:
            check_name("node", name)
        except ConfigError as error:
            raise MembershipRefused(str(error)) from error
        _check_address(address)
        taken = next((member.name for member in self.members if member.address == address), None)
        if taken is not None:
            raise MembershipRefused(f"{address} is the address of {taken}")
        self._put((*self.members, Member(name, address, "learner")), done)

    def remove(self, name: str, done: Callable[[Any], None]) -> None:
        """Make a node no member any more; raises MembershipRefused if the others could not go on without it."""
        self._check_idle()
        member = self.get(name)
        if member is None:
            raise MembershipRefused(f"{name} is no member")
        if name == self._node:
            raise MembershipRefused(f"{name} leads the cluster; hand leadership on first: siphactl transfer")
        rest = tuple(other for other in self.members if other != member)
        if member.role != "learner":
            voters = [other.name for other in rest if other.role != "learner"]
            ready = [other for other in voters if other == self._node or self._voter.is_ready(other)]
            if len(ready) < len(voters) // 2 + 1:
                raise MembershipRefused(
                    f"without {name} only {len(ready)} of the {len(voters)} voters would be there to decide; bring "
                    "the others up first"
                )
        self._put(rest, done)

    def promote(self, role: Callable[[str], Literal["voter", "witness"] | None]) -> None:
        """Make a learner that has caught up a voter, in the role that it asks for; None while it can't be asked."""
        if not self.learners or self._under_way():
            return
        for member in self.members:
            wanted = role(member.name) if member.role == "learner" and self._voter.is_ready(member.name) else None
            if wanted is not None:
                promoted = Member(member.name, member.address, wanted)
                self._put(tuple(promoted if other == member else other for other in self.members), lambda _: None)
                return

    def record(self) -> None:
        """Put the members into the table, if a schema that had no place for them has been left behind."""
        missing = self._machine.schema >= SCHEMA_OF_MEMBERS and self._machine.members != self.members
        if missing and not self._under_way():
            self._put(self.members, lambda _: None)

    def _put(self, members: tuple[Member, ...], done: Callable[[Any], None]) -> None:
        self._propose(PutMembers(tuple(sorted(members))), done)

    def _check_idle(self) -> None:
        if not self._voter.raft.leads:
            raise MembershipRefused(f"{self._node} doesn't lead the cluster")
        if self._machine.schema < SCHEMA_OF_MEMBERS:
            raise MembershipRefused("a node of an earlier release is in the cluster; upgrade it first")
        if self._under_way():
            raise MembershipRefused("another change of the members is not finished yet; try again in a moment")

    def _under_way(self) -> bool:
        """Return True while the last change isn't committed, or (Raft §6) nothing of our own term is."""
        latest = self._journal.membership
        raft = self._voter.raft
        if raft.term_at(raft.applied_index) != raft.term:
            return True
        return latest is not None and latest[0] > raft.applied_index
