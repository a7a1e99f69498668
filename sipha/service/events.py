"""What happens, told and kept: the feed and the history of a node, and who tells them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import Thread
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from sipha import config
from sipha.cluster.leadership import ILeader
from sipha.cluster.replica import Replica
from sipha.events.event import LeaseGained, LeaseLost, VipGained, VipLost
from sipha.events.feed import Feed, Source
from sipha.events.history import History
from sipha.events.recorder import Place, Recorder

LOOK = 1.0
"""Seconds between two looks at the alarms."""

PARTING = 2.0
"""Seconds that the disk has to take what is left of the history."""

FILE = "history"
"""The name of the database in the data directory."""


class _DaemonThread(Thread):
    """A thread that doesn't keep the process from its end, should the disk hang."""

    def __init__(self, **options: Any) -> None:
        super().__init__(daemon=True, **options)


@implementer(ILeader)
class EventService(Service):
    """Follows the replica from its construction on; `alarms` are those of the node."""

    log = Logger()

    def __init__(
        self, reactor: Any, configuration: config.Config, replica: Replica, alarms: Callable[[], Iterable[str]]
    ) -> None:
        self._replica = replica
        self._alarms = alarms
        source = Source(replica.node, lambda: replica.machine.index, replica.cluster_time, time.time, replica.leader_of)
        self.feed = Feed(reactor, source)
        self.recorder: Recorder | None = None
        self._pool: ThreadPool | None = None
        self._reactor = reactor
        settings = configuration.history
        if settings.kept:
            self._pool = ThreadPool(1, 1, "history")
            self._pool.threadFactory = _DaemonThread  # type: ignore[assignment]  # any Thread will do
            path = configuration.node.data_dir.path / FILE

            def open_(suspect: bool) -> History:
                return History(path, settings.keep.seconds, settings.max_bytes, suspect=suspect)

            run = partial(deferToThreadPool, reactor, self._pool)
            self.recorder = self.feed.archive = Recorder(reactor, run, open_, self._place, self.feed.gap)
        replica.machine.observer = self.feed
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    @property
    def counters(self) -> dict[str, int]:
        """What was told, and what has become of the history, by name."""
        return self.feed.counters | ({} if self.recorder is None else self.recorder.counters)

    def alarms(self) -> Iterable[str]:
        """What an operator must know."""
        return () if self.recorder is None else self.recorder.alarms()

    def startService(self) -> None:
        """Watch the node, and write the history."""
        super().startService()
        self._replica.leadership.observe(self)
        self._looking.start(LOOK, now=False).addErrback(self._failed)
        if self._pool is not None and self.recorder is not None:
            self._pool.start()
            self.recorder.start()

    def stopService(self) -> Deferred[Any]:
        """Write what is left."""
        super().stopService()
        self._replica.leadership.forget(self)
        self._looking.stop()
        pool, recorder = self._pool, self.recorder
        if pool is None or recorder is None:
            return succeed(None)
        # A thread that waits for its disk is left alone.
        stopped = recorder.stop().addCallback(lambda _: pool.stop()).addTimeout(PARTING, self._reactor)
        return stopped.addErrback(lambda _: None)

    def gained(self) -> None:
        """See ILeader."""
        self.feed.tell(LeaseGained)

    def lost(self) -> None:
        """See ILeader."""
        self.feed.tell(LeaseLost)

    def _look(self) -> None:
        self.feed.compare_alarms(tuple(self._alarms()))

    def _failed(self, failure: Failure) -> None:
        self.log.failure("alarms are told no more", failure)

    def _place(self) -> Place:
        replica = self._replica
        return Place(replica.cluster_id, self.feed.reach(), int(replica.cluster_time() * 1000))


class Presence(Service):
    """Tells that the virtual addresses are here: a child of the AddressHolder."""

    def __init__(self, feed: Feed, addresses: tuple[str, ...]) -> None:
        self._feed = feed
        self._addresses = addresses

    def startService(self) -> None:
        """They are here."""
        super().startService()
        self._feed.tell(VipGained, addresses=self._addresses)

    def stopService(self) -> None:
        """They go."""
        super().stopService()
        self._feed.tell(VipLost, addresses=self._addresses)
