"""Detection and keepalive, as this node's configuration wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sipha import config
from sipha.cluster.replica import Replica
from sipha.nat import detection
from sipha.nat.interfaces import IPingTransport
from sipha.nat.keepalive import Keepalive, KeepaliveSettings
from sipha.proxy.admission import Peers
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.origin import Origin
from sipha.sip.token import Tokens

Detection = Callable[[Origin, Flow], bool]


def make_detection(configuration: config.Config) -> Detection:
    """What tells whether a phone is behind NAT."""
    return detection.make_detection(configuration.nat.detect)


def make_force_rport(configuration: config.Config) -> Callable[[Request, Flow], bool]:
    """What tells whether a response goes back to where the request came from although nobody asked (RFC 3581).

    Peers and edges are servers.
    """
    networks = [network.network for peer in configuration.peers for network in peer.networks]
    networks += [edge.network for edge in configuration.registrar.edges]
    return detection.make_force_rport(make_detection(configuration), Peers(networks).__contains__)


def make_keepalive_settings(configuration: config.Config) -> KeepaliveSettings:
    """How pings go."""
    settings = configuration.nat
    return KeepaliveSettings(
        interval=settings.ping_interval,
        method=settings.ping_method,
        scope=settings.ping_scope,
        sender=str(settings.ping_from) or f"sip:ping@{configuration.default_domain.name}",
        remove=settings.remove_unreachable,
        max_lost=settings.max_lost,
        timeout=settings.ping_timeout,
    )


def make_keepalive(
    reactor: Any,
    configuration: config.Config,
    replica: Replica,
    *,
    transport: Callable[[], IPingTransport | None],
    tokens: Callable[[], Tokens | None],
    well: Callable[[], bool],
) -> Keepalive:
    """The pinger, which runs while the node has the virtual addresses."""
    return Keepalive(
        reactor,
        make_keepalive_settings(configuration),
        replica,
        replica.machine,
        transport=transport,
        tokens=tokens,
        served_until=lambda: replica.inbox.served_until,
        well=well,
    )
