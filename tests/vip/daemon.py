"""A daemon as its guard sees it: a process that claims, renews every 40 ms, and does what its standard input says.

Lines in: `claim LEASE ADDRESS…`, `release`, `tickle OURS PORT THEIRS PORT`. Out: a JSON object for each report heard.
It renews whether the guard answers or not, so that one which is frozen finds a stock of renewals.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys

import msgspec

from sipha.vip.clock import boottime as now
from sipha.vip.messages import Claim, Ended, Order, Release, Renew, Tickle, decode_report, encode

INTERVAL = 0.04


class Daemon:
    """The process; the last word of its nth claim is `word n`."""

    def __init__(self, path: str, peer: str, port: str) -> None:
        self.peer = (peer, int(port))
        self.number = 0
        self.lease = 0.0
        self.renewing = False
        self.guard = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.guard.connect(path)

    def run(self) -> None:
        """Go on until the guard hangs up."""
        selector = selectors.DefaultSelector()
        selector.register(self.guard, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        renewal = now()
        while True:
            ready = {key.fd for key, _ in selector.select(max(renewal - now(), 0))}
            if 0 in ready:
                for line in os.read(0, 4096).decode().splitlines():
                    self.obey(*line.split())
            if self.guard.fileno() in ready and not self.hear():
                return
            if now() >= renewal:
                renewal = now() + INTERVAL
                if self.renewing:
                    self.send(Renew(self.number, now() + self.lease))

    def obey(self, verb: str, *words: str) -> None:
        if verb == "claim":
            self.number, self.lease, self.renewing = self.number + 1, float(words[0]), True
            word = f"word {self.number}".encode()
            self.send(Claim(self.number, words[1:], word, (self.peer,), now() + self.lease))
        elif verb == "release":
            self.renewing = False
            self.send(Release(self.number))
        else:
            flow = ((words[0], int(words[1])), (words[2], int(words[3])))
            self.send(Tickle(self.number, (flow,)))

    def send(self, order: Order) -> None:
        self.guard.send(encode(order))

    def hear(self) -> bool:
        """Print what the guard says; False if it has hung up."""
        try:
            packet = self.guard.recv(65536)
        except ConnectionResetError:
            return True  # what it has said before comes next
        if not packet:
            return False
        report = decode_report(packet)
        told = {"at": now(), "report": type(report).__name__.lower(), **msgspec.structs.asdict(report)}
        print(json.dumps(told), flush=True)
        if isinstance(report, Ended):
            self.renewing = False
        return True


if __name__ == "__main__":
    Daemon(*sys.argv[1:]).run()
