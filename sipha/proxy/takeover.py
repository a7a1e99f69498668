"""The takeover of calls that another node was setting up when it ceased to lead (design §5).

Where a call has a shadow (shadow.py), its transactions and its response context are made again, and all goes on: soon
after the lease is gained, or when the first message comes that concerns it.

Where it has none, a response is all there is. If the branch in its top Via proves that we have forwarded the request to
where the response comes from, for the caller that it names, a response context is made of as many forks as the branch
counts; nothing is known of them but what they say. What is forwarded then follows from §16.7 as ever: 1xx and 2xx at
once, another final response when all forks have ended, which is at once for a single target. What proves less is
neither forwarded nor kept (RFC 6026 §8.9).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from sipha.errors import MalformedMessage, SipError
from sipha.proxy.branches import Branches, ProxiedRequest
from sipha.proxy.context import Final, ForkState, Progress, ResponseContext
from sipha.proxy.forward import Passage, branch_identity
from sipha.proxy.interfaces import ITransport
from sipha.proxy.shadow import ForkShadow, Key, Shadow, Shadows, key_of
from sipha.proxy.target import Target
from sipha.sip.events import Event, RequestReceived, StrayResponse, TimerFired
from sipha.sip.flow import Flow
from sipha.sip.headers import Via, parse_via
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import parse
from sipha.sip.timers import Timers
from sipha.sip.token import BRANCH_STEP, Tokens
from sipha.sip.transaction import ServerTransaction
from sipha.sip.uri import ip_literal

PACE = 0.01
"""Seconds between two portions of calls that are taken over, each of `PORTION`."""

PORTION = 25

_GONE = -1
"""The number of no connection: the caller's has ended with the other node."""


@dataclass(slots=True)
class Counters:
    """The calls that were taken over by their shadow, by a response alone, or could not be."""

    resumed: int = 0
    recreated: int = 0
    failed: int = 0


def longest_setup(timers: Timers) -> float:
    """How long a call may be set up without word from a phone, in seconds: Timer C, and then its CANCEL (§16.8)."""
    return timers.timer_c + timers.timeout


class Takeover:
    """Takes calls over from an earlier leader."""

    def __init__(
        self,
        layer: TransactionLayer,
        branches: Branches,
        shadows: Shadows,
        transport: ITransport,
        *,
        tokens: Callable[[], Tokens],
        cluster_time: Callable[[], float],
    ) -> None:
        self.counters = Counters()
        self._layer = layer
        self._branches = branches
        self._shadows = shadows
        self._transport = transport
        self._tokens = tokens
        self._cluster_time = cluster_time
        self._reach = longest_setup(layer.timers)
        self._until = -inf

    def begin(self, now: float) -> None:
        """Take over what there is, little by little, and for a while what comes."""
        self._until = now + self._reach
        self._layer.set_timer(now, self)

    def event_received(self, event: Event, now: float) -> bool:
        """Return True if an event is of a call that is taken over: what came for it will come again.

        Raises SipError for a response that can't be understood.
        """
        match event:
            case RequestReceived(request, flow) if self._shadows:
                key = key_of(request.via)
                return key is not None and self._resume(key, now) and self._again(request, flow, now)
            case StrayResponse(response, flow):
                return self._response_received(response, flow, now)
            case TimerFired(_, Takeover()):
                self._go_on(now)
                return True
            case _:
                return False

    def _response_received(self, response: Response, flow: Flow, now: float) -> bool:
        if response.cseq.method != "INVITE":
            return False  # a client sends any other request until it has the final response
        values = response.headers.values("Via")
        key = key_of(via := parse_via(values[1])) if len(values) > 1 else None
        if key is None or not (self._resume(key, now) or self._recreate(key, via, response, flow, now)):
            return False
        return self._again(response, flow, now)

    def _again(self, message: Request | Response, flow: Flow, now: float) -> bool:
        self._layer.reconsider(message, flow, now)
        return True

    def _go_on(self, now: float) -> None:
        """Take over the next portion."""
        if self._shadows:
            self._layer.set_timer(now + PACE, self)  # first: a mistake about one call must not stop the others
        for _ in range(PORTION):
            key = self._shadows.first(now)
            if key is None:
                return
            self._resume(key, now)

    # By its shadow

    def _resume(self, key: Key, now: float) -> bool:
        shadow = self._shadows.take(key)
        if shadow is None:
            return False
        try:
            self._go_on_with(shadow, now)
        except (SipError, ValueError):
            self.counters.failed += 1
            return False
        self.counters.resumed += 1
        return True

    def _go_on_with(self, shadow: Shadow, now: float) -> None:
        call = shadow.call
        request = parse(call.request)
        if not isinstance(request, Request) or request.method != "INVITE":
            raise MalformedMessage("a shadow of something else than an INVITE")
        flow = call.flow._replace(connection=_GONE) if call.flow.reliable else call.flow
        groups = [[_reachable(target) for target in group] for group in call.groups]
        progress = [Progress(fork.state, fork.reasons, _final(fork)) for fork in shadow.forks]
        context = ResponseContext.resumed(groups, progress, cancelled=shadow.cancelled)
        passage = Passage(request, flow, self._tokens(), call.loop, call.at, call.users)
        server = self._layer.accept(request, flow, now)
        if not context.concluded:
            self._layer.respond(server, response_to(request, 100), now)
        proxied = ProxiedRequest(server, passage, context, call.breadth, groups)
        try:
            self._branches.resume(proxied, shadow.forks, now)
        except BaseException:
            self._layer.terminate(server)
            raise
        if flow.reliable:  # nobody is left to hear of an answer
            self._branches.cancel(proxied, (), now)

    # By a response alone

    def _recreate(self, key: Key, via: Via, response: Response, flow: Flow, now: float) -> bool:
        if now > self._until:
            return False
        identity = branch_identity(response, via, flow.transport, flow.remote)
        token = self._tokens().read_branch(response.via.branch or "", identity)
        if token is None or not 0 < token.fork <= token.forks:
            return False
        if self._cluster_time() - token.issued_at > self._reach + BRANCH_STEP:
            return False
        server = self._layer.server((*key, "INVITE")) or self._accept(response, via, now)
        proxied = None if server is None else server.context or self._await_forks(server, token.forks, now)
        if not isinstance(proxied, ProxiedRequest) or token.fork > len(proxied.context.forks):
            return False
        fork = proxied.context.forks[token.fork - 1]
        if fork.state is ForkState.ENDED and response.status < 200:
            return False  # nothing would end its transaction
        # The Request-URI was the phone's contact; a phone knows ACK and CANCEL by their branch (§17.2.3).
        request = Request("INVITE", fork.target.uri or _uri(flow), [("Via", str(response.via))])
        request.headers.copy_from(response.headers, _COPIED)
        self._branches.adopt(proxied, fork, request, flow, now)
        return True

    def _accept(self, response: Response, via: Via, now: float) -> ServerTransaction | None:
        """Begin the server transaction of the INVITE that a response is for; None if the caller is gone."""
        host = ip_literal(via.received or via.host)
        flow = self._transport.flow("UDP", (host, via.port or 5060)) if host and via.transport == "UDP" else None
        if flow is None:
            return None
        self.counters.recreated += 1
        request = Request("INVITE", response.to.uri, [("Via", value) for value in response.headers.values("Via")[1:]])
        request.headers.copy_from(response.headers, _COPIED)
        return self._layer.accept(request, flow, now)

    def _await_forks(self, server: ServerTransaction, forks: int, now: float) -> ProxiedRequest:
        groups = [[Target("")] * forks]
        context = ResponseContext.resumed(groups, [Progress(ForkState.CALLING)] * forks, cancelled=False)
        proxied = ProxiedRequest(server, None, context, 0, groups)
        self._branches.await_forks(proxied, now)
        return proxied


_COPIED = frozenset(("From", "To", "Call-ID", "CSeq"))


def _reachable(target: Target) -> Target:
    """A target, but for the connection that another node had with it: perhaps there is one now, or it can be opened."""
    flow = target.flow
    return target if flow is None or not flow.reliable else target._replace(flow=flow._replace(connection=0))


def _final(fork: ForkShadow) -> Final | None:
    if not fork.status:
        return None
    response = parse(fork.response) if fork.response else None
    return Final(fork.status, response if isinstance(response, Response) else None)


def _uri(flow: Flow) -> str:
    host, port = flow.remote
    return f"sip:[{host}]:{port}" if ":" in host else f"sip:{host}:{port}"
