"""What phones see of a leader: registrar and proxy behind the listeners of the virtual addresses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import count
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements

from sipha import config
from sipha.admin.views import WorkersStatus
from sipha.auth.authenticator import Authenticator
from sipha.auth.domain import Domains
from sipha.auth.window import NonceWindow
from sipha.cluster.raft import clock as boottime
from sipha.cluster.replica import Replica
from sipha.errors import ConfigError
from sipha.histogram import Histogram
from sipha.nat import stun
from sipha.nat.interfaces import IPingTransport
from sipha.proxy.interfaces import ITransport
from sipha.proxy.proxy import Proxy
from sipha.proxy.shadow import Shadows, call_of
from sipha.proxy.takeover import longest_setup
from sipha.proxy.targets import Targets
from sipha.proxy.uas import refusal_tag
from sipha.registrar.registrar import Registrar
from sipha.registrar.registry import Registry
from sipha.service.core import Core
from sipha.service.nat import make_detection, make_force_rport
from sipha.service.overload import OverloadAlarm
from sipha.service.settings import (
    make_listeners,
    make_proxy_settings,
    make_registrar_settings,
    make_stream_limits,
    make_timers,
    make_trust,
)
from sipha.service.user import TransactionUser
from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response
from sipha.sip.overload import Overload
from sipha.sip.token import Tokens
from sipha.state.machine import Machine
from sipha.transport.address import Bind
from sipha.transport.endpoint import Endpoint, Tap
from sipha.transport.listeners import Listeners
from sipha.transport.sockets import Listener, Sockets
from sipha.workers.pool import Pool

SHADOWS = "shadows"
"""The topic under which the nodes share the shadows of calls."""

SOON = 0.02
"""Seconds for which what isn't urgent of the shadows waits for what is."""


class KeyRing:
    """The tokens under the log's keys, made anew when a key is added."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._made_for: int | None = None
        self._tokens: Tokens | None = None

    def tokens(self) -> Tokens | None:
        """Return the tokens, or None while the log holds no key."""
        keys = self._machine.keys
        if keys.current != self._made_for:
            self._made_for = keys.current
            self._tokens = Tokens(keys.ring)
        return self._tokens


# Proxy and keepalive ask for a transport each.
classImplements(Sockets, ITransport)
classImplements(Endpoint, IPingTransport)


class SipService(Service):
    """What phones see of a leader: registrar and proxy behind the listeners of the virtual addresses.

    `domains` are those that are served now; `bind` gives the listeners their sockets; `failed` is told why they can't
    be opened. `answers` is offered each datagram that looks like a response, `askers` each response that belongs to no
    transaction, as TransactionUser says. `taps` are told of each message.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        configuration: config.Config,
        replica: Replica,
        bind: Bind,
        failed: Callable[[str], None],
        *,
        domains: Domains,
        keys: KeyRing,
        answers: Callable[[bytes, Flow], bool] = lambda _data, _flow: False,
    ) -> None:
        self._reactor = reactor
        self._config = configuration
        self._replica = replica
        self._bind = bind
        self._failed = failed
        self._domains = domains
        self.askers: list[Callable[[Response, Flow], bool]] = []
        self.taps: list[Tap] = []
        self.nonces = NonceWindow(maker=0)
        self._lives = count(1)  # of workers, in this process
        self._keys = keys
        self._answers = answers
        self._listeners: Listeners | None = None
        self._endpoint: Endpoint | None = None
        self._layer: TransactionLayer | None = None
        self._adopt: Callable[[config.Config], None] = lambda _: None
        self._counters: dict[str, Any] = {}
        self._registry: Registry | None = None
        self._registrar: Registrar | None = None
        self._proxy: Proxy | None = None
        self._pool: Pool | None = None
        self._overload = OverloadAlarm(reactor, self.log)
        self._sharing: Any = None
        self._timers = make_timers(configuration.sip)
        self._shadows = Shadows(longest_setup(self._timers))
        replica.sharing.subscribe(
            SHADOWS, lambda records: self._shadows.received(records, reactor.seconds()), self._all_shadows
        )

    @property
    def listening(self) -> bool:
        """True while phones are heard."""
        return bool(self.addresses)

    @property
    def addresses(self) -> Sequence[Listener]:
        """Where we listen; nowhere before all listeners are open."""
        return () if self._listeners is None else self._listeners.addresses

    @property
    def connections(self) -> int:
        """How many connections of streams would be closed if leadership ended now."""
        return 0 if self._listeners is None else self._listeners.connections

    @property
    def stream_calls(self) -> int:
        """How many calls are being set up whose callers use streams: they would fail if leadership ended now."""
        return 0 if self._layer is None else self._layer.stream_calls

    def send(self, data: bytes, flow: Flow) -> bool:
        """Send a message outside of a transaction; False if that isn't possible."""
        return self._endpoint is not None and self._endpoint.send(data, flow)

    @property
    def transport(self) -> IPingTransport | None:
        """The way to phones, while the virtual addresses are ours and the lease is valid."""
        return self._endpoint if self.listening and self._replica.leading() else None

    def startService(self) -> None:
        """Open the listeners, with nothing left over from an earlier leadership."""
        super().startService()
        settings, replica = self._config, self._replica
        self.nonces.begin(replica.term)
        authenticator = Authenticator(replica, self._keys.tokens, self._domains, window=self.nonces)
        authenticator.let_nonces_live(settings.registrar.nonce_lifetime)
        layer = self._layer = TransactionLayer(self._timers, force_rport=make_force_rport(settings))
        self._overload = OverloadAlarm(self._reactor, self.log)
        overload = self._overload.overload
        overload.adopt(make_trust(settings), settings.sip.emergency_numbers)
        listeners = self._listeners = Listeners(
            self._reactor,
            make_listeners(settings),
            bind=self._bind,
            receive_buffer=settings.sip.receive_buffer,
            limits=make_stream_limits(settings.sip),
            parting=longest_setup(self._timers),
            udp_changed=self._udp_changed,
        )
        endpoint = self._endpoint = Endpoint(
            self._reactor,
            layer,
            listeners,
            # The timer at the end of the lease may be late, a look at the clock isn't.
            lease_until=replica.leading_until,
            clock=boottime,
            before_sending=self._before_sending,
            tag=self._tag,
            intercept=self._intercept,
            overload=overload,
            dead=self._flows_died,
        )
        endpoint.taps = self.taps
        registry = self._registry = Registry(
            replica, replica, authenticator, make_registrar_settings(settings.registrar), self._reactor.seconds
        )
        registrar = self._registrar = Registrar(
            registry,
            replica,
            authenticator,
            self._domains,
            cluster_time=replica.cluster_time,
            term=lambda: replica.term,
            send=endpoint.send_all,
            overload=overload,
            settings=make_registrar_settings(settings.registrar),
            is_behind_nat=make_detection(settings),
            clock=self._reactor.seconds,
        )
        proxy = self._proxy = Proxy(
            layer,
            log=replica,
            location=replica,
            credentials=replica,
            authenticator=authenticator,
            targets=Targets(replica, replica, replica, authenticator),
            domains=self._domains,
            transport=listeners,
            term=lambda: replica.term,
            shadows=self._shadows,
            clock=self._reactor.seconds,
            settings=make_proxy_settings(settings),
        )
        proxy.take_over(self._reactor.seconds())
        self._counters = {
            "registrar": registrar.counters,
            "proxy": proxy.counters,
            "takeover": proxy.takeover_counters,
            "shadow": self._shadows.counters,
            "transaction": layer.counters,
        }

        def adopt(new: config.Config) -> None:
            listeners.limit(new.sip.receive_buffer, make_stream_limits(new.sip))
            layer.force_rport = make_force_rport(new)
            overload.adopt(make_trust(new), new.sip.emergency_numbers)
            authenticator.let_nonces_live(new.registrar.nonce_lifetime)
            registry.adopt(make_registrar_settings(new.registrar))
            registrar.adopt(make_registrar_settings(new.registrar), make_detection(new))
            proxy.adopt(make_proxy_settings(new))
            if self._pool is not None:
                self._pool.send(core.settings())

        self._adopt = adopt
        user = TransactionUser(
            registrar,
            proxy,
            replica.leading,
            self.askers,
            served=replica.succession.served,
            catch_up=endpoint.catch_up,
            is_held=self._is_held if settings.sip.workers > 1 else None,
        )
        core = Core(
            replica,
            listeners,
            endpoint,
            layer,
            registrar,
            registry,
            proxy,
            authenticator,
            self._shadows,
            overload,
            lambda: self._config,
            boottime,
            user.served_elsewhere,
            self._share_shadows,
        )
        if settings.sip.workers > 1:
            self._pool = Pool(self._reactor, core, replica.machine, lambda: listeners.udp, self._lives)
        endpoint.start(user, user.datagram_received).addCallbacks(self._opened, self._not_opened)

    def stopService(self) -> Deferred[None] | None:
        """Close the listeners; what is under way ends without an answer."""
        super().stopService()
        endpoint, self._endpoint, self._listeners, self._layer = self._endpoint, None, None, None
        self._adopt = lambda _: None
        self._registrar = self._registry = self._proxy = None
        self._overload.stop()
        if endpoint is None:
            return None
        self.log.info("the virtual addresses are served no more")
        self._shadows.cease(self._reactor.seconds())
        pool, self._pool = self._pool, None
        stopped = endpoint.stop()
        return stopped if pool is None else pool.stop().addCallback(lambda _: stopped)

    def listen(self, new: config.Config) -> None:
        """Open what another configuration has of listeners; raises ConfigError, and then none of them is."""
        if self._listeners is not None:
            try:
                self._listeners.listen(make_listeners(new))
            except OSError as error:
                raise ConfigError(f"sip.port: can't listen on the virtual addresses: {error.strerror}") from error

    def adopt(self, new: config.Config) -> None:
        """Serve phones by another configuration; calls and connections go on."""
        self._config = new
        self._adopt(new)

    def settle(self) -> None:
        """Close the listeners that the configuration doesn't have."""
        if self._listeners is not None:
            self._listeners.retire(make_listeners(self._config))

    def counters(self) -> dict[str, int]:
        """What this leadership has done, by name."""
        if self._endpoint is None:
            return {}
        counted = {
            f"{room}_{field.name}": getattr(counters, field.name)
            for room, counters in self._counters.items()
            for field in fields(counters)
        }
        if self._pool is not None:
            counted |= {f"workers_{name}": n for name, n in self._pool.counters.items()}
        return counted | {f"transport_{name.replace('-', '_')}": n for name, n in self._endpoint.counters.items()}

    def responses(self) -> dict[tuple[str, int], int]:
        """How many responses this leadership has sent, by method of the request and status."""
        if self._layer is None or self._registrar is None:
            return {}
        registrations = Counter({("REGISTER", status): n for status, n in self._registrar.responses.items()})
        return registrations + self._layer.responses

    @property
    def workers(self) -> WorkersStatus | None:
        """The workers of this leadership; None if there are none."""
        return None if self._pool is None else WorkersStatus(self._pool.size, self._pool.reading)

    @property
    def overload(self) -> Overload:
        """What becomes of requests while more come than can be served, in this leadership."""
        return self._overload.overload

    @property
    def overloaded(self) -> bool:
        """True from when requests are refused until none has been for some time."""
        return self._overload.raised

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        yield from self._overload.alarms()
        if self._pool is not None:
            yield from self._pool.alarms()

    def latencies(self) -> dict[str, Histogram]:
        """How long phones have waited in this leadership: for the 200 to a REGISTER, for the 100 to an INVITE."""
        if self._registry is None or self._proxy is None:
            return {}
        return {"register": self._registry.latencies, "invite": self._proxy.latencies}

    @property
    def transactions(self) -> int:
        """How many transactions there are."""
        workers = 0 if self._pool is None else self._pool.transactions
        return workers + (0 if self._layer is None else self._layer.transactions)

    @property
    def dropped(self) -> int:
        """How many datagrams the kernel has dropped in this leadership, for want of room."""
        return 0 if self._listeners is None else self._listeners.dropped

    def _before_sending(self) -> None:
        """Let the log have this turn's REGISTERs, and the other nodes our calls: at once what they must know first."""
        if self._registry is not None:
            self._registry.propose()
        if self._shadows.urgent:
            self._share_shadows()
        elif self._shadows.waiting and self._sharing is None:
            self._sharing = self._reactor.callLater(SOON, self._share_shadows)

    def _share_shadows(self) -> None:
        if self._sharing is not None and self._sharing.active():
            self._sharing.cancel()
        self._sharing = None
        self._replica.sharing.share(SHADOWS, self._shadows.take_records())

    def _all_shadows(self) -> Iterator[bytes]:
        """What a node that connects has to know, as long as it is ours to say."""
        for record in self._shadows.records():
            if not self._replica.leading():
                return
            yield record

    def _intercept(self, data: bytes, flow: Flow) -> bool:
        """Take a datagram that is STUN, or at a glance the answer to a ping."""
        if stun.is_stun(data):
            answer = stun.answer(data, flow.remote)
            if answer is not None and self._endpoint is not None:
                self._endpoint.offer(answer, flow)
            return True
        if not data.startswith(b"SIP/2.0 "):
            return False
        return self._answers(data, flow) or (self._pool is not None and self._pool.takes(data, flow))

    def _tag(self, request: Request) -> str:
        return refusal_tag(self._keys.tokens(), request)

    def _opened(self, opened: bool) -> None:
        if opened:
            addresses = ", ".join(self._config.virtual_address.hosts)
            self._replica.succession.claimed(addresses)
            if self._pool is not None:
                self._pool.start()

    def _flows_died(self, flows: list[Flow]) -> None:
        if self._pool is not None:
            self._pool.tell_dead(flows)

    def _is_held(self, request: Request, flow: Flow) -> bool:
        """Hand a request that belongs to no transaction here to the worker that holds its call; False if none does."""
        if self._pool is None or flow.reliable or (key := call_of(request)) is None:
            return False
        holder = self._shadows.holder(key)
        return bool(holder) and self._pool.hand(holder, request.render(), flow)

    def _udp_changed(self) -> None:
        if self._pool is not None:
            self._pool.replace()

    def _not_opened(self, failure: Failure) -> None:
        self._failed(f"can't listen on the virtual addresses: {failure.value}; see [virtual_address] and [sip]")
