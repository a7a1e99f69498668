"""What must hold at every moment, whatever fails: checked after each step of each node, and at each message sent."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sipha.cluster.wire import AppendReply, RaftMessage, RequestVote, TimeoutNow, VoteGranted
from sipha.state.entries import Expire, Register, decode
from sipha.state.outcomes import Invalid, Outcome

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World

LATE = 2.0
"""Seconds by which a binding may expire early or late (design §1.5)."""

DRIFT = 0.01
"""By how much clocks may differ in rate."""


class Violation(BaseException):
    """Something that must never be is so; no `except Exception` on the way hides it."""


class Grant(NamedTuple):
    """A binding's version: since when, by true time, and for how many seconds."""

    since: float
    seconds: float


class Invariants:
    """What all nodes together have done, compared with what each does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged = 0
        """The highest log index that anybody was told to be applied."""
        self.commits = 0
        self._leaders: dict[int, str] = {}  # by term
        self._votes: dict[tuple[str, int], str] = {}  # by voter and term
        self._committed: dict[int, int] = {}  # index: term
        self._last_of: dict[int, int] = {}  # term in which it was committed: the last index committed
        self._entries: dict[int, bytes] = {}  # as first applied
        self._hashes: dict[int, int] = {}  # of the table, by index
        self._ended: set[bytes] = set()  # secrets of claims
        self._stamped: dict[tuple[int, int], float] = {}  # index, term: when the entry was made
        self._grants: dict[str, dict[tuple[int, int], Grant]] = defaultdict(dict)  # by AOR: contact id, version
        self._time = 0  # the latest cluster time applied
        self._offsets = (0.0, 0.0)  # cluster time less true time at lease holders: least, greatest
        self._leaderless = 0.0  # seconds so far
        self._led = 0.0  # when somebody was last seen to lead
        self._led_ever = False

    # After a step

    def stepped(self, node: Node) -> None:
        """A node has done something."""
        raft = node.raft
        if node.failed:
            return
        if node.harmed:
            node.harmed = node.forgetful()
        if raft.commit_index != node.seen_commit:
            self._commit(node)
        if raft.leads and raft.term != node.seen_term:
            self._lead(node)
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
        self.commits += 1
        self._last_of[node.raft.term] = index
        holders = [other.name for other in self.world.nodes.values() if other.keeps(index, term)]
        if not node.is_majority(holders):
            raise Violation(f"{node.name} commits {index} of term {term}, which only {holders} have on disk")

    def _lead(self, node: Node) -> None:
        """One leader in a term, and it has all that was committed before."""
        raft = node.raft
        term = node.seen_term = raft.term
        other = self._leaders.setdefault(term, node.name)
        if other != node.name:
            raise Violation(f"{node.name} and {other} both lead term {term}")
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
        """Only one holds a usable lease, with all that was acknowledged, under a claim that lasts, and in time."""
        world, now = self.world, self.world.events.now
        for other in world.nodes.values():
            if other is not node and other.leads():
                raise Violation(f"{node.name} and {other.name} both hold a usable lease")
            if other is not node and other.guard.passes() and node.guard.passes():
                raise Violation(f"{node.name} and {other.name} both have the address")
        if node.replica.machine.index < self.acknowledged:
            raise Violation(
                f"{node.name} leads at {node.replica.machine.index}, and {self.acknowledged} is acknowledged"
            )
        if node.claim_secret() in self._ended:
            raise Violation(f"{node.name} leads under a claim that has ended")
        self._leaderless += max(now - self._led - 0.1, 0.0) if self._led_ever else 0.0
        self._led = now
        if not node.frozen:  # else it knows the time at which it will go on
            self._check_time(node, now)

    def _check_time(self, node: Node, now: float) -> None:
        offset = node.cluster_time() - now
        least, greatest = self._offsets
        if not self._led_ever:
            least = greatest = offset
            self._led_ever = True
        self._offsets = min(least, offset), max(greatest, offset)
        if offset - least > LATE + DRIFT * now:
            raise Violation(f"the time at {node.name} is {offset - least:.3f} s ahead of what it was")
        if greatest - offset > LATE + DRIFT * now + self._leaderless:
            raise Violation(f"the time at {node.name} is {greatest - offset:.3f} s behind what it was")

    # What is sent

    def sent(self, node: Node, peer: str, message: RaftMessage) -> None:
        """A node says something to a peer."""
        if isinstance(message, AppendReply):
            durable = node.durable()
            if message.success and message.next_index - 1 > durable:
                raise Violation(f"{node.name} acknowledges {message.next_index - 1}, and has {durable} on disk")
        elif isinstance(message, VoteGranted):
            self._vote(node, message.term, peer)
        elif isinstance(message, RequestVote):
            self._vote(node, message.term, node.name)
        elif isinstance(message, TimeoutNow):
            self.ended(message.secret)

    def ended(self, secret: bytes) -> None:
        """A claim's secret is told."""
        self._ended.add(secret)

    def wiped(self, node: Node) -> None:
        """A node knows no more whom it voted for."""
        for voter, term in list(self._votes):
            if voter == node.name:
                del self._votes[voter, term]

    def _vote(self, node: Node, term: int, candidate: str) -> None:
        if node.forgetful():
            raise Violation(f"{node.name} votes, and has forgotten what it promised before")
        known = self._votes.setdefault((node.name, term), candidate)
        if known != candidate:
            raise Violation(f"{node.name} votes for {candidate} in term {term}, and has voted for {known}")

    # What is added and applied

    def added(self, index: int, term: int) -> None:
        """A node has added an entry to its log: first of all its leader."""
        self._stamped.setdefault((index, term), self.world.events.now)

    def cut(self, node: Node, first: int) -> None:
        """A node cuts its log off from an entry on: none of the committed ones, not even to add them again."""
        for index in range(first, node.raft.last_index + 1):
            if self._committed.get(index, -1) == node.raft.term_at(index):
                raise Violation(f"{node.name} cuts off entry {index}, which is committed")

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
        for record in batch.records:
            if isinstance(record, Register):
                grants = self._grants[record.aor]
                present = {(each.contact_id, each.version): each for each in location.bindings(record.aor, 0)}
                for key in grants.keys() - present.keys():
                    del grants[key]  # replaced or removed by the phone
                for key, binding in present.items():
                    if key not in grants:
                        seconds = (binding.expires_at - binding.last_modified) / 1000
                        grants[key] = Grant(since, seconds)
            elif isinstance(record, Expire):
                for aor, contact_id, version in record.bindings:
                    grant = self._grants[aor].get((contact_id, version))
                    left = {(each.contact_id, each.version) for each in location.bindings(aor, 0)}
                    if grant is not None and (contact_id, version) not in left:
                        del self._grants[aor][contact_id, version]
                        self._gone(aor, grant, now)

    def _gone(self, aor: str, grant: Grant, now: float) -> None:
        early = grant.since + grant.seconds - now
        if early > LATE + DRIFT * grant.seconds:
            raise Violation(f"a binding of {aor} is removed {early:.3f} s early")

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
