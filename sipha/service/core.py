"""What the workers of a leader work for: its registry, its endpoint, and what it counts."""

from __future__ import annotations

from collections.abc import Callable

from sipha import config
from sipha.cluster.replica import Replica
from sipha.registrar.registrar import Registrar
from sipha.registrar.registry import Registry
from sipha.service.settings import make_domains, make_proxy_settings, make_registrar_settings
from sipha.sip.layer import TransactionLayer
from sipha.sip.overload import Overload
from sipha.transport.endpoint import Endpoint
from sipha.workers.messages import RegistrarSettings, Report, Settings


class Core:
    """A leadership, as workers see it; `register_served` is called when they have had REGISTERs carried out."""

    def __init__(  # noqa: PLR0917  the parts of one thing
        self,
        replica: Replica,
        endpoint: Endpoint,
        layer: TransactionLayer,
        registrar: Registrar,
        registry: Registry,
        overload: Overload,
        configuration: Callable[[], config.Config],
        clock: Callable[[], float],
        register_served: Callable[[], None],
    ) -> None:
        self.term = replica.term
        self.registry = registry
        self.clock = clock
        self.cluster_time = replica.cluster_time
        self.datagrams_received = endpoint.datagrams_received
        self.flows_failed = endpoint.flows_failed
        self.register_served = register_served
        self._replica = replica
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
        registrar = make_registrar_settings(configuration.registrar)
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
            tuple(map(str, make_proxy_settings(configuration).peers)),
            configuration.sip.emergency_numbers,
        )

    def reported(self, report: Report) -> None:
        """Add what a worker has counted."""
        self._overload.add(report.shed, report.behind, report.wait, self.clock())
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
                case "turned away":
                    self._layer.count(name, 503, n)
                case "transport":
                    self._endpoint.counters[name] += n
