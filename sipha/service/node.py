"""A node: all its services.

The replica runs on every node. What phones see is a child of `LeaderServices`, and there of the `AddressHolder`, so
that it exists on the leader alone, and while it has the virtual addresses: each time with transactions and nonce
windows of its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from sipha import config
from sipha.admin.routes.metrics import MetricRoutes
from sipha.auth.domain import Domains
from sipha.cluster.expirer import Expirer
from sipha.cluster.leadership import LeaderServices
from sipha.cluster.raft import clock as boottime
from sipha.errors import ConfigError
from sipha.garbage import GarbageCollection
from sipha.service.access import AdminAccess
from sipha.service.address import AddressHolder, AddressService, Tickling
from sipha.service.admin import AdminService
from sipha.service.events import EventService, Presence
from sipha.service.health import Health
from sipha.service.life import Life
from sipha.service.log import Log
from sipha.service.metrics import Metrics
from sipha.service.nat import make_keepalive, make_keepalive_settings
from sipha.service.outcomes import RegisterOutcomes
from sipha.service.probe import SelfProbe
from sipha.service.replication import Replication
from sipha.service.settings import make_capture, make_domains, make_listeners, make_timing
from sipha.service.sip import KeyRing, SipService
from sipha.service.trace import Tracing
from sipha.service.view import Parts, View

PARTING = 2.0
"""Seconds that a leader which is stopped has to hand leadership on."""

LINGER = 60.0
"""Seconds for which the admin of a node that has left the cluster still says why."""


class Node(MultiService):
    """A node of the cluster: the replica, the admin, and on the leader what phones see.

    A node that can't keep its word any more ends the process, with exit status 1, so that it is started afresh. Raises
    ConfigError if the node can't be what the configuration says whose `life` this is.
    """

    log = Logger()

    def __init__(self, reactor: Any, life: Life) -> None:
        super().__init__()
        configuration = life.running.config
        self._config = configuration
        self._reactor = reactor
        self._life = life
        self._leaving: IDelayedCall | None = None
        self.replication = Replication(reactor, configuration, self._replica_failed)
        replica = self.replication.replica
        self._domains = Domains(*make_domains(configuration))
        self._log = Log(reactor, configuration.log)
        self._log.setServiceParent(self)
        self.events = EventService(reactor, configuration, replica, lambda: self.view.alarms())  # noqa: PLW0108  it is made below
        self.events.setServiceParent(self)
        GarbageCollection(reactor).setServiceParent(self)
        interfaces = [placement.interface for placement in configuration.virtual_address.placements]
        lease = make_timing(configuration.cluster).lease
        self.health = Health(reactor, boottime, replica.report, [name for name in interfaces if name], lease=lease)
        self.health.setServiceParent(self)
        self.address = AddressService(reactor, configuration, life.file, replica, self.health)
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
            domains=self._domains,
            keys=keys,
            answers=self.keepalive.datagram_received,
        )
        self.sip.askers.append(self.keepalive.response_received)
        self._outcomes = RegisterOutcomes()
        self._outcomes.adopt(self.sip.taps, on=configuration.log.registers)
        self.capture = make_capture(configuration.capture)
        if self.capture is not None:
            self.sip.taps.append(self.capture.passed)
        self._probe = SelfProbe(reactor, self.sip, self.health)
        for service in (
            self.sip,
            self.keepalive,
            self._probe,
            Tickling(reactor, self.address.address, replica),
            Presence(self.events.feed, configuration.virtual_address.hosts),
        ):
            service.setServiceParent(with_address)
        self.access = AdminAccess(configuration, lambda: replica.membership.members)
        self.parts = Parts(
            self.replication,
            self.address.address,
            self.sip,
            self.keepalive,
            self.health,
            self.events,
            self.access,
            Tracing(self.sip.taps, self._domains, time.time),
            self._log,
        )
        self.view = View(reactor, configuration, self.parts, life)
        metrics = MetricRoutes(Metrics(self.view))
        self._admin = AdminService(reactor, configuration, self.view, self._domains, self.access, metrics)
        self._admin.setServiceParent(self)

    def startService(self) -> None:
        """Begin to take part in the cluster; raises ConfigError if an address can't be had."""
        super().startService()
        self.replication.startService()

    def stopService(self) -> Deferred[Any]:
        """Hand leadership on if another node can have it, stop what phones see, then leave the cluster."""
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

    # What runs under a configuration (see life.Runs)

    def reconfigure(self, new: config.Config) -> None:
        """Run under another configuration, of which only live keys differ; raises ConfigError, and nothing is changed.

        Listeners that it doesn't have stay open until `settle`.
        """
        try:
            self.replication.check()
            self.access.check(new.admin)
            self.address.listen(new)
            self.sip.listen(new)
            self._admin.listen(new.admin)
        except ConfigError:
            self.settle()
            raise
        known = {(each.host, each.port) for each in make_listeners(self._config)}
        self._probe.spared = {(each.host, each.port) for each in make_listeners(new)} - known
        self._config = new
        self._domains.become(*make_domains(new))
        self.replication.adopt(new)
        self.address.adopt(new)
        self.sip.adopt(new)
        self.keepalive.adopt(make_keepalive_settings(new))
        self.view.adopt(new)
        self.access.adopt(new.admin)
        self._admin.adopt(new.admin)
        self._log.adopt(new.log)
        self._outcomes.adopt(self.sip.taps, on=new.log.registers)

    def settle(self) -> None:
        """Close what the configuration doesn't have."""
        self._probe.spared = ()
        self.sip.settle()
        self.address.settle()
        self._admin.settle()

    def must_serve(self) -> bool:
        """Return True if phones are to be served here: the node leads, and no tool has the addresses elsewhere."""
        return self.replication.replica.leading() and not self.address.elsewhere

    def questions(self) -> int:
        """The number of the last question that the node has asked itself."""
        return self._probe.number

    def trouble(self, since: int) -> str:
        """Why phones aren't served, to judge by the questions after that of this number; empty if they are."""
        if not self.sip.listening:
            return "the node leads, but can't listen on the virtual addresses"
        deaf = [f"{host} port {port}" for host, port in self._probe.deaf(since)]
        return f"the SIP listener on {', '.join(deaf)} doesn't answer" if deaf else ""

    def keep(self, name: str, data: bytes, done: Callable[[Exception | None], None]) -> None:
        """Write a file in the data directory, and tell what went wrong, if anything."""
        self.replication.keep(name, data, done)

    # The end

    def _sip_failed(self, reason: str) -> None:
        """Another node may be able to serve phones, or this one under the configuration before."""
        if not self._life.cannot_serve(reason):
            self.leave(reason)

    def _replica_failed(self, reason: str) -> None:
        """Phones are with another node by now; an operator may still ask why."""
        self.leave(reason, LINGER)

    def leave(self, reason: str, wait: float = 0.0) -> None:
        """End the process in `wait` seconds, with exit status 1."""
        if self._leaving is None:
            self.log.critical("this node stops in {wait:g} s: {reason}", wait=wait, reason=reason)
            atexit.register(_fail)
            self._leaving = self._reactor.callLater(wait, self._reactor.stop)


def _fail() -> None:
    """End the process with exit status 1, for which twistd has no word, once all else is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
