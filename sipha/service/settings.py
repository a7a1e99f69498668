"""The configuration's values, as each room of the house wants them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

from sipha import config
from sipha.auth.domain import Domain
from sipha.cluster.raft import Timing
from sipha.cluster.tls import Credentials
from sipha.proxy.admission import Peers, ProxySettings
from sipha.registrar.record import RegistrarSettings
from sipha.sip.flow import Address, Flow
from sipha.sip.timers import Timers
from sipha.state.entries import Policy
from sipha.transport.hep import Capture
from sipha.transport.sockets import Listener
from sipha.transport.stream import StreamLimits

_OTHER_FILES = 128
"""How many files and sockets are not phones' connections: of the log, the other nodes and the admin."""


def make_domains(configuration: config.Config) -> tuple[list[Domain], list[str]]:
    """The domains that are served, and the virtual addresses that stand for the first of them."""
    addresses = configuration.virtual_address.hosts
    domains = [
        Domain(
            str(domain.name),
            domain.realm,
            frozenset(map(str, domain.aliases)),
            domain.algorithms,
            domain.case_sensitive,
            domain.third_party_register,
        )
        for domain in configuration.domains
    ]
    return domains, [f"[{address}]" if ":" in address else address for address in addresses]


def make_seeds(settings: config.Cluster) -> dict[str, Address]:
    """The nodes that one without a log looks for."""
    return {str(peer.name): peer.address.address for peer in settings.peers}


def make_capture(settings: config.Capture | None) -> Capture | None:
    """What sends copies to the capture server, if there is one."""
    if settings is None:
        return None
    return Capture(settings.server.address, settings.agent, settings.key, time.time)


def make_timers(settings: config.Sip) -> Timers:
    """The timers of the transaction layer."""
    return Timers(
        settings.t1, settings.t2, settings.t4, timer_c=settings.timer_c, branch_timeout=settings.branch_timeout
    )


def make_listeners(configuration: config.Config) -> list[Listener]:
    """Each transport on each virtual address."""
    return [
        Listener(transport.upper(), address, configuration.sip.port)
        for address in configuration.virtual_address.hosts
        for transport in configuration.sip.transports
    ]


def make_stream_limits(settings: config.Sip) -> StreamLimits:
    """What connections may cost; this raises the process's limit of open files, and leaves some for all else."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = settings.max_connections
    if most != resource.RLIM_INFINITY:
        connections = max(1, min(connections, most - _OTHER_FILES))
    return StreamLimits(
        connections=connections,
        message=settings.message_timeout,
        idle=settings.idle_timeout,
        max_message=settings.max_message,
    )


def make_policy(settings: config.Registrar) -> Policy:
    """What goes into the header of each batch."""
    return Policy(
        max_contacts=settings.max_contacts,
        full=settings.full,
        one_per_instance=settings.one_per_instance,
        default_expires=settings.default_expires,
        min_expires=settings.min_expires,
        max_expires=settings.max_expires,
    )


def make_registrar_settings(settings: config.Registrar) -> RegistrarSettings:
    """What the registrar decides by."""
    return RegistrarSettings(
        policy=make_policy(settings),
        min_expires_policy=settings.min_expires_policy,
        expires_jitter=settings.expires_jitter,
        out_of_order=settings.out_of_order,
        full_status=settings.full_status,
        edges=tuple(edge.network for edge in settings.edges),
    )


def make_proxy_settings(configuration: config.Config) -> ProxySettings:
    """What the proxy decides by."""
    return ProxySettings(
        peers=tuple(network.network for peer in configuration.peers for network in peer.networks),
        allow_inbound=configuration.proxy.allow_inbound,
        max_breadth=configuration.proxy.max_breadth,
    )


def make_trust(configuration: config.Config) -> Callable[[Flow], bool]:
    """Who is known to serve many phones: peers and edges."""
    edges = tuple(edge.network for edge in configuration.registrar.edges)
    known = Peers((*make_proxy_settings(configuration).peers, *edges))
    return lambda flow: flow.remote[0] in known


def make_timing(settings: config.Cluster) -> Timing:
    """How long a leader's word is good."""
    return Timing(settings.heartbeat, settings.election_min, settings.election_max)


def make_credentials(settings: config.Cluster) -> Credentials | None:
    """Where the node's certificates are; None if the nodes talk in the clear."""
    if not settings.encrypted:
        return None
    return Credentials(settings.ca.path, settings.certificate.path, settings.key.path)
