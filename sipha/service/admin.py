"""The admin's HTTP listener, on every node."""

from __future__ import annotations

from typing import Any

import treq.client
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.web.client import Agent, HTTPConnectionPool

from sipha import config
from sipha.admin.api import Api
from sipha.admin.interfaces import INode
from sipha.admin.site import AdminSite
from sipha.auth.domain import Domains
from sipha.errors import ConfigError


class AdminService(Service):
    """The admin of `node`, as long as its process lives."""

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
