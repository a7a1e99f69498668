"""PySyncObj 0.3.17 under typed names: the only module that imports it, and the only one that knows its private names.

Nothing here decides anything. `Voter` stands before it with the guards, because some of what the library does with a
correct message would lose entries.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from sipha.cluster.guards import REGULAR
from sipha.cluster.wire import AppendEntries, Entry
from sipha.errors import ConfigError

MAX_ENTRY = 128 * 1024
"""Bytes of the longest entry. The library sends one of `_MAX_APPEND` or more in pieces, wrongly."""

_MAX_APPEND = 256 * 1024
"""Bytes of entries in a message, the last entry not counted."""

JOURNAL_LIMIT = (1 << 32) - (64 << 20)
"""Bytes of journal beyond which nothing more is proposed; the file's offsets end at 4 GiB."""

_FOLLOWER, _LEADER = 0, 2
_NEVER = 10**12


clock: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds of CLOCK_BOOTTIME, which also counts while the machine is suspended."""


def use_clock(now: Callable[[], float]) -> None:
    """Make the library read `now` too; two clocks in one protocol would drift apart."""
    pysyncobj.syncobj.monotonicTime = now


use_clock(clock)


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


class Outbox(Protocol):
    """Takes what the library wants to tell a peer."""

    def append_entries(
        self, peer: str, commit_index: int, prev_index: int | None, prev_term: int | None, entries: list[Entry]
    ) -> bool:
        """Entries or a heartbeat from the leader; False if the peer can't take them now."""

    def append_reply(self, peer: str, next_index: int, *, reset: bool, success: bool) -> None:
        """The answer to the message that is being received."""

    def request_vote(self, peer: str, last_index: int, last_term: int) -> None:
        """A vote is asked for in the current term."""

    def grant_vote(self, peer: str, term: int) -> None:
        """The vote of `term` is given, durably."""

    def role_changed(self, *, leading: bool) -> None:
        """The node begins or ceases to lead; told before anything is sent in the new role."""


class Raft(SyncObj):
    """The library's node: log, terms and votes in the file `journal`, no thread, no socket.

    Raises ConfigError if that file can't be used.
    """

    def __init__(  # noqa: PLR0917  they stand in the order of the sentence
        self,
        name: str,
        peers: Iterable[str],
        journal: Path,
        timing: Timing,
        outbox: Outbox,
        apply: Callable[[int, bytes], Any],
    ) -> None:
        self._outbox = outbox
        self._apply = apply
        self._nodes = {peer: _Peer(peer) for peer in peers}
        self._link = _Link(self, outbox)
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
            journalFile=str(journal),
            onStateChanged=self._state_changed,
        )
        try:
            super().__init__(_Peer(name), list(self._nodes.values()), conf, transport=self._link)
        except (struct.error, ValueError):
            raise _damaged(journal) from None
        except OSError as error:
            raise ConfigError(f"can't use the log in {journal}: {error.strerror}") from None
        if not self._log_is_whole():
            self.close()
            raise _damaged(journal)
        self._SyncObj__raftCommitIndex: int = min(self.commit_index, self.last_index)

    # The log

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return int(self._SyncObj__raftLog[-1][1])

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return int(self._SyncObj__raftLog[-1][2])

    @property
    def commit_index(self) -> int:
        """The index up to which entries are known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        """The index of the last entry that was applied."""
        return int(self._SyncObj__raftLastApplied)

    @property
    def journal_bytes(self) -> int:
        """The size of the log in the journal."""
        return int(self._SyncObj__raftLog._FileJournal__currentOffset)  # noqa: SLF001  the library asks for it nowhere

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if the log has none."""
        log = self._SyncObj__raftLog
        position = index - log[0][1]
        return int(log[position][2]) if 0 <= position < len(log) else None

    def append(self, entry: bytes, done: Callable[[Any], None]) -> None:
        """Append an entry as the leader; `done` gets what `apply` returned, or None if another entry took its place.

        `done` may never be called.
        """

        def called(result: Any, reason: int) -> None:
            done(result if reason == FAIL_REASON.SUCCESS else None)

        self._applyCommand(entry, called, REGULAR)
        self._checkCommandsToApply()

    def _log_is_whole(self) -> bool:
        """Return True if entry follows entry, and the terms that we voted in are known.

        The library adds entries, after the first, only in a term that it has written down; it takes what it can't read
        of terms and votes for none.
        """
        log = self._SyncObj__raftLog
        meta, path = log._FileJournal__meta, log._FileJournal__metaStorer.getPath()  # noqa: SLF001  as above
        if not meta and (self.last_index > 1 or Path(path).exists()):
            return False
        term = 0
        for number, (command, index, entry_term) in enumerate(log[:], 1):
            if index != number or entry_term < term or not command:
                return False
            term = entry_term
        return True

    # Roles

    @property
    def leads(self) -> bool:
        """True if the node believes to lead its term."""
        return bool(self._SyncObj__raftState == _LEADER)

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
        self._SyncObj__setCurrentTerm(term, None)
        self.resign()

    def resign(self) -> None:
        """Lead no more."""
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
        if self.leads:
            last, next_index = self.last_index, self._SyncObj__raftNextIndex
            if any(next_index[node] <= last for node in self._SyncObj__connectedNodes):
                self._SyncObj__newAppendEntriesTime = 0.0
        due, self._SyncObj__raftElectionDeadline = self._SyncObj__raftElectionDeadline, math.inf
        try:
            self.doTick(0.0)
        finally:
            self._SyncObj__raftElectionDeadline = due

    def connected(self, peer: str) -> None:
        """The peer can be sent to."""
        self._SyncObj__onNodeConnected(self._nodes[peer])

    def disconnected(self, peer: str) -> None:
        """The peer can't be sent to."""
        self._SyncObj__onNodeDisconnected(self._nodes[peer])

    def close(self) -> None:
        """Write the journal out and close it."""
        self.destroy()

    # Messages

    def receive_append(self, peer: str, append: AppendEntries) -> None:
        """Take a verified message of a leader whose term is not earlier than ours."""
        message: dict[str, Any] = {"type": "append_entries", "term": append.term, "commit_index": append.commit_index}
        if append.prev_index is not None:
            message |= {
                "prevLogIdx": append.prev_index,
                "prevLogTerm": append.prev_term,
                "entries": append.entries,
            }
        self._SyncObj__onMessageReceived(self._nodes[peer], message)

    def receive_reply(self, peer: str, next_index: int, *, reset: bool, success: bool) -> None:
        """Take a follower's answer of this term.

        The library lets every answer move its next index back and then sends again what is under way; here only a
        follower that lacks entries (`reset`) does that.
        """
        node, next_indices = self._nodes[peer], self._SyncObj__raftNextIndex
        sent = next_indices[node]
        message = {"type": "next_node_idx", "next_node_idx": next_index, "reset": reset, "success": success}
        self._SyncObj__onMessageReceived(node, message)
        if not reset and next_indices[node] < sent:
            next_indices[node] = sent

    def receive_vote_request(self, peer: str, term: int, last_index: int, last_term: int) -> None:
        """Vote, or don't (Raft §5.2, §5.4.1)."""
        message = {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        self._SyncObj__onMessageReceived(self._nodes[peer], message)

    def receive_vote(self, peer: str, term: int) -> None:
        """Count a vote; the library counts votes and not voters, so it must not be told twice."""
        self._SyncObj__onMessageReceived(self._nodes[peer], {"type": "response_vote", "term": term})

    # What the library calls

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        """Apply the entry after the last applied one; a no-op changes nothing."""
        if command[0] != REGULAR:
            return None
        return self._apply(self.applied_index + 1, command[1:])

    def _state_changed(self, old: int, new: int) -> None:
        if _LEADER in (old, new):
            self._outbox.role_changed(leading=new == _LEADER)

    def hold(self, peer: Node, entries: list[Entry]) -> None:
        """Send the peer nothing more until it is `connected` again, and these entries again then."""
        if entries:
            self._SyncObj__raftNextIndex[peer] = entries[0][1]
        self._SyncObj__onNodeDisconnected(peer)


def _damaged(journal: Path) -> ConfigError:
    return ConfigError(
        f"the log in {journal} is damaged; move it and what lies beside it away while all other nodes run, and the "
        "node fetches everything from them"
    )


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
                return sent
            case "next_node_idx":
                reset, success = message["reset"], message["success"]
                self._outbox.append_reply(node.id, message["next_node_idx"], reset=reset, success=success)
            case "request_vote":
                self._outbox.request_vote(node.id, message["last_log_index"], message["last_log_term"])
            case "response_vote":
                self._outbox.grant_vote(node.id, message["term"])
            case _:
                return False
        return True
