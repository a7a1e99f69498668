"""What must hold at every moment, whatever fails: checked after each step of each node, and at each message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipha.cluster.guards import MEMBERSHIP, members_of
from sipha.cluster.journal import Journal
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    LastWord,
    LeaseAck,
    PreVote,
    PreVoteGranted,
    RaftMessage,
    RequestVote,
    TimeoutNow,
    VoteGranted,
)
from sipha.state.entries import Expire, Refresh, Register, decode
from sipha.state.outcomes import Invalid, Outcome
from tests.cluster_sim.elections import Elections
from tests.cluster_sim.expiry import Expiry
from tests.cluster_sim.holdings import Holdings
from tests.cluster_sim.leases import Leases
from tests.cluster_sim.times import Times
from tests.cluster_sim.violation import Violation

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World


class Invariants:
    """What all nodes together have done, compared with what each does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged = 0
        """The highest log index that anybody was told to be applied."""
        self.commits = 0
        self._elections = Elections()
        self._leases = Leases(world)
        self._holdings = Holdings(world)
        self._times = Times(world, self._elections)
        self._expiry = Expiry()
        self._committed: dict[int, int] = {}  # index: term
        self._last_of: dict[int, int] = {}  # term in which it was committed: the last index committed
        self._entries: dict[int, bytes] = {}  # as first applied
        self._hashes: dict[int, int] = {}  # of the table, by index
        self._stamped: dict[tuple[int, int], float] = {}  # index, term: when the entry was made
        self._applied: set[str] = set()  # the tags of the records that were
        self._refused: set[str] = set()  # the tags of those whose proposers have heard that they never will be

    # After a step

    def started(self, node: Node, before: Journal | None, after: Journal) -> None:
        """A node has read its disk, which has all that was durable; or it knows that something is missing."""
        self._times.distracted(node)
        self._holdings.started(node)
        if before is None:
            return
        if node.forgetful():
            if node.whole and not node.harmed:
                raise Violation(f"{node.name} takes itself for an amnesiac, and its disk has lost nothing")
        elif before.durable > after.first_index and (
            after.term_at(before.durable) != before.term_at(before.durable) or after.durable < before.durable
        ):
            raise Violation(f"{node.name} had entries up to {before.durable} on disk, and has lost some")

    def stepped(self, node: Node) -> None:
        """A node has done something."""
        raft = node.raft
        if node.failed:
            return
        node.whole = not node.forgetful()
        node.harmed = node.harmed and not node.whole
        if raft.commit_index != node.seen_commit:
            self._commit(node)
        if raft.leads:
            if raft.term != node.seen_term:
                self._lead(node)
            self._holdings.counted(node)
            self._leases.stepped(node)
        machine = node.replica.machine
        if machine.index != node.seen_index:
            self._index(node)
        if node.leads():
            self._hold(node)

    def _commit(self, node: Node) -> None:
        raft, commit = node.raft, node.raft.commit_index
        if commit < node.seen_commit:
            raise Violation(f"{node.name} goes back from commit index {node.seen_commit} to {commit}")
        for index in range(node.seen_commit + 1, commit + 1):
            term = raft.term_at(index)
            if term is None:
                continue  # covered by a snapshot
            known = self._committed.get(index)
            if known is None:
                self._committed[index] = term
                self._first_commit(node, index, term)
            elif known != term:
                raise Violation(f"{node.name} commits {index} of term {term}, and others of term {known}")
        node.seen_commit = commit

    def _first_commit(self, node: Node, index: int, term: int) -> None:
        """Entries count as committed once a majority has them on disk: of those that have forgotten nothing."""
        self.commits += 1
        self._last_of[node.raft.term] = index
        leader = self.world.nodes[self._elections.leader(node.raft.term) or node.name]
        holders = [
            other.name for other in self.world.nodes.values() if self._holdings.holds(other, index, term, leader)
        ]
        if not node.is_majority(holders):
            raise Violation(f"{node.name} commits {index} of term {term}, which only {holders} have on disk")

    def _lead(self, node: Node) -> None:
        """One leader in a term, and it has all that was committed before."""
        raft = node.raft
        term = node.seen_term = raft.term
        self._elections.led(node, term)
        self._times.led(node, term)
        for earlier, index in self._last_of.items():
            if earlier < term and index >= raft.first_index and raft.term_at(index) != self._committed[index]:
                raise Violation(f"{node.name} leads term {term} without entry {index}, committed in term {earlier}")

    def _index(self, node: Node) -> None:
        """Tables are equal at equal index, and time only goes on."""
        machine = node.replica.machine
        index, table = machine.index, machine.hash()
        if index < node.seen_index:
            raise Violation(f"the table of {node.name} goes back from {node.seen_index} to {index}")
        if machine.time < node.seen_time:
            raise Violation(f"the time of {node.name} goes back from {node.seen_time} to {machine.time}")
        known = self._hashes.setdefault(index, table)
        if known != table:
            raise Violation(f"the table of {node.name} differs at {index}")
        node.seen_index, node.seen_time = index, machine.time

    def _hold(self, node: Node) -> None:
        """Only one holds a usable lease, with all that was acknowledged."""
        for other in self.world.nodes.values():
            if other is not node and other.leads():
                raise Violation(f"{node.name} and {other.name} both hold a usable lease")
            if other is not node and other.guard.passes() and node.guard.passes():
                raise Violation(f"{node.name} and {other.name} both have the address")
        if node.replica.machine.index < self.acknowledged:
            raise Violation(
                f"{node.name} leads at {node.replica.machine.index}, and {self.acknowledged} is acknowledged"
            )
        self._leases.held(node)
        self._times.held(node)

    # What is said

    def greeted(self, node: Node, peer: str) -> None:
        """A node has a new connection with a peer."""
        self._holdings.greeted(node, peer)

    def sent(self, node: Node, peer: str, message: RaftMessage) -> None:
        """A node says something to a peer."""
        match message:
            case AppendEntries():
                self._leases.claimed(node, message)
                self._times.told(node, message)
            case AppendReply():
                durable = node.durable()
                if message.success and message.next_index - 1 > durable:
                    raise Violation(f"{node.name} acknowledges {message.next_index - 1}, and has {durable} on disk")
            case LeaseAck():
                self._leases.acknowledged(node, peer, message)
            case VoteGranted():
                self._voted(node, message.term, peer)
            case RequestVote():
                self._voted(node, message.term, node.name)
            case PreVote():
                self._times.asked(node)
            case TimeoutNow():
                self._leases.ended(message.secret)

    def hears(self, node: Node, peer: str, message: RaftMessage) -> None:
        """A node is about to take a message."""
        match message:
            case PreVote() | RequestVote() if node.is_kin(peer):
                self._leases.shown(node, message.secret)
            case PreVoteGranted():
                self._times.granted(node, message)
            case VoteGranted():
                self._elections.received(node, message.term, peer)
                self._times.elected(node, message)
            case AppendReply() if message.success:
                self._holdings.said(node, peer, message.term, message.next_index - 1)

    def hears_last_word(self, node: Node, word: LastWord) -> None:
        """A node is about to take a guard's last word."""
        if node.follows(word.leader, word.term):
            self._leases.shown(node, word.secret)

    def heard(self, node: Node, peer: str, message: RaftMessage) -> None:
        """A node has taken a message."""
        if isinstance(message, AppendEntries) and node.follows(peer, message.term):
            self._times.distracted(node)
            self._times.heard(node, message)
            self._holdings.followed(node, message)
        elif isinstance(message, PreVoteGranted | VoteGranted) and node.ahead:
            self._times.distracted(node)

    def ended(self, secret: bytes) -> None:
        """A guard has ended the claim with this secret."""
        self._leases.ended(secret)

    def wiped(self, node: Node) -> None:
        """A node knows no more what it said."""
        self._elections.wiped(node)
        self._leases.wiped(node)

    def powerless(self, node: Node) -> None:
        """A node has lost power."""
        self._times.powerless(node)

    def _voted(self, node: Node, term: int, candidate: str) -> None:
        self._elections.voted(node, term, candidate)
        self._leases.voted(node)

    # What is proposed, added and applied

    def refused(self, tag: str) -> None:
        """A proposer hears that its record will never be applied."""
        self._refused.add(tag)
        if tag in self._applied:
            raise Violation(f"the record {tag} is applied, and its proposer hears that it won't be")

    def added(self, node: Node, command: bytes, index: int, term: int) -> None:
        """A node has added an entry to its log: first of all its leader."""
        self._stamped.setdefault((index, term), self.world.events.now)
        if command[0] == MEMBERSHIP:
            voters = {member.name for member in members_of(command) if member.role != "learner"}
            settled = node.settled_voters() if node.raft.leads else None
            if settled and len(voters ^ settled) > 1:
                raise Violation(f"{node.name} goes from the voters {sorted(settled)} to {sorted(voters)} at once")

    def cut(self, node: Node, first: int) -> None:
        """A node cuts its log off from an entry on: none of the committed ones, not even to add them again."""
        for index in range(first, node.raft.last_index + 1):
            if self._committed.get(index, -1) == node.raft.term_at(index):
                raise Violation(f"{node.name} cuts off entry {index}, which is committed")

    def shortened(self, node: Node) -> None:
        """A node has cut its log off: what is gone is durable no more, nor is what comes in its place."""
        if node.durable() > node.raft.last_index:
            raise Violation(f"{node.name} has cut off entry {node.durable()}, and takes it for durable")

    def applied(self, node: Node, index: int, entry: bytes, outcomes: list[Outcome]) -> None:
        """A node has applied an entry."""
        invalid = [outcome for outcome in outcomes if isinstance(outcome, Invalid)]
        if invalid:
            raise Violation(f"{node.name} can't apply entry {index}: {invalid}")
        known = self._entries.setdefault(index, entry)
        if known is entry:
            self._first_apply(node, index, entry)
        elif known != entry:
            raise Violation(f"{node.name} applies another entry {index} than the first one did")

    def _first_apply(self, node: Node, index: int, entry: bytes) -> None:
        batch, now = decode(entry), self.world.events.now
        term = node.raft.term_at(index)
        since = now if term is None else self._stamped.get((index, term), now)
        location = node.replica.machine.location
        registered = {record.aor for record in batch.records if isinstance(record, Register | Refresh)}
        if registered:
            self._times.registered(batch.time, since)
        for record in batch.records:
            if isinstance(record, Refresh):
                self._expiry.registered(location, record.aor, since)
            elif isinstance(record, Register):
                self._expiry.registered(location, record.aor, since)
                self._applied.add(record.user_agent)
                if record.user_agent in self._refused:
                    raise Violation(f"the record {record.user_agent} is applied, and its proposer heard that it won't")
            elif isinstance(record, Expire):
                self._expiry.expired(location, record, registered, now)

    # In the end

    def settled(self, nodes: list[Node]) -> None:
        """All nodes have the same table, with all that was acknowledged."""
        states = {(node.replica.machine.index, node.replica.machine.hash()) for node in nodes}
        if len(states) > 1:
            raise Violation(f"tables differ in the end: {sorted(index for index, _ in states)}")
        ((index, _),) = states
        if index < self.acknowledged:
            raise Violation(f"all are at {index} in the end, and {self.acknowledged} is acknowledged")
        for node in nodes:
            for _ in node.replica.machine.scrub():
                pass  # it raises DamagedMemory if the hash isn't that of the table
