"""A node: the one place that knows all rooms of the house and wires them.

The replica runs on every node. What phones see is a child of `LeaderServices`, so that it exists on the leader alone:
each leadership has listeners, transactions and nonce windows of its own.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from typing import Any

import treq.client
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from zope.interface import implementer

from sipha import __version__, config
from sipha.admin.api import Api
from sipha.admin.interfaces import INode
from sipha.admin.site import AdminSite
from sipha.admin.views import PeerStatus, Status
from sipha.auth.authenticator import Authenticator
from sipha.auth.domain import Domain, Domains
from sipha.cluster.expirer import Expirer
from sipha.cluster.leadership import LeaderServices
from sipha.cluster.raft import Timing
from sipha.cluster.replica import Replica
from sipha.errors import ConfigError, Unavailable
from sipha.garbage import GarbageCollection
from sipha.proxy.admission import ProxySettings
from sipha.proxy.interfaces import ITransport
from sipha.proxy.proxy import Proxy
from sipha.registrar.record import RegistrarSettings
from sipha.registrar.registrar import Registrar
from sipha.sip.events import Event, RequestReceived
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request
from sipha.sip.timers import Timers
from sipha.sip.token import Tokens
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import Policy, Record
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome
from sipha.transport.endpoint import Endpoint, ITransactionUser, Listener
from sipha.transport.stream import StreamLimits

_OTHER_FILES = 128
"""How many files and sockets are not phones' connections: of the log, the other nodes and the admin."""


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


@implementer(ITransport)
class ProxyEndpoint(Endpoint):
    """The endpoint as the transport that the proxy asks for."""


@implementer(ITransactionUser)
class TransactionUser:
    """Hands each event to the registrar or the proxy, and none once the lease has ended (RFC 3261 §5)."""

    def __init__(self, registrar: Registrar, proxy: Proxy, leading: Callable[[], bool]) -> None:
        self._registrar = registrar
        self._proxy = proxy
        self._leading = leading

    def event_received(self, event: Event, now: float) -> None:
        """Act on an event."""
        if not self._leading():
            return
        if isinstance(event, RequestReceived) and event.request.method == "REGISTER":
            self._registrar.request_received(event.request, event.flow)
        else:
            self._proxy.event_received(event, now)


class SipService(Service):
    """What phones see of a leader: registrar and proxy behind the listeners of the virtual addresses."""

    log = Logger()

    def __init__(
        self, reactor: Any, configuration: config.Config, replica: Replica, failed: Callable[[str], None]
    ) -> None:
        self._reactor = reactor
        self._config = configuration
        self._replica = replica
        self._failed = failed
        self._keys = KeyRing(replica.machine)
        self._endpoint: ProxyEndpoint | None = None
        self._counters: dict[str, Any] = {}

    @property
    def listening(self) -> bool:
        """True while the virtual addresses are ours."""
        return self._endpoint is not None and bool(self._endpoint.addresses)

    def startService(self) -> None:
        """Open the listeners, with nothing left over from an earlier leadership."""
        super().startService()
        settings, replica = self._config, self._replica
        domains = make_domains(settings)
        authenticator = Authenticator(
            replica, self._keys.tokens, domains, nonce_lifetime=settings.registrar.nonce_lifetime
        )
        layer = TransactionLayer(make_timers(settings.sip))
        endpoint = self._endpoint = ProxyEndpoint(
            self._reactor,
            layer,
            make_listeners(settings),
            # The timer at the end of the lease may be late, a look at the clock isn't.
            may_send=replica.leading,
            tag=self._tag,
            receive_buffer=settings.sip.receive_buffer,
            limits=make_stream_limits(settings.sip),
        )
        registrar = Registrar(
            replica,
            replica,
            replica,
            authenticator,
            domains,
            term=lambda: replica.term,
            send=endpoint.send,
            settings=make_registrar_settings(settings.registrar),
        )
        proxy = Proxy(
            layer,
            log=replica,
            location=replica,
            credentials=replica,
            authenticator=authenticator,
            domains=domains,
            transport=endpoint,
            term=lambda: replica.term,
            settings=make_proxy_settings(settings),
        )
        self._counters = {"registrar": registrar.counters, "proxy": proxy.counters, "transaction": layer.counters}
        user = TransactionUser(registrar, proxy, replica.leading)
        endpoint.start(user).addCallbacks(self._opened, self._not_opened)

    def stopService(self) -> Deferred[None] | None:
        """Close the listeners; what is under way ends without an answer."""
        super().stopService()
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return None
        self.log.info("the virtual addresses are released")
        return endpoint.stop()

    def counters(self) -> dict[str, int]:
        """What this leadership has done, by name."""
        if self._endpoint is None:
            return {}
        counted = {
            f"{room}_{name}": getattr(counters, name)
            for room, counters in self._counters.items()
            for name in counters.__slots__
        }
        return counted | {f"transport_{name.replace('-', '_')}": n for name, n in self._endpoint.counters.items()}

    def _tag(self, request: Request) -> str:
        tokens = self._keys.tokens()
        if tokens is None:
            return "0"
        return refusal_tag(tokens, request)

    def _opened(self, opened: bool) -> None:
        if opened:
            addresses = ", ".join(self._config.virtual_address.addresses)
            self.log.info("the virtual addresses are served: {addresses}", addresses=addresses)

    def _not_opened(self, failure: Failure) -> None:
        self._failed(f"can't listen on the virtual addresses: {failure.value}; see [virtual_address] and [sip]")


class AdminService(Service):
    """The admin's HTTP listener, on every node."""

    def __init__(self, reactor: Any, settings: config.Admin, node: INode, domains: Domains) -> None:
        host, port = settings.listen.address
        self._reactor = reactor
        self._address = (host, port)
        http = treq.client.HTTPClient(Agent(reactor, pool=HTTPConnectionPool(reactor), connectTimeout=2.0))
        self._site = AdminSite(reactor, Api(reactor, node, domains, http).resource(), host)
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Listen; raises ConfigError if the address can't be had."""
        super().startService()
        host, port = self._address
        try:
            self._port = self._reactor.listenTCP(port, self._site, interface=host)
        except CannotListenError as error:
            raise ConfigError(f"admin.listen: can't listen on {host} port {port}: {error.socketError}") from error

    def stopService(self) -> Deferred[None] | None:
        """Listen no more."""
        super().stopService()
        port, self._port = self._port, None
        return None if port is None else port.stopListening()


@implementer(INode)
class Node(MultiService):
    """A node of the cluster: the replica, the admin, and on the leader what phones see.

    Raises ConfigError if the node can't be what the configuration says.
    """

    log = Logger()

    def __init__(self, reactor: Any, configuration: config.Config) -> None:
        super().__init__()
        self._reactor = reactor
        self._config = configuration
        self._started_at = reactor.seconds()
        cluster = configuration.cluster
        self._admins = {str(peer.name): str(peer.admin) for peer in cluster.peers}
        self.replica = Replica(
            reactor,
            str(configuration.node.name),
            cluster.listen.address,
            {str(peer.name): peer.address.address for peer in cluster.peers},
            configuration.node.data_dir.path,
            make_policy(configuration.registrar),
            cluster=str(cluster.name),
            timing=Timing(cluster.heartbeat, cluster.election_min, cluster.election_max),
            failed=self._fail,
        )
        GarbageCollection(reactor).setServiceParent(self)
        self._sip = SipService(reactor, configuration, self.replica, self._fail)
        on_leader = LeaderServices(self.replica.leadership)
        self._sip.setServiceParent(on_leader)
        Expirer(reactor, self.replica).setServiceParent(on_leader)
        on_leader.setServiceParent(self)
        AdminService(reactor, configuration.admin, self, make_domains(configuration)).setServiceParent(self)

    def startService(self) -> None:
        """Begin to take part in the cluster; ends the process with a message if an address can't be had."""
        try:
            super().startService()
            self.replica.start()
        except ConfigError as error:
            raise SystemExit(f"sipha: {error}") from error

    def stopService(self) -> Deferred[Any]:
        """Stop what phones see first, then leave the cluster."""
        stopped: Deferred[Any] = super().stopService()
        return stopped.addCallback(lambda _: self.replica.stop())

    def _fail(self, reason: str) -> None:
        self.log.critical("this node stops: {reason}", reason=reason)
        self._reactor.callLater(0, self._reactor.stop)

    # INode

    def status(self) -> Status:
        """What the node is, and what it sees of the others."""
        replica, machine = self.replica.status(), self.replica.machine
        return Status(
            node=replica.node,
            version=__version__,
            uptime=self._reactor.seconds() - self._started_at,
            role=replica.role,
            leading=replica.leading and self._sip.listening,
            leader=replica.leader,
            term=replica.term,
            commit_index=replica.commit_index,
            applied_index=replica.applied_index,
            last_index=replica.last_index,
            hash=replica.hash,
            time=replica.time,
            lease=replica.lease,
            proposals=replica.proposals,
            journal_bytes=replica.journal_bytes,
            journal_limit=replica.journal_limit,
            virtual_addresses=tuple(map(str, self._config.virtual_address.addresses)),
            holds_virtual_addresses=self._sip.listening,
            aors=len(machine.location),
            bindings=machine.location.count,
            accounts=len(machine.accounts),
            counters={**replica.counters, **self._sip.counters()},
            peers=tuple(
                PeerStatus(peer.name, self._admins[peer.name], peer.connected, peer.heard) for peer in replica.peers
            ),
        )

    def leading(self) -> bool:
        """Return True if the node may propose."""
        return self.replica.leading()

    def leader_admin(self) -> str | None:
        """Return the admin URL of the node that leads, or None if it is this one or unknown."""
        leader = self.replica.leader
        return next(
            (str(peer.admin) for peer in self._config.cluster.peers if peer.name == leader and peer.admin), None
        )

    def cluster_time(self) -> float:
        """Return the cluster time now, in seconds."""
        return self.replica.cluster_time()

    def aors(self, after: str, limit: int) -> Sequence[str]:
        """The first `limit` AORs after one."""
        return self.replica.machine.location.aors(after, limit)

    def bindings(self, aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR."""
        return self.replica.bindings(aor)

    def accounts(self, after: str, limit: int) -> Sequence[Account]:
        """The first `limit` accounts after an identity."""
        return self.replica.machine.accounts.page(after, limit)

    def account(self, username: str, domain: str) -> Account | None:
        """The account `username@domain`."""
        return self.replica.machine.accounts.get(username, domain)

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Queue a record for the log."""
        self.replica.propose(record, done)


def refusal_tag(tokens: Tokens, request: Request) -> str:
    """The To tag of the refusal of a request in which only the Via is sure to be sound: the same for each copy."""
    headers, via = request.headers, request.via
    cseq = headers.get("CSeq") or ""
    return tokens.tag(
        headers.get("Call-ID") or "", headers.get("From") or "", 0, f"{cseq}\n{via.branch or via.sent_by}"
    )


def make_domains(configuration: config.Config) -> Domains:
    """The domains that are served, and the virtual addresses that stand for the first of them."""
    addresses = configuration.virtual_address.addresses
    return Domains(
        (
            Domain(
                str(domain.name),
                domain.realm,
                frozenset(domain.aliases),
                domain.algorithms,
                domain.case_sensitive,
                domain.third_party_register,
            )
            for domain in configuration.domains
        ),
        [f"[{address}]" if ":" in address else str(address) for address in addresses],
    )


def make_timers(settings: config.Sip) -> Timers:
    """The timers of the transaction layer."""
    return Timers(
        settings.t1, settings.t2, settings.t4, timer_c=settings.timer_c, branch_timeout=settings.branch_timeout
    )


def make_listeners(configuration: config.Config) -> list[Listener]:
    """Each transport on each virtual address."""
    return [
        Listener(transport.upper(), str(address), configuration.sip.port)
        for address in configuration.virtual_address.addresses
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
