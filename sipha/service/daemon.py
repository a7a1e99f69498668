"""The process: a node under the configuration in a file, made anew of the last good one where that fails."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.python.failure import Failure

from sipha import systemd
from sipha.errors import ConfigError
from sipha.service.life import Life
from sipha.service.node import Node
from sipha.service.supervision import Supervision


class Daemon(MultiService):
    """The node that the configuration in the file `path` describes; SIGHUP has that loaded again.

    Raises ConfigError if no node can be made of it, nor of its last good copy.
    """

    def __init__(self, reactor: Any, path: Path) -> None:
        super().__init__()
        self._reactor = reactor
        self._restarting: Deferred[Any] = succeed(None)
        self.life = Life(reactor, path, self._restart)
        try:
            self.node = Node(reactor, self.life)
        except ConfigError as error:
            if not self.life.fall_back(str(error)):
                raise
            self.node = Node(reactor, self.life)
        self.node.setServiceParent(self)
        self._supervision = Supervision(reactor, lambda: self.node.view.summary())  # noqa: PLW0108  it may be another

    def startService(self) -> None:
        """Start the node; ends the process with a message if it can't be, nor under the last good configuration."""
        signal.signal(signal.SIGHUP, lambda _, __: self._reactor.callFromThread(self._hung_up))
        try:
            super().startService()
        except ConfigError as error:
            if not self.life.fall_back(str(error)):
                raise SystemExit(f"sipha: {error}") from error
            self._restart()
        else:
            self.life.begin(self.node)
        self._supervision.startService()

    def stopService(self) -> Deferred[Any]:
        """Stop the node."""
        self._supervision.stopService()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.life.end()
        return gatherResults([maybeDeferred(super().stopService), self._restarting])

    def _hung_up(self) -> None:
        with systemd.reloading():
            self.life.reload().addErrback(Failure.trap, ConfigError)  # the log has it

    def _restart(self) -> None:
        """Have another node in the place of this one."""
        stopped = maybeDeferred(self.node.disownServiceParent)
        self._restarting = stopped.addCallback(lambda _: self._begin_again()).addErrback(self._failed)

    def _begin_again(self) -> None:
        if self.running:
            self.node = Node(self._reactor, self.life)
            self.node.setServiceParent(self)
            self.life.begin(self.node)

    def _failed(self, failure: Failure) -> None:
        self.node.leave(f"it can't be started on the last good copy of its configuration: {failure.value}")
