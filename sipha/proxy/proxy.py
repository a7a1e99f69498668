"""The stateful proxy (RFC 3261 §16): a request comes in, copies of it go to its targets, the best answer goes back.

A request passes through here in the steps of §16.2: validate (§16.3), preprocess the Routes (§16.4), determine the
targets (§16.5), forward (§16.6); the responses are the response context's (§16.7). What is refused before it is
admitted is answered without state; afterwards its transactions alone keep it in memory, and it ends with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sipha.auth.authenticator import Authenticator, strip_credentials
from sipha.auth.domain import Domains
from sipha.errors import MalformedMessage, SipError, Unavailable
from sipha.histogram import Histogram
from sipha.proxy.admission import Admission, ProxySettings, strip_identities
from sipha.proxy.branches import Branch, Branches, ProxiedRequest
from sipha.proxy.context import ResponseContext
from sipha.proxy.dialog import dialog_target, record_routes, sides, user_of
from sipha.proxy.forward import Passage, branch_identity, forward, loop_digest
from sipha.proxy.glance import Sender, own_via
from sipha.proxy.interfaces import ITargets, ITransport
from sipha.proxy.invite import Invite
from sipha.proxy.plain import Plain
from sipha.proxy.responsibility import Responsibility
from sipha.proxy.route import preprocess
from sipha.proxy.shadow import Shadows
from sipha.proxy.takeover import Takeover
from sipha.proxy.target import Target, TargetSet, Wanted, flow_of_binding, plain_target
from sipha.proxy.uas import capabilities
from sipha.sip.events import (
    AckReceived,
    CancelReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StrayResponse,
    TimerFired,
    TransactionEnded,
    TransactionFailed,
    TransactionTimedOut,
)
from sipha.sip.flow import Flow
from sipha.sip.headers import is_number, parse_via
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.token import NOBODY, RouteToken, Tokens
from sipha.sip.transaction import ServerTransaction
from sipha.sip.uri import OtherUri, SipUri
from sipha.state.interfaces import ICredentials, ILocation, ILog


@dataclass(slots=True)
class Counters:
    """What the proxy has done since it was made."""

    requests: int = 0
    refused: int = 0
    forwarded: int = 0
    dropped: int = 0


class Proxy:
    """Proxies all that isn't for the registrar; `term` says in which term the leader makes its nonces.

    `latencies` are the seconds on the `clock` from when an INVITE came to its 100.
    """

    def __init__(
        self,
        layer: TransactionLayer,
        *,
        log: ILog,
        location: ILocation,
        credentials: ICredentials,
        authenticator: Authenticator,
        targets: ITargets,
        domains: Domains,
        transport: ITransport,
        term: Callable[[], int],
        shadows: Shadows,
        clock: Callable[[], float] = time.monotonic,
        settings: ProxySettings | None = None,
    ) -> None:
        self.counters = Counters()
        self.latencies = Histogram()
        self._clock = clock
        self._layer = layer
        self._log = log
        self._location = location
        self._targets = targets
        self._authenticator = authenticator
        self._transport = transport
        self._shadows = shadows
        self._settings = settings or ProxySettings()
        self._ours = Responsibility(domains, transport)
        self._admission = Admission(authenticator, credentials, self._ours, log=log, term=term, settings=self._settings)
        self._branches = Branches(layer, transport, self._tag, shadows, log.cluster_time)
        self._takeover = Takeover(
            layer,
            self._branches,
            shadows,
            transport,
            tokens=lambda: authenticator.tokens,
            cluster_time=log.cluster_time,
        )
        self.takeover_counters = self._takeover.counters

    def adopt(self, settings: ProxySettings) -> None:
        """Decide by these from the next request on."""
        self._settings = settings
        self._admission.adopt(settings)

    def take_over(self, now: float) -> None:
        """Go on with the calls that an earlier leader was setting up, once there are listeners and time is handled."""
        self._takeover.begin(now)

    def event_received(self, event: Event, now: float) -> None:
        """Act on an event of the transaction layer.

        Raises Unavailable while the log holds no key, and a SipError for what can't be answered or forwarded.
        """
        # Those that come most often are never of a call that is taken over.
        if isinstance(event, ResponseReceived):
            self._branches.response_received(event.transaction, event.response, now)
        elif isinstance(event, TransactionEnded):
            self._branches.ended(event.transaction, now)
        elif not self._takeover.event_received(event, now):
            self._event_received(event, now)

    def _event_received(self, event: Event, now: float) -> None:
        match event:
            case RequestReceived(request, flow):
                self.request_received(request, flow, now)
            case CancelReceived(transaction, request, _):
                self.cancel_received(transaction, request, now)
            case AckReceived(transaction, request):
                self.ack_received(transaction, request)
            case TransactionTimedOut(transaction):
                self._branches.timed_out(transaction, now)
            case TransactionFailed(transaction):
                self._branches.failed(transaction, now)
            case TimerFired(_, Branch() as branch):
                self._branches.timer_fired(branch, now)
            case StrayResponse():
                # "it MUST NOT forward the response" (RFC 6026 §8.9): its branch isn't one that we are waiting for.
                self.counters.dropped += 1

    def plain_received(self, plain: Plain, flow: Flow, now: float) -> bool:
        """Forward a plain request within a dialog at once; False if it has to be parsed."""
        tokens = self._tokens_at_a_glance(plain.sender, "INVITE" if plain.method == "ACK" else plain.method)
        if tokens is None:
            return False
        via = plain.sender.via(flow)
        made = plain.forward(via, flow, tokens, self._transport, self._log.cluster_time())
        if made is None:
            return False
        self.counters.requests += 1
        if plain.method == "ACK":
            self._layer.send(*made)
            self.counters.forwarded += 1
            return True
        request = plain.request(via)
        try:
            server = self._layer.accept_as(plain.sender.key(plain.method), request, flow, flow, now)
        except SipError as error:
            self._layer.reply(self._refusal(request, flow, error), flow)
            return True
        groups = [[Target(plain.uri, flow=made[1], unreachable=430)]]
        context = ResponseContext(groups, invite=False)
        self._branches.begin(ProxiedRequest(server, Passage(request, flow, tokens, made=made), context, 0, groups), now)
        self.counters.forwarded += 1
        return True

    def invite_received(self, invite: Invite, flow: Flow, now: float) -> bool:
        """Forward a plain INVITE at once, or refuse who isn't its caller; False if it has to be parsed.

        It goes on from one user of ours to the only contact of another; whatever else it may be is left to `_proxy`.
        """
        tokens = self._tokens_at_a_glance(invite.sender, "INVITE")
        if tokens is None or self._settings.max_breadth < 1 or self._admission.is_peer(flow):
            return False
        located, callee = self._ours.domains.locate_plain(invite.from_uri), self._ours.aor_of(invite.uri)
        if located is None or callee is None or invite.credentials.realm != located[0].realm:
            return False
        routes = () if invite.route is None else (invite.route,)
        loop = tokens.loop_digest((invite.uri, invite.call_id, invite.from_tag, "", invite.cseq, *routes))
        if f".{loop}" in invite.rest:
            return False
        if invite.next_hop is not None and self._ours.domain_of(invite.next_hop) is None:
            return False
        domain, caller = located
        via = invite.sender.via(flow)
        request, at = invite.request(via), self._log.cluster_time()
        self.counters.requests += 1
        try:
            verified = self._admission.admit_caller(invite.credentials, domain, caller, at, "INVITE")
        except SipError as error:
            self._layer.reply(self._refusal(request, flow, error), flow)
            return True
        users = tokens.user(caller), tokens.user(callee)
        passage = Passage(invite.routed(via), flow, tokens, loop, at, users)
        done = partial(self._invite_found, invite, request, passage, now)
        self._targets.find(request, flow, Wanted(callee, invite.uri, "INVITE"), verified, now, done)
        return True

    def _invite_found(  # noqa: PLR0917  the parts of one thing
        self,
        invite: Invite,
        request: Request,
        passage: Passage,
        received: float,
        targets: TargetSet | None,
        now: float,
    ) -> None:
        """Forward a plain INVITE to its only target at once; what else has become of it goes the usual way."""
        target, transport, flow, via = plain_target(targets), self._transport, passage.incoming, request.via
        out = None if target is None else flow_of_binding(target, secure=False, transport=transport)
        if target is None or out is None:
            self._found(request, passage, received, targets, now)
            return
        try:
            server = self._layer.accept_as(invite.sender.key("INVITE"), request, flow, flow, now)
        except SipError as error:
            self._layer.reply(self._refusal(request, flow, error), flow)
            return
        self._layer.respond(server, invite.trying(via), now)
        self.latencies.observe(self._clock() - received)
        tokens, breadth = passage.tokens, self._settings.max_breadth
        dialog = tokens.route(invite.call_id, invite.from_tag, flow, out, passage.users)
        identity = invite.sender.identity(flow, invite.call_id, invite.from_tag, invite.cseq, out)
        own = own_via(out, tokens.branch(identity, passage.now, 1, 1, passage.loop), transport)
        recorded = record_routes(dialog, flow, out, transport)
        made = invite.forwarded(via, own, target.uri, recorded, breadth), out
        groups = [[target]]
        context = ResponseContext(groups, invite=True)
        proxied = ProxiedRequest(server, passage._replace(made=made), context, breadth, groups)
        self._branches.begin(proxied, now)
        self.counters.forwarded += 1

    def _tokens_at_a_glance(self, sender: Sender, method: str) -> Tokens | None:
        """The tokens to forward a plain request by; None if it has to be parsed, whatever it says.

        It may be of a call that is taken over, or belongs to the transaction that `method` began.
        """
        if self._shadows or self._layer.server(sender.key(method)) is not None:
            return None
        try:
            return self._authenticator.tokens
        except Unavailable:
            return None

    # -- requests ---------------------------------------------------------------------------------------------------

    def request_received(self, request: Request, flow: Flow, now: float) -> None:
        """Proxy a request that belongs to no transaction, or refuse it (§16.2)."""
        self.counters.requests += 1
        if request.method == "ACK":
            if not self.forward_ack(request, flow):
                self.counters.dropped += 1
            return
        if request.method == "CANCEL":
            # Of nothing that we forwarded: relayed statelessly (§16.10) it would be anyone's way through us.
            self._layer.reply(self._refusal(request, flow, SipError("nothing to cancel", status=481)), flow)
            return
        try:
            self._proxy(request, flow, now)
        except SipError as error:
            self._layer.reply(self._refusal(request, flow, error), flow)

    def _proxy(self, request: Request, flow: Flow, now: float) -> None:
        tokens = self._authenticator.tokens
        loop = loop_digest(request, tokens)
        # 1. Validate the request
        self._validate(request, loop)
        # 2. Preprocess routing information
        routed = request.copy()
        token = preprocess(routed, flow, self._ours)
        dialog = sides(token, request.call_id, request.from_.tag or "", request.to.tag or "", tokens)
        # 3. Determine target(s) for the request
        if dialog is None:
            if self._is_for_us(routed):
                self._answer(request, flow)
                return
            aor = self._ours.aor_of(routed.uri)
            local = aor is not None and "Route" not in routed.headers
            spiral = self._is_spiral(request, flow, tokens)
            verified = self._admission.admit(request, routed, flow, local=local, spiral=spiral)
            passage = Passage(routed, flow, tokens, loop, self._log.cluster_time(), self._users(request, aor, tokens))
            wanted = Wanted(aor, routed.uri, routed.method, "Route" in routed.headers)
            self._targets.find(request, flow, wanted, verified, now, partial(self._found, request, passage, now))
        else:
            if not self._admission.is_peer(flow):
                strip_identities(routed)
            users = dialog.caller.user, dialog.callee.user
            passage = Passage(routed, flow, tokens, loop, self._log.cluster_time(), users)
            self._forward(request, passage, now, self._dialog_targets(routed, dialog), now)

    def _found(
        self, request: Request, passage: Passage, received: float, targets: TargetSet | None, now: float
    ) -> None:
        """Go on with a request of no dialog, which came when it was `received`."""
        if targets is None:
            error = self._admission.challenge(request)
            self._layer.reply(self._refusal(request, passage.incoming, error), passage.incoming)
            return
        breadth = 0
        if not isinstance(targets, SipError):
            try:
                breadth = self._breadth(passage.request, max(map(len, targets)))
            except SipError as error:
                targets = error
        self._forward(request, passage, received, targets, now, breadth)

    def _forward(  # noqa: PLR0917  the parts of one thing
        self,
        request: Request,
        passage: Passage,
        received: float,
        targets: TargetSet,
        now: float,
        breadth: int = 0,
    ) -> None:
        """Begin the transactions of a request that may pass, or answer what its targets are instead."""
        flow = passage.incoming
        try:
            server = self._layer.accept(request, flow, now)
        except SipError as error:
            self._layer.reply(self._refusal(request, flow, error), flow)
            return
        if request.method == "INVITE":
            self._layer.respond(server, response_to(request, 100), now)
            self.latencies.observe(self._clock() - received)
        if isinstance(targets, SipError):
            self._layer.respond(server, self._refusal(request, flow, targets), now)
            return
        # 4. Forward the request to each target; 5. Process all responses
        strip_credentials(passage.request, self._ours.domains.realms)
        context = ResponseContext(targets, invite=request.method == "INVITE")
        self._branches.begin(ProxiedRequest(server, passage, context, breadth, targets), now)
        self.counters.forwarded += 1

    def _validate(self, request: Request, loop: str) -> None:
        """Validate a request (§16.3); its syntax is the parser's, its credentials are `admission`'s."""
        uri = request.parsed_uri  # 2. URI scheme
        if isinstance(uri, OtherUri) and uri.scheme != "tel":
            raise SipError(f"a Request-URI of the scheme {uri.scheme}", status=416)
        if request.max_forwards == 0 and not self._is_for_us(request):  # 3. Max-Forwards
            raise SipError("no hop is left", status=483)
        for field in request.headers.all("Via"):  # 4. Loop detection
            if f".{loop}" in field:
                raise SipError("this very request has passed here before", status=482)
        if "Proxy-Require" in request.headers and (required := request.headers.values("Proxy-Require")):
            # 5. Proxy-Require
            raise SipError(
                "an extension that we don't know", status=420, headers=(("Unsupported", ", ".join(required)),)
            )

    def _is_for_us(self, routed: Request) -> bool:
        uri = routed.parsed_uri
        return (
            isinstance(uri, SipUri)
            and not uri.user
            and "Route" not in routed.headers
            and self._ours.domain(uri) is not None
        )

    def _is_spiral(self, request: Request, flow: Flow, tokens: Tokens) -> bool:
        """True if we sent this request to ourselves, as its top Via proves: the caller was admitted then."""
        if flow.remote[0] != flow.local[0] or len(vias := request.headers.values("Via")) < 2:
            return False
        identity = branch_identity(request, parse_via(vias[1]), flow.transport, flow.local)
        return tokens.read_branch(request.via.branch or "", identity) is not None

    def _answer(self, request: Request, flow: Flow) -> None:
        """Answer a request that is for the proxy itself, without state (§8.2.7)."""
        headers = capabilities(request)
        self._layer.reply(response_to(request, 200, to_tag=self._tag(request), headers=headers), flow)

    # -- targets ----------------------------------------------------------------------------------------------------

    def _dialog_targets(self, routed: Request, dialog: RouteToken) -> TargetSet:
        try:
            return [[self._dialog_target(routed, dialog)]]
        except SipError as error:
            return error

    def _dialog_target(self, routed: Request, dialog: RouteToken) -> Target:
        tokens, ours = self._authenticator.tokens, self._ours
        return dialog_target(
            routed, dialog.callee, lambda: user_of(dialog.callee, routed, tokens, ours), self._transport, self._location
        )

    def _users(self, request: Request, aor: str | None, tokens: Tokens) -> tuple[bytes, bytes]:
        """The marks of who begins a dialog and whom with; a From with an AOR of ours has been proved by now."""
        uri = request.from_.uri
        caller = self._ours.aor_of(uri) if uri[:3].lower() == "sip" else None  # who calls by a number says no domain
        return NOBODY if caller is None else tokens.user(caller), NOBODY if aor is None else tokens.user(aor)

    def _breadth(self, routed: Request, widest: int) -> int:
        """The Max-Breadth that a request may spend; SipError 440 if its forks need more (RFC 5393 §5.3.3)."""
        text = routed.headers.get("Max-Breadth")
        if text is not None and (not is_number(text) or len(text) > 9):
            raise MalformedMessage(f"Max-Breadth: {text[:20]!r} is not a number")
        allowed = self._settings.max_breadth
        breadth = allowed if text is None else min(int(text), allowed)
        if breadth < widest:
            raise SipError(f"{widest} parallel forks where {breadth} are allowed", status=440)
        return breadth

    # -- ACK and CANCEL ---------------------------------------------------------------------------------------------

    def forward_ack(self, request: Request, flow: Flow) -> bool:
        """Forward the ACK for a 2xx, without state and unchallenged, if its token proves the dialog; else return False.

        The ACK for a final response of ours that had no transaction ends here too: its To tag is ours.
        """
        try:
            tokens = self._authenticator.tokens
            routed = request.copy()
            token = preprocess(routed, flow, self._ours)
            dialog = sides(token, request.call_id, request.from_.tag or "", request.to.tag or "", tokens)
            if dialog is None or self.is_for_refusal(request) or request.max_forwards == 0:
                return False
            self._send_ack(request, routed, flow, self._dialog_target(routed, dialog))
        except SipError:
            return False  # "The ACK [...] there is never a response": what can't be forwarded is lost.
        return True

    def is_for_refusal(self, request: Request) -> bool:
        """True if an ACK is for a final response of our own making."""
        return self._authenticator.tokens.is_tag(request.to.tag or "", *_tagged(request))

    def ack_received(self, transaction: ServerTransaction, request: Request) -> None:
        """Forward an ACK that came with the branch of its INVITE, to the fork whose 2xx it is for."""
        proxied = transaction.context
        fork = proxied.answered.get(request.to.tag or "") if isinstance(proxied, ProxiedRequest) else None
        if fork is None or fork.transaction is None or request.max_forwards == 0:
            self.counters.dropped += 1
            return
        routed = request.copy()
        try:
            preprocess(routed, transaction.flow, self._ours)
            self._send_ack(request, routed, transaction.flow, Target(routed.uri, flow=fork.transaction.flow))
        except SipError:
            self.counters.dropped += 1

    def _send_ack(self, request: Request, routed: Request, flow: Flow, target: Target) -> None:
        tokens = self._authenticator.tokens
        strip_credentials(routed, self._ours.domains.realms)
        passage = Passage(routed, flow, tokens, loop_digest(request, tokens), self._log.cluster_time())
        if forwarded := forward(passage, target, self._transport):
            self._layer.send(*forwarded)
            self.counters.forwarded += 1

    def cancel_received(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        """Cancel the forks of an INVITE, and pass the caller's Reason on (§16.10); the layer has sent the 200."""
        proxied = transaction.context
        if isinstance(proxied, ProxiedRequest):
            self._branches.cancel(proxied, tuple(request.headers.all("Reason")), now)

    # -- refusals ---------------------------------------------------------------------------------------------------

    def _refusal(self, request: Request, flow: Flow, error: SipError) -> Response:
        self.counters.refused += 1
        # A 503 to a peer has no Retry-After, by which it would leave us alone with all its calls (design §1.7).
        headers = () if isinstance(error, Unavailable) and self._admission.is_peer(flow) else error.headers
        status = error.response_status
        return response_to(request, status, error.reason, to_tag=self._tag(request), headers=headers)

    def _tag(self, request: Request) -> str:
        """The To tag of a response of ours: the same for each copy of a request (§8.2.7)."""
        return self._authenticator.tokens.tag(*_tagged(request))


def _tagged(request: Request) -> tuple[str, str, int, str]:
    """What the To tag of our responses to a request is made of; an ACK for them has the same."""
    via = request.via
    return request.call_id, request.from_.tag or "", request.cseq.number, f"{via.sent_by} {via.branch}"
