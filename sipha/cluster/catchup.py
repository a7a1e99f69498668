"""Snapshots in the life of a node: taken so that the log stays short, sent to who lags behind it, and installed.

A snapshot is durable before the entries that it covers are forgotten, and before a received one takes their place
(pitfalls-log-vip 15). It is installed once another node is heard to have the same table at its index (16); where nobody
else can have it, the sender's word must do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from twisted.logger import Logger

from sipha.cluster.checkpoint import Checkpoints
from sipha.cluster.journal import Journal
from sipha.cluster.membership import Membership
from sipha.cluster.snapshots import SnapshotFile, Snapshots, Staging
from sipha.cluster.voter import Voter
from sipha.cluster.wire import MAX_CHUNK, ProtocolError, RaftMessage, SnapshotChunk, SnapshotReply
from sipha.state.entries import Member
from sipha.state.machine import DamagedMemory, Machine
from sipha.state.snapshot import Header, Loaded

LOG_LIMIT = 64 << 20
"""Bytes of log after which a snapshot is taken; more if the last snapshot was larger, which bounds the work."""

WINDOW = 8 * MAX_CHUNK
"""Bytes of a snapshot that may be under way."""

PATIENCE = 1.0
"""Seconds to wait for the right moment of a snapshot, for a lost piece of one, and for another's word on one."""


INSTALLATION = 10.0
"""Seconds within which a peer must have installed what it has received, or it is sent again."""

REPRIEVE = 5.0
"""Seconds in which a table that was just fetched is compared with the others' before it is fetched again."""


class _Sending:
    """A snapshot on its way to a peer, which may have asked for it although it has our log."""

    def __init__(self, file: SnapshotFile, now: float, *, asked: bool) -> None:
        self.file = file
        self.asked = asked
        self.sent = 0
        self.acknowledged = 0
        self.reading = False
        self.heard = now


class _Received(NamedTuple):
    """A snapshot that is durable here and waits to be confirmed until `deadline`, and then to be `kept`."""

    sender: str
    loaded: Loaded
    file: SnapshotFile
    deadline: float
    kept: bool = False


class Catchup:
    """Takes, sends and installs; `installed` is told when another table is in place, `failed` why the node must leave.

    Times are seconds of `clock`.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        clock: Callable[[], float],
        machine: Machine,
        voter: Voter,
        journal: Journal,
        snapshots: Snapshots,
        membership: Membership,
        checkpoints: Checkpoints,
        send: Callable[[str, RaftMessage], bool],
        installed: Callable[[], None],
        failed: Callable[[Exception], None],
        log_limit: int = LOG_LIMIT,
    ) -> None:
        self._clock = clock
        self._machine = machine
        self._voter = voter
        self._journal = journal
        self._snapshots = snapshots
        self._membership = membership
        self._checkpoints = checkpoints
        self._send = send
        self._installed = installed
        self._failed = failed
        self._log_limit = log_limit
        self._newest = snapshots.newest()
        self._before = 0  # the index of the snapshot before the newest, if it was taken here
        self._kept = 0  # bytes of log that were left when it was last cut
        self._members = machine.members  # at the newest snapshot
        self._cluster_id = ""
        self._wanted_since: float | None = None
        self._sending: dict[str, _Sending] = {}
        self._staging: tuple[str, Staging] | None = None
        self._staged_at = 0.0  # when the last piece came
        self._received: _Received | None = None
        self._tables = 0  # how many have been installed
        self._refetching = False  # the leader's table must take the place of ours, although we have its entries
        self._refetched = -math.inf
        self._asked = 0.0
        self._log = Logger(namespace="sipha.cluster")

    @property
    def newest(self) -> SnapshotFile | None:
        """The newest snapshot on the disk."""
        return self._newest

    @property
    def snapshot_index(self) -> int:
        """The index of the newest snapshot; 0 if there is none."""
        return 0 if self._newest is None else self._newest.header.index

    def step(self, cluster_id: str) -> None:
        """Do what is due."""
        now = self._clock()
        self._cluster_id = cluster_id
        size = 0 if self._newest is None else self._newest.size
        if self._journal.size - self._kept > max(self._log_limit, size):
            self.want()
        if self._wanted_since is not None and now - self._wanted_since > PATIENCE:
            self._take()
        for peer, sending in tuple(self._sending.items()):
            arrived = sending.acknowledged >= sending.file.size
            installed = self._voter.raft.match(peer) >= sending.file.header.index and not sending.asked
            late = arrived and (sending.asked or now - sending.heard > INSTALLATION)
            if not self._voter.raft.leads or installed or late:
                del self._sending[peer]
            elif not arrived and now - sending.heard > PATIENCE:
                sending.sent, sending.heard = sending.acknowledged, now
                self._pump(peer, sending)
        if self._received is not None:
            self._confirm(self._received, now)
        elif self._staging is not None and now - self._staged_at > INSTALLATION:
            self._unstage()  # whoever sent it knows nothing of it any more
        elif self._refetching:
            self._ask(now)

    def refetch(self, now: float) -> None:
        """Our table is odd: let the leader's take its place, unless it has just done so and is yet to be compared."""
        if now - self._refetched > REPRIEVE:
            self._refetching = True

    # Taking

    def want(self) -> None:
        """Take a snapshot as soon as the index is one at which all nodes remember their hash."""
        if self._wanted_since is None and not self._snapshots.taking:
            self._wanted_since = self._clock()

    def applied(self, index: int) -> None:
        """An entry was applied."""
        if self._wanted_since is not None and self._checkpoints.comparable(index):
            self._take()

    def _take(self) -> None:
        index = self._machine.index
        term = self._voter.raft.term_at(index)
        self._wanted_since = None
        if term is None or self._snapshots.taking or index <= self.snapshot_index:
            return
        tables = self._tables
        if not self._checkpoints.comparable(index):
            self._checkpoints.announce(index, self._machine.hash())
        members = self._machine.members
        self._snapshots.take(self._machine, term, self._cluster_id, lambda result: self._taken(result, members, tables))

    def _taken(self, result: SnapshotFile | Exception, members: tuple[Member, ...], tables: int) -> None:
        if isinstance(result, OSError | DamagedMemory):
            self._failed(result)
        elif isinstance(result, Exception):
            self._log.error("no snapshot was taken: {error}", error=result)
        elif tables != self._tables:
            self._snapshots.remove(result)  # of a table that another has taken the place of
        elif result.header.index > self.snapshot_index:
            self._before = self.snapshot_index
            self._newest, self._members = result, members
            self._membership.rebase(result.header.index, members)
            self._compact()

    def _compact(self) -> None:
        """Forget the entries that two snapshots cover, and that nobody will need who is being sent one."""
        indices = [sending.file.header.index for sending in self._sending.values()]
        self._journal.compact(min([self._before, *indices]))
        self._kept = self._journal.size

    # Sending

    def lagging(self, peer: str) -> None:
        """A peer needs entries that we have no more."""
        if peer not in self._sending:
            self._send_newest(peer, asked=False)

    def _send_newest(self, peer: str, *, asked: bool) -> None:
        if self._newest is None:
            self.want()
            return
        header = self._newest.header
        self._log.info("{peer} is sent the snapshot at entry {index}", peer=peer, index=header.index)
        self._checkpoints.announce(header.index, int.from_bytes(header.hash, "big"))
        sending = self._sending[peer] = _Sending(self._newest, self._clock(), asked=asked)
        self._pump(peer, sending)

    def disconnected(self, peer: str) -> None:
        """Nothing can be sent to the peer, and nothing comes from it."""
        self._sending.pop(peer, None)
        if self._staging is not None and self._staging[0] == peer:
            self._unstage()

    def received(self, peer: str, message: SnapshotChunk | SnapshotReply) -> None:
        """Take a piece of a snapshot, or the answer to one; raises ProtocolError."""
        raft = self._voter.raft
        if message.term != raft.term:
            return
        if isinstance(message, SnapshotChunk):
            if peer == raft.leader and not raft.leads:
                self._receive(peer, message)
        elif raft.leads and not message.index:
            self._table_wanted(peer, message.offset)
        elif raft.leads:
            self._receive_reply(peer, message)

    def _unusable(self, file: SnapshotFile) -> None:
        """Take another snapshot in the place of one that can't be read."""
        if self._newest == file:
            self._newest = None
            self.want()

    def _table_wanted(self, peer: str, index: int) -> None:
        """A peer knows that its table differs: it gets a snapshot at `index` or later."""
        if self.snapshot_index < index:
            self.want()
        elif peer not in self._sending:
            self._log.warn("{peer} asks for the whole table", peer=peer)
            self._send_newest(peer, asked=True)

    def _receive_reply(self, peer: str, message: SnapshotReply) -> None:
        sending = self._sending.get(peer)
        if sending is None or message.index != sending.file.header.index:
            return
        if message.offset > sending.file.size:
            raise ProtocolError("not our log")
        if message.offset != sending.acknowledged:
            sending.acknowledged, sending.heard = message.offset, self._clock()
        sending.sent = max(sending.sent, message.offset)
        self._pump(peer, sending)

    def _pump(self, peer: str, sending: _Sending) -> None:
        """Send the next piece, if not too many are under way."""
        file = sending.file
        if sending.reading or sending.sent >= file.size or sending.sent - sending.acknowledged >= WINDOW:
            return
        sending.reading = True
        offset = sending.sent

        def read(result: bytes | Exception) -> None:
            sending.reading = False
            if self._sending.get(peer) is not sending:
                return
            if isinstance(result, Exception):  # newer ones have taken its place, or it can't be read
                del self._sending[peer]
                if not isinstance(result, FileNotFoundError):
                    self._log.error("the snapshot {name} can't be read: {error}", name=file.name, error=result)
                    self._unusable(file)
            elif offset == sending.sent:
                header = file.header
                term = self._voter.raft.term
                if self._send(peer, SnapshotChunk(term, header.index, header.term, file.size, offset, result)):
                    sending.sent += len(result)
                    self._pump(peer, sending)

        self._snapshots.read(file, offset, MAX_CHUNK, read)

    # Installing

    def _receive(self, peer: str, chunk: SnapshotChunk) -> None:
        raft = self._voter.raft
        held = chunk.index <= raft.applied_index or raft.term_at(chunk.index) == chunk.index_term
        if held and not self._refetching:
            # All that it covers is in our log, and what follows may be acknowledged: nothing of it may be lost.
            raft.commit(chunk.index)
            self._voter.installed(peer, chunk.index)
            return
        if self._received is not None or (self._refetching and chunk.index < raft.first_index):
            return  # what our log has acknowledged must not be lost
        sender, staging = (peer, None) if self._staging is None else self._staging
        if staging is None or (staging.index, staging.term) != (chunk.index, chunk.index_term):
            staging = self._stage(peer, chunk)
        elif sender != peer:
            self._staging = (peer, staging)  # another leader goes on with the same snapshot
        self._staged_at = self._clock()
        if not staging.add(chunk.offset, chunk.data) or sender != peer:
            self._send(peer, SnapshotReply(chunk.term, chunk.index, staging.offset))

    def _stage(self, peer: str, chunk: SnapshotChunk) -> Staging:
        index, term = chunk.index, chunk.index_term

        def progress(size: int) -> None:
            if self._staging is not None:
                self._send(self._staging[0], SnapshotReply(self._voter.raft.term, index, size))

        def done(result: tuple[Loaded, SnapshotFile] | Exception) -> None:
            if self._staging is None or self._staging[1] is not staging:
                return
            (peer, _), self._staging = self._staging, None
            if isinstance(result, OSError):
                self._failed(result)
            elif isinstance(result, Exception):
                self._voter.counters["snapshots refused"] += 1
                self._log.error("the snapshot from {peer} is refused: {error}", peer=peer, error=result)
            else:
                self._received = _Received(peer, *result, self._clock() + PATIENCE)
                self._confirm(self._received, self._clock())

        staging = self._snapshots.stage(index, term, chunk.size, progress, done)
        self._staging = (peer, staging)
        return staging

    def _unstage(self) -> None:
        self._staging = None
        self._snapshots.unstage()

    def _confirm(self, received: _Received, now: float) -> None:
        """Keep and install it if another node has the same table, or nobody says anything for long."""
        header = received.loaded.header
        if received.kept:
            return
        if self._is_overtaken(header):
            self._drop(received)
            return
        confirmed = self._checkpoints.confirms(header.index, int.from_bytes(header.hash, "big"), received.sender)
        if confirmed is None and now < received.deadline:
            return
        if confirmed is None:
            self._voter.counters["snapshots unconfirmed"] += 1
        if confirmed is False:
            self._voter.counters["snapshots refused"] += 1
            self._log.critical(
                "the snapshot from {peer} is refused: another node has another table at entry {index}",
                peer=received.sender,
                index=header.index,
            )
            self._drop(received)
        else:
            self._received = received._replace(kept=True)
            self._snapshots.keep(received.file, self._kept_on_disk)

    def _kept_on_disk(self, result: SnapshotFile | Exception) -> None:
        received = self._received
        if received is None:
            return
        if isinstance(result, Exception):
            self._failed(result)
        elif self._is_overtaken(received.loaded.header):
            self._drop(received._replace(file=result))
        else:
            self._received = None
            self._install(received._replace(file=result))

    def _is_overtaken(self, header: Header) -> bool:
        """Return True if we lead, or entries that we have acknowledged came while a snapshot waited."""
        raft = self._voter.raft
        return (
            raft.leads
            or header.index < raft.first_index
            or (header.index <= raft.applied_index and not self._refetching)
        )

    def _drop(self, received: _Received) -> None:
        self._received = None
        self._snapshots.remove(received.file)
        self._snapshots.dismantle(received.loaded.tables.dismantle())

    def _install(self, received: _Received) -> None:
        raft, (loaded, file) = self._voter.raft, received[1:3]
        index, term = loaded.header.index, loaded.header.term
        self._snapshots.dismantle(self._machine.adopt(loaded))
        self._newest, self._members = file, self._machine.members
        self._checkpoints.replaced()
        self._checkpoints.applied(index, self._machine.hash())
        self._refetching = False
        self._refetched = self._clock()
        self._tables += 1
        sender = received.sender
        self._membership.rebase(index, self._members)
        if raft.term_at(index) != term:  # else what follows in our log is applied again
            self._kept = 0
            self._journal.reset(index, term, lambda error: self._reset(error, sender, index))
        raft.install(index)
        self._installed()
        self._log.info("the snapshot of {peer} at entry {index} is installed", peer=sender, index=index)

    def _reset(self, error: OSError | None, sender: str, index: int) -> None:
        if error is None:  # a failed one is told by the journal
            self._voter.installed(sender, index)

    def _ask(self, now: float) -> None:
        """Ask the leader for its table."""
        raft = self._voter.raft
        if self._staging is None and raft.leader is not None and not raft.leads and now - self._asked > PATIENCE:
            self._asked = now
            self._send(raft.leader, SnapshotReply(raft.term, 0, raft.first_index))
