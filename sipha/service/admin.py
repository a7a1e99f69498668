"""The admin's HTTP listener, on every node."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import treq.client
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.web.client import Agent

from sipha import config
from sipha.admin.api import Api
from sipha.admin.interfaces import INode
from sipha.admin.route import Group
from sipha.admin.site import AdminSite
from sipha.admin.tls import AdminCertificates
from sipha.auth.domain import Domains
from sipha.cluster.tls import TlsFactory
from sipha.errors import ConfigError
from sipha.service.access import AdminAccess
from sipha.sip.flow import Address


class AdminService(Service):
    """The admin of `node`, as long as its process lives; it has `more` groups of routes than those of any node."""

    def __init__(
        self,
        reactor: Any,
        configuration: config.Config,
        node: INode,
        domains: Domains,
        security: AdminAccess,
        *more: Group,
    ) -> None:
        self._reactor = reactor
        self._settings = configuration.admin
        self._for_nodes = configuration.cluster.listen.address[0], configuration.cluster.admin_port
        self._security = security
        http = treq.client.HTTPClient(Agent(reactor, security.verification, connectTimeout=2.0))
        api = Api(reactor, node, domains, http, *more)
        self._api, self._open_paths = api.resource(), api.open_paths
        self._ports: dict[Address, IListeningPort] = {}

    def startService(self) -> None:
        """Listen; raises ConfigError if an address can't be had."""
        self.listen(self._settings)
        access, certificates = self._security.node_access, self._security.node_certificates
        if access is not None:
            site = AdminSite(self._reactor, self._api, self._for_nodes[0], access, self._settings.rate)
            self._open("cluster.admin_port", self._for_nodes, site, certificates)
        super().startService()

    def stopService(self) -> Deferred[Any]:
        """Listen no more."""
        super().stopService()
        return self._retire(())

    def listen(self, new: config.Admin) -> None:
        """Listen where other settings say, too; raises ConfigError if the address can't be had."""
        host, port = new.listen.address
        if (host, port) in self._ports:
            return
        site = AdminSite(self._reactor, self._api, host, self._security.access, new.rate, open_paths=self._open_paths)
        self._open("admin.listen", (host, port), site, self._security.certificates)

    def _open(self, key: str, address: Address, site: AdminSite, certificates: AdminCertificates | None) -> None:
        host, port = address
        factory: IProtocolFactory = (
            site if certificates is None else TlsFactory(certificates, False, site, self._reactor)
        )
        try:
            self._ports[address] = self._reactor.listenTCP(port, factory, interface=host)
        except CannotListenError as error:
            raise ConfigError(f"{key}: can't listen on {host} port {port}: {error.socketError}") from error

    def adopt(self, new: config.Admin) -> None:
        """Go by other settings."""
        self._settings = new

    def settle(self) -> None:
        """Listen no more where the settings don't say; requests that have come there are answered."""
        self._retire((self._settings.listen.address, self._for_nodes))

    def _retire(self, keep: Collection[Address]) -> Deferred[Any]:
        retired = [self._ports.pop(address) for address in self._ports.keys() - set(keep)]
        return gatherResults([maybeDeferred(port.stopListening) for port in retired])
