"""The virtual addresses of this node: sockets that stand on each, the claim while it leads, and what runs under it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Cooperator, LoopingCall, SchedulerStopped
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha import config
from sipha.cluster.replica import Replica
from sipha.errors import ConfigError, MalformedMessage, NotClaimed
from sipha.proxy.takeover import longest_setup
from sipha.service.health import LONGEST_REST, RECOVERY, Health
from sipha.service.settings import make_listeners, make_timers
from sipha.sip.flow import Address, Flow
from sipha.sip.uri import SipUri, parse_uri
from sipha.state.binding import Binding
from sipha.transport.address import bound_sockets
from sipha.transport.standing import StandingSockets
from sipha.vip.address import IVirtualAddress, LoopbackAddress, Lost
from sipha.vip.addresses import Addresses
from sipha.vip.external import ExternalAddress
from sipha.vip.hook import HookAddress
from sipha.vip.netlink import NetlinkAddress, guard_command

RENEWAL = 0.04
"""Seconds between two renewals of the claim, each until the end of the lease as it is known then."""


PAUSE = 0.005
"""Seconds between two turns of the tickling."""

AORS = 100
"""Addresses-of-record that are looked at in one turn of it."""

_KIND = "address"
_PLACE = "place of the addresses"
_GUARD = "guard"


def make_address(  # noqa: PLR0917  one caller
    reactor: Any,
    settings: config.VirtualAddress,
    path: Path,
    lost: Lost,
    moved: Callable[[str], None],
    guarded: Callable[[str], None],
) -> IVirtualAddress:
    """The addresses in the way that the configuration, which is in the file `path`, says.

    `moved` is told which of those that another tool moves isn't here; empty if all are. `guarded` is told why the guard
    that is needed doesn't serve us; empty if it does.
    """
    match settings.mode:
        case "netlink":
            command = guard_command(path) if os.geteuid() == 0 else ()
            return NetlinkAddress(reactor, settings.placements, settings.guard.path, lost, guarded, command=command)
        case "external":
            return ExternalAddress(reactor, settings.placements, lost, Addresses(), moved)
        case "hook":
            return HookAddress(reactor, settings.placements, str(settings.hook), settings.hook_deadline)
        case "loopback":
            return LoopbackAddress()


class AddressService(Service):
    """The addresses as long as the process lives, and a socket on each, whether this node has them or not.

    In `loopback` mode every node has the addresses at any time, so that a socket is bound by the leader alone.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, configuration: config.Config, path: Path, replica: Replica, health: Health
    ) -> None:
        self.address = make_address(
            reactor, configuration.virtual_address, path, self._lost, self._moved, self._guarded
        )
        self._reactor = reactor
        self._replica = replica
        self._health = health
        self.elsewhere = False
        """True while another tool has the addresses on another node, or nowhere."""
        self._mode = configuration.virtual_address.mode
        self._config = configuration
        self._sockets: StandingSockets | None = None
        self._retiring: IDelayedCall | None = None

    def startService(self) -> None:
        """Get ready to claim; raises ConfigError if a socket can't be had."""
        if self._mode != "loopback":
            self._sockets = StandingSockets((), self._config.sip.workers)
            self.listen(self._config)
        super().startService()
        self.address.start()

    def listen(self, new: config.Config) -> None:
        """Let the sockets of another configuration stand, too; raises ConfigError, and then none of them does."""
        if self._sockets is not None:
            try:
                self._sockets.stand(_standing(new))
            except OSError as error:
                raise ConfigError(f"sip.port: can't bind it on the virtual addresses: {error.strerror}") from error

    def adopt(self, new: config.Config) -> None:
        """Go by another configuration."""
        self._config = new

    def settle(self) -> None:
        """Close the sockets that the configuration doesn't have, once what is under way there has ended.

        Until then a listener may read one of them, so that it couldn't be bound anew for a configuration that has it.
        """
        self._stay()
        self._retiring = self._reactor.callLater(longest_setup(make_timers(self._config.sip)), self._retire)

    def _stay(self) -> None:
        if self._retiring is not None and self._retiring.active():
            self._retiring.cancel()

    def _retire(self) -> None:
        if self._sockets is not None:
            self._sockets.retire(_standing(self._config))

    def stopService(self) -> Deferred[None]:
        """Release what is held, and close the sockets."""
        self._stay()
        sockets, self._sockets = self._sockets, None
        stopped = self.address.stop() if self.running else succeed(None)
        super().stopService()
        if sockets is not None:
            stopped.addCallback(lambda _: sockets.close())
        return stopped

    def bind(self, kind: socket.SocketKind, address: Address) -> list[socket.socket]:
        """The sockets for a listener on one of the addresses; raises OSError."""
        if self._sockets is None:
            return bound_sockets(kind, address, shares=self._config.sip.workers)
        return self._sockets.bind(kind, address)

    def _lost(self, reason: str) -> None:
        """The addresses are gone and the claim with them; another brings them back, on a node that may keep them."""
        self.log.warn("the virtual addresses are lost: {reason}", reason=reason)  # noqa: G010  Twisted's
        if self._mode != "external":  # there it is no fault of this node's, and counts for as long as they are away
            self._health.fault(_KIND, f"the virtual addresses were lost: {reason}")
        self._replica.claim_ended()

    def _guarded(self, trouble: str) -> None:
        """A node without a guard can't have the addresses: another one is to lead, before a claim fails."""
        if trouble:
            self._health.fault(_GUARD, trouble, math.inf)
        else:
            self._health.passed(_GUARD)

    def _moved(self, missing: str) -> None:
        """Another tool decides which node has the addresses: that one is to lead."""
        self.elsewhere = bool(missing)
        if missing:
            self._health.fault(_PLACE, f"{missing} isn't here", math.inf)
        else:
            self._health.over(_PLACE)


def _standing(configuration: config.Config) -> list[tuple[socket.SocketKind, Address]]:
    kinds = {"UDP": socket.SOCK_DGRAM, "TCP": socket.SOCK_STREAM}
    return [(kinds[each.transport], (each.host, each.port)) for each in make_listeners(configuration)]


class AddressHolder(MultiService):
    """Holds the addresses while this node leads: a child of LeaderServices, whose own run while the addresses are here.

    What is told the other nodes when a claim has ended without us lies with the claim from its beginning. A node that
    can't claim, or whose children don't start, is unwell, so that another one leads.
    """

    log = Logger()

    def __init__(self, reactor: Any, address: IVirtualAddress, replica: Replica, health: Health) -> None:
        super().__init__()
        self._address = address
        self._replica = replica
        self._health = health
        self._renewing = LoopingCall(self._renew)
        self._renewing.clock = reactor
        self._wanted = False

    def privilegedStartService(self) -> None:
        """Nothing: the children start when the addresses are here."""

    def startService(self) -> None:
        """Claim the addresses."""
        self._wanted = True
        self._renewing.start(RENEWAL, now=False).addErrback(self._failed)  # first: the claim may fail at once
        replica = self._replica
        claimed = self._address.claim(replica.last_word, replica.peers, replica.lease_until)
        claimed.addCallback(self._claimed).addErrback(self._not_claimed)

    def stopService(self) -> Deferred[Any]:
        """Stop the children, and release the addresses; fires when both is done."""
        self._wanted = False
        if self._renewing.running:
            self._renewing.stop()
        stopped = maybeDeferred(super().stopService) if self.running else succeed(None)
        released = self._address.release()
        return stopped.addErrback(self._failed).addCallback(lambda _: released)

    def _renew(self) -> None:
        if self._replica.leading():
            self._address.renew(self._replica.lease_until)

    def _claimed(self, _: None) -> None:
        if self._wanted:
            super().startService()
            self._health.passed(_KIND)

    def _not_claimed(self, failure: Failure) -> None:
        if self._wanted:
            if not failure.check(NotClaimed):
                self._failed(failure)
            verb = "served" if self.running else "claimed"
            problem = f"the virtual addresses can't be {verb}: {failure.value}"
            self._health.fault(_KIND, problem, RECOVERY, LONGEST_REST)
            self._replica.claim_ended()

    def _failed(self, failure: Failure) -> None:
        self.log.failure("holding the virtual addresses failed", failure)


class Tickling(Service):
    """Lets the clients of streams that an earlier leader had notice that those are dead (pitfalls-log-vip 13).

    A client behind NAT that has nothing to say would wait for calls that can't reach it.
    """

    def __init__(self, reactor: Any, address: IVirtualAddress, replica: Replica) -> None:
        self._address = address
        self._replica = replica
        self._scheduler = partial(reactor.callLater, PAUSE)
        self._cooperator: Cooperator | None = None

    def startService(self) -> None:
        """Go through the table, a little in each turn."""
        super().startService()
        self._cooperator = Cooperator(terminationPredicateFactory=lambda: lambda: True, scheduler=self._scheduler)
        self._cooperator.coiterate(self._tickle()).addErrback(Failure.trap, SchedulerStopped)

    def stopService(self) -> None:
        """Leave it at that."""
        super().stopService()
        if self._cooperator is not None:
            self._cooperator.stop()

    def _tickle(self) -> Iterator[None]:
        location, after = self._replica.machine.location, ""
        while aors := location.aors(after, AORS):
            flows = [flow for aor in aors for binding in self._replica.bindings(aor) if (flow := stream(binding))]
            if flows:
                self._address.tickle(flows)
            after = aors[-1]
            yield


def stream(binding: Binding) -> Flow | None:
    """The stream by which a binding was made; None if it was none."""
    transport, _, socket_ = binding.socket.partition(":")
    if not binding.flow or not socket_:
        return None
    try:
        local, remote = parse_uri(f"sip:{socket_}"), parse_uri(binding.received)
    except MalformedMessage:
        return None
    if not isinstance(local, SipUri) or not isinstance(remote, SipUri):
        return None
    if local.address is None or remote.address is None:
        return None
    return Flow(transport.upper(), local.address, remote.address)
