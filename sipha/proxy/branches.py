"""The branches of proxied requests: client transactions, their responses, Timer C and CANCEL (RFC 3261 §16.7–16.10).

What happens to a client transaction is told to the response context of its request, and what that asks for is done.
Then the other nodes are told, by the shadow of a call (shadow.py), how far it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

from sipha.errors import SipError
from sipha.proxy.context import Action, Cancel, Fork, ForkState, Forward, ResponseContext, Start
from sipha.proxy.forward import Passage, cancel_for, forward
from sipha.proxy.interfaces import ITransport
from sipha.proxy.shadow import Advanced, Call, Closed, ForkShadow, Key, Opened, Shadows, key_of
from sipha.proxy.target import Target
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.transaction import ClientTransaction, ServerTransaction, State, Transaction

_BRANCH = ";branch="


@dataclass(slots=True, eq=False)
class ProxiedRequest:
    """A request that is being proxied: its server transaction, what its forks have in common, its response context.

    `passage` is there until the context is concluded, as long as further forks may start. `breadth` is the Max-Breadth
    that the forks share, 0 to leave the header alone. `groups` is the target set. `answered` are the forks that a 2xx
    came from, by its To tag. `shadow` is what the other nodes were last told of it; `key` is what they know it by, None
    if they don't.
    """

    server: ServerTransaction
    passage: Passage | None
    context: ResponseContext
    breadth: int
    groups: Sequence[Sequence[Target]]
    answered: dict[str, Fork] = field(default_factory=dict)
    key: Key | None = None
    shadow: tuple[tuple[ForkShadow, ...], bool] | None = None


@dataclass(slots=True, eq=False)
class Branch:
    """What a client transaction, or the timer of a fork, is to us."""

    proxied: ProxiedRequest
    fork: Fork


class Branches:
    """Starts and ends the branches; `tag` makes the To tag of a final response of our own."""

    def __init__(
        self,
        layer: TransactionLayer,
        transport: ITransport,
        tag: Callable[[Request], str],
        shadows: Shadows,
        cluster_time: Callable[[], float],
    ) -> None:
        self._layer = layer
        self._transport = transport
        self._tag = tag
        self._shadows = shadows
        self._cluster_time = cluster_time

    def begin(self, proxied: ProxiedRequest, now: float) -> None:
        """Forward a request to its first targets."""
        proxied.server.context = proxied
        self._perform(proxied, proxied.context.start(), now)

    def resume(self, proxied: ProxiedRequest, forks: Sequence[ForkShadow], now: float) -> None:
        """Go on with an INVITE that another node has forwarded, `forks` of which were so far."""
        proxied.server.context = proxied
        parallel = [len(group) for group in proxied.groups for _ in group]
        actions: list[Action] = []
        for number, (fork, shadow) in enumerate(zip(proxied.context.forks, forks, strict=False)):
            if fork.state is not ForkState.ENDED:
                actions += self._resume(proxied, fork, shadow, parallel[number], now)
        self._perform(proxied, actions + proxied.context.resume(), now)

    def await_forks(self, proxied: ProxiedRequest, now: float) -> None:
        """Wait until Timer C for word of the forks that another node has started, and we know nothing of."""
        proxied.server.context = proxied
        for fork in proxied.context.forks:
            self._set_timer(Branch(proxied, fork), now + self._layer.timers.timer_c)

    def adopt(self, proxied: ProxiedRequest, fork: Fork, request: Request, flow: Flow, now: float) -> None:
        """Go on with a fork that another node has sent, of which a response has come; `request` as for the layer."""
        fork.transaction = self._layer.adopt(request, flow, now)
        fork.transaction.context = Branch(proxied, fork)

    def cancel(self, proxied: ProxiedRequest, reasons: tuple[str, ...], now: float) -> None:
        """Cancel all forks, because the caller did (§16.10)."""
        self._perform(proxied, proxied.context.cancel(reasons), now)

    def response_received(self, transaction: ClientTransaction, response: Response, now: float) -> None:
        """Take a response to a request that was forwarded (§16.7)."""
        branch = transaction.context  # 1. Find Context
        if not isinstance(branch, Branch):
            return  # the response to a CANCEL of ours
        proxied, fork = branch.proxied, branch.fork
        if response.status >= 200:
            self._set_timer(branch, None)
        elif response.status > 100 and fork.timer is not None and not fork.cancelled:  # 2. Update timer C
            self._set_timer(branch, now + self._layer.timers.timer_c)
        if not response.pop_via():  # 3. Remove topmost Via
            # "If no Via header field values remain in the response, the response was meant for this element and MUST
            # NOT be forwarded." It lost the others on its way; a final one ends its fork all the same, as "an invalid
            # response from the downstream server" (§21.5.3).
            if response.status >= 200:
                self._perform(proxied, proxied.context.fork_failed(fork, 502), now)
            return
        if 200 <= response.status < 300 and (tag := response.to.tag):
            proxied.answered[tag] = fork
        self._perform(proxied, proxied.context.response_received(fork, response), now)

    def timed_out(self, transaction: Transaction, now: float) -> None:
        """A transaction has waited long enough: its fork acts as if it had been answered 408 (§16.7)."""
        if isinstance(branch := transaction.context, Branch):
            self._perform(branch.proxied, branch.proxied.context.fork_failed(branch.fork, 408), now)

    def failed(self, transaction: Transaction, now: float) -> None:
        """What a transaction sends does not arrive (§16.9)."""
        if isinstance(branch := transaction.context, Branch):
            status = branch.fork.target.unreachable
            self._perform(branch.proxied, branch.proxied.context.fork_failed(branch.fork, status), now)

    def timer_fired(self, branch: Branch, now: float) -> None:
        """Timer C of a fork has fired, or the deadline after its CANCEL (§16.8, §9.1)."""
        branch.fork.timer = None
        actions = branch.proxied.context.fork_expired(branch.fork)
        if branch.fork.state is ForkState.ENDED:
            # "the client SHOULD then consider the original transaction cancelled and SHOULD destroy the client
            # transaction handling the original request" (§9.1).
            self._terminate(branch.fork)
        self._perform(branch.proxied, actions, now)

    def ended(self, transaction: Transaction, now: float) -> None:
        """Let go of all that a transaction kept."""
        branch = transaction.context
        if isinstance(branch, Branch):
            self._set_timer(branch, None)
            if branch.fork.state is not ForkState.ENDED or branch.proxied.key is not None:
                self.timed_out(transaction, now)
            branch.fork.transaction = None
        elif isinstance(branch, ProxiedRequest):
            self._lift_shadow(branch, now)
        transaction.context = None

    def _perform(self, proxied: ProxiedRequest, actions: list[Action], now: float) -> None:
        for action in actions:  # which become more while some are performed
            if isinstance(action, Forward):
                self._layer.respond(proxied.server, action.response, now)
            elif isinstance(action, Start):
                for fork in action.forks:
                    actions += self._start(proxied, fork, len(action.forks), now)
            elif isinstance(action, Cancel):
                self._cancel(action.fork, now)
            else:
                request = proxied.server.request
                answer = response_to(request, action.status, to_tag=self._tag(request))
                self._layer.respond(proxied.server, answer, now)
        if proxied.context.invite:
            self._cast_shadow(proxied, now)
        if proxied.context.concluded:
            proxied.passage = None

    def _start(self, proxied: ProxiedRequest, fork: Fork, parallel: int, now: float) -> list[Action]:
        """Forward the request to one target (§16.6); what is wrong with this target harms no other."""
        timers = self._layer.timers
        try:
            if not (forwarded := self._forward(proxied, fork, parallel)):
                return proxied.context.fork_failed(fork, fork.target.unreachable)
            transaction = self._layer.start(*forwarded, now, branch_timeout=timers.branch_timeout)
        except SipError:
            return proxied.context.fork_failed(fork, fork.target.unreachable)
        fork.transaction = transaction
        transaction.context = branch = Branch(proxied, fork)
        if transaction.request.method == "INVITE":
            self._set_timer(branch, now + timers.timer_c)  # 11. Set timer C
        return []

    def _resume(
        self, proxied: ProxiedRequest, fork: Fork, shadow: ForkShadow, parallel: int, now: float
    ) -> list[Action]:
        """Go on with a fork: one that has not been answered may never have been sent, so it is sent again."""
        calling = fork.state is ForkState.CALLING
        until = now + shadow.until - self._cluster_time()
        if calling and until <= now:
            return proxied.context.fork_failed(fork, 408)
        try:
            if not (forwarded := self._forward(proxied, fork, parallel, shadow.branch)):
                return proxied.context.fork_failed(fork, fork.target.unreachable)
            if calling:
                fork.transaction = self._layer.start(*forwarded, now, branch_timeout=until - now)
            else:
                fork.transaction = self._layer.adopt(*forwarded, now)
        except SipError:
            return proxied.context.fork_failed(fork, fork.target.unreachable)
        fork.transaction.context = own = Branch(proxied, fork)
        self._set_timer(own, now + self._layer.timers.timer_c if calling else until)
        return []

    def _forward(
        self, proxied: ProxiedRequest, fork: Fork, parallel: int, branch: str = ""
    ) -> tuple[Request, Flow] | None:
        """Make what is sent to a target, one of `parallel`; None if no flow leads there, or nothing is to be sent."""
        if proxied.passage is None:
            return None
        return forward(
            proxied.passage,
            fork.target,
            self._transport,
            fork=proxied.context.forks.index(fork) + 1,
            forks=sum(map(len, proxied.groups)),
            breadth=proxied.breadth // parallel,
            branch=branch,
        )

    def _cancel(self, fork: Fork, now: float) -> None:
        transaction = fork.transaction
        if transaction is None:
            return
        self._layer.start(cancel_for(transaction.request, fork.reasons or ()), transaction.flow, now)
        if isinstance(branch := transaction.context, Branch):
            self._set_timer(branch, now + self._layer.timers.timeout)

    def _cast_shadow(self, proxied: ProxiedRequest, now: float) -> None:
        """Tell the other nodes how far a call is, if it has come further in a way that matters to them."""
        context, server, passage = proxied.context, proxied.server, proxied.passage
        if context.answered and context.ended:
            # The callee retransmits a 2xx until it has the ACK (§13.3.1.4). Any other final response is ours to
            # retransmit: the shadow lasts as long as the server transaction.
            self._lift_shadow(proxied, now)
            if server.state is State.PROCEEDING:  # the 2xx was forwarded by another node
                self._layer.terminate(server)
        elif proxied.key is not None:
            shadow = self._shadow(context, now)
            if shadow != (before := proxied.shadow):
                proxied.shadow = shadow
                urgent = before is None or _decisive(*shadow) != _decisive(*before)
                self._shadows.publish(Advanced(proxied.key, *shadow), now, urgent=urgent)
        elif passage is not None:
            proxied.key = key_of(server.request.via)
            if proxied.key is not None:
                proxied.shadow = self._shadow(context, now)
                data, groups = passage.request.render(), tuple(map(tuple, proxied.groups))
                call = Call(data, passage.incoming, passage.now, passage.loop, passage.users, proxied.breadth, groups)
                self._shadows.publish(Opened(proxied.key, call, *proxied.shadow), now, urgent=True)

    def _shadow(self, context: ResponseContext, now: float) -> tuple[tuple[ForkShadow, ...], bool]:
        offset = self._cluster_time() - now
        return tuple([_shadow_of(fork, offset) for fork in context.forks]), context.cancelled

    def _lift_shadow(self, proxied: ProxiedRequest, now: float) -> None:
        """Tell the other nodes that nothing is left to be done for a call."""
        if proxied.key is not None:
            self._shadows.publish(Closed(proxied.key), now, urgent=False)
            proxied.key = None

    def _terminate(self, fork: Fork) -> None:
        if fork.transaction is not None:
            self._layer.terminate(fork.transaction)

    def _set_timer(self, branch: Branch, when: float | None) -> None:
        fork = branch.fork
        if fork.timer is not None:
            self._layer.stop_timer(fork.timer)
        fork.timer = None if when is None else self._layer.set_timer(when, branch)


def _decisive(forks: tuple[ForkShadow, ...], cancelled: bool) -> tuple[object, ...]:
    """What the others have to know at once: all but how far Timer C was put off."""
    return cancelled, [(fork.state, fork.reasons, fork.status) for fork in forks]


def _shadow_of(fork: Fork, offset: float) -> ForkShadow:
    """The shadow of a fork; `offset` is the cluster time when the clock of the timers is at zero."""
    transaction, final = fork.transaction, fork.final
    if fork.state is ForkState.ENDED:
        branch = "" if transaction is None else transaction.branch
        status, response = final or (0, None)
        return ForkShadow(branch, fork.state, 0, fork.reasons, status, b"" if response is None else response.render())
    timer = fork.timer if transaction is None or fork.state is ForkState.PROCEEDING else transaction.ending
    branch = "" if transaction is None else _branch_of(transaction)
    return ForkShadow(branch, fork.state, 0 if timer is None else ceil(timer.when + offset), fork.reasons)


def _branch_of(transaction: ClientTransaction) -> str:
    """The branch of what was sent, and what its Via bears behind that: who sends it again sends the same."""
    params = transaction.request.via.params
    return params[len(_BRANCH) :] if params.startswith(_BRANCH) else transaction.branch
