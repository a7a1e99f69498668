"""One voter of the cluster: the library's Raft behind the guards, with pre-vote, stickiness and the leader's lease.

What a follower acknowledges it has on disk: each acknowledgement is cut to the disk's index, and repeated when that has
risen (pitfalls-log-vip 7). The leader counts itself no further than its own disk has come, but waits for it only where
the others are no majority.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from sipha.cluster import guards
from sipha.cluster.disk import Disk
from sipha.cluster.journal import Journal
from sipha.cluster.lease import Lease, Promise
from sipha.cluster.raft import Answer, Raft, Timing
from sipha.cluster.succession import Succession
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    Entry,
    LastWord,
    LeaseAck,
    PreVote,
    PreVoteGranted,
    ProtocolError,
    RaftMessage,
    RequestVote,
    StaleTerm,
    TimeoutNow,
    VoteGranted,
)
from sipha.state.entries import UNDECODABLE, Barrier, UnknownSchema, decode
from sipha.state.time import ClusterTime

_MICROSECONDS = 1_000_000

_ACK_PAUSE = 0.5
"""The part of the heartbeats' period that lies at least between two acknowledgements of one lease."""

_TURN = 0.04
"""Seconds that a node has for its election before the next one stands; a pre-vote and a vote take a few ms."""

_MOST_UNWRITTEN = 64 << 20
"""Bytes of log that wait for a follower's disk at most, about; what comes beyond it has sent again later."""


class Voter:
    """Votes, stands, follows and leads.

    `send(peer, message)` is False if the peer can't take it; `apply(index, entry)` is called once per committed entry
    in order; `lagging(peer)` when a peer needs entries that the log has no more; `clock` must be the one that the
    library uses (`raft.use_clock`). `may_vote` is false for a node that may have forgotten a vote or an entry; who may
    votes whether it knows itself for a voter or not (Raft thesis §4.2.2), but only a voter stands.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        name: str,
        disk: Disk,
        journal: Journal,
        applied: int,
        timing: Timing,
        clock: Callable[[], float],
        time: ClusterTime,
        send: Callable[[str, RaftMessage], bool],
        apply: Callable[[int, bytes], Any],
        lagging: Callable[[str], None],
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self.lease = Lease(timing.lease)
        self.succession = Succession(name, clock)
        self.may_vote = False
        self.gives_precedence = False
        """True to stand later than the others do, who should rather be elected."""
        self._is_voter = False
        self.disk_hangs = False
        """True while the disk takes nothing and says nothing."""
        self._written = (0, -math.inf)  # up to where the log is on disk, and when that was last as it should
        self.others: frozenset[str] = frozenset()
        """The other voters."""
        self.forgetful: dict[str, int] = {}
        """The peers that have lost what they held; what they say counts once the entry here is committed without."""
        self._greeted: dict[str, int] = {}  # when the present connection with a peer began, in microseconds
        self._majority = 1
        self._timing = timing
        self._clock = clock
        self._time = time
        self._send = send
        self._lagging = lagging
        self._journal = journal
        self._promise = Promise(disk, clock())
        self._went_back: dict[str, int] = {}  # when we last let a peer's next index go back, in microseconds
        self._full = False  # more waits for the disk than the memory may hold
        self._heard = -timing.election_max
        self._unaided = (0, 0)  # the term of a leader, and what was committed in it without counting us
        self._acked = ((0, 0), -math.inf)  # the claim whose lease we acknowledged last, and when
        self._asked_term = 0  # of the pre-vote under way
        self._grants: set[str] = set()
        self._votes: tuple[int, set[str]] = (0, set())
        self._secret = b""  # what shows our voters that the leader's claim has ended
        self._verified: tuple[int, int, int] = (0, 0, 0)  # up to where our log is the leader's: term, index, sent
        self._round = (-math.inf, 0)  # when it began, and what was committed then
        self._goal = 0  # what was committed when the round before began
        self.raft = Raft(name, journal, applied, timing, self, apply)
        self.time_term, told = _last_told(journal)
        """Of the leader whose cluster time is ours."""
        time.advance(told, clock())
        self._receive: dict[type, Callable[[str, Any], None]] = {
            AppendEntries: self._receive_append,
            LeaseAck: self._receive_lease_ack,
            AppendReply: self._receive_reply,
            PreVote: self._receive_pre_vote,
            PreVoteGranted: self._receive_grant,
            RequestVote: self._receive_vote_request,
            VoteGranted: self._receive_vote,
            StaleTerm: self._receive_stale,
            TimeoutNow: self._receive_timeout_now,
        }

    @property
    def leader(self) -> str | None:
        """Who leads, as far as we have heard lately."""
        if not self.raft.leads and self._clock() > self._heard + self._timing.election_max:
            return None
        return self.raft.leader

    def set_members(self, voters: Collection[str], learners: Collection[str]) -> None:
        """Let these count from now on."""
        self._is_voter = self.name in voters
        self.others = frozenset(voters) - {self.name}
        self._majority = (len(self.others) + 1) // 2 + 1
        self.lease.set_others(self.others, self._clock())
        self.raft.set_members(voters, learners)

    def tick(self) -> None:
        """Stand if it is time, let the library do what is due, and have the disk write what came."""
        now = self._clock()
        patience = self._timing.election_max - self._timing.election_min if self.gives_precedence else 0.0
        if self.raft.election_due(now - patience):
            self._ask_for_pre_votes(now)
        self.lease.lapse(now)
        self._watch_disk(now)
        if now - self._round[0] >= self._timing.election_min:
            self._goal, self._round = self._round[1], (now, self.raft.commit_index)
        if not self.raft.leads:
            self._journal.flush()  # first: the disk writes while we apply
        self.raft.tick()
        self._journal.flush()  # a leader's last: the others' disks have the longer way

    def _watch_disk(self, now: float) -> None:
        """Lead no more if the disk takes nothing and says nothing: others have one that does."""
        durable = self._journal.durable
        if durable >= self.raft.last_index or durable != self._written[0]:
            self._written = (durable, now)
        self.disk_hangs = now - self._written[1] > 2 * self._timing.election_max
        if self.disk_hangs and self.raft.leads and self.others:
            self.succession.noticed(self.name, "gave up because its disk hangs")
            self.counters["leaderships given up as the disk hangs"] += 1
            self.raft.resign()

    def receive(self, peer: str, message: RaftMessage) -> None:
        """Take a message from a peer; raises ProtocolError, and DivergedError if the logs contradict each other."""
        receive = self._receive.get(type(message))
        if receive is None:
            raise ProtocolError("out of place")
        receive(peer, message)

    def connected(self, peer: str) -> None:
        """A connection to the peer is there, or has room again."""
        self.raft.connected(peer)

    def disconnected(self, peer: str) -> None:
        """The connection to the peer is gone; if it led, it has probably died, and we stand as soon as we may."""
        self.raft.disconnected(peer)
        if not self.raft.leads and peer == self.raft.leader and not self._promise.secret:
            self.succession.noticed(peer, "closed its connection", self._clock() - self._heard)
            self._stand_in_turn(peer)

    # Elections

    @property
    def _may_stand(self) -> bool:
        return self.may_vote and self._is_voter and not self.disk_hangs

    def stand(self, secret: bytes) -> None:
        """Begin a term and ask for votes at once: the claim with this secret has ended, a leader's or our own."""
        self.raft.resign()
        self._asked_term = 0
        self._secret = secret
        self.raft.stand()

    def _stand_in_turn(self, leader: str) -> None:
        """The leader is gone, and all hear of it at once: stand one after the other, lest the votes be split."""
        turn = sum(peer < self.name for peer in self.others - {leader})
        self.raft.put_election(max(self._promise.until, self._clock()) + turn * _TURN)

    def _ask_for_pre_votes(self, now: float) -> None:
        """Ask whether an election could be won before beginning one, which would depose a leader (thesis §9.6)."""
        self.succession.noticed(self.raft.leader, "fell silent", now - self._heard)
        self.raft.put_election(max(now, self._promise.until) + self.raft.election_timeout())
        if self.raft.stands:
            self.raft.resign()  # no vote may come after an election, from a node that has forgotten it meanwhile
        if not self._may_stand or self._promise.binds(now):
            return
        self._asked_term = self.raft.term + 1
        self._grants = {self.name}
        self._secret = self._promise.secret
        if len(self._grants) >= self._majority:
            self.raft.stand()
            return
        question = PreVote(self._asked_term, self.raft.last_index, self.raft.last_term, self._secret)
        for peer in sorted(self.others):
            self._send(peer, question)

    def _receive_pre_vote(self, peer: str, message: PreVote) -> None:
        raft = self.raft
        self._promise.release(message.secret)
        if message.term <= raft.term:
            self._send(peer, StaleTerm(raft.term))
        elif not self.may_vote or (raft.leads and self.lease.held) or self._promise.binds(self._clock()):
            self.counters["pre-votes refused"] += 1
        elif (message.last_term, message.last_index) >= (raft.last_term, raft.last_index):
            self._send(peer, PreVoteGranted(message.term, self._time.now(self._clock()), self.time_term))

    def _receive_grant(self, peer: str, message: PreVoteGranted) -> None:
        raft = self.raft
        if raft.leads or message.term != self._asked_term or message.term != raft.term + 1 or peer not in self.others:
            return
        self._learn_time(message.time, message.time_term)
        self._grants.add(peer)
        if len(self._grants) >= self._majority:
            self._asked_term = 0
            self.raft.stand()

    def _learn_time(self, time: int, term: int) -> None:
        """Take over what a voter knows of the cluster time; an earlier leader's was not what later ones used."""
        if term > self.time_term:
            self.time_term = term
            self._time.begin(time, self._clock())
        elif term == self.time_term:
            self._time.advance(time, self._clock())

    def _receive_vote_request(self, peer: str, message: RequestVote) -> None:
        now = self._clock()
        self._promise.release(message.secret)
        if message.term < self.raft.term:
            self._send(peer, StaleTerm(self.raft.term))
        elif not self.may_vote or self.lease.valid(now) or self._promise.binds(now):
            # A leader may be acting on our word not to elect another (thesis §4.2.3).
            self.counters["votes refused"] += 1
        else:
            self.raft.receive_vote_request(peer, message.term, message.last_index, message.last_term)

    def _receive_vote(self, peer: str, message: VoteGranted) -> None:
        if message.term != self.raft.term or peer not in self.others:
            return
        if self._votes[0] != message.term:
            self._votes = (message.term, set())
        voters = self._votes[1]
        if peer not in voters:
            voters.add(peer)
            if not self.raft.leads:
                # Others than those who elect us may have let us stand, and known less.
                self._learn_time(message.time, message.time_term)
            self.raft.receive_vote(peer, message.term)

    def _receive_stale(self, _peer: str, message: StaleTerm) -> None:
        """Without this, a node with a later term than the leader's would refuse its entries for ever."""
        if message.term > self.raft.term:
            self.raft.step_down(message.term)

    def _receive_timeout_now(self, peer: str, message: TimeoutNow) -> None:
        """The leader has ended its claim, and wants us to lead."""
        raft = self.raft
        if message.term != raft.term or peer != raft.leader or not self._may_stand:
            self.counters["transfers refused"] += 1
        elif self._promise.release(message.secret):
            self.succession.noticed(peer, "hands leadership on")
            self.stand(message.secret)
        else:
            self.counters["transfers refused"] += 1

    def last_word_heard(self, word: LastWord) -> None:
        """A leader's guard has taken its address away: stand as soon as it is our turn."""
        raft = self.raft
        if word.term == raft.term and word.leader == raft.leader and self._promise.release(word.secret):
            self.counters["last words"] += 1
            self.succession.noticed(word.leader, "died, as its guard says", self._clock() - self._heard)
            self._stand_in_turn(word.leader)

    # Entries, as a follower

    def _receive_append(self, peer: str, message: AppendEntries) -> None:
        raft, now = self.raft, self._clock()
        if message.term < raft.term:
            self._send(peer, StaleTerm(raft.term))
            return
        if raft.leads and message.term == raft.term:
            raise guards.DivergedError(f"{peer} leads term {message.term}, and so do we")
        guards.check_entries(message)
        if message.prev_index is not None and self._is_full():
            self.counters["entries the disk had no room for"] += len(message.entries)
            message = guards.without_entries(message)
        append, matched = guards.verify(message, raft)
        claim = (message.term, message.claim)
        promised = self._promise.give(message.lease / 1000, now, claim, message.commitment)
        self._heard = now
        self.succession.followed()
        self._asked_term = 0  # we have promised not to stand
        if message.term == self.time_term:
            self._time.follow(message.time, now)
        else:
            self.time_term = message.term
            self._time.begin(message.time, now)
        if message.unaided:
            self._unaided = (message.term, message.commit_index)
        answer = raft.receive_append(peer, append)
        if promised and (claim != self._acked[0] or now - self._acked[1] >= self._timing.append_period * _ACK_PAUSE):
            # The term is written down by now: nobody of an earlier one can be promised anything after a crash.
            self._acked = (claim, now)
            self._send(peer, LeaseAck(message.term, message.claim, message.sent))
        if answer is not None:  # last: it goes out at once, and with it what was said before
            self._answer(peer, answer, message.sent, matched)

    def _is_full(self) -> bool:
        """Return True while too much of the log waits for the disk, which hangs or is slow, for the memory to hold."""
        # What is sent again is all that was left out: worth it once there is room for much of it.
        self._full = self._journal.backlog > (_MOST_UNWRITTEN // 2 if self._full else _MOST_UNWRITTEN)
        return self._full

    def _answer(self, peer: str, answer: Answer, sent: int, matched: int | None) -> None:
        """Acknowledge what really matched, as far as it is on disk."""
        next_index, reset, success = answer
        if matched is not None and success:
            next_index = matched + 1
        elif reset and next_index <= self.raft.last_index:
            # The library goes back entry by entry; what is committed here is the same at any leader.
            next_index = self.raft.commit_index + 1
        if success:
            term, index, _ = self._verified
            if term == self.raft.term:
                next_index = max(next_index, index + 1)
            self._verified = (self.raft.term, next_index - 1, sent)
            if next_index > self._journal.durable + 1:
                return  # the disk is at it, and will answer; that we live, the lease's acknowledgement says
        self._send(peer, AppendReply(self.raft.term, next_index, reset, success, sent))

    def installed(self, peer: str, index: int) -> None:
        """A snapshot of the leader's at `index` is in place of our log, or our log holds all that it covers."""
        if peer == self.raft.leader and not self.raft.leads:
            self._answer(peer, Answer(index + 1, success=True), sent=0, matched=None)

    def remembers(self) -> bool:
        """Return True if we have all that a leader has committed without us, since it knows that we forgot.

        Whatever our earlier self helped to decide, by a vote or an acknowledgement, one of that majority knew of it.
        """
        term, index = self._unaided
        return term == self.raft.term and 0 < index <= self.raft.applied_index

    # Entries, as the leader

    def _receive_lease_ack(self, peer: str, message: LeaseAck) -> None:
        sent = message.sent / _MICROSECONDS
        if message.term == self.raft.term and self.raft.leads and sent <= self._clock():
            self.raft.touch(peer)
            if peer in self.others and peer not in self.forgetful and message.sent >= self._greeted.get(peer, 0):
                # What it promised before it said hello it may have promised while it had forgotten something.
                self.lease.acknowledge(peer, message.claim, sent, self._clock())

    def _receive_reply(self, peer: str, message: AppendReply) -> None:
        raft, sent, now = self.raft, message.sent / _MICROSECONDS, self._clock()
        if message.term > raft.term:
            raft.step_down(message.term)
        elif 0 < message.sent < self._greeted.get(peer, 0):
            self.counters["stale replies"] += 1  # what it had then it may have lost; 0 answers a snapshot
        elif message.term == raft.term and raft.leads and sent <= now:
            if not 0 < message.next_index <= raft.last_index + 1:
                raise ProtocolError("not our log")
            if message.reset:
                if message.sent < self._went_back.get(peer, 0):
                    # An answer to what was sent before we last went back; each would send everything again, from
                    # another place, and two that differ would do so for ever.
                    return
                self._went_back[peer] = int(now * _MICROSECONDS)
            if message.success and peer in self.forgetful:
                raft.send_from(peer, message.next_index)
            else:
                raft.receive_reply(peer, message.next_index, reset=message.reset, success=message.success)
        else:
            self.counters["stale replies"] += 1

    def is_ready(self, peer: str) -> bool:
        """Return True if a peer answers, and has on disk what was committed an election timeout ago (thesis §4.2.1).

        While entries come, some are always on their way.
        """
        raft = self.raft
        return (
            peer not in self.forgetful
            and raft.silence(peer) < self._timing.election_max
            and raft.match(peer) >= self._goal
        )

    def greeted(self, peer: str, *, forgetful: bool) -> None:
        """A connection with a peer is new: count nothing that it acknowledged earlier, its disk may be another."""
        self._greeted[peer] = int(self._clock() * _MICROSECONDS)
        self.raft.forget_match(peer)
        self.forgetful.pop(peer, None)
        if forgetful:
            self.forgetful[peer] = self.raft.last_index + 1

    def durable_risen(self) -> None:
        """More of the log is on disk: acknowledge it to the leader."""
        raft, (term, index, sent) = self.raft, self._verified
        if term == raft.term and raft.leader is not None and not raft.leads:
            next_index = min(index, self._journal.durable) + 1
            self._send(raft.leader, AppendReply(term, next_index, reset=False, success=True, sent=sent))

    # Outbox

    def append_entries(
        self, peer: str, commit_index: int, prev_index: int | None, prev_term: int | None, entries: list[Entry]
    ) -> bool:
        """Send entries, or a heartbeat."""
        now, term, lease = self._clock(), self.raft.term, self.lease
        barrier = self.forgetful.get(peer)
        if prev_index is None:
            self._lagging(peer)
        return self._send(
            peer,
            AppendEntries(
                term,
                commit_index,
                prev_index,
                prev_term,
                entries,
                int(now * _MICROSECONDS),
                math.ceil(lease.duration * 1000),
                self._time.now(now),
                lease.claim,
                lease.commitment,
                barrier is not None and barrier <= commit_index,
            ),
        )

    def request_vote(self, peer: str, last_index: int, last_term: int) -> None:
        """Ask for a vote in our new term."""
        self._send(peer, RequestVote(self.raft.term, last_index, last_term, self._secret))

    def grant_vote(self, peer: str, term: int) -> None:
        """Give our vote."""
        self._send(peer, VoteGranted(term, self._time.now(self._clock()), self.time_term))

    def role_changed(self, *, leading: bool) -> None:
        """Begin a claim that nobody has acknowledged yet, or end it."""
        self.forgetful = dict.fromkeys(self.forgetful, self.raft.last_index + 1)
        if leading:
            self.time_term = self.raft.term
            self.lease.begin()
        else:
            self.succession.noticed(self.name, "had no majority")
            self.lease.end()


def _last_told(journal: Journal) -> tuple[int, int]:
    """The last entry by whose time a leader may have granted anything: its term, and the time in ms.

    The time of the base is in its snapshot. What begins a term, the library's no-op and a barrier, grants nothing: it
    must not count for more than an earlier leader's time that another's clock has carried on. What was granted is in
    the log of whoever can be elected.
    """
    for index in range(journal.last_index, journal.first_index, -1):
        ((command, _, term),) = journal.entries(index, index)
        if command[0] == guards.NO_OP:
            continue
        try:
            batch = decode(command[1:])
        except (UnknownSchema, *UNDECODABLE):
            return term, 0
        if not all(isinstance(record, Barrier) for record in batch.records):
            return term, batch.time
    return journal.term_at(journal.first_index) or 0, 0
