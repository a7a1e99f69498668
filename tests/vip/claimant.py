"""A daemon that claims with NetlinkAddress, renews every 40 ms, and claims again when it is lost; says so in lines."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.task import LoopingCall

from sipha.vip.clock import boottime
from sipha.vip.netlink import NetlinkAddress, guard_command
from sipha.vip.settings import read_settings

LEASE = 0.3


def main(configuration: str, peer: str, port: str) -> None:
    reactor: Any = installed
    numbers = itertools.count(1)
    settings = read_settings(Path(configuration))

    def lost(reason: str) -> None:
        print("lost", reason, flush=True)
        claim()

    def claim() -> None:
        word = f"word {next(numbers)}".encode()  # a new one each time, since it may be spoken later
        address.claim(word, ((peer, int(port)),), boottime() + LEASE).addCallbacks(
            lambda _: print("claimed", flush=True), failed
        )

    def failed(failure: Any) -> None:
        print("failed", failure.getErrorMessage(), flush=True)
        reactor.callLater(0.1, claim)

    address = NetlinkAddress(
        reactor, settings.placements, settings.socket, lost, lambda _: None, command=guard_command(Path(configuration))
    )
    address.start()
    reactor.addSystemEventTrigger("before", "shutdown", address.stop)
    reactor.callWhenRunning(claim)
    LoopingCall(lambda: address.renew(boottime() + LEASE)).start(0.04)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
