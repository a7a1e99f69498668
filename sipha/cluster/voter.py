"""One voter of the cluster: the library's Raft behind the guards, with pre-vote, stickiness and the leader's lease."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sipha.cluster import guards
from sipha.cluster.lease import Lease, Promise
from sipha.cluster.raft import Raft, Timing
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    Entry,
    PreVote,
    PreVoteGranted,
    ProtocolError,
    RaftMessage,
    RequestVote,
    StaleTerm,
    VoteGranted,
)
from sipha.state.time import ClusterTime

_MICROSECONDS = 1_000_000


class Voter:
    """Votes, stands, follows and leads.

    `send(peer, message)` is False if the peer can't take it; `apply(index, entry)` is called once per committed entry
    in order; `clock` must be the one that the library uses (`raft.use_clock`).
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        name: str,
        peers: Iterable[str],
        data_dir: Path,
        timing: Timing,
        clock: Callable[[], float],
        time: ClusterTime,
        send: Callable[[str, RaftMessage], bool],
        apply: Callable[[int, bytes], Any],
    ) -> None:
        self.name = name
        self.peers = tuple(sorted(peers))
        self.counters: Counter[str] = Counter()
        self.lease = Lease(timing.lease, self.peers)
        self._majority = (len(self.peers) + 1) // 2 + 1
        self._timing = timing
        self._clock = clock
        self._time = time
        self._send = send
        self._promise = Promise(data_dir / "promise", clock())
        self._went_back: dict[str, int] = {}  # when we last let a peer's next index go back, in microseconds
        self._heard = -timing.election_max
        self._followed_term = 0  # of the last heartbeat that we accepted
        self._asked_term = 0  # of the pre-vote under way
        self._grants: set[str] = set()
        self._votes: tuple[int, set[str]] = (0, set())
        self._answering: tuple[int, int | None] = (0, None)  # sent, matched of the message being received
        self.raft = Raft(name, self.peers, data_dir / "journal", timing, self, apply)
        self._receive: dict[type, Callable[[str, Any], None]] = {
            AppendEntries: self._receive_append,
            AppendReply: self._receive_reply,
            PreVote: self._receive_pre_vote,
            PreVoteGranted: self._receive_grant,
            RequestVote: self._receive_vote_request,
            VoteGranted: self._receive_vote,
            StaleTerm: self._receive_stale,
        }

    @property
    def leader(self) -> str | None:
        """Who leads, as far as we have heard lately."""
        if not self.raft.leads and self._clock() > self._heard + self._timing.election_max:
            return None
        return self.raft.leader

    def tick(self) -> None:
        """Stand if it is time, then let the library do what is due."""
        now = self._clock()
        if self.raft.election_due(now):
            self._ask_for_pre_votes(now)
        self.raft.tick()

    def receive(self, peer: str, message: RaftMessage) -> None:
        """Take a message from a peer; raises ProtocolError, and DivergedError if the logs contradict each other."""
        self._receive[type(message)](peer, message)

    def connected(self, peer: str) -> None:
        """A connection to the peer is there, or has room again."""
        self.raft.connected(peer)

    def disconnected(self, peer: str) -> None:
        """The connection to the peer is gone; if it led, it has probably died, and we stand as soon as we may."""
        self.raft.disconnected(peer)
        if not self.raft.leads and peer == self.raft.leader:
            jitter = (self.raft.election_timeout() - self._timing.election_min) / 2
            self.raft.put_election(max(self._promise.until, self._clock()) + jitter)

    # Elections

    def _ask_for_pre_votes(self, now: float) -> None:
        """Ask whether an election could be won before beginning one, which would depose a leader (thesis §9.6)."""
        self.raft.put_election(max(now, self._promise.until) + self.raft.election_timeout())
        if self._promise.binds(now):
            return
        self._asked_term = self.raft.term + 1
        self._grants = {self.name}
        if len(self._grants) >= self._majority:
            self.raft.stand()
            return
        question = PreVote(self._asked_term, self.raft.last_index, self.raft.last_term)
        for peer in self.peers:
            self._send(peer, question)

    def _receive_pre_vote(self, peer: str, message: PreVote) -> None:
        raft = self.raft
        if message.term <= raft.term:
            self._send(peer, StaleTerm(raft.term))
        elif raft.leads or self._promise.binds(self._clock()):
            self.counters["pre-votes refused"] += 1
        elif (message.last_term, message.last_index) >= (raft.last_term, raft.last_index):
            self._send(peer, PreVoteGranted(message.term, self._time.now(self._clock())))

    def _receive_grant(self, peer: str, message: PreVoteGranted) -> None:
        raft = self.raft
        if message.term == raft.term and raft.leader in {None, self.name}:
            self._time.advance(message.time, self._clock())  # not needed any more, but it may know of more time
        if raft.leads or message.term != self._asked_term or message.term != raft.term + 1:
            return
        self._time.advance(message.time, self._clock())
        self._grants.add(peer)
        if len(self._grants) >= self._majority:
            self._asked_term = 0
            self.raft.stand()

    def _receive_vote_request(self, peer: str, message: RequestVote) -> None:
        now = self._clock()
        if message.term < self.raft.term:
            self._send(peer, StaleTerm(self.raft.term))
        elif self.lease.valid(now) or self._promise.binds(now):
            # A leader may be acting on our word not to elect another (thesis §4.2.3).
            self.counters["votes refused"] += 1
        else:
            self.raft.receive_vote_request(peer, message.term, message.last_index, message.last_term)

    def _receive_vote(self, peer: str, message: VoteGranted) -> None:
        if self._votes[0] != message.term:
            self._votes = (message.term, set())
        voters = self._votes[1]
        if message.term == self.raft.term and peer not in voters:
            voters.add(peer)
            self.raft.receive_vote(peer, message.term)

    def _receive_stale(self, _peer: str, message: StaleTerm) -> None:
        """Without this, a node with a later term than the leader's would refuse its entries for ever."""
        if message.term > self.raft.term:
            self.raft.step_down(message.term)

    # Entries

    def _receive_append(self, peer: str, message: AppendEntries) -> None:
        raft, now = self.raft, self._clock()
        if message.term < raft.term:
            self._send(peer, StaleTerm(raft.term))
            return
        if raft.leads and message.term == raft.term:
            raise guards.DivergedError(f"{peer} leads term {message.term}, and so do we")
        guards.check_entries(message)
        append, matched = guards.verify(message, raft)
        self._promise.give(message.lease / 1000, now)
        self._heard = now
        self._asked_term = 0  # we have promised not to stand
        if message.term == self._followed_term:
            self._time.follow(message.time, now)
        else:
            self._followed_term = message.term
            self._time.begin(message.time, now)
        self._answering = (message.sent, matched)
        raft.receive_append(peer, append)

    def _receive_reply(self, peer: str, message: AppendReply) -> None:
        raft, sent, now = self.raft, message.sent / _MICROSECONDS, self._clock()
        if message.term > raft.term:
            raft.step_down(message.term)
        elif message.term == raft.term and raft.leads and sent <= now:
            if not 1 < message.next_index <= raft.last_index + 1:
                raise ProtocolError("not our log")
            self.lease.acknowledge(peer, sent)
            if message.reset:
                if message.sent < self._went_back.get(peer, 0):
                    # An answer to what was sent before we last went back; each would send everything again, from
                    # another place, and two that differ would do so for ever.
                    return
                self._went_back[peer] = int(now * _MICROSECONDS)
            raft.receive_reply(peer, message.next_index, reset=message.reset, success=message.success)
        else:
            self.counters["stale replies"] += 1

    # Outbox

    def append_entries(
        self, peer: str, commit_index: int, prev_index: int | None, prev_term: int | None, entries: list[Entry]
    ) -> bool:
        """Send entries, or a heartbeat."""
        now, term = self._clock(), self.raft.term
        sent, lease, time = int(now * _MICROSECONDS), math.ceil(self.lease.duration * 1000), self._time.now(now)
        return self._send(peer, AppendEntries(term, commit_index, prev_index, prev_term, entries, sent, lease, time))

    def append_reply(self, peer: str, next_index: int, *, reset: bool, success: bool) -> None:
        """Acknowledge what really matched."""
        sent, matched = self._answering
        if matched is not None and success:
            next_index = matched + 1
        elif reset and next_index <= self.raft.last_index:
            # The library goes back entry by entry; what is committed here is the same at any leader.
            next_index = self.raft.commit_index + 1
        self._send(peer, AppendReply(self.raft.term, next_index, reset, success, sent))

    def request_vote(self, peer: str, last_index: int, last_term: int) -> None:
        """Ask for a vote in our new term."""
        self._send(peer, RequestVote(self.raft.term, last_index, last_term))

    def grant_vote(self, peer: str, term: int) -> None:
        """Give our vote."""
        self._send(peer, VoteGranted(term))

    def role_changed(self, *, leading: bool) -> None:
        """Begin a lease that nobody has acknowledged yet, or end it."""
        if leading:
            self.lease.begin()
        else:
            self.lease.end()
