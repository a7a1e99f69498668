"""Leadership handed on without an election's wait (Raft thesis §3.10), and when it should be.

No more is taken in; what is under way is finished; the claim ends for good, and with it all that needed it, the virtual
address above all; then its secret lets the other node stand at once. If that comes to nothing, a new claim begins
(pitfalls-log-vip 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from sipha.cluster.leadership import Leadership
from sipha.cluster.proposals import Proposals
from sipha.cluster.voter import Voter
from sipha.cluster.wire import RaftMessage, TimeoutNow
from sipha.errors import SiphaError

DRAIN = 1.0
"""Seconds within which what is under way must be finished and the other node up to date."""

RETRY = 2.0
"""Seconds after which a node that must not lead tries again to hand leadership on."""

HOLD_DOWN = 30.0
"""Seconds for which a node that wishes more to lead must have been up to date before it is given leadership."""

REST = 60.0
"""Seconds after leadership was handed on before the same node does so again for another's wish."""

UNWELL = 1
"""The wish to lead of a node that should not if another can; 0 is that of one which must not."""


class HandoverFailed(SiphaError):
    """Leadership was not handed on; this node leads as before, or another was elected meanwhile."""


class Handover:
    """Hands leadership on. `step` must be called often; times are seconds of the voter's clock.

    The claim of `leadership` ends before its secret is told; `resumed` is called when a new one has begun; `confirm` is
    for how long the other node has to be elected.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        voter: Voter,
        proposals: Proposals,
        send: Callable[[str, RaftMessage], bool],
        leadership: Leadership,
        resumed: Callable[[], None],
        confirm: float,
    ) -> None:
        self._voter = voter
        self._proposals = proposals
        self._send = send
        self._leadership = leadership
        self._resumed = resumed
        self._confirm = confirm
        self._phase: Literal["idle", "draining", "releasing", "confirming"] = "idle"
        self._to = ""
        self._term = 0
        self._deadline = 0.0
        self._secret = b""
        self._done: Deferred[str] = Deferred()
        self._since: dict[str, float] = {}  # when nodes of a higher priority were first seen up to date in this term
        self._since_term = 0
        self._failed_at: float | None = None
        self._handed_at: float | None = None
        self._log = Logger(namespace="sipha.cluster")

    @property
    def under_way(self) -> bool:
        """True while leadership is being handed on."""
        return self._phase != "idle"

    def begin(self, to: str, now: float) -> Deferred[str]:
        """Hand leadership to the voter `to`.

        The Deferred fires with the leader's name, or fails with HandoverFailed.
        """
        if self.under_way:
            return fail(HandoverFailed(f"leadership is being handed to {self._to} already"))
        if to not in self._voter.others:
            return fail(HandoverFailed(f"{to} is no voter of the cluster"))
        self._phase, self._to, self._term, self._deadline = "draining", to, self._voter.raft.term, now + DRAIN
        self._done = Deferred()
        self._proposals.hold()
        return self._done

    def step(self, now: float) -> None:
        """Go on, if a transfer is under way."""
        if self._phase == "idle":
            return
        raft = self._voter.raft
        if not raft.leads or raft.term != self._term:
            if raft.leader is not None:
                self._settle(raft.leader, now)
            elif now >= self._deadline:
                self._settle(None, now)
        elif self._phase == "draining":
            self._drain(now)
        elif self._phase == "releasing":
            self._release(now)
        elif now >= self._deadline:
            self._voter.lease.begin()
            self._settle(None, now)
            self._resumed()

    def stop(self, now: float) -> None:
        """The node takes no more part."""
        if self.under_way:
            self._settle(None, now)

    def _drain(self, now: float) -> None:
        raft = self._voter.raft
        drained = not self._proposals.under_way and raft.applied_index == raft.last_index
        heard = self._voter.lease.heard_by(self._to)  # or it could not tell that this claim has ended
        if drained and heard and raft.match(self._to) == raft.last_index:
            # A last heartbeat, so that it knows until when phones were served: it goes on there.
            self._voter.append_entries(self._to, raft.commit_index, raft.last_index, raft.last_term, [])
            self._leadership.lose()
            self._phase, self._deadline = "releasing", self._voter.lease.until
            self._secret = self._voter.lease.end()
            self._release(now)
        elif now >= self._deadline:
            self._settle(None, now)

    def _release(self, now: float) -> None:
        """Tell the secret when the address is gone; when the lease would have run out, the kernel uses it no more."""
        if self._leadership.over or now >= self._deadline:
            told = self._send(self._to, TimeoutNow(self._term, self._secret))  # or it is gone, and we go on
            self._phase, self._deadline = "confirming", now + self._confirm if told else now

    def _settle(self, leader: str | None, now: float) -> None:
        """It has come to an end, good or bad."""
        self._phase = "idle"
        self._proposals.resume()
        self._failed_at = None if leader == self._to else now
        if leader == self._to:
            self._handed_at = now
            self._done.callback(leader)
            return
        if leader is None:
            reason = f"{self._to} did not take over in time; is it up and has it the whole log?"
        else:
            reason = f"{leader} was elected instead of {self._to}"
        self._log.warn("leadership is not handed on: {reason}", reason=reason)
        self._done.errback(HandoverFailed(reason))

    def preferred(self, wishes: dict[str, int], own: int, now: float) -> str | None:
        """The node that should lead in our place, None if we should.

        `wishes` are those of the voters that are up to date. Leadership is sticky: only one that wishes more, for as
        long as HOLD_DOWN, takes it, and not soon again; a node that should not lead (`own` UNWELL or less) hands it on
        at once.
        """
        if self._since_term != self._voter.raft.term:
            self._since_term, self._since = self._voter.raft.term, {}
        better = {name: wish for name, wish in wishes.items() if wish > own}
        self._since = {name: self._since.get(name, now) for name in better}
        sticks = own > UNWELL
        if self._failed_at is not None and now - self._failed_at < (HOLD_DOWN if sticks else RETRY):
            return None
        if sticks and self._handed_at is not None and now - self._handed_at < REST:
            return None
        wait = HOLD_DOWN if sticks else 0.0
        ready = [(better[name], name) for name, since in self._since.items() if now - since >= wait]
        return max(ready)[1] if ready else None
