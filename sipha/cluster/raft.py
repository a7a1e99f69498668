"""PySyncObj 0.3.17 under typed names: the only module that imports it, and the only one that knows its private names.

Nothing here decides anything. `Voter` stands before it with the guards, because some of what the library does with a
correct message would lose entries.
"""

from __future__ import annotations

import _socket
import math
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SERIALIZER_STATE, SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from sipha.cluster.guards import NO_OP, REGULAR
from sipha.cluster.journal import Journal
from sipha.cluster.wire import AppendEntries, Entry

_MAX_APPEND = 256 * 1024
"""Bytes of entries in a message, the last entry not counted."""

_FOLLOWER, _CANDIDATE, _LEADER = 0, 1, 2
_NEVER = 10**12


clock: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds of CLOCK_BOOTTIME, which also counts while the machine is suspended."""


def use_clock(now: Callable[[], float]) -> None:
    """Make the library read `now` too; two clocks in one protocol would drift apart."""
    pysyncobj.syncobj.monotonicTime = now


use_clock(clock)

socket.inet_ntop = _socket.inet_ntop  # the library puts one for Windows in its place, and for the whole process

_create_journal = pysyncobj.syncobj.createJournal


def _give_journal(journal: Any) -> Any:
    return journal if isinstance(journal, Journal) else _create_journal(journal)


pysyncobj.syncobj.createJournal = _give_journal  # its hook for a journal that isn't one of its own


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A leader sends at least each `append_period`; a follower that hears none stands between min and max."""

    append_period: float = 0.05
    election_min: float = 0.4
    election_max: float = 0.8

    @property
    def lease(self) -> float:
        """For how long a heartbeat lets its sender lead."""
        return 0.8 * self.election_min


class Answer(NamedTuple):
    """What the library answers to entries: what it wants next, whether that is further back, whether it took them."""

    next_index: int
    reset: bool = False
    success: bool = False


class Outbox(Protocol):
    """Takes what the library wants to tell a peer."""

    def append_entries(
        self, peer: str, commit_index: int, prev_index: int | None, prev_term: int | None, entries: list[Entry]
    ) -> bool:
        """Entries or a heartbeat from the leader; False if the peer can't take them now."""

    def request_vote(self, peer: str, last_index: int, last_term: int) -> None:
        """A vote is asked for in the current term."""

    def grant_vote(self, peer: str, term: int) -> None:
        """The vote of `term` is given, durably."""

    def role_changed(self, *, leading: bool) -> None:
        """The node begins or ceases to lead; told before anything is sent in the new role."""


class Raft(SyncObj):
    """The library's node, without a thread or a socket: its log is `journal`, applied already up to `applied`."""

    def __init__(  # noqa: PLR0917  one caller
        self,
        name: str,
        journal: Journal,
        applied: int,
        timing: Timing,
        outbox: Outbox,
        apply: Callable[[int, bytes], Any],
    ) -> None:
        self.name = name
        self._journal = journal
        self._outbox = outbox
        self._apply = apply
        self.answer: Answer | None = None
        """To the entries that are being received."""
        self._nodes: dict[str, _Peer] = {}
        self._reachable: set[str] = set()
        self._stored: dict[str, int] = {}  # up to where each peer has our log on disk; it said so in this term of ours
        self._lagging: list[str] = []  # to whom a heartbeat was sent in this tick, for want of entries
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesPeriod=timing.append_period,
            appendEntriesBatchSizeBytes=_MAX_APPEND,
            raftMinTimeout=timing.election_min,
            raftMaxTimeout=timing.election_max,
            connectionTimeout=timing.election_max,
            leaderFallbackTimeout=timing.election_max,
            commandsQueueSize=0,  # the replica bounds what it proposes
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            useFork=False,
            logCompactionMinEntries=_NEVER,
            logCompactionMinTime=_NEVER,
            journalFile=journal,
            onStateChanged=self._state_changed,
        )
        super().__init__(_Peer(name), [], conf, transport=_Link(self, outbox))
        self._SyncObj__serializer = _NoDump()
        self._poller = _NoSockets()
        self._SyncObj__raftLastApplied: int = max(applied, 1)
        self._SyncObj__raftCommitIndex: int = max(self.applied_index, min(self.commit_index, self.last_index))

    # The log

    @property
    def first_index(self) -> int:
        """The index of the first entry that is kept; it is applied."""
        return self._journal.first_index

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return self._journal.last_index

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._journal.last_term

    @property
    def commit_index(self) -> int:
        """The index up to which entries are known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        """The index of the last entry that was applied."""
        return int(self._SyncObj__raftLastApplied)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if the log has none."""
        return self._journal.term_at(index)

    def append(self, entry: bytes, done: Callable[[Any], None], kind: int = REGULAR) -> None:
        """Append an entry as the leader; `done` gets what `apply` returned, or None if another entry took its place.

        `done` may never be called.
        """

        def called(result: Any, reason: int) -> None:
            done(result if reason == FAIL_REASON.SUCCESS else None)

        self._applyCommand(entry, called, kind)
        self._checkCommandsToApply()

    def commit(self, index: int) -> None:
        """Take note that the log is committed up to `index`, as a leader's snapshot proves."""
        self._SyncObj__raftCommitIndex = max(self.commit_index, min(index, self.last_index))

    def install(self, index: int) -> None:
        """Go on from a snapshot at `index`, which the journal has, and apply again what follows there."""
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(index, min(self.commit_index, self.last_index))

    # Members

    def set_members(self, voters: Collection[str], learners: Collection[str]) -> None:
        """Count these voters, beside this node, and send entries to them and the learners."""
        others = {self._node(name) for name in voters if name != self.name}
        readers = {self._node(name) for name in learners if name != self.name}
        next_index, match, heard = (
            self._SyncObj__raftNextIndex,
            self._SyncObj__raftMatchIndex,
            self._SyncObj__lastResponseTime,
        )
        for node in (self._SyncObj__otherNodes | self._SyncObj__readonlyNodes) - others - readers:
            self._SyncObj__connectedNodes.discard(node)
            self._stored.pop(node.id, None)
            for table in (next_index, match, heard):
                table.pop(node, None)
        self._SyncObj__otherNodes: set[Node] = others
        self._SyncObj__readonlyNodes: set[Node] = readers
        for node in others | readers:
            next_index.setdefault(node, self.last_index + 1)
            match.setdefault(node, 0)
            heard.setdefault(node, pysyncobj.syncobj.monotonicTime())
            if node.id in self._reachable:
                self._SyncObj__onNodeConnected(node)

    def _node(self, name: str) -> _Peer:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Peer(name)
        return node

    def match(self, peer: str) -> int:
        """The index up to which a peer is known to have our log on disk; 0 if unknown."""
        return self._stored.get(peer, 0)

    def forget_match(self, peer: str) -> None:
        """Count nothing that a peer acknowledged over an earlier connection: its disk may be another."""
        self._stored.pop(peer, None)

    def silence(self, peer: str) -> float:
        """For how many seconds a peer has not answered; without end if it isn't connected."""
        heard = self._SyncObj__lastResponseTime.get(self._node(peer))
        if heard is None or peer not in self._reachable:
            return math.inf
        return float(pysyncobj.syncobj.monotonicTime() - heard)

    def touch(self, peer: str) -> None:
        """Take note that a peer answers; the library leads no longer than a majority does."""
        if self._node(peer) in self._SyncObj__lastResponseTime:
            self._SyncObj__lastResponseTime[self._node(peer)] = pysyncobj.syncobj.monotonicTime()

    # Roles

    @property
    def leads(self) -> bool:
        """True if the node believes to lead its term."""
        return bool(self._SyncObj__raftState == _LEADER)

    @property
    def stands(self) -> bool:
        """True if the node has asked for votes and waits for them."""
        return bool(self._SyncObj__raftState == _CANDIDATE)

    @property
    def term(self) -> int:
        """The current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> str | None:
        """The leader last heard of."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    def step_down(self, term: int) -> None:
        """Follow in `term`, which is later than the current one (Raft §5.1)."""
        self.resign()  # first: writing the term down may take time
        self._SyncObj__setCurrentTerm(term, None)

    def resign(self) -> None:
        """Lead no more, and stand no more."""
        self._SyncObj__setState(_FOLLOWER)
        self._SyncObj__raftLeader = None

    def election_due(self, now: float) -> bool:
        """True if the next tick would begin an election."""
        return bool(not self.leads and self._SyncObj__raftElectionDeadline < now)

    def election_timeout(self) -> float:
        """A random time between the timing's bounds."""
        return float(self._SyncObj__generateRaftTimeout())

    def put_election(self, at: float) -> None:
        """Let the next election be due at `at`."""
        self._SyncObj__raftElectionDeadline = at

    def stand(self) -> None:
        """Begin a term and ask for votes, now."""
        self._SyncObj__raftElectionDeadline = 0.0
        self.doTick(0.0)

    # Driving

    def tick(self) -> None:
        """Commit, apply, and send what is due; entries at once, heartbeats each period.

        Only `stand` begins an election: one that falls due meanwhile waits for its pre-vote.
        """
        if not self.leads:
            self._SyncObj__applyLogEntries()  # all that the library's tick does then
            return
        self._count_disks()
        if self._owes_entries():
            self._SyncObj__newAppendEntriesTime = 0.0
        due, self._SyncObj__raftElectionDeadline = self._SyncObj__raftElectionDeadline, math.inf
        try:
            if self._SyncObj__otherNodes or self._journal.durable >= self.last_index:
                self.doTick(0.0)
            else:
                self._tick_alone()
        finally:
            self._SyncObj__raftElectionDeadline = due
            lagging, self._lagging = self._lagging, []
            for peer in lagging:
                if peer in self._reachable:
                    self.connected(peer)

    def _tick_alone(self) -> None:
        """Commit what a single voter has on disk, where the library would commit all of its log; apply, and send."""
        durable = self._journal.durable
        if self.term_at(durable) == self.term:  # Raft §5.4.2
            self.commit(durable)
        self._SyncObj__applyLogEntries()
        if self._SyncObj__newAppendEntriesTime < pysyncobj.syncobj.monotonicTime():
            self._SyncObj__sendAppendEntries()

    @property
    def due(self) -> bool:
        """True if a leader's tick would commit an entry or send one."""
        return self._on_disks() > self.commit_index or self._owes_entries()

    def _owes_entries(self) -> bool:
        """Return True if a peer that can be sent to lacks entries that the log has."""
        first, last, next_index = self.first_index, self.last_index, self._SyncObj__raftNextIndex
        return any(first < next_index[node] <= last for node in self._SyncObj__connectedNodes)

    def _on_disks(self) -> int:
        """Return up to where a majority has the log on disk, of which the leader is one (Raft thesis §10.2.1)."""
        disks = sorted([self._journal.durable, *[self.match(node.id) for node in self._SyncObj__otherNodes]])
        return disks[(len(disks) - 1) // 2]

    def _count_disks(self) -> None:
        """Let the library see no acknowledgement of more than a majority has on disk.

        It takes for granted that the leader has all; but the leader writes while the others do.
        """
        match, majority = self._SyncObj__raftMatchIndex, self._on_disks()
        for node in match:
            match[node] = min(self.match(node.id), majority)

    def connected(self, peer: str) -> None:
        """The peer can be sent to."""
        self._reachable.add(peer)
        node = self._node(peer)
        if node in self._SyncObj__otherNodes or node in self._SyncObj__readonlyNodes:
            self._SyncObj__onNodeConnected(node)

    def disconnected(self, peer: str) -> None:
        """The peer can't be sent to."""
        self._reachable.discard(peer)
        self._SyncObj__onNodeDisconnected(self._node(peer))

    # Messages

    def receive_append(self, peer: str, append: AppendEntries) -> Answer | None:
        """Take a verified message of a leader whose term is not earlier than ours, and return what to answer."""
        message: dict[str, Any] = {"type": "append_entries", "term": append.term, "commit_index": append.commit_index}
        if append.prev_index is not None:
            message |= {
                "prevLogIdx": append.prev_index,
                "prevLogTerm": append.prev_term,
                "entries": append.entries,
            }
        self.answer = None
        self._SyncObj__onMessageReceived(self._node(peer), message)
        return self.answer

    def receive_reply(self, peer: str, next_index: int, *, reset: bool, success: bool) -> None:
        """Take a follower's answer of this term.

        The library lets every answer move its next index back and then sends again what is under way; here only a
        follower that lacks entries (`reset`) does that.
        """
        node, next_indices = self._node(peer), self._SyncObj__raftNextIndex
        sent = next_indices.get(node)
        if sent is None:
            return  # no member any more
        message = {"type": "next_node_idx", "next_node_idx": next_index, "reset": reset, "success": success}
        self._SyncObj__onMessageReceived(node, message)
        if success:
            self._stored[peer] = max(self.match(peer), next_index - 1)
        if not reset and next_indices[node] < sent:
            next_indices[node] = sent

    def send_from(self, peer: str, next_index: int) -> None:
        """Take a follower's answer that doesn't count: it needs nothing before `next_index`."""
        self.touch(peer)
        node, next_indices = self._node(peer), self._SyncObj__raftNextIndex
        if node in next_indices:
            next_indices[node] = max(next_indices[node], next_index)

    def receive_vote_request(self, peer: str, term: int, last_index: int, last_term: int) -> None:
        """Vote, or don't (Raft §5.2, §5.4.1)."""
        message = {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        self._SyncObj__onMessageReceived(self._node(peer), message)

    def receive_vote(self, peer: str, term: int) -> None:
        """Count a vote; the library counts votes and not voters, so it must not be told twice."""
        self._SyncObj__onMessageReceived(self._node(peer), {"type": "response_vote", "term": term})

    # What the library calls

    def _SyncObj__onBecomeLeader(self) -> None:
        """Lead; a single voter commits in the same tick, so what it adds must be on disk by then."""
        self._stored.clear()
        super()._SyncObj__onBecomeLeader()
        if not self._SyncObj__otherNodes:
            self._journal.sync_now()

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        """Apply the entry after the last applied one; a no-op changes nothing."""
        if command[0] == NO_OP:
            return None
        return self._apply(self._SyncObj__raftLastApplied + 1, command[1:])

    def _state_changed(self, old: int, new: int) -> None:
        if _LEADER in (old, new):
            self._outbox.role_changed(leading=new == _LEADER)

    def heartbeat_sent(self, peer: Node) -> None:
        """Send a peer that needs a snapshot no more in this tick: the library would repeat it for a whole period."""
        self._lagging.append(peer.id)
        self._SyncObj__onNodeDisconnected(peer)

    def hold(self, peer: Node, entries: list[Entry]) -> None:
        """Send the peer nothing more until it is `connected` again, and these entries again then."""
        if entries:
            self._SyncObj__raftNextIndex[peer] = entries[0][1]
        self._SyncObj__onNodeDisconnected(peer)


class _Peer(Node):
    """A node whose hash is the same in every process: the order of the library's sets is, too."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._hash = crc32(name.encode())

    def __hash__(self) -> int:
        return self._hash


class _Link(Transport):
    """What the library sends, by kind; what we don't know is never sent: its forwarded commands and status replies."""

    def __init__(self, raft: Raft, outbox: Outbox) -> None:
        super().__init__(None, None, ())
        self._raft = raft
        self._outbox = outbox

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        match message["type"]:
            case "append_entries":
                entries = message.get("entries", [])
                sent = self._outbox.append_entries(
                    node.id, message["commit_index"], message.get("prevLogIdx"), message.get("prevLogTerm"), entries
                )
                if not sent:
                    self._raft.hold(node, entries)
                elif "prevLogIdx" not in message:
                    self._raft.heartbeat_sent(node)
                return sent
            case "next_node_idx":
                self._raft.answer = Answer(message["next_node_idx"], message["reset"], message["success"])
            case "request_vote":
                self._outbox.request_vote(node.id, message["last_log_index"], message["last_log_term"])
            case "response_vote":
                self._outbox.grant_vote(node.id, message["term"])
            case _:
                return False
        return True


class _NoSockets:
    """In the place of the library's poller: its sockets would be those of its own transport."""

    def poll(self, _timeout: float) -> None:
        """Nothing has come."""


class _NoDump:
    """In the place of the library's serializer: snapshots are written, sent and received by `sipha.cluster.snapshots`.

    A follower that needs one gets heartbeats from the library, and the outbox sees that nothing precedes them.
    """

    def checkSerializing(self) -> tuple[int, None]:
        return SERIALIZER_STATE.NOT_SERIALIZING, None

    def getTransmissionData(self, _node: Node) -> None:
        return None

    def setTransmissionData(self, _data: Any) -> bool:
        return False

    def cancelTransmisstion(self, _node: Node) -> None:
        """Nothing is being sent."""
