"""Who runs only on the leader: observers of the lease, and services that live as long as it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from zope.interface import Interface, implementer


class ILeader(Interface):
    """Who is told of its leadership."""

    def gained() -> None:
        """The node leads: lease valid, and everything committed before its term applied."""

    def lost() -> Deferred[Any] | None:
        """The lease has ended, or the node leads no more; a Deferred fires when all that needed it has ended."""


class Leadership:
    """Tells its observers, in the order in which they came, and the other way round when leadership is lost.

    `settled` is called when the last thing has ended that an observer could not end at once.
    """

    def __init__(self, settled: Callable[[], None] = lambda: None) -> None:
        self.held = False
        self._settled = settled
        self._observers: list[ILeader] = []
        self._ending = 0  # observers of whom something of an earlier leadership is still there
        self._log = Logger(namespace="sipha.cluster")

    @property
    def over(self) -> bool:
        """True while leadership is not held and nothing is left that needed it."""
        return not self.held and not self._ending

    def observe(self, observer: ILeader) -> None:
        """Tell `observer` from now on; at once if leadership is held."""
        self._observers.append(observer)
        if self.held:
            observer.gained()

    def forget(self, observer: ILeader) -> None:
        """Tell `observer` no more; if leadership is held, that it is lost is the last that it hears."""
        self._observers.remove(observer)
        if self.held:
            self._end(observer)

    def gain(self) -> None:
        """Leadership is held from now on."""
        if not self.held:
            self.held = True
            for observer in tuple(self._observers):
                self._tell(observer.gained)

    def lose(self) -> None:
        """Leadership is over."""
        if self.held:
            self.held = False
            for observer in reversed(self._observers):
                self._end(observer)

    def _end(self, observer: ILeader) -> None:
        ending = self._tell(observer.lost)
        if isinstance(ending, Deferred):
            self._ending += 1
            ending.addBoth(self._ended)

    def _ended(self, result: Any) -> Any:
        self._ending -= 1
        if not self._ending:
            self._settled()
        return result

    def _tell(self, change: Any) -> Any:
        """One observer's failure is not the others'."""
        try:
            return change()
        except Exception:  # noqa: BLE001  whatever it is, it is logged and the others are told
            self._log.failure("told of a change of leadership, {observer} failed", observer=change.__self__)


@implementer(ILeader)
class LeaderServices(MultiService):
    """A service whose children run only while this node leads.

    `running` is true while they do; as a child of the daemon's service it is started and stopped with it, which
    begins and ends the waiting for leadership.
    """

    def __init__(self, leadership: Leadership) -> None:
        super().__init__()
        self._leadership = leadership
        self._waits = False
        self._stopping: Deferred[Any] = succeed(None)

    def privilegedStartService(self) -> None:
        """Nothing: the children start when leadership is gained."""

    def startService(self) -> None:
        """Wait for leadership."""
        self._waits = True
        self._leadership.observe(self)

    def stopService(self) -> Deferred[Any]:
        """Wait no more, and stop the children."""
        if self._waits:
            self._waits = False
            self._leadership.forget(self)
        return self.lost()

    def gained(self) -> None:
        """Start the children, as soon as their stopping is finished and if leadership still lasts."""
        self._stopping.addCallback(lambda _: self._start()).addErrback(self._failed)

    def lost(self) -> Deferred[Any]:
        """Stop the children; fires when they have stopped."""
        if self.running:
            self._stopping = maybeDeferred(MultiService.stopService, self).addErrback(self._failed)
        return self._stopping

    def _start(self) -> None:
        if self._waits and self._leadership.held and not self.running:
            MultiService.startService(self)

    def _failed(self, failure: Any) -> None:
        Logger(namespace="sipha.cluster").failure("a service of the leader did not start or stop", failure)
