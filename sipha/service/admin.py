"""The admin's HTTP listener, on every node."""

from __future__ import annotations

from typing import Any

import treq.client
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.web.client import Agent

from sipha import config
from sipha.admin.api import Api
from sipha.admin.interfaces import INode
from sipha.admin.site import AdminSite
from sipha.auth.domain import Domains
from sipha.cluster.tls import TlsFactory
from sipha.errors import ConfigError
from sipha.service.access import AdminAccess


class AdminService(Service):
    """The admin of `node`, as long as its process lives."""

    def __init__(
        self, reactor: Any, settings: config.Admin, node: INode, domains: Domains, security: AdminAccess
    ) -> None:
        host, port = settings.listen.address
        self._reactor = reactor
        self._address = (host, port)
        agent = Agent(reactor, security.verification, connectTimeout=2.0)
        routes = Api(reactor, node, domains, treq.client.HTTPClient(agent)).resource()
        site = AdminSite(reactor, routes, host, security.access, settings.rate)
        certificates = security.certificates
        self._factory: IProtocolFactory = (
            site if certificates is None else TlsFactory(certificates, False, site, reactor)
        )
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Listen; raises ConfigError if the address can't be had."""
        super().startService()
        host, port = self._address
        try:
            self._port = self._reactor.listenTCP(port, self._factory, interface=host)
        except CannotListenError as error:
            raise ConfigError(f"admin.listen: can't listen on {host} port {port}: {error.socketError}") from error

    def stopService(self) -> Deferred[None] | None:
        """Listen no more."""
        super().stopService()
        port, self._port = self._port, None
        return None if port is None else port.stopListening()
