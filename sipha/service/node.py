"""A node: all its services.

The replica runs on every node. What phones see is a child of `LeaderServices`, and there of the `AddressHolder`, so
that it exists on the leader alone, and while it has the virtual addresses: each time with transactions and nonce
windows of its own.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from sipha import config
from sipha.cluster.expirer import Expirer
from sipha.cluster.leadership import LeaderServices
from sipha.cluster.raft import clock as boottime
from sipha.errors import ConfigError
from sipha.garbage import GarbageCollection
from sipha.service.address import AddressHolder, AddressService, Tickling
from sipha.service.admin import AdminService
from sipha.service.health import Health
from sipha.service.nat import make_keepalive
from sipha.service.probe import SelfProbe
from sipha.service.replication import Replication
from sipha.service.settings import make_domains
from sipha.service.sip import KeyRing, SipService
from sipha.service.supervision import Supervision
from sipha.service.view import Parts, View

PARTING = 2.0
"""Seconds that a leader which is stopped has to hand leadership on."""

LINGER = 60.0
"""Seconds for which the admin of a node that has left the cluster still says why."""


class Node(MultiService):
    """A node of the cluster: the replica, the admin, and on the leader what phones see.

    A node that can't keep its word any more ends the process, with exit status 1, so that it is started afresh. Raises
    ConfigError if the node can't be what the configuration, which is in the file `path`, says.
    """

    log = Logger()

    def __init__(self, reactor: Any, configuration: config.Config, path: Path) -> None:
        super().__init__()
        self._reactor = reactor
        self._leaving: IDelayedCall | None = None
        self.replication = Replication(reactor, configuration, self._replica_failed)
        replica = self.replication.replica
        GarbageCollection(reactor).setServiceParent(self)
        interfaces = [placement.interface for placement in configuration.virtual_address.placements]
        self.health = Health(reactor, boottime, replica.report, [name for name in interfaces if name])
        self.health.setServiceParent(self)
        self.address = AddressService(reactor, configuration, path, replica, self.health)
        self.address.setServiceParent(self)
        on_leader = LeaderServices(replica.leadership)
        on_leader.setServiceParent(self)
        Expirer(reactor, replica).setServiceParent(on_leader)
        with_address = AddressHolder(reactor, self.address.address, replica, self.health)
        with_address.setServiceParent(on_leader)
        keys = KeyRing(replica.machine)
        self.keepalive = make_keepalive(
            reactor,
            configuration,
            replica,
            transport=lambda: self.sip.transport,
            tokens=keys.tokens,
            well=self.health.well,
        )
        self.sip = SipService(
            reactor,
            configuration,
            replica,
            self.address.bind,
            self._sip_failed,
            keys=keys,
            answers=self.keepalive.datagram_received,
        )
        self.sip.askers.append(self.keepalive.response_received)
        for service in (
            self.sip,
            self.keepalive,
            SelfProbe(reactor, self.sip, self.health),
            Tickling(reactor, self.address.address, replica),
        ):
            service.setServiceParent(with_address)
        self.parts = Parts(self.replication, self.address.address, self.sip, self.keepalive)
        self.view = View(reactor, configuration, self.parts)
        admin = AdminService(reactor, configuration.admin, self.view, make_domains(configuration))
        admin.setServiceParent(self)
        self._supervision = Supervision(reactor, self.view.summary)

    def startService(self) -> None:
        """Begin to take part in the cluster; ends the process with a message if an address can't be had."""
        try:
            super().startService()
            self.replication.startService()
            self._supervision.startService()
        except ConfigError as error:
            raise SystemExit(f"sipha: {error}") from error

    def stopService(self) -> Deferred[Any]:
        """Hand leadership on if another node can have it, stop what phones see, then leave the cluster."""
        self._supervision.stopService()
        if self._leaving is not None and self._leaving.active():
            self._leaving.cancel()
        stopped = self._hand_on()
        stopped.addCallback(lambda _: MultiService.stopService(self))
        return stopped.addCallback(lambda _: self.replication.stopService())

    def _hand_on(self) -> Deferred[Any]:
        replica = self.replication.replica
        if not replica.leads_log:
            return succeed(None)
        reason = "it is being stopped"
        replica.report(reason)  # so that even one which is unwell is better
        handed = replica.transfer(None, reason).addTimeout(PARTING, self._reactor)
        return handed.addErrback(lambda _: None)  # nobody can have it, or not in time: it stops in any case

    def _sip_failed(self, reason: str) -> None:
        """Another node may be able to serve phones."""
        self._leave(reason, 0.0)

    def _replica_failed(self, reason: str) -> None:
        """Phones are with another node by now; an operator may still ask why."""
        self._leave(reason, LINGER)

    def _leave(self, reason: str, wait: float) -> None:
        if self._leaving is None:
            self.log.critical("this node stops in {wait:g} s: {reason}", wait=wait, reason=reason)
            atexit.register(_fail)
            self._leaving = self._reactor.callLater(wait, self._reactor.stop)


def _fail() -> None:
    """End the process with exit status 1, for which twistd has no word, once all else is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
