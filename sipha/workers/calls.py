"""The requests that a worker proxies: their transactions, and what it asks the daemon about them, if it must.

It forwards what is for users of ours, and what is within dialogs, over UDP. All else goes to the daemon as it came, and
so does what belongs to a call that the daemon holds. Of its own calls the daemon is told the shadows
(`sipha.proxy.shadow`), and takes them over should the worker die, as another node would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from sipha.auth.authenticator import Authenticator, Verified
from sipha.auth.claim import Claim
from sipha.auth.domain import Domains
from sipha.errors import MalformedMessage, SipError
from sipha.proxy.admission import ProxySettings
from sipha.proxy.interfaces import ITargets, ITransport
from sipha.proxy.invite import read as read_invite
from sipha.proxy.plain import read
from sipha.proxy.proxy import Proxy
from sipha.proxy.shadow import Key as Caller
from sipha.proxy.shadow import Shadows, call_of, key_of
from sipha.proxy.takeover import longest_setup
from sipha.proxy.target import TargetSet, Wanted
from sipha.proxy.targets import Targets
from sipha.proxy.uas import refusal_tag
from sipha.sip.events import Event, RequestReceived
from sipha.sip.flow import Address, Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request
from sipha.sip.parser import parse
from sipha.sip.timers import Timers
from sipha.sip.token import Tokens
from sipha.sip.transaction import Key, server_key
from sipha.state.interfaces import ICredentials, ILocation, ILog
from sipha.transport.endpoint import Endpoint
from sipha.transport.interfaces import ITransactionUser
from sipha.transport.sockets import Listener, Sockets
from sipha.transport.udp import UdpSocket
from sipha.workers.mark import param, read_mark
from sipha.workers.messages import Elsewhere, Start
from sipha.workers.table import Unknown

Question = tuple[int, str, str, str, str, Claim | None, Caller | None]
"""See `sipha.workers.messages.Questions`."""

MOST_WAITING = 10_000
"""Requests whose targets the daemon has yet to tell: if there are more, the next ones are for the daemon itself."""

_MOST_LATER = 4


@dataclass(slots=True)
class _Waiting:
    """A request whose targets the daemon is asked for: as it came, and what has come for it since.

    `claim` is what has yet to be used up here.
    """

    data: bytes
    flow: Flow
    claim: Claim | None
    done: Callable[[TargetSet | None, float], None]
    later: list[tuple[bytes, Request]] = field(default_factory=list)


@implementer(ITransport)
class _Lines:
    """The listeners, of which a worker uses those for UDP; Elsewhere for who asks for another."""

    def __init__(self, sockets: Sockets) -> None:
        self.mark = sockets.mark
        self.sent_by = sockets.sent_by
        self.is_local = sockets.is_local
        self._flow = sockets.flow

    def flow(self, transport: str, remote: Address) -> Flow | None:
        """See ITransport."""
        if transport != "UDP":
            raise Elsewhere(f"a flow over {transport}")
        return self._flow(transport, remote)


@implementer(ILog, ILocation)
class _Daemon:
    """What the daemon has and a worker doesn't: it knows the time, and nothing else is ever asked."""

    def __init__(self, cluster_time: Callable[[], float]) -> None:
        self.cluster_time = cluster_time

    def propose(self, record: object, done: object) -> None:  # noqa: ARG002
        """See ILog."""
        raise Elsewhere("a record for the log")

    def lookup(self, aor: str) -> Sequence[Any]:
        """See ILocation."""
        raise Elsewhere(f"the bindings of {aor}")

    bindings = lookup


@implementer(ITransactionUser, ITargets)
class Calls:
    """Proxies what comes by `datagram_received`, and sends until the lease ends, by `clock`.

    `lookups` raises Unknown where the daemon has to be asked; `questions` are those to be asked. `share` has the daemon
    told at once of shadows. What is to be passed on is returned, or given to `pass_on` if that turns out later; but a
    response with another's mark is offered to `hand_on` first.
    """

    log = Logger()

    def __init__(  # noqa: PLR0917  the parts of one thing
        self,
        reactor: Any,
        start: Start,
        credentials: ICredentials,
        authenticator: Authenticator,
        tokens: Callable[[], Tokens | None],
        domains: Domains,
        lookups: ILocation,
        *,
        lease_until: Callable[[], float],
        clock: Callable[[], float],
        cluster_time: Callable[[], float],
        share: Callable[[list[bytes]], None],
        pass_on: Callable[[bytes, Flow], None],
        hand_on: Callable[[str, bytes, Flow], bool],
    ) -> None:
        self.questions: list[Question] = []
        self._share_records = share
        self._pass_on = pass_on
        self._hand_on = hand_on
        self._authenticator = authenticator
        self._cluster_time = cluster_time
        self._mark = start.mark
        timers = Timers(*start.timers)
        self._layer = TransactionLayer(timers)
        self._forget_after = timers.timeout
        self._shadows = Shadows(longest_setup(timers))
        self._sockets = Sockets(param(start.mark))
        self.endpoint = Endpoint(
            reactor,
            self._layer,
            self._sockets,
            lease_until=lease_until,
            clock=clock,
            before_sending=self._share,
            tag=lambda request: refusal_tag(tokens(), request),
        )
        self._own = [Listener(*listener) for listener in start.own]
        daemon = _Daemon(cluster_time)
        self._targets = Targets(daemon, lookups, credentials, authenticator)
        self._proxy = Proxy(
            self._layer,
            log=daemon,
            location=daemon,
            credentials=credentials,
            authenticator=authenticator,
            targets=self,
            domains=domains,
            transport=_Lines(self._sockets),
            term=lambda: start.term,
            shadows=self._shadows,
            clock=reactor.seconds,
        )
        self._waiting: dict[Key, _Waiting] = {}
        self._asked: dict[int, Key] = {}
        self._asking = 0
        self._held: dict[Caller, float] = {}  # the daemon's calls, and until when their copies may come
        self._data = b""  # what is being received
        self._handed = False  # that came from the daemon
        self._passed = False  # that is for the daemon

    def use(self, sockets: Sequence[UdpSocket]) -> None:
        """Send by these sockets, those of the listeners in order."""
        self._sockets.borrow(sockets, self._own)
        self.endpoint.start(self)

    def adopt(self, settings: ProxySettings, force_rport: Callable[[Request, Flow], bool]) -> None:
        """Go by these from the next request on."""
        self._proxy.adopt(settings)
        self._layer.force_rport = force_rport

    def leave(self, held: Sequence[Caller], now: float) -> None:
        """Take note of calls that the daemon holds."""
        self._held.update(dict.fromkeys(held, now + self._forget_after))

    # What comes

    def datagram_received(self, data: bytes, flow: Flow, now: float) -> bool:
        """Act on a datagram, but for what is to be sent: that is for `turn`; False if it is for the daemon."""
        if data.startswith(b"SIP/2.0 ") and (mark := read_mark(data)) != self._mark:
            return not self._handed and self._hand_on(mark, data, flow)
        self._data, self._passed = data, False
        try:
            if self._plain_received(data, flow, now):
                self._layer.counters.requests_received += 1
                return True
            self.endpoint.receive(data, flow, now)
        except (Elsewhere, MalformedMessage):
            return False
        if self._passed:
            self._layer.counters.requests_received -= 1  # the daemon counts it
        return not self._passed

    def _plain_received(self, data: bytes, flow: Flow, now: float) -> bool:
        """Act on a datagram at once if it is a plain request; else return False, or raise Elsewhere."""
        if plain := read(data):
            self.endpoint.catch_up(now)  # what came before is of the same call, perhaps
            return self._proxy.plain_received(plain, flow, now)
        invite = read_invite(data)
        if invite is None:
            return False
        self.endpoint.catch_up(now)
        caller = invite.sender.branch, invite.sender.sent_by
        if invite.sender.key("INVITE") in self._waiting:
            return True
        if self._is_held(caller, now):
            raise Elsewhere(invite.uri)
        try:
            return self._proxy.invite_received(invite, flow, now)
        except Elsewhere:
            self._proxy.counters.requests -= 1
            self._hold(caller, now)
            raise

    def datagram_handed(self, data: bytes, flow: Flow, now: float) -> bool:
        """Act on what somebody says is ours; False if it is for the daemon."""
        self._handed = True
        try:
            return self.datagram_received(data, flow, now)
        finally:
            self._handed = False

    def is_ours(self, data: bytes, flow: Flow, now: float) -> bool:
        """Act on a datagram if it belongs to a transaction that is here, or will be; else return False."""
        try:
            message = parse(data)
            if isinstance(message, Request):
                ours = server_key(message, message.method) in self._waiting or self._layer.is_copy(message, flow)
                if not ours:
                    return False
        except MalformedMessage:
            return False
        return self.datagram_received(data, flow, now)

    def turn(self, now: float) -> None:
        """Send what is to be sent."""
        self.endpoint.turn(now)

    # ITransactionUser

    def event_received(self, event: Event, now: float) -> None:
        """See ITransactionUser."""
        if not isinstance(event, RequestReceived):
            self._proxy.event_received(event, now)
            return
        request, flow = event.request, event.flow
        method = request.method
        invite = method in {"ACK", "CANCEL"}
        waiting = self._waiting.get(server_key(request, "INVITE" if invite else method))
        if waiting is not None:
            if invite and len(waiting.later) < _MOST_LATER:
                waiting.later.append((self._data, request))
        elif self._is_held(key_of(request.via), now) or (method == "CANCEL" and not self._handed):
            self._leave(request, now)
        elif method == "ACK":
            counters = self._proxy.counters
            counters.requests += 1
            if not self._forwards_ack(request, flow):
                if self._proxy.is_for_refusal(request):
                    counters.dropped += 1
                else:
                    counters.requests -= 1
                    self._leave(request, now)
        else:
            try:
                self._proxy.event_received(event, now)
            except Elsewhere:
                self._proxy.counters.requests -= 1
                self._leave(request, now)

    def _forwards_ack(self, request: Request, flow: Flow) -> bool:
        try:
            return self._proxy.forward_ack(request, flow)
        except Elsewhere:
            return False

    def _is_held(self, caller: Caller | None, now: float) -> bool:
        return caller is not None and self._held.get(caller, 0.0) > now and not self._handed

    def _leave(self, request: Request, now: float) -> None:
        """Let the daemon have what is being received, and what comes of it."""
        self._passed = True
        if request.method == "INVITE":
            self._hold(key_of(request.via), now)

    def _hold(self, caller: Caller | None, now: float) -> None:
        held = self._held
        while held and held[first := next(iter(held))] <= now:
            del held[first]
        if caller is not None:
            held.pop(caller, None)
            held[caller] = now + self._forget_after

    # ITargets

    def find(  # noqa: PLR0917  see ITargets
        self,
        request: Request,
        flow: Flow,
        wanted: Wanted,
        verified: Verified | None,
        now: float,
        done: Callable[[TargetSet | None, float], None],
    ) -> None:
        """See ITargets; Elsewhere for what isn't for a user of ours or follows a Route, or while too many wait.

        Counts of our own nonces are used up here, when the targets are known; the daemon knows those of all others.
        """
        aor, uri, method, routed = wanted
        identity, claim = ("", None) if verified is None else (verified.account.identity, verified.claim)
        # What was handed over is a copy of what has ended here: asked about it, the daemon would hand it over again.
        if aor is None or routed or self._handed:
            raise Elsewhere(uri)
        ours = claim is None or self._authenticator.decides(claim)
        if ours:
            with suppress(Unknown):
                self._targets.find(request, flow, wanted, verified, now, done)
                return
        if len(self._waiting) >= MOST_WAITING:
            raise Elsewhere(uri)
        if not f"{aor}{uri}{method}{identity}{claim.username if claim else ''}".isascii():
            raise Elsewhere(uri)  # not every byte is a text
        key = server_key(request, method)
        self._asking += 1
        self._asked[self._asking] = key
        self._waiting[key] = _Waiting(self._data, flow, claim if ours else None, done)
        asked = None if ours else claim
        self.questions.append((self._asking, aor, uri, method, identity, asked, call_of(request)))

    def found(self, tag: int, targets: TargetSet | None, now: float) -> tuple[bytes, Flow] | None:
        """Go on with a request, since its targets are known, or that its nonce count was used; return how it came."""
        waiting = self._end_waiting(tag)
        if waiting is None:
            return None
        claim = waiting.claim
        if targets is not None and claim is not None and not self._authenticator.use_up(claim, self._cluster_time()):
            targets = None
        with suppress(SipError):  # no key: the phone asks again
            waiting.done(targets, now)
        for _, request in reversed(waiting.later):
            self._layer.reconsider(request, waiting.flow, now)
        self.endpoint.catch_up(now)
        return waiting.data, waiting.flow

    def left(self, tag: int, now: float) -> None:
        """Let the daemon have a request that it wants to forward itself."""
        waiting = self._end_waiting(tag)
        if waiting is not None:
            self._proxy.counters.requests -= 1
            self._layer.counters.requests_received -= 1 + len(waiting.later)
            self._pass_on(waiting.data, waiting.flow)
            request = parse(waiting.data)
            if isinstance(request, Request) and request.method == "INVITE":
                self._hold(key_of(request.via), now)
            for data, _ in waiting.later:
                self._pass_on(data, waiting.flow)

    def _end_waiting(self, tag: int) -> _Waiting | None:
        key = self._asked.pop(tag, None)
        return None if key is None else self._waiting.pop(key, None)

    # What the daemon is told

    def _share(self) -> None:
        if self._shadows.waiting:
            self._share_records(self._shadows.take_records())

    def counts(self) -> dict[str, dict[str, int]]:
        """What was done so far, by room."""
        return {
            "proxy": asdict(self._proxy.counters),
            "transaction": asdict(self._layer.counters),
            "answered": {f"{method} {status}": n for (method, status), n in self._layer.responses.items()},
            "endpoint": self.endpoint.counters,
        }

    @property
    def transactions(self) -> int:
        """How many transactions there are."""
        return self._layer.transactions

    def take_latencies(self) -> tuple[list[int], float]:
        """How long INVITEs have waited for their 100, since the last time."""
        return self._proxy.latencies.take()
