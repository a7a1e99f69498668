"""This node's copy of the state, with its data directory and its connections to the other nodes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from sipha import config, systemd
from sipha.cluster import founding
from sipha.cluster.disk import FileDisk
from sipha.cluster.peers import WARNING, Peers
from sipha.cluster.replica import Replica
from sipha.errors import ConfigError
from sipha.service.settings import make_credentials, make_policy, make_timing

SWITCH = 0.0005
"""Seconds for which the reactor may keep the interpreter from the disk's threads, which want it after each fsync."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Replication(Service):
    """The replica of a node, from its construction on; `failed` is told in a sentence why it has ceased to take part.

    Its data directory is locked until the service is stopped. Raises ConfigError.
    """

    def __init__(self, reactor: Any, configuration: config.Config, failed: Callable[[str], None]) -> None:
        node, cluster = configuration.node, configuration.cluster
        seeds = {str(peer.name): peer.address.address for peer in cluster.peers}
        name = str(node.name)
        self._reactor = reactor
        self._peers = Peers(reactor, name, cluster.listen.address, seeds, str(cluster.name), make_credentials(cluster))
        self._lock: BinaryIO = founding.take(node.data_dir.path, create=True)
        try:
            self.replica = Replica(
                reactor,
                name,
                FileDisk(node.data_dir.path, reactor),
                self._peers,
                seeds,
                make_policy(configuration.registrar),
                cluster=str(cluster.name),
                sync=cluster.durability == "fsync",
                priority=cluster.wish_to_lead,
                timing=make_timing(cluster),
                boot_id=_BOOT_ID.read_text("ascii").strip(),
                failed=failed,
            )
        except OSError as error:
            raise ConfigError(f"can't use the data directory {node.data_dir}: {error.strerror}") from error
        if not (cluster.encrypted or cluster.plaintext):
            self._stand_alone()

    def startService(self) -> None:
        """Take part; SIGHUP lets new connections be made with the certificates as they are then."""
        super().startService()
        sys.setswitchinterval(SWITCH)
        signal.signal(signal.SIGHUP, lambda _, __: self._reactor.callFromThread(self._reload))
        self.replica.start()

    def stopService(self) -> Deferred[None]:
        """Take part no more, and leave the data directory to others."""
        super().stopService()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self.replica.stop().addBoth(self._leave)

    def alarms(self) -> Iterator[str]:
        """What an operator must know of the node's certificate."""
        certificates = self._peers.certificates
        if certificates is not None and certificates.expires - datetime.now(UTC) < WARNING:
            yield (
                f"the certificate of this node expires at {certificates.expires:%Y-%m-%d %H:%M} UTC, when the others "
                "will begin to refuse it: make another with siphactl ca issue"
            )

    def _reload(self) -> None:
        with systemd.reloading():
            self._peers.reload()

    def _leave(self, result: Any) -> Any:
        self._lock.close()
        return result

    def _stand_alone(self) -> None:
        """Refuse to talk in the clear to members that the log names, if nobody has asked for that."""
        others = [member.name for member in self.replica.membership.members if member.name != self.replica.node]
        if others:
            raise ConfigError(
                f"cluster.ca: is missing, and {', '.join(others)} are members of the cluster too; write ca, "
                "certificate and key, or plaintext = true if all nodes are on this machine"
            )
