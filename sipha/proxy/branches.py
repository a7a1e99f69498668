"""The branches of proxied requests: client transactions, their responses, Timer C and CANCEL (RFC 3261 §16.7–16.10).

What happens to a client transaction is told to the response context of its request, and what that asks for is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sipha.errors import SipError
from sipha.proxy.context import Action, Answer, Cancel, Fork, ForkState, Forward, ResponseContext, Start
from sipha.proxy.forward import Passage, cancel_for, forward
from sipha.proxy.interfaces import ITransport
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.timers import Timer
from sipha.sip.transaction import ClientTransaction, ServerTransaction, Transaction


@dataclass(slots=True, eq=False)
class ProxiedRequest:
    """A request that is being proxied: its server transaction, what its forks have in common, its response context.

    `passage` is there until the context is concluded, as long as further forks may start.
    `breadth` is the Max-Breadth that the forks share, 0 to leave the header alone. `forks` is the size of the target
    set. `answered` are the forks that a 2xx came from, by its To tag.
    """

    server: ServerTransaction
    passage: Passage | None
    context: ResponseContext
    breadth: int
    forks: int
    answered: dict[str, Fork] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Branch:
    """What a client transaction is to us: a fork, and its Timer C or, once it is cancelled, its last deadline."""

    proxied: ProxiedRequest
    fork: Fork
    timer: Timer | None = None


class Branches:
    """Starts and ends the branches; `tag` makes the To tag of a final response of our own."""

    def __init__(self, layer: TransactionLayer, transport: ITransport, tag: Callable[[Request], str]) -> None:
        self._layer = layer
        self._transport = transport
        self._tag = tag

    def begin(self, proxied: ProxiedRequest, now: float) -> None:
        """Forward a request to its first targets."""
        proxied.server.context = proxied
        self._perform(proxied, proxied.context.start(), now)

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
        elif response.status > 100 and branch.timer is not None and not fork.cancelled:  # 2. Update timer C
            self._set_timer(branch, now + self._layer.timers.timer_c)
        response.headers.pop_value("Via")  # 3. Remove topmost Via
        if "Via" not in response.headers:
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
        branch.timer = None
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
            self.timed_out(transaction, now)
            branch.fork.transaction = None
        transaction.context = None

    def _perform(self, proxied: ProxiedRequest, actions: list[Action], now: float) -> None:
        pending = deque(actions)
        while pending:
            match pending.popleft():
                case Forward(response):
                    self._layer.respond(proxied.server, response, now)
                case Answer(status):
                    request = proxied.server.request
                    self._layer.respond(proxied.server, response_to(request, status, to_tag=self._tag(request)), now)
                case Start(forks):
                    for fork in forks:
                        pending.extend(self._start(proxied, fork, len(forks), now))
                case Cancel(fork):
                    self._cancel(fork, now)

        if proxied.context.concluded:
            proxied.passage = None

    def _start(self, proxied: ProxiedRequest, fork: Fork, parallel: int, now: float) -> list[Action]:
        """Forward the request to one target (§16.6); what is wrong with this target harms no other."""
        if proxied.passage is None:
            return []
        context, timers = proxied.context, self._layer.timers
        number = context.forks.index(fork) + 1
        breadth = proxied.breadth // parallel
        try:
            forwarded = forward(
                proxied.passage, fork.target, self._transport, fork=number, forks=proxied.forks, breadth=breadth
            )
            if forwarded is None:
                return context.fork_failed(fork, fork.target.unreachable)
            request, flow = forwarded
            transaction = self._layer.start(request, flow, now, branch_timeout=timers.branch_timeout)
        except SipError:
            return context.fork_failed(fork, fork.target.unreachable)
        fork.transaction = transaction
        transaction.context = branch = Branch(proxied, fork)
        if request.method == "INVITE":
            self._set_timer(branch, now + timers.timer_c)  # 11. Set timer C
        return []

    def _cancel(self, fork: Fork, now: float) -> None:
        transaction = fork.transaction
        if transaction is None:
            return
        self._layer.start(cancel_for(transaction.request, fork.reasons or ()), transaction.flow, now)
        if isinstance(branch := transaction.context, Branch):
            self._set_timer(branch, now + self._layer.timers.timeout)

    def _terminate(self, fork: Fork) -> None:
        if fork.transaction is not None:
            self._layer.terminate(fork.transaction)

    def _set_timer(self, branch: Branch, when: float | None) -> None:
        if branch.timer is not None:
            self._layer.stop_timer(branch.timer)
        branch.timer = None if when is None else self._layer.set_timer(when, branch)
