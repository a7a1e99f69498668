"""This node's copy of the state, kept equal with the others' by the log.

A record that is proposed waits for the next turn of the reactor, goes into one entry with all that came since, and its
proposer hears what `apply` made of it once a majority has the entry.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from sipha.cluster.guards import DivergedError
from sipha.cluster.leadership import Leadership
from sipha.cluster.peers import INetwork, INetworkUser, Peers
from sipha.cluster.proposals import Done, Proposals
from sipha.cluster.raft import JOURNAL_LIMIT, Timing
from sipha.cluster.raft import clock as boottime
from sipha.cluster.voter import Voter
from sipha.cluster.wire import ProtocolError, RaftMessage
from sipha.errors import ConfigError, NoQuorum, NotLeader, Unavailable, UnknownOutcome
from sipha.sip.flow import Address
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import SCHEMA, Barrier, Batch, Policy, PutKey, Record, encode
from sipha.state.interfaces import ICredentials, ILocation, ILog
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome
from sipha.state.time import ClusterTime

TICK = 0.02
"""Seconds between two looks at the library's timers."""

_LOW = 0.4
"""Which part of the lease is left when a majority that has not renewed it is taken for gone."""

_MAX_FAILURES = 5
_FAILURES_WITHIN = 1.0
_KEY_SIZE = 32


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer as this node sees it; `heard` is in seconds, None if it isn't connected."""

    name: str
    connected: bool
    heard: float | None


class ReplicaStatus(msgspec.Struct, frozen=True):
    """This node's part in the cluster.

    `leading` is what allows to answer: lease valid and barrier applied. `lease` is in seconds, None without end (a
    cluster of one); `time` is the cluster time in seconds; `hash` is over the state at `applied_index`; nothing more is
    proposed once `journal_bytes` has reached `journal_limit`.
    """

    node: str
    role: Literal["leader", "follower", "failed"]
    leading: bool
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    last_index: int
    hash: str
    time: float
    lease: float | None
    proposals: int
    journal_bytes: int
    journal_limit: int
    peers: tuple[PeerStatus, ...]
    counters: dict[str, int]


@implementer(ILog, ILocation, ICredentials, INetworkUser)
class Replica:
    """The node `node` of the cluster `cluster`, reached by its `peers` at `address`; its log lives in `data_dir`.

    `policy` goes into the header of each batch that this node proposes. `failed` is told in a sentence why the node has
    ceased to take part. Raises ConfigError if addresses or data directory can't be used.
    """

    def __init__(  # noqa: PLR0917  who, where, with whom, from which data
        self,
        reactor: Any,
        node: str,
        address: Address,
        peers: Mapping[str, Address],
        data_dir: Path | str,
        policy: Policy,
        *,
        cluster: str = "sipha",
        timing: Timing = Timing(),  # noqa: B008  frozen
        network: INetwork | None = None,
        clock: Callable[[], float] = boottime,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        self.node = node
        self.policy = policy
        self.machine = Machine()
        self.leadership = Leadership()
        self._reactor = reactor
        self._clock = clock
        self._failed = failed
        self._network = Peers(reactor, node, address, peers, cluster) if network is None else network
        self._log = Logger(namespace="sipha.cluster")
        self._time = ClusterTime(clock())
        directory = Path(data_dir)
        self._lock = _take(directory)
        self._voter = Voter(node, peers, directory, timing, clock, self._time, self._network.send, self._apply)
        self._lease = self._voter.lease
        self._raft = self._voter.raft
        self._proposals = Proposals(clock, self._encode, self._raft.append)
        self._term = 0  # the last one that we began as its leader
        self._ticking: Any = None
        self._kicked: Any = None
        self._lease_end: Any = None
        self._low_looks = 0  # at a lease that runs low, one after the other
        self._full = False
        self._failures: list[float] = []
        self._state: Literal["new", "running", "stopped", "failed"] = "new"

    # Life

    def start(self) -> None:
        """Apply what the log is known to have committed, then join the others."""
        self._state = "running"
        self._voter.tick()
        self._network.start(self)
        self._tick()

    def stop(self) -> Deferred[None]:
        """Lead no more, leave the others, and close the log."""
        was, self._state = self._state, "stopped"
        for call in (self._ticking, self._kicked, self._lease_end):
            if call is not None and call.active():
                call.cancel()
        stopped = self._network.stop()
        if was != "failed":
            self._withdraw()
        self._raft.close()
        self._lock.close()
        return stopped

    # ILog

    def propose(self, record: Record, done: Done) -> None:
        """Queue a record for the next batch and call `done` once, with what apply returned or why it did not come."""
        if not self.leading() or self._misses_majority():
            done(self._refusal())
        elif self._full:
            done(Unavailable("the log is full; see journal_bytes in the node's status", retry_after=300))
        else:
            self._proposals.add(record, done)
            if self._kicked is None:
                self._kick()

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
            self._kick()
        return False

    @property
    def term(self) -> int:
        """The current term."""
        return self._raft.term

    @property
    def leader(self) -> str | None:
        """The node that leads as far as this one knows."""
        return None if self._state == "failed" else self._voter.leader

    def status(self) -> ReplicaStatus:
        """This node's part in the cluster, now."""
        raft, now = self._raft, self._clock()
        role: Literal["leader", "follower", "failed"] = "leader" if raft.leads else "follower"
        remaining = max(self._lease.until - now, 0.0)
        heard = [(peer, self._network.heard(peer)) for peer in self._voter.peers]
        return ReplicaStatus(
            node=self.node,
            role="failed" if self._state == "failed" else role,
            leading=self.leading(),
            term=raft.term,
            leader=self.leader,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            last_index=raft.last_index,
            hash=f"{self.machine.hash():032x}",
            time=self.cluster_time(),
            lease=None if remaining == float("inf") else remaining,
            proposals=self._proposals.count,
            journal_bytes=raft.journal_bytes,
            journal_limit=JOURNAL_LIMIT,
            peers=tuple(PeerStatus(peer, seconds is not None, seconds) for peer, seconds in heard),
            counters={**self._voter.counters, **self._network.counters},
        )

    # INetworkUser

    def connected(self, peer: str) -> None:
        """The peer can be sent to."""
        self._guarded(lambda: self._voter.connected(peer))

    def disconnected(self, peer: str) -> None:
        """The peer can't be sent to."""
        self._guarded(lambda: self._voter.disconnected(peer))

    def received(self, peer: str, message: RaftMessage) -> None:
        """Take a message, and do at the end of this turn what follows from it."""
        self._guarded(lambda: self._voter.receive(peer, message))

    # Driving

    def _kick(self) -> None:
        """Tick once more at the end of this turn of the reactor, for all that happens in it."""
        if self._kicked is None and self._state == "running":
            self._kicked = self._reactor.callLater(0, self._tick_kicked)

    def _tick_kicked(self) -> None:
        self._kicked = None
        self._guarded(self._advance, kick=False)

    def _tick(self) -> None:
        self._ticking = self._reactor.callLater(TICK, self._tick)
        self._guarded(self._advance, kick=False)
        self._guarded(self._watch_majority, kick=False)

    def _guarded(self, step: Callable[[], None], *, kick: bool = True) -> None:
        """Do one step; a failing one must not end the driving, but a node that goes on failing must not lead."""
        if self._state != "running":
            return
        try:
            step()
        except ProtocolError:
            raise
        except DivergedError as error:
            self._fail(str(error))
        except OSError as error:  # what memory and file hold of the log may differ now
            self._fail(f"the log can't be written: {error}")
        except MemoryError:  # an entry may have been applied in part; the library won't apply the rest
            self._fail("the memory is full")
        except Exception:  # noqa: BLE001  whatever it is, it is counted
            self._log.failure("a step of the log failed")
            now = self._clock()
            self._failures = [when for when in self._failures if now - when < _FAILURES_WITHIN] + [now]
            if len(self._failures) >= _MAX_FAILURES:
                self._fail("the log fails again and again")
        if kick:
            self._kick()

    def _advance(self) -> None:
        if self._raft.leads:
            self._full = self._raft.journal_bytes >= JOURNAL_LIMIT
            self._proposals.flush()
        self._voter.tick()
        self._watch_role()
        self._proposals.expire()

    def _fail(self, reason: str) -> None:
        """Cease to take part, so that the others elect another."""
        self._state = "failed"
        self._log.critical("{node} has left the cluster: {reason}", node=self.node, reason=reason)
        self._ticking.cancel()
        self._network.stop()
        self._withdraw()
        if self._failed is not None:
            self._failed(reason)

    # Proposals

    def _encode(self, records: tuple[Record, ...]) -> bytes:
        return encode(Batch(SCHEMA, self._time.now(self._clock()), self.policy, records))

    def _apply(self, index: int, entry: bytes) -> list[Outcome]:
        """Apply an entry that is committed."""
        outcomes = self.machine.apply(index, entry)
        self._time.advance(self.machine.time, self._clock())
        return outcomes

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
            if self._term:
                self._withdraw()
            return
        if self._raft.term != self._term:
            self._begin_term()
        if self.leading():
            if not self.leadership.held:
                self._watch_lease()
                self.leadership.gain()
        elif self.leadership.held:
            self.leadership.lose()
            self._proposals.refuse_waiting(NoQuorum("no majority answers"))

    def _begin_term(self) -> None:
        """Put a barrier behind all that earlier leaders have left; when it is applied, so is that."""
        self._withdraw()
        self._term = self._raft.term
        self._log.info("{node} is elected in term {term}", node=self.node, term=self._term)
        self._proposals.add_internal(Barrier(self._term, self.node), self._barrier_applied)
        self._kick()

    def _barrier_applied(self, outcome: Outcome | Unavailable) -> None:
        """The state is whole; the first leader of all adds the first key."""
        if isinstance(outcome, Unavailable):
            return
        if self.machine.keys.current is None:
            self._proposals.add_internal(PutKey(os.urandom(_KEY_SIZE)), self._barrier_applied)
        else:
            self._lease.usable = True
        self._kick()

    def _withdraw(self) -> None:
        """We lead no more: what is under way may be applied or not, what waits won't."""
        self._term = 0
        self._lease.usable = False
        self.leadership.lose()
        self._proposals.withdraw()

    def _watch_majority(self) -> None:
        """Answer who waits while the lease lasts; after it nothing may be sent."""
        low = self.leadership.held and self._runs_low()
        self._low_looks = self._low_looks + 1 if low else 0
        if self._misses_majority():
            self._proposals.refuse_all(
                UnknownOutcome("no majority is known to have the record"), NoQuorum("no majority answers")
            )

    def _misses_majority(self) -> bool:
        """Return True if no majority has answered for long.

        It takes two looks: what came while this process was held up is read between them.
        """
        return self._low_looks > 1 and self._runs_low()

    def _runs_low(self) -> bool:
        return self._lease.until - self._clock() < _LOW * self._lease.duration

    def _watch_lease(self) -> None:
        """Look again when the lease ends, as far as it is known now."""
        remaining = self._lease.until - self._clock()
        if self._lease_end is not None and self._lease_end.active():
            self._lease_end.cancel()
        if math.isfinite(remaining):
            self._lease_end = self._reactor.callLater(max(remaining, 0.001), self._lease_ended)

    def _lease_ended(self) -> None:
        if self.leading():
            self._watch_lease()
        else:
            self._guarded(self._watch_role, kick=False)


def _take(directory: Path) -> BinaryIO:
    """Make the data directory ours alone: nobody else may read or write it, and no second process use it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        lock = (directory / "lock").open("ab")
    except OSError as error:
        raise ConfigError(f"can't use the data directory {directory}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigError(f"another process uses the data directory {directory}") from None
    return lock
