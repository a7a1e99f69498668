"""A node of PySyncObj as its documentation uses it: a thread of its own, a pickled command for each entry, a journal.

What it replicates is a dict; sipha's nodes apply the registrar's rules.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import msgspec

STARTED = time.monotonic()

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated  # noqa: E402

from bench.log_figures import STAMP, Groups, Latency, Report, record  # noqa: E402
from sipha.state.entries import SCHEMA, Batch, Policy, encode  # noqa: E402

_PIECE = 64 * 1024
_KEY = 16
_LOOK = 0.002


class Setup(msgspec.Struct):
    """How the node is to be; `options` are those of SyncObjConf."""

    node: str
    addresses: dict[str, tuple[str, int]]
    directory: str
    options: dict[str, Any]
    keys: int = 100_000


class Table(SyncObj):
    """The table that is replicated."""

    def __init__(self, setup: Setup) -> None:
        addresses = {name: f"{host}:{port}" for name, (host, port) in setup.addresses.items()}
        own = addresses.pop(setup.node)
        self.table: dict[bytes, bytes] = {}
        super().__init__(own, list(addresses.values()), SyncObjConf(**setup.options))

    @replicated  # type: ignore[untyped-decorator]
    def put(self, data: bytes) -> None:
        """Set an entry of the table."""
        self.table[data[:_KEY]] = data


class Node:
    """The table, and what is asked of it."""

    def __init__(self, setup: Setup, control: int, source: int) -> None:
        self._setup = setup
        began = time.monotonic()
        self._table = Table(setup)
        self._opening = time.monotonic() - began
        self._latency = Latency()
        self._numbers = count()
        self._control = socket.socket(fileno=control)
        self._source = socket.socket(fileno=source)

    def run(self) -> None:
        """Do what is asked until nobody asks any more."""
        Thread(target=self._listen, daemon=True).start()
        while data := self._control.recv(_PIECE):
            command = msgspec.json.decode(data)
            answer = getattr(self, f"do_{command.pop('do')}")(**command)
            self._control.send(msgspec.json.encode(answer))
        os._exit(0)  # the library's thread would go on

    # Entries

    def _put(self, done: Callable[[Any, int], None]) -> None:
        number = next(self._numbers)
        entry = encode(Batch(SCHEMA, 123_456_789, Policy(), (record(number, self._setup.keys),)))
        self._table.put(b"%0*d" % (_KEY, number % self._setup.keys) + entry[_KEY:], callback=done)

    def _listen(self) -> None:
        rest = b""
        while data := self._source.recv(_PIECE):
            data = rest + data
            size = len(data) - len(data) % STAMP.size
            rest = data[size:]
            for (began,) in STAMP.iter_unpack(data[:size]):
                self._put(partial(self._answered, began))

    def _answered(self, began: float, _: Any, reason: int) -> None:
        self._latency.add(reason == FAIL_REASON.SUCCESS, time.monotonic() - began)

    def do_closed(self, window: int, seconds: float, entries: int) -> Groups:
        """Keep so many entries waiting, for some seconds or until so many are committed."""
        reasons: Counter[int] = Counter()
        room = Semaphore(window)

        def done(_: Any, reason: int) -> None:
            reasons[reason] += 1
            room.release()

        began = time.monotonic()
        while time.monotonic() - began < seconds and reasons[FAIL_REASON.SUCCESS] < entries:
            if room.acquire(timeout=1):
                self._put(done)
        for _ in range(window):
            room.acquire(timeout=1)
        good = reasons[FAIL_REASON.SUCCESS]
        return Groups(good, reasons.total() - good, time.monotonic() - began)

    # Commands

    def do_status(self) -> dict[str, Any]:
        """Where the node is."""
        status = self._table.getStatus()
        connected = sum(
            value == 2 for name, value in status.items() if str(name).startswith("partner_node_status_server_")
        )
        leads = self._table._isLeader()  # noqa: SLF001  its documentation has no other way
        return {
            "leading": leads and connected == len(self._setup.addresses) - 1 and status["last_applied"] > 1,
            "applied": status["last_applied"],
        }

    def do_reset(self) -> None:
        """Forget what was measured."""
        self._latency = Latency()

    def do_collect(self) -> Report:
        """What was measured."""
        return self._latency.report()

    def do_until(self, applied: int) -> dict[str, float]:
        """When an entry is applied, and when the steps before were done."""
        began = time.monotonic()  # of a term of its own, before which it applies nothing
        while (last := self._table.raftLastApplied) < applied:
            if last <= 1:
                began = time.monotonic()
            time.sleep(_LOOK)
        now = time.monotonic()
        return {
            "imported": STARTED,
            "opening": self._opening,
            "applying": now - began,
            "at": now,
            "cpu": time.process_time(),
        }


def main() -> None:
    """Run the node that the arguments describe: a Setup in JSON, and the descriptors of two sockets."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    sys.stderr = Path(f"{setup.directory}.log").open("a")  # noqa: SIM115  as long as the process lives
    Node(setup, int(sys.argv[2]), int(sys.argv[3])).run()


if __name__ == "__main__":
    main()
