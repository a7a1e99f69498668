"""`python -m sipha.workers SOCKETS`: a worker, as the daemon starts it.

Its file 3 is the link to the daemon, and those from 4 on are its sockets.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from twisted.logger import globalLogBeginner

from sipha.garbage import GarbageCollection
from sipha.vip.clock import boottime
from sipha.workers.worker import Worker

LINK = 3
"""The file that is the link to the daemon; the sockets come after it."""


def main(sockets: int) -> None:
    """Work until the daemon hangs up or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which has yet to hand leadership on
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed
    reactor.seconds = boottime  # as the daemon's, see sipha/tap.py
    given = [socket.socket(fileno=number) for number in range(LINK, LINK + 1 + sockets)]
    worker = Worker(reactor, given[0], given[1:], lambda: os._exit(0))
    globalLogBeginner.beginLoggingTo([worker], discardBuffer=True, redirectStandardIO=False)
    GarbageCollection(reactor).startService()
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
