"""systemd's watch over the daemon: it hears when the node has started, while its reactor turns, and when it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall

from sipha import systemd

SHARE = 3
"""How many times systemd hears of a reactor that turns within the time after which it would kill the process."""


class Supervision(Service):
    """Tells systemd what becomes of the node; `summary` is for `systemctl status`.

    systemd kills the process, and starts it again, when its reactor stands still for longer than WatchdogSec=.
    """

    def __init__(self, reactor: Any, summary: Callable[[], str]) -> None:
        self._reactor = reactor
        self._summary = summary
        self._interval = systemd.patience() / SHARE
        self._next: IDelayedCall | None = None

    def startService(self) -> None:
        """Say that all has been started."""
        super().startService()
        systemd.notify("READY=1")
        if self._interval < float("inf"):
            self._live()

    def stopService(self) -> None:
        """Say that all is about to be stopped."""
        super().stopService()
        systemd.notify("STOPPING=1")
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _live(self) -> None:
        self._next = self._reactor.callLater(self._interval, self._live)
        systemd.notify("WATCHDOG=1")
        systemd.notify(f"STATUS={self._summary()}")
