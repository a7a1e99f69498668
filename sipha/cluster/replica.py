"""This node's copy of the state, kept equal with the others' by the log.

A record that is proposed waits for the next turn of the reactor, goes into one entry with all that came since, and its
proposer hears what `apply` made of it once a majority has the entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import classImplements

from sipha.cluster.candidacy import Candidacy
from sipha.cluster.catchup import LOG_LIMIT, Catchup
from sipha.cluster.checkpoint import Checkpoints
from sipha.cluster.company import Company
from sipha.cluster.disk import Disk
from sipha.cluster.driver import Driver
from sipha.cluster.forwarding import Forwarding
from sipha.cluster.guards import MEMBERSHIP
from sipha.cluster.handover import Handover
from sipha.cluster.inbox import Inbox
from sipha.cluster.kinship import Kinship
from sipha.cluster.leadership import Leadership
from sipha.cluster.membership import Membership, address_of
from sipha.cluster.memory import Memory
from sipha.cluster.peers import INetwork
from sipha.cluster.proposals import Done, Proposals, Tell, tell_each
from sipha.cluster.raft import Timing
from sipha.cluster.raft import clock as boottime
from sipha.cluster.scrub import Scrub
from sipha.cluster.sharing import Sharing
from sipha.cluster.snapshots import SnapshotFile
from sipha.cluster.status import ReplicaStatus
from sipha.cluster.succession import Succession
from sipha.cluster.tenure import Tenure
from sipha.cluster.voter import Voter
from sipha.cluster.watch import LeaseWatch
from sipha.cluster.wire import MAX_REASON, Condition, Entry, LastWord, datagram
from sipha.errors import ConfigError, NoQuorum, NotLeader, Unavailable, UnknownOutcome
from sipha.histogram import Histogram
from sipha.sip.flow import Address
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import (
    REFRESH_SCHEMA,
    Batch,
    Policy,
    RaiseSchema,
    Record,
    Register,
    UnknownSchema,
    encode,
)
from sipha.state.interfaces import IBatchLog, ICredentials, ILocation
from sipha.state.outcomes import Outcome
from sipha.state.snapshot import Frozen
from sipha.state.table import FrozenTable

_BACKLOG = 16 << 20
"""Bytes of log that wait for the leader's own disk at most, about; beyond, records wait for an entry."""


class Replica:
    """The node `node` of the cluster `cluster`, with its log on `disk`.

    `seeds` are the nodes that one without a log looks for; `policy` goes into the header of each batch that this node
    proposes; `priority` is its wish to lead, 0 for a witness. Without `sync` the disk is not awaited. `boot_id` names
    the present run of the machine, of whose clock `clock` is. `failed` is told in a sentence why the node has ceased to
    take part. `inbox` takes what the network tells. Raises ConfigError if the disk can't be used.
    """

    def __init__(  # noqa: PLR0917  who, where, with whom, from which data
        self,
        reactor: Any,
        node: str,
        disk: Disk,
        network: INetwork,
        seeds: Mapping[str, Address],
        policy: Policy,
        *,
        cluster: str = "sipha",
        sync: bool = True,
        priority: int = 100,
        log_limit: int = LOG_LIMIT,
        timing: Timing = Timing(),  # noqa: B008  frozen
        clock: Callable[[], float] = boottime,
        boot_id: str = "",
        failed: Callable[[str], None] | None = None,
    ) -> None:
        self.node = node
        self.policy = policy
        self._clock = clock
        self._sync = sync
        self._failed = failed
        self._network = network
        self._log = Logger(namespace="sipha.cluster")
        self._driver = Driver(reactor, clock, self._advance, self._look_around, self._left)
        self.leadership = Leadership(self._driver.kick)
        self._memory = memory = Memory(reactor, node, disk, clock, boot_id, sync=sync)
        self.machine = memory.machine
        self._storage, self._journal = memory.storage, memory.journal
        self._snapshots, self._time = memory.snapshots, memory.time
        self._journal.on_failed = self._driver.give_up
        self._journal.on_durable = self._durable_risen
        self._voter = Voter(
            node,
            disk,
            self._journal,
            self.machine.index,
            timing,
            clock,
            self._time,
            network.send,
            self._apply,
            lambda peer: self._catchup.lagging(peer),  # noqa: PLW0108  it is made below
        )
        self._lease, self._raft = self._voter.lease, self._voter.raft
        self._proposals = Proposals(clock, self._encode, self._raft.append, self._shorten)
        self._company = Company(reactor, self._proposals, self._driver.kick)
        self._forwarding = Forwarding(
            clock, network.send, lambda record, done: self._propose_here([(record, done)], tell_each)
        )
        self.membership = Membership(
            node, self._journal, self.machine, self._voter, self._propose_members, self._members_changed
        )
        self._kinship = Kinship(node, cluster, priority, seeds, self._storage, network, self.membership, self.machine)
        self.sharing = Sharing(network, self._kinship, self.membership)
        self._checkpoints = Checkpoints(node, lambda: [member.name for member in self.membership.members])
        self._catchup = Catchup(
            clock,
            self.machine,
            self._voter,
            self._journal,
            self._snapshots,
            self.membership,
            self._checkpoints,
            network.send,
            self._installed,
            self._driver.give_up,
            log_limit,
        )
        self._handover = Handover(
            self._voter, self._proposals, network.send, self.leadership, self._watch_role, timing.election_max
        )
        self.candidacy = Candidacy(
            node,
            self.machine,
            self._voter,
            self.membership,
            self._kinship,
            self._checkpoints,
            self._handover,
            self._propose_own,
        )
        self._tenure = Tenure(
            self.machine,
            self._voter,
            self._proposals,
            self.membership,
            self.candidacy,
            self._kinship,
            self._handover,
            self._driver.kick,
        )
        self.inbox = Inbox(
            self._driver,
            self.leadership,
            self._kinship,
            self._voter,
            self._checkpoints,
            self._forwarding,
            self._catchup,
            self.sharing,
        )
        self._scrub = Scrub(self.machine, clock())
        self._watch = LeaseWatch(reactor, clock, self._lease, lambda: self._driver.guard(self._watch_role, kick=False))
        try:
            self.membership.rebase(self.machine.index, self.machine.members)
        except UnknownSchema as error:
            raise ConfigError(str(error)) from error

    # Life

    def start(self) -> None:
        """Begin to apply what the log is known to have committed, and join the others."""
        self._driver.start()
        self._network.start(self.inbox)

    def seek(self, seeds: Mapping[str, Address]) -> None:
        """Look for these nodes from now on, as long as the log names no members."""
        self._kinship.seek(seeds)

    def stop(self) -> Deferred[None]:
        """Lead no more, leave the others, and close the log."""
        failed = bool(self._driver.reason)
        self._driver.stop()
        self._watch.stop()
        stopped = self._network.stop()
        if not failed:
            self._end()
            self._memory.note_now(self._raft.commit_index)
        self._memory.close()
        return stopped

    # IBatchLog

    def propose(self, record: Record, done: Done) -> None:
        """Queue a record for the next batch and call `done` once, with what apply returned or why it did not come.

        A node that doesn't lead hands the record to the one that does.
        """
        self.propose_all([(record, done)], tell_each)

    def propose_all(self, records: Sequence[tuple[Record, Any]], tell: Tell) -> None:
        """As `propose`, for records each with what `tell` knows it by: that gets all at once that come together."""
        leader = self.leader
        if leader is None or leader == self.node or not self._driver.running:
            self._propose_here(records, tell)
            return
        for record, waiting in records:
            self._forwarding.forward(leader, record, _alone(tell, waiting))

    def _propose_here(self, records: Sequence[tuple[Record, Any]], tell: Tell) -> None:
        ready = self.leading() or (self._handover.under_way and self._raft.leads)
        if not ready or self._watch.misses_majority():
            refusal = self._refusal()
            tell([(waiting, refusal) for _, waiting in records])
        else:
            self._proposals.add(records, tell)
            if self._proposals.ready:
                self._driver.kick()
            else:
                self._company.expect()

    def cluster_time(self) -> float:
        """The cluster time now, in seconds; it never goes back."""
        return self._time.now(self._clock()) / 1000

    # ILocation

    def lookup(self, aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR, by falling q, then the most recently refreshed first."""
        return self.machine.location.lookup(aor, self._time.now(self._clock()))

    def bindings(self, aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR in the order they were made."""
        return self.machine.location.bindings(aor, self._time.now(self._clock()))

    # ICredentials

    def credential(self, auth_name: str, realm: str) -> Account | None:
        """The account that authenticates as `auth_name` in `realm`."""
        return self.machine.accounts.credential(auth_name, realm)

    def known(self, aor: str) -> bool:
        """True if an account has this AOR as its identity."""
        return self.machine.accounts.known(aor)

    # Leadership

    def leading(self) -> bool:
        """True while this node may act as the only leader: to be asked before every answer."""
        if self._lease.usable and self._clock() < self._lease.until:
            return True
        if self.leadership.held:
            self._driver.kick()
        return False

    def leading_until(self) -> float:
        """Until when `leading` stays true, by the clock, unless another step changes that; in the past if it isn't."""
        return self._lease.until if self.leading() else 0.0

    @property
    def term(self) -> int:
        """The current term."""
        return self._raft.term

    @property
    def succession(self) -> Succession:
        """Who tells the log how this node came to lead."""
        return self._voter.succession

    @property
    def leader(self) -> str | None:
        """The node that leads as far as this one knows."""
        return None if self._driver.state == "failed" else self._voter.leader

    def leader_of(self, index: int) -> str | None:
        """Who led when the entry at an index was written; None if this node doesn't know: it is of an earlier term."""
        return self.leader if self._raft.term_at(index) == self._raft.term else None

    @property
    def cluster_id(self) -> str:
        """The cluster that this node is in; empty if its disk is blank."""
        return self._kinship.cluster_id

    @property
    def lease_until(self) -> float:
        """Until when this node may act as the only leader, in seconds of CLOCK_BOOTTIME, as far as is known now.

        The lease of a single voter has no end; what acts on its word is told one all the same, in case it dies.
        """
        return min(self._lease.until, self._clock() + self._lease.duration)

    @property
    def last_word(self) -> bytes:
        """What shows the other nodes that the present claim has ended: for our guard to send, when it has ended it."""
        return datagram(LastWord(self._raft.term, self.node, self._lease.secret))

    @property
    def peers(self) -> list[Address]:
        """Where the other members listen."""
        return [address_of(member) for member in self.membership.members if member.name != self.node]

    def claim_ended(self) -> None:
        """Whoever guards our address has ended the present claim: if we still lead, go on with a new one."""
        if self._lease.held:
            self.leadership.lose()
            self._lease.begin()
            self._driver.kick()

    @property
    def leads_log(self) -> bool:
        """True if this node leads, even if it serves no phones: a witness, or a node in standby."""
        return self._driver.running and self._raft.leads

    @property
    def commit_latencies(self) -> Histogram:
        """What entries took from their first record's proposal to its outcome, on this node as leader."""
        return self._proposals.latencies

    def transfer(self, to: str | None = None, reason: str = "an operator has asked for it") -> Deferred[str]:
        """Hand leadership to the voter `to`, or to the one that wishes most to lead.

        The Deferred fires with the leader's name, or fails with HandoverFailed.
        """
        return self._tenure.transfer(to, self._clock(), reason)

    def report(self, trouble: str) -> None:
        """Say in a few words what keeps this node from serving phones well; empty if nothing does any more."""
        short = trouble.encode("ascii", "replace").decode("ascii")[:MAX_REASON]  # it must fit into a Hello
        self._kinship.declare(Condition(short, self._kinship.condition.yields))
        self._driver.kick()

    def backup(self) -> Frozen:
        """A snapshot of the table as it is now, to be iterated and then closed."""
        return self.machine.freeze(self._raft.term_at(self.machine.index) or 0, self._kinship.cluster_id)

    def free(self, frozen: Frozen | FrozenTable[Any, Any]) -> None:
        """Close a backup, or a frozen table; what it kept is freed little by little."""
        self._snapshots.dismantle(frozen.close())

    def heard_leader(self) -> float | None:
        """How many seconds ago this node has last heard the leader, None if it hears none, or leads itself."""
        leader = self.leader
        return None if leader in {None, self.node} else self._network.heard(leader)

    @property
    def snapshot(self) -> SnapshotFile | None:
        """The newest snapshot on the disk."""
        return self._catchup.newest

    @property
    def readable_after(self) -> int:
        """The index after which entries are in memory."""
        return self._journal.window_first - 1

    def recent(self, end: int, limit: int) -> list[Entry]:
        """Up to `limit` entries before `end` that are in memory, newest first: 64 KiB, or one."""
        return self._journal.recent(end, limit)

    def status(self) -> ReplicaStatus:
        """This node's part in the cluster, now."""
        raft, now, identity = self._raft, self._clock(), self._storage.identity
        remaining = max(self._lease.until - now, 0.0)
        match = {member.name: raft.match(member.name) for member in self.membership.members if raft.leads}
        return ReplicaStatus(
            node=self.node,
            cluster_id=self._kinship.cluster_id,
            role=self._role(),
            memory="blank" if identity is None else "amnesiac" if identity.amnesiac else "whole",
            leading=self.leading(),
            term=raft.term,
            leader=self.leader,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            durable_index=self._journal.durable,
            first_index=raft.first_index,
            last_index=raft.last_index,
            snapshot_index=self._catchup.snapshot_index,
            hash=f"{self.machine.hash():032x}",
            schema=self.machine.schema,
            time=self.cluster_time(),
            lease=None if remaining == math.inf else remaining,
            proposals=self._proposals.count,
            durability="fsync" if self._sync else "os",
            journal_bytes=self._journal.size,
            peers=tuple(self._kinship.peers(match)),
            alarms=tuple(self.alarms()),
            counters={**self._voter.counters, **self._network.counters, **self.sharing.counters},
        )

    def _role(self) -> Literal["leader", "follower", "learner", "failed"]:
        if self._driver.state == "failed":
            return "failed"
        if self._raft.leads:
            return "leader"
        return "follower" if self.node in self.membership.voters else "learner"

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        if self._driver.reason:
            yield f"this node has left the cluster: {self._driver.reason}"
        if self._voter.disk_hangs:
            yield "the disk of this node hangs: it has taken nothing for long, and says nothing"
        yield from self._kinship.alarms()
        yield from self.candidacy.alarms()
        yield from self._checkpoints.alarms()

    # Driving

    def _members_changed(self) -> None:
        if self._driver.state != "stopped":
            self._kinship.call()

    def _advance(self) -> None:
        if self._raft.leads or self._handover.under_way:
            self._flush()
            self._step_handover()
        self._voter.tick()
        self._proposals.expire()
        if self._raft.leads and self._proposals.few and self._proposals.ready:  # an entry of theirs was applied
            self._flush()
            self._voter.tick()
        if self.machine.index > self._checkpoints.index:
            self._checkpoints.applied(self.machine.index, self.machine.hash())
        self._watch_role()
        self._forwarding.expire()
        more = self._raft.leads and self._proposals.ready and self._journal.backlog < _BACKLOG
        if more or self._raft.applied_index < self._raft.commit_index:
            self._driver.kick()
        self._company.expect()

    def _flush(self) -> None:
        if self._journal.backlog < _BACKLOG:  # else the others' disks would let it grow without end
            self._proposals.flush()

    def _step_handover(self) -> None:
        was_under_way = self._handover.under_way
        self._handover.step(self._clock())
        if was_under_way and not self._handover.under_way and not self._raft.leads:
            for record, waiting, tell in self._proposals.take_waiting():  # the one who leads now can have them
                self.propose_all([(record, waiting)], tell)

    def _look_around(self) -> None:
        """Do what has time until the next tick."""
        now = self._clock()
        self._watch_majority()
        self._watch_memory()
        self._catchup.step(self._kinship.cluster_id)
        for checkpoint in self._checkpoints.due(now):
            for peer in sorted(self._kinship.kin):
                self._network.send(peer, checkpoint)
        self._scrub.step(now)
        if self._checkpoints.diverged and not self._raft.leads:
            self._catchup.refetch(now)
        self._voter.gives_precedence = self.candidacy.gives_precedence
        self._tenure.step(now)
        self.sharing.step()
        self._memory.note(self._raft.commit_index, self._voter.time_term)

    def _left(self, reason: str) -> None:
        """Cease to take part, so that the others elect another."""
        self._log.critical("{node} has left the cluster: {reason}", node=self.node, reason=reason)
        self._network.stop()
        self._end()
        if self._failed is not None:
            self._failed(reason)

    def _end(self) -> None:
        """Lead no more, and answer who waits."""
        self._withdraw()
        self._company.stop()
        self._handover.stop(self._clock())
        self._proposals.withdraw()
        self._forwarding.stop()

    def _durable_risen(self) -> None:
        """More of the log is on disk: a follower says so, and that is all; for a leader more may be committed."""
        self._driver.guard(self._voter.durable_risen, kick=False)
        if self._raft.leads and (self._raft.due or self._proposals.ready):
            self._driver.kick()

    # Proposals

    def _encode(self, records: tuple[Record, ...]) -> bytes:
        schema = max([self.machine.schema, *(record.schema for record in records if isinstance(record, RaiseSchema))])
        return encode(Batch(schema, self._time.now(self._clock()), self.policy, records))

    def _shorten(self, records: list[Record]) -> list[Record]:
        if self.machine.schema < REFRESH_SCHEMA:
            return records
        shortened = self.machine.location.shortened
        return [shortened(record) if isinstance(record, Register) else record for record in records]

    def _propose_own(self, record: Record, done: Done) -> None:
        """Queue a record that the leader has decided on; `done` may never be called."""
        self._proposals.add_internal(record, done)
        self._driver.kick()

    def _propose_members(self, record: Record, done: Callable[[Any], None]) -> None:
        """Append a membership entry; `done` may never be called."""

        def applied(outcomes: Sequence[Outcome] | None) -> None:
            done(NotLeader("another node has taken over") if outcomes is None else outcomes[0])

        self._raft.append(self._encode((record,)), applied, MEMBERSHIP)
        self._driver.kick()

    def _apply(self, index: int, entry: bytes) -> list[Outcome]:
        """Apply an entry that is committed."""
        machine, members = self.machine, self.machine.members
        outcomes = machine.apply(index, entry)
        if machine.members is not members:
            self._kinship.call()
        if machine.time > self._time.heard:
            self._time.advance(machine.time, self._clock())  # now: a moment later is time that has elapsed
        if self._checkpoints.remembers(index):
            self._checkpoints.applied(index, machine.hash())
            self._catchup.applied(index)
        return outcomes

    def _installed(self) -> None:
        """A snapshot has taken the place of the table."""
        self._time.advance(self.machine.time, self._clock())
        self._driver.kick()

    def _refusal(self) -> Unavailable:
        """Why a proposal is not accepted now."""
        if self._raft.leads and self._lease.usable:
            return NoQuorum(f"{self.node} leads, but no majority answers")
        leader = self.leader
        if leader in (None, self.node):
            return NotLeader("no node leads the cluster yet", retry_after=1)
        return NotLeader(f"{leader} leads the cluster")

    # Roles

    def _watch_role(self) -> None:
        """Begin our terms, end our leadership, and tell who must know."""
        if not self._raft.leads:
            if self._tenure.term:
                self._withdraw()
            return
        if self._raft.term != self._tenure.term:
            self._withdraw()
            self._tenure.begin()
        self._lease.usable = self._tenure.usable
        if self.leading():
            if not self.leadership.held:
                self._watch.begin()
                self.leadership.gain()
        elif self.leadership.held:
            self.leadership.lose()
            self._proposals.refuse_waiting(NoQuorum("no majority answers"))

    def _watch_memory(self) -> None:
        """Vote if nothing is forgotten."""
        identity = self._storage.identity
        if identity is not None and identity.amnesiac and self._voter.remembers():
            self._storage.remembers()
            identity = self._storage.identity
            self._kinship.call_anew()
        self._voter.may_vote = identity is not None and not identity.amnesiac

    def _withdraw(self) -> None:
        """We lead no more: what is under way may be applied or not, what waits won't."""
        self._tenure.end()
        self._lease.usable = False
        self.leadership.lose()
        if self._handover.under_way:
            self._proposals.withdraw_under_way()
        else:
            self._proposals.withdraw()

    def _watch_majority(self) -> None:
        """Answer who waits while the lease lasts; after it nothing may be sent."""
        self._watch.count(held=self.leadership.held)
        if self._watch.misses_majority():
            self._proposals.refuse_all(
                UnknownOutcome("no majority is known to have the record"), NoQuorum("no majority answers")
            )


def _alone(tell: Tell, waiting: Any) -> Done:
    """What tells `tell` of a single outcome."""
    return lambda outcome: tell([(waiting, outcome)])


classImplements(Replica, IBatchLog, ILocation, ICredentials)
