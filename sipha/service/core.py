"""What the workers of a leader work for: its registry, its proxy's tables, its endpoint, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

from sipha import config
from sipha.auth.authenticator import Authenticator, Ceded
from sipha.auth.claim import Claim
from sipha.cluster.replica import Replica
from sipha.errors import MalformedMessage, SipError
from sipha.proxy.proxy import Proxy
from sipha.proxy.shadow import Key, Shadows, key_of
from sipha.proxy.target import Target, TargetSet, Wanted, target_of, target_set
from sipha.registrar.registrar import Registrar
from sipha.registrar.registry import Registry
from sipha.service.settings import make_domains, make_proxy_settings, make_registrar_settings
from sipha.sip.headers import parse_name_addr
from sipha.sip.layer import TransactionLayer
from sipha.sip.overload import Overload
from sipha.sip.uri import SipUri, parse_uri
from sipha.transport.endpoint import Endpoint
from sipha.transport.sockets import Sockets
from sipha.workers.messages import Elsewhere, RegistrarSettings, Report, Settings


class Core:
    """A leadership, as workers see it; `served` is told the methods of requests that they have had served.

    `share` has the other nodes told of calls at once.
    """

    def __init__(  # noqa: PLR0917  the parts of one thing
        self,
        replica: Replica,
        sockets: Sockets,
        endpoint: Endpoint,
        layer: TransactionLayer,
        registrar: Registrar,
        registry: Registry,
        proxy: Proxy,
        authenticator: Authenticator,
        shadows: Shadows,
        overload: Overload,
        configuration: Callable[[], config.Config],
        clock: Callable[[], float],
        served: Callable[[str], None],
        share: Callable[[], None],
    ) -> None:
        self.term = replica.term
        self.registry = registry
        self.clock = clock
        self.cluster_time = replica.cluster_time
        self.datagrams_received = endpoint.datagrams_received
        self.flows_failed = endpoint.flows_failed
        self.seen = endpoint.seen
        self.served = served
        self._share = share
        self._proxy = proxy
        self._authenticator = authenticator
        self._shadows = shadows
        self._replica = replica
        self._sockets = sockets
        self._endpoint = endpoint
        self._layer = layer
        self._registrar = registrar
        self._overload = overload
        self._configuration = configuration

    def lease_until(self) -> float:
        """Until when phones may be heard and answered; in the past if they may not."""
        return self._replica.lease_until if self._replica.leading() else 0.0

    def watched(self) -> bool:
        """Return True while somebody looks on at the messages."""
        return bool(self._endpoint.taps)

    def keys(self) -> dict[int, bytes]:
        """The log's keys, oldest first."""
        return self._replica.machine.keys.ring

    def settings(self) -> Settings:
        """What a worker is to go by."""
        configuration = self._configuration()
        domains, addresses = make_domains(configuration)
        registrar, proxy = make_registrar_settings(configuration.registrar), make_proxy_settings(configuration)
        return Settings(
            tuple(domains),
            tuple(addresses),
            RegistrarSettings(
                registrar.policy,
                registrar.min_expires_policy,
                registrar.expires_jitter,
                tuple(map(str, registrar.edges)),
            ),
            configuration.registrar.nonce_lifetime,
            configuration.nat.detect,
            tuple(map(str, proxy.peers)),
            proxy.allow_inbound,
            proxy.max_breadth,
            configuration.sip.emergency_numbers,
        )

    def own(self) -> tuple[tuple[str, str, int], ...]:
        """The transports and addresses that mean us."""
        return tuple([(name, host, port) for name, host, port in self._sockets.own])

    def timers(self) -> tuple[float, float, float, float, float]:
        """Those of transactions."""
        return astuple(self._layer.timers)

    def held(self) -> list[Key]:
        """The calls that are being set up, and no worker holds."""
        callers = [key_of(request.via) for request in self._layer.open_invites()]
        return [caller for caller in callers if caller is not None] + self._shadows.keys()

    def find(self, wanted: Wanted, claim: Claim | None, caller: Key | None) -> TargetSet | None:
        """Use up a claim and find the targets of a request; None if it had been used before.

        Raises Elsewhere if they aren't all reached over UDP, or if it is a copy of what a worker forwards that has come
        from another port; nothing is used up then.
        """
        if caller is not None and self._shadows.holder(caller):
            raise Elsewhere
        replica = self._replica
        targets = target_set(wanted, replica, replica)
        if not isinstance(targets, SipError) and not all(_is_over_udp(target) for group in targets for target in group):
            raise Elsewhere
        if claim is not None and not self._authenticator.use_up(claim, replica.cluster_time()):
            return None
        return targets

    def packed(self, aor: str) -> bytes | None:
        """The bindings of an AOR (`Location.packed`), if they are all reached over UDP."""
        if all(_is_over_udp(target_of(binding)) for binding in self._replica.lookup(aor)):
            return self._replica.machine.location.packed(aor)
        return None

    def ceded(self, ceded: list[Ceded]) -> None:
        """Use up from now on the counts of nonces that a worker has made."""
        self._authenticator.take(ceded, self._replica.cluster_time())

    def shadowed(self, records: list[bytes], mark: str) -> None:
        """Let the other nodes know of calls that the worker of this mark holds."""
        self._shadows.relay(records, mark, self.clock())
        self._share()

    def ended(self, mark: str) -> None:
        """Take over the calls of a worker that is gone."""
        now = self.clock()
        self._shadows.forsake(mark, now)
        if self._replica.leading():
            self._proxy.take_over(now)
            self._endpoint.turn(now)

    def reported(self, report: Report) -> None:
        """Add what a worker has counted."""
        self._overload.add(report.shed, report.behind, report.wait, self.clock())
        self._proxy.latencies.add(*report.invited)
        for counted, n in report.counts.items():
            room, _, name = counted.partition("/")
            match room:
                case "registrar":
                    counters = self._registrar.counters
                    setattr(counters, name, getattr(counters, name) + n)
                    if name == "requests":
                        self._layer.counters.requests_received += n
                case "responses":
                    self._registrar.responses[int(name)] += n
                case "proxy":
                    setattr(self._proxy.counters, name, getattr(self._proxy.counters, name) + n)
                case "transaction":
                    setattr(self._layer.counters, name, getattr(self._layer.counters, name) + n)
                case "answered":
                    method, _, status = name.partition(" ")
                    self._layer.count(method, int(status), n)
                case "turned away":
                    self._layer.count(name, 503, n)
                case "transport" | "endpoint":
                    self._endpoint.counters[name] += n


def _is_over_udp(target: Target) -> bool:
    """True if whoever has the UDP sockets reaches a target."""
    texts = [target.uri, *filter(None, (target.received,))]
    try:
        texts += [parse_name_addr(route, "Path").uri for route in target.routes[:1]]
        return all(
            isinstance(uri := parse_uri(text), SipUri) and uri.scheme == "sip" and uri.transport == "UDP"
            for text in texts
        )
    except MalformedMessage:
        return False
