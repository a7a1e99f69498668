"""The daemon's workers: started, kept up to date, and started again when they end.

Each has one share of each UDP address, and a mailbox, which the daemon reads itself while the worker doesn't: before it
knows all accounts, and when it has ended. So nothing depends on a worker. The shares stay the same, so that the kernel
gives all that comes from one phone to the same one.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha.sip.flow import Flow
from sipha.state.machine import Machine
from sipha.transport.udp import UdpSocket
from sipha.workers.mailbox import Mailbox
from sipha.workers.mark import read_mark
from sipha.workers.messages import Order
from sipha.workers.roster import Roster
from sipha.workers.shift import ICore, Process, Seat, Shift, maker_of_life
from sipha.workers.table import Table

RENEWAL = 0.04
"""Seconds between two words to each worker on the end of the lease."""

REST, LONGEST_REST = 0.1, 10.0
"""Seconds before a worker is started again that has ended: the first time, and at most when it ends again and again."""

STEADY = 60.0
"""Seconds that a worker has to live for its next rest to be short again."""

OFTEN = 4
"""After so many ends, none of them after a steady life, an operator is told."""

PARTING = 0.2
"""Seconds that the workers have to answer what is carried out, when the pool stops."""

_SYSTEMD = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})


class _Ended(ProcessProtocol):
    """Says in the log how a worker's process has ended, unless in good order."""

    log = Logger()

    def __init__(self, number: int) -> None:
        self._number = number

    def processEnded(self, reason: Failure) -> None:
        """See IProcessProtocol."""
        signal, status = getattr(reason.value, "signal", None), getattr(reason.value, "exitCode", None)
        if signal or status:
            how = f"by signal {signal}" if signal else f"with status {status}"
            self.log.warn("worker {number} has ended {how}", number=self._number, how=how)  # noqa: G010  Twisted's


def spawn_process(reactor: Any, number: int, seats: int, files: Sequence[int]) -> Process:
    """Start the worker of a number, one of so many, which gets these files; raises OSError."""
    environment = {name: value for name, value in os.environ.items() if name not in _SYSTEMD}
    command = (sys.executable, "-m", "sipha.workers", str(seats), str(len(files)))
    given = {0: 0, 1: 1, 2: 2} | dict(enumerate(files, 3))
    process: Process = reactor.spawnProcess(_Ended(number), command[0], command, environment, childFDs=given)
    return process


class _Place:
    """What becomes of a seat's worker, who may be absent."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.shift: Shift | None = None
        self.began = 0.0
        self.ends = 0  # one after the other, each soon after it began
        self.resting: IDelayedCall | None = None


class Pool:
    """As many workers as each address of `udp` has shares; they work for `core`.

    `machine` has what they are told and what is looked up for them. `lives` numbers the lives of all that this process
    has. `spawn` starts the one of a number, from 1 on, of so many. `counters` has what they hand over, and how often
    one was started again.
    """

    log = Logger()

    def __init__(  # noqa: PLR0917  one caller
        self,
        reactor: Any,
        core: ICore,
        machine: Machine,
        udp: Callable[[], Sequence[UdpSocket]],
        lives: Iterator[int],
        spawn: Callable[[int, int, Sequence[int]], Process] | None = None,
    ) -> None:
        self.counters = {"registers": 0, "questions": 0, "datagrams": 0, "restarts": 0}
        self._reactor = reactor
        self._core = core
        self._machine = machine
        self._udp = udp
        self._lives = lives
        self._spawn = spawn or partial(spawn_process, reactor)
        self._table = Table()
        self._roster = Roster(reactor, machine.accounts, self.send, self._table.begin_version)
        self._began = int(core.cluster_time())
        self._since: dict[int, int] = {}  # by maker, the second of cluster time after its latest life
        self._places: list[_Place] = []
        self._ends: list[socket.socket] = []
        self._stopped: Deferred[None] | None = None
        self._renewing = LoopingCall(self._renew)
        self._renewing.clock = reactor

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return len(self._places)

    @property
    def reading(self) -> int:
        """How many of them read phones' datagrams now."""
        return sum(1 for shift in self._shifts() if shift.reading)

    def start(self) -> None:
        """Start the workers."""
        self._roster.start()
        self._machine.location.observer = self._table
        self._places = list(map(_Place, self._furnish(len(self._udp()[0].shares))))
        for place in self._places:
            self._begin(place)
        self._renewing.start(RENEWAL, now=False)

    def stop(self) -> Deferred[None]:
        """Let the workers answer what is carried out, and end; fires when none of them can say anything any more."""
        self._stopped = Deferred()
        if self._renewing.running:
            self._renewing.stop()
        for place in self._places:
            if place.resting is not None and place.resting.active():
                place.resting.cancel()
        for shift in self._shifts():
            shift.finish()
            self._reactor.callLater(PARTING, shift.kill)
        self._look_stopped()
        return self._stopped

    def replace(self) -> None:
        """Have other workers in the places of these: the sockets are others."""
        for shift in self._shifts():
            shift.finish()

    def takes(self, data: bytes, flow: Flow) -> bool:
        """Hand a response to the worker whose mark it bears, and return True, if there is one."""
        mark = read_mark(data)
        return bool(mark) and self.hand(mark, data, flow)

    def hand(self, mark: str, data: bytes, flow: Flow) -> bool:
        """Hand a datagram to the worker of a mark, and return True, if it is there."""
        return any(shift.mark == mark and shift.hand(data, flow) for shift in self._shifts())

    def tell_dead(self, flows: Sequence[Flow]) -> None:
        """Tell all workers of flows that have failed."""
        for shift in self._shifts():
            shift.tell_dead(flows)

    @property
    def transactions(self) -> int:
        """How many transactions the workers have."""
        return sum(shift.transactions for shift in self._shifts())

    def send(self, order: Order) -> None:
        """Tell all workers."""
        for shift in self._shifts():
            shift.send(order)

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        for place in self._places:
            if place.ends >= OFTEN:
                yield f"worker {place.seat.index + 1} ends again and again; the daemon does its work: look into the log"

    def _shifts(self) -> list[Shift]:
        return [place.shift for place in self._places if place.shift is not None]

    def _furnish(self, size: int) -> Iterator[Seat]:
        """Make the seats, whose mailboxes are read here at first."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(size)]
        self._ends = [writing for _, writing in pairs]
        writing = [end.fileno() for end in self._ends]
        for index, (reading, _) in enumerate(pairs):
            mailbox = Mailbox(self._reactor, reading, partial(self._core.datagrams_received, late=False))
            mailbox.read()
            yield Seat(index, mailbox, (self._table.file, reading.fileno(), *writing))

    def _begin(self, place: _Place) -> None:
        seat = place.seat
        place.began = self._reactor.seconds()
        sockets = [udp.shares[seat.index] for udp in self._udp()]
        busy = {shift.maker for shift in self._shifts()}
        number = next(number for number in self._lives if maker_of_life(number) not in busy)
        try:
            place.shift = Shift(
                self._reactor,
                self._core,
                self._roster,
                self._table,
                seat,
                sockets,
                number,
                self._since.get(maker_of_life(number), self._began),
                partial(self._spawn, seat.index + 1, self.size),
                partial(self._ended, place),
                self.counters,
            )
        except Exception as error:  # noqa: BLE001  whatever it is, phones are served without it
            self.log.failure("worker {number} can't be started", number=seat.index + 1)
            self._ended(place, str(error))

    def _ended(self, place: _Place, why: str) -> None:
        shift, place.shift = place.shift, None
        if shift is not None:
            self._since[shift.maker] = int(self._core.cluster_time()) + 1
        if self._stopped is not None:
            self._look_stopped()
            return
        if shift is not None and shift.finishing:
            place.resting = self._reactor.callLater(0, self._begin, place)
            return
        lived = self._reactor.seconds() - place.began
        place.ends = 1 if lived >= STEADY else place.ends + 1
        rest = min(REST * 2 ** (place.ends - 1), LONGEST_REST)
        self.counters["restarts"] += 1
        self.log.warn(  # noqa: G010  Twisted's
            "worker {number} is gone{why}; the daemon reads what it read, and starts it again in {rest:g} s",
            number=place.seat.index + 1,
            why=why and f" ({why})",
            rest=rest,
        )
        place.resting = self._reactor.callLater(rest, self._begin, place)

    def _look_stopped(self) -> None:
        stopped = self._stopped
        if stopped is not None and not stopped.called and not self._shifts():
            self._roster.stop()
            self._machine.location.observer = None
            self._table.close()
            for place in self._places:
                place.seat.mailbox.close()
            for end in self._ends:
                end.close()
            stopped.callback(None)

    def _renew(self) -> None:
        shifts = self._shifts()
        for shift in shifts:
            try:
                shift.renew()
            except Exception:  # noqa: BLE001  a worker that isn't told of the lease is silent: it must not be there
                self.log.failure("a worker can't be kept up to date")
                shift.kill()
        if shifts:
            self._roster.known(min(shift.version for shift in shifts))
