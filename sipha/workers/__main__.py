"""`python -m sipha.workers SEATS FILES`: a worker, one of so many, as the daemon starts it with so many files.

They are from 3 on: the link to the daemon, the shared table, its mailbox, the ends of all mailboxes, and its sockets.
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

FIRST = 3
"""The file that is the link to the daemon."""


def main(seats: int, files: int) -> None:
    """Work until the daemon hangs up or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which has yet to hand leadership on
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed
    reactor.seconds = boottime  # as the daemon's, see sipha/tap.py
    link, lookups, *numbers = range(FIRST, FIRST + files)
    mailbox, *others = [socket.socket(fileno=number) for number in numbers]
    worker = Worker(
        reactor,
        socket.socket(fileno=link),
        lookups,
        mailbox,
        others[:seats],
        others[seats:],
        lambda: os._exit(0),
    )
    globalLogBeginner.beginLoggingTo([worker], discardBuffer=True, redirectStandardIO=False)
    GarbageCollection(reactor).startService()
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
