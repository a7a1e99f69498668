"""The response context: one request, the forks that it became, and what goes back upstream (RFC 3261 §16.7).

Pure bookkeeping: what happened goes in, a list of actions comes out, and the proxy performs them. The rules:

1. The groups of the target set are tried one after the other, the targets of a group at once. The next group
   starts when every fork has ended without a 2xx, a 6xx or a CANCEL.
2. A provisional response but 100 goes upstream until a final one did; a 2xx goes upstream at once. To an INVITE
   there may be several 2xx, to another request one final response.
3. Without a 2xx the best response goes upstream once every fork has ended, exactly one; a 408 to a request other than
   INVITE is chosen only for want of any other, and its server transaction keeps it to itself (RFC 4320 §4.2).
4. A 2xx, a 6xx or a CANCEL cancels the forks that still ring; one that nothing was heard of yet is cancelled as soon
   as something is ("the CANCEL request MUST NOT be sent" before a provisional response came, §9.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from sipha.proxy.target import Target
from sipha.sip.message import Response
from sipha.sip.timers import Timer
from sipha.sip.transaction import ClientTransaction

COMPLETED_ELSEWHERE = ('SIP;cause=200;text="Call completed elsewhere"',)
"""The Reason of the CANCEL to the forks that lost the race (RFC 3326 §3.1)."""

_CHALLENGES = ("WWW-Authenticate", "Proxy-Authenticate")

# "The proxy SHOULD give preference to responses that provide information affecting resubmission of this request, such
# as 401, 407, 415, 420, and 484" (§16.7 step 6). A phone that was not reached says less than one that was.
_PREFERENCE = {401: 0, 407: 0, 415: 1, 420: 1, 484: 1, 404: 3, 480: 3, 408: 4, 430: 4, 487: 4}
_NO_PREFERENCE = 2


class ForkState(Enum):
    """How far a fork is."""

    CALLING = auto()
    """Sent; nothing has come back."""
    PROCEEDING = auto()
    """A provisional response came."""
    ENDED = auto()
    """A final response came, or it failed."""


class Final(NamedTuple):
    """How a fork ended; `response` is None if the status is our own finding, or a 2xx, of which no copy is kept."""

    status: int
    response: Response | None


@dataclass(slots=True, eq=False)
class Fork:
    """A target that the request was forwarded to, or is about to be.

    `reasons` are the Reason fields of the CANCEL that it is to get, None while it may go on; `cancelled` says that the
    CANCEL is out. `timer` is Timer C or, once it is cancelled, its last deadline. `final` is None until it has ended.
    """

    target: Target
    state: ForkState = ForkState.CALLING
    transaction: ClientTransaction | None = None
    timer: Timer | None = None
    reasons: tuple[str, ...] | None = None
    cancelled: bool = False
    final: Final | None = None


class Forward(NamedTuple):
    """Send this response of a fork upstream."""

    response: Response


class Answer(NamedTuple):
    """Send a final response of our own upstream."""

    status: int


class Start(NamedTuple):
    """Forward the request to these."""

    forks: tuple[Fork, ...]


class Cancel(NamedTuple):
    """Send a CANCEL for this fork's request."""

    fork: Fork


Action = Forward | Answer | Start | Cancel


class Progress(NamedTuple):
    """How far a fork was, for who goes on with it; `reasons` and `final` as in Fork."""

    state: ForkState
    reasons: tuple[str, ...] | None = None
    final: Final | None = None


class ResponseContext:
    """The forks of one request; `invite` tells whether it is an INVITE.

    It is `concluded` once a final response went upstream, or none ever will; `answered` once a fork has answered with a
    2xx; `cancelled` once the caller has cancelled it.
    """

    __slots__ = ("_groups", "answered", "cancelled", "concluded", "forks", "invite")

    def __init__(self, groups: Sequence[Sequence[Target]], *, invite: bool) -> None:
        self.forks: list[Fork] = []
        self._groups = [tuple(Fork(target) for target in group) for group in groups]
        self._groups.reverse()
        self.invite = invite
        self.concluded = False
        self.answered = False
        self.cancelled = False

    @classmethod
    def resumed(
        cls, groups: Sequence[Sequence[Target]], forks: Sequence[Progress], *, cancelled: bool
    ) -> ResponseContext:
        """Return the context of an INVITE whose first groups are so far, and whose caller may have cancelled it.

        ValueError unless `forks` are those of whole groups.
        """
        context = cls(groups, invite=True)
        while context._groups and len(context.forks) < len(forks):
            context.forks += context._groups.pop()
        for fork, progress in zip(context.forks, forks, strict=True):
            fork.state, fork.reasons, fork.final = progress
        context.cancelled = cancelled
        context.answered = any(fork.final is not None and 200 <= fork.final.status < 300 for fork in context.forks)
        context.concluded = context.answered
        if cancelled or any(fork.final is not None and fork.final.status >= 600 for fork in context.forks):
            context._groups.clear()
        return context

    @property
    def ended(self) -> bool:
        """True once it is concluded and no fork lives."""
        return self.concluded and self._all_ended()

    def start(self) -> list[Action]:
        """Begin with the first group; an empty target set is a 480 (§16.5)."""
        return self._proceed()

    def resume(self) -> list[Action]:
        """Go on where another has stopped: what was due then is done, if perhaps for the second time."""
        forks = [(fork, fork.reasons) for fork in self.forks if fork.reasons is not None]
        return [action for fork, reasons in forks for action in self._cancel(fork, reasons)] + self._proceed()

    def response_received(self, fork: Fork, response: Response) -> list[Action]:
        """Take a response of a fork, its top Via already removed (§16.7 steps 4–6, 10)."""
        status = response.status
        if 200 <= status < 300:
            return self._succeed(fork, response)
        if fork.state is ForkState.ENDED:
            return []
        if status >= 200:
            return self._fail(fork, Final(status, response))
        fork.state = ForkState.PROCEEDING
        actions: list[Action] = []
        if status > 100 and not self.concluded:
            actions.append(Forward(response))
        if fork.reasons is not None:
            actions += self._cancel(fork, fork.reasons)
        return actions

    def fork_failed(self, fork: Fork, status: int) -> list[Action]:
        """Take it that a fork ended without a final response; `status` is what that means upstream."""
        return [] if fork.state is ForkState.ENDED else self._fail(fork, Final(status, None))

    def fork_expired(self, fork: Fork) -> list[Action]:
        """Timer C fired (§16.8): cancel a fork that rings; the others are a 408."""
        if fork.state is ForkState.PROCEEDING and not fork.cancelled:
            return self._cancel(fork, ())
        return self.fork_failed(fork, 408)

    def cancel(self, reasons: tuple[str, ...]) -> list[Action]:
        """Cancel what is still pending, because the caller did (§16.10)."""
        if not self.invite or self.concluded or self.cancelled:
            return []
        self.cancelled = True
        self._groups.clear()
        return [*self._cancel_all(reasons), *self._proceed()]

    def _succeed(self, fork: Fork, response: Response) -> list[Action]:
        fork.state, fork.final = ForkState.ENDED, Final(response.status, None)
        self.answered = True
        # "After a final response has been sent on the server transaction, the following responses MUST be forwarded
        # immediately: Any 2xx response to an INVITE request" (§16.7 step 5).
        if self.concluded and not self.invite:
            return []
        self.concluded = True
        self._groups.clear()
        return [Forward(response), *self._cancel_all(COMPLETED_ELSEWHERE)]

    def _fail(self, fork: Fork, final: Final) -> list[Action]:
        fork.state = ForkState.ENDED
        # "MUST NOT send a 408 response to a non-INVITE request": it would come too late (RFC 4320 §4.2).
        if final.status != 408 or self.invite:
            fork.final = final
        actions: list[Action] = []
        if final.status >= 600:
            # "the stateful proxy SHOULD cancel all client pending transactions [...], and it MUST NOT create any new
            # branches in this context" (§16.7 step 5).
            self._groups.clear()
            actions += self._cancel_all((f"SIP;cause={final.status}",))
        return actions + self._proceed()

    def _all_ended(self) -> bool:
        for fork in self.forks:  # noqa: SIM110  a generator costs more than a call has forks
            if fork.state is not ForkState.ENDED:
                return False
        return True

    def _proceed(self) -> list[Action]:
        """Start the next group, or conclude, if every fork so far has ended."""
        if self.concluded or not self._all_ended():
            return []
        if self._groups:
            group = self._groups.pop()
            self.forks += group
            return [Start(group)]
        self.concluded = True
        return [self._best()]

    def _best(self) -> Action:
        """Choose the best response (§16.7 step 6)."""
        if not self.forks:
            return Answer(480)
        finals = [fork.final for fork in self.forks if fork.final is not None]
        if self.cancelled:
            finals.append(Final(487, None))
        if not finals:
            return Answer(408)
        status, response = min(finals, key=self._rank)
        # "If the only response that was received is a 503, the proxy SHOULD generate a 500 response": a 503 would
        # condemn this proxy as a whole (§16.7 step 6, §21.5.4).
        if status == 503:
            return Answer(500)
        if response is None:
            return Answer(status)
        return Forward(self._aggregated(response) if status in {401, 407} else response)

    def _rank(self, final: Final) -> tuple[int, int, bool]:
        """The lower, the better: 6xx, then the lowest class, then what tells the caller most; ours after theirs."""
        status = final.status
        if status >= 600:
            return 0, 0, False
        if self.cancelled and status == 487:
            return 1, 0, final.response is None
        # A 503 says the least of all 5xx.
        preference = _PREFERENCE.get(status, _NO_PREFERENCE) if status != 503 else _NO_PREFERENCE + 1
        return status // 100, preference, final.response is None

    def _aggregated(self, response: Response) -> Response:
        """Add the challenges of all other 401 and 407 responses to the chosen one (§16.7 step 7)."""
        aggregated = response.copy()
        for fork in self.forks:
            if fork.final is None or fork.final.status not in {401, 407}:
                continue
            other = fork.final.response
            if other is None or other is response:
                continue
            for name in _CHALLENGES:
                for value in other.headers.all(name):
                    aggregated.headers.add(name, value)
        return aggregated

    def _cancel_all(self, reasons: tuple[str, ...]) -> list[Action]:
        return [action for fork in self.forks for action in self._cancel(fork, reasons)]

    def _cancel(self, fork: Fork, reasons: tuple[str, ...]) -> list[Action]:
        if not self.invite or fork.cancelled or fork.state is ForkState.ENDED:
            return []
        if fork.reasons is None:
            fork.reasons = reasons
        if fork.state is ForkState.CALLING:
            return []
        fork.cancelled = True
        return [Cancel(fork)]
