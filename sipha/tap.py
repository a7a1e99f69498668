"""`twistd sipha run`: the options, and the service that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.python import usage

from sipha.cluster.raft import clock as boottime
from sipha.errors import ConfigError
from sipha.service import Daemon

if TYPE_CHECKING:
    from twisted.application.service import IService


class RunOptions(usage.Options):
    """Options of `twistd sipha run`."""

    synopsis = "[--config FILE]"
    optParameters: ClassVar = [["config", "c", "/etc/sipha/sipha.toml", "The configuration file."]]

    def postOptions(self) -> None:
        """Let the file be the same in a daemon, whose directory is another."""
        self["config"] = Path(self["config"]).resolve()


class Options(usage.Options):
    """Options of `twistd sipha`."""

    synopsis = "<command>"
    subCommands: ClassVar = [["run", None, RunOptions, "Run a node."]]

    def postOptions(self) -> None:
        """Insist on a command."""
        if self.subCommand is None:
            raise usage.UsageError("say what to do: twistd sipha run --config FILE")


def makeService(options: Options) -> IService:
    """Return the node that the options describe.

    A configuration that can't be used ends the command with exit status 1 and one message, before anything starts.
    """
    # The reactor is installed by twistd before it asks for the service.
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed
    _let_no_wall_clock_matter(reactor)
    try:
        return Daemon(reactor, options.subOptions["config"])
    except ConfigError as error:
        # A UsageError would bury the message under twistd's list of options.
        raise SystemExit(f"sipha: {error}") from error


def _let_no_wall_clock_matter(reactor: Any) -> None:
    """Have the reactor go by CLOCK_BOOTTIME, as cluster time does (design §1.5), before anyone has set a timer.

    Its own is the wall clock: set back, it would stop all timers for as long; set forward, it would fire them at once.
    """
    reactor.seconds = boottime
