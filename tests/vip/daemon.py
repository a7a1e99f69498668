"""A daemon as its guard sees it: a process that claims, renews every 40 ms, and does what its standard input says.

Lines in: `claim LEASE ADDRESS…`, `release`, `tickle OURS PORT THEIRS PORT`, `stop` (renewing). Out: one JSON object for
each report of the guard.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time

import msgspec

from sipha.vip.messages import Claim, Ended, Release, Renew, Tickle, decode_report, encode


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def main(path: str, peer: str, port: str) -> None:
    guard = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guard.connect(path)
    selector = selectors.DefaultSelector()
    selector.register(guard, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    number, lease, renewing = 0, 0.0, False
    while True:
        ready = {key.fd for key, _ in selector.select(0.04 if renewing else None)}
        if guard.fileno() in ready:
            try:
                packet = guard.recv(65536)
            except ConnectionResetError:
                continue
            if not packet:
                return
            report = decode_report(packet)
            told = {"at": now(), "report": type(report).__name__.lower(), **msgspec.structs.asdict(report)}
            print(json.dumps(told), flush=True)
            renewing = renewing and not isinstance(report, Ended)
        elif 0 in ready:
            for line in os.read(0, 4096).decode().splitlines():
                verb, *words = line.split()
                if verb == "claim":
                    number, lease, renewing = number + 1, float(words[0]), True
                    word = f"word {number}".encode()
                    guard.send(encode(Claim(number, tuple(words[1:]), word, ((peer, int(port)),), now() + lease)))
                elif verb == "release":
                    renewing = False
                    guard.send(encode(Release(number)))
                elif verb == "tickle":
                    guard.send(encode(Tickle(number, (((words[0], int(words[1])), (words[2], int(words[3]))),))))
                else:
                    renewing = False
        if renewing:
            guard.send(encode(Renew(number, now() + lease)))


if __name__ == "__main__":
    main(*sys.argv[1:])
