"""What peers say, given to the part of the node that it is for."""

from __future__ import annotations

from zope.interface import classImplements

from sipha.cluster.catchup import Catchup
from sipha.cluster.checkpoint import Checkpoints
from sipha.cluster.driver import Driver
from sipha.cluster.forwarding import Forwarding
from sipha.cluster.kinship import Kinship
from sipha.cluster.leadership import Leadership
from sipha.cluster.peers import INetworkUser
from sipha.cluster.sharing import Sharing
from sipha.cluster.voter import Voter
from sipha.cluster.wire import (
    AppendEntries,
    AppendReply,
    Checkpoint,
    Condition,
    Hello,
    LastWord,
    LeaseAck,
    PreVote,
    ProposalOutcome,
    Propose,
    RaftMessage,
    RequestVote,
    Shared,
    SnapshotChunk,
    SnapshotReply,
)

_FROM_GUESTS = (AppendEntries, SnapshotChunk, PreVote, RequestVote)
"""What counts from who is no member as far as we know: it may be one (Raft thesis §4.1)."""


class Inbox:
    """Takes each message as a step of the `driver`, which takes another when something follows from it.

    `served_until` is the cluster time in ms at which another node was last heard to serve phones; 0 before that.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        driver: Driver,
        leadership: Leadership,
        kinship: Kinship,
        voter: Voter,
        checkpoints: Checkpoints,
        forwarding: Forwarding,
        catchup: Catchup,
        sharing: Sharing,
    ) -> None:
        self.served_until = 0
        self._driver = driver
        self._leadership = leadership
        self._kinship = kinship
        self._voter = voter
        self._checkpoints = checkpoints
        self._forwarding = forwarding
        self._catchup = catchup
        self._sharing = sharing

    def introduce(self) -> Hello:
        """What to say about ourselves."""
        return self._kinship.introduce()

    def greeted(self, peer: str, hello: Hello) -> str | None:
        """Why a peer is refused, or None."""
        objection = self._kinship.objection(peer, hello, led=self._voter.leader is not None)
        if objection is None:
            self._voter.greeted(peer, forgetful=hello.amnesiac or not hello.cluster_id)
            self._checkpoints.forget(peer)
        return objection

    def connected(self, peer: str) -> None:
        """The peer can be sent to."""
        self._driver.guard(lambda: self._connected(peer))

    def disconnected(self, peer: str) -> None:
        """The peer can't be sent to."""
        self._driver.guard(lambda: self._disconnected(peer))

    def received(self, peer: str, message: RaftMessage) -> None:
        """Take a message, and do at the end of this turn what follows from it."""
        self._driver.guard(lambda: self._receive(peer, message), kick=False)
        if self._has_consequences(message):
            self._driver.kick()

    def last_word_heard(self, word: LastWord) -> None:
        """A guard says that its leader's claim has ended."""
        self._driver.guard(lambda: self._voter.last_word_heard(word))

    def _has_consequences(self, message: RaftMessage) -> bool:
        """Return False for what needs no other step of the log: most of what a leader hears."""
        if isinstance(message, LeaseAck):
            return not self._leadership.held
        if isinstance(message, AppendReply):
            return not self._voter.raft.leads or self._voter.raft.due
        return not isinstance(message, Shared)

    def _connected(self, peer: str) -> None:
        self._kinship.connected(peer)
        self._voter.connected(peer)
        self._sharing.connected(peer)

    def _disconnected(self, peer: str) -> None:
        self._kinship.disconnected(peer)
        self._forwarding.disconnected(peer)
        self._catchup.disconnected(peer)
        self._voter.disconnected(peer)

    def _receive(self, peer: str, message: RaftMessage) -> None:
        if peer not in self._kinship.kin:
            if not self._kinship.cluster_id and isinstance(message, AppendEntries):
                self._kinship.join(peer)
            if peer not in self._kinship.guests or not isinstance(message, _FROM_GUESTS):
                return
        if isinstance(message, Propose | ProposalOutcome):
            self._forwarding.received(peer, message)
        elif isinstance(message, Shared):
            self._sharing.received(message)
        elif isinstance(message, Checkpoint):
            self._checkpoints.received(peer, message)
        elif isinstance(message, Condition):
            self._kinship.heard(peer, message)
            self._voter.succession.yielded(peer, message.yields)
        elif isinstance(message, SnapshotChunk | SnapshotReply):
            self._catchup.received(peer, message)
        else:
            self._voter.receive(peer, message)
            if isinstance(message, AppendEntries):
                self._note_service(peer, message)

    def _note_service(self, peer: str, message: AppendEntries) -> None:
        """A leader serves while it has a claim, once its barrier is committed, unless it is a witness."""
        began = self._voter.raft.term_at(message.commit_index) == message.term
        if message.commitment and began and self._kinship.hello(peer).priority:
            self.served_until = message.time


classImplements(Inbox, INetworkUser)
