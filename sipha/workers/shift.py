"""One life of a worker, as the daemon has it: from the start of the process to the end of its link."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger, LogLevel

from sipha.auth.authenticator import Ceded as CededNonce
from sipha.auth.claim import Claim
from sipha.errors import SipError
from sipha.proxy.shadow import Key
from sipha.proxy.target import TargetSet, Wanted
from sipha.registrar.interfaces import Verdict
from sipha.registrar.registry import Registry
from sipha.sip.flow import Address, Flow
from sipha.sip.token import MAKERS
from sipha.transport.udp import UdpSocket
from sipha.workers.link import Link
from sipha.workers.mailbox import Mailbox
from sipha.workers.mark import make_mark
from sipha.workers.messages import (
    Answers,
    Ceded,
    Complete,
    Datagrams,
    Elsewhere,
    Failed,
    Keys,
    Lease,
    Order,
    Questions,
    Read,
    Ready,
    Refusal,
    Registers,
    Report,
    Said,
    Seen,
    Settings,
    Shadowed,
    Start,
    Verdicts,
    decode_word,
    pack,
    refusal_of,
)
from sipha.workers.roster import Roster
from sipha.workers.table import Table

PATIENCE = 50
"""How many words on the lease a worker may leave unanswered, one after the other: then it is killed."""

PAUSE = 0.001
"""Seconds between two turns in which a worker is told accounts."""

AHEAD = 1 << 18
"""Bytes that may wait for it meanwhile."""


class Process(Protocol):
    """A process of one's own."""

    def signalProcess(self, signal: str) -> object:
        """Send it a signal, such as "KILL"; raises ProcessExitedAlready."""


Spawn = Callable[[Sequence[int]], Process]
"""Starts a worker that gets these files: the link, those of its seat, and its sockets."""


class ICore(Protocol):
    """What a worker works for; times are of CLOCK_BOOTTIME, in seconds."""

    term: int
    registry: Registry

    def clock(self) -> float:
        """The time now."""

    def cluster_time(self) -> float:
        """The cluster time now, in seconds."""

    def lease_until(self) -> float:
        """Until when phones may be heard and answered; in the past if they may not."""

    def watched(self) -> bool:
        """Return True while somebody looks on at the messages."""

    def keys(self) -> dict[int, bytes]:
        """The log's keys, oldest first."""

    def settings(self) -> Settings:
        """What a worker is to go by."""

    def own(self) -> tuple[tuple[str, str, int], ...]:
        """The transports and addresses that mean us."""

    def timers(self) -> tuple[float, float, float, float, float]:
        """Those of transactions."""

    def held(self) -> list[Key]:
        """The calls that are being set up, and no worker holds."""

    def served(self, method: str) -> None:
        """Take note that a request was served."""

    def find(self, wanted: Wanted, claim: Claim | None, caller: Key | None) -> TargetSet | None:
        """Use up a claim and find the targets of a request; None if it had been used before.

        Raises Elsewhere if a worker can't reach them, or another holds the caller's call; nothing is used up then.
        """

    def packed(self, aor: str) -> bytes | None:
        """The bindings of an AOR (`Location.packed`), if a worker can reach them all."""

    def ceded(self, ceded: list[CededNonce]) -> None:
        """Use up from now on the counts of nonces that a worker has made."""

    def shadowed(self, records: list[bytes], mark: str) -> None:
        """Let the other nodes know of calls that the worker of this mark holds."""

    def ended(self, mark: str) -> None:
        """Take over the calls of a worker that is gone."""

    def seen(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        """Let who looks on see a message."""

    def datagrams_received(self, datagrams: list[tuple[bytes, Flow]], *, late: bool) -> None:
        """Act on datagrams that a worker has passed on; `late` are those that are to be refused for overload."""

    def flows_failed(self, flows: list[Flow]) -> None:
        """Take note of flows that are dead."""

    def reported(self, report: Report) -> None:
        """Add what a worker has counted."""


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of a worker, which stands from one life to the next.

    `mailbox` is read by the daemon while nobody is there. `files` are for the worker: the shared table, its mailbox,
    and the ends by which it writes to those of all seats.
    """

    index: int
    mailbox: Mailbox
    files: tuple[int, ...]


def maker_of_life(number: int) -> int:
    """As whom the life of a number makes nonces: there are only so many, and 0 is the daemon."""
    return 1 + (number - 1) % (MAKERS - 1)


class Shift:
    """The life of a worker of this `number` at a `seat`, which reads `sockets` for a `core`.

    No other has made nonces as its `maker` `since` a second of cluster time. What is looked up for it goes into
    `table`. `ended` is called once its link has: no word of it leaves the machine after that. `counters` has what was
    handed over. Raises whatever keeps it from beginning.
    """

    log = Logger()

    def __init__(  # noqa: PLR0917  one caller
        self,
        reactor: Any,
        core: ICore,
        roster: Roster,
        table: Table,
        seat: Seat,
        sockets: Sequence[UdpSocket],
        number: int,
        since: int,
        spawn: Spawn,
        ended: Callable[[str], None],
        counters: dict[str, int],
    ) -> None:
        self.version = -1
        """That of the accounts which it has surely got."""
        self.transactions = 0
        self.reading = False
        self.finishing = False
        """True once it was told to end."""
        self._reactor = reactor
        self._core = core
        self._roster = roster
        self._table = table
        self._seat = seat
        self._sockets = sockets
        self._ended = ended
        self._counters = counters
        self._unanswered = 0
        self._keys: dict[int, bytes] = {}
        self.mark = make_mark(core.term, number, seat.index)
        self.maker = maker_of_life(number)
        self._indexes: dict[Address, int] = {udp.address: index for index, udp in enumerate(sockets)}
        self._handed: list[tuple[bytes, int, str, int]] = []
        self._handing: IDelayedCall | None = None
        self._verdicts: list[tuple[str, str | Refusal | None]] = []
        self._telling: IDelayedCall | None = None
        self._flushing: IDelayedCall | None = None
        ours, theirs = socket.socketpair()
        self._link = Link(reactor, ours, self._heard, self._gone)
        try:
            with theirs:
                self._process = spawn([theirs.fileno(), *seat.files, *[udp.fileno() for udp in sockets]])
            self.send(
                Start(
                    tuple(self._indexes),
                    core.own(),
                    core.term,
                    self.maker,
                    since,
                    self.mark,
                    core.timers(),
                    core.settings(),
                )
            )
            self.renew()
            self._tell_accounts("")
        except BaseException:
            self._link.close()
            raise

    def send(self, order: Order) -> None:
        """Tell the worker."""
        self._link.send(order)

    def hand(self, data: bytes, flow: Flow) -> bool:
        """Hand it what belongs to its calls, with all that belongs to them in this turn; False if that can't be."""
        index = self._indexes.get(flow.local)
        if index is None or self.finishing:
            return False
        self._handed.append((data, index, *flow.remote))
        if self._handing is None:
            self._handing = self._reactor.callLater(0, self._hand)
        return True

    def tell_dead(self, flows: Sequence[Flow]) -> None:
        """Tell it of flows that have failed."""
        known = [(self._indexes[flow.local], *flow.remote) for flow in flows if flow.local in self._indexes]
        if known:
            self.send(Failed(known))

    def renew(self) -> None:
        """Tell it until when it may serve phones, and keys that are new; one that doesn't answer at all is killed."""
        core = self._core
        if (keys := core.keys()) != self._keys:
            self._keys = dict(keys)
            self.send(Keys(self._keys))
        self.send(Lease(core.lease_until(), core.clock(), core.cluster_time(), core.watched()))
        self._link.flush()
        if self.reading:
            self._unanswered += 1
            if self._unanswered > PATIENCE:
                self.log.error("a worker doesn't answer")
                self.kill()

    def finish(self) -> None:
        """Let it answer what is carried out, and then end."""
        self.finishing = True
        self._tell_verdicts()
        self._link.finish()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessExitedAlready):
            self._process.signalProcess("KILL")

    # Words

    def _heard(self, body: bytes) -> None:
        word = decode_word(body)
        if isinstance(word, Registers | Questions | Ceded):
            self._serve(word)
        elif isinstance(word, Shadowed):
            self._core.shadowed(word.records, self.mark)
        elif isinstance(word, Seen):
            for data, index, host, port, sent in word.messages:
                self._core.seen(data, Flow("UDP", self._sockets[index].address, (host, port)), sent=sent)
        elif isinstance(word, Datagrams):
            self._counters["datagrams"] += len(word.datagrams)
            flows = [udp.address for udp in self._sockets]
            self._core.datagrams_received(
                [(data, Flow("UDP", flows[index], (host, port))) for data, index, host, port in word.datagrams],
                late=word.late,
            )
        elif isinstance(word, Report):
            self._unanswered = 0
            self.version, self.transactions = word.version, word.transactions
            self._core.reported(word)
        elif isinstance(word, Failed):
            flows = [udp.address for udp in self._sockets]
            self._core.flows_failed([Flow("UDP", flows[index], (host, port)) for index, host, port in word.flows])
        elif isinstance(word, Ready):
            self.reading = True
            for udp in self._sockets:
                udp.rest()
            self._seat.mailbox.rest()
            self.send(Read(self._core.held()))
            self._link.flush()
        elif isinstance(word, Said):
            self.log.emit(LogLevel.levelWithName(word.level), "{text}", text=word.text)

    def _serve(self, word: Registers | Questions | Ceded) -> None:
        if isinstance(word, Registers):
            self._carry_out(word)
        elif isinstance(word, Questions):
            self._answer(word)
        else:
            self._core.ceded(word.ceded)

    def _carry_out(self, word: Registers) -> None:
        """Have REGISTERs carried out; unless phones are not to be heard any more: then none is, nor waits for that."""
        core, version, received = self._core, word.version, word.received
        if core.clock() >= core.lease_until():
            self._settled([(tag, None) for tag, *_ in word.registers])
            return
        self._counters["registers"] += len(word.registers)
        carry_out, changed_since, now = core.registry.carry_out, self._roster.changed_since, core.cluster_time()
        for tag, host, port, record, claim in word.registers:
            if changed_since(record.aor[len("sip:") :], version):
                self._settled([(tag, None)])  # the next challenge is answered by what is known then
            else:
                carry_out((tag, (host, port)), record.aor, record, claim, now, received, self._settled, tag)
        core.registry.propose()
        core.served("REGISTER")

    def _answer(self, word: Questions) -> None:
        """Say where requests go; those that come when phones are not to be heard any more are left to nobody."""
        core, changed_since = self._core, self._roster.changed_since
        answers = Answers(core.lease_until(), [], [], [], [])
        self._counters["questions"] += len(word.questions)
        for tag, aor, uri, method, identity, claim, caller in word.questions:
            if core.clock() >= answers.until:
                answers.elsewhere.append(tag)
                continue
            if identity and changed_since(identity, word.version):
                answers.challenged.append(tag)
                continue
            try:
                found = core.find(Wanted(aor, uri, method), claim, caller)
            except Elsewhere:
                answers.elsewhere.append(tag)
                continue
            if found is None:
                answers.challenged.append(tag)
            elif isinstance(found, SipError):
                answers.refused.append((tag, refusal_of(found)))
            else:
                answers.found.append((tag, tuple(map(tuple, found))))
                core.served(method)
            if (packed := core.packed(aor)) is not None:
                self._table.put(aor, packed)
        self.send(answers)
        self._link.flush()

    def _hand(self) -> None:
        self._handing = None
        handed, self._handed = self._handed, []
        self.send(Datagrams(handed))
        self._link.flush()

    def _settled(self, verdicts: list[tuple[str, Verdict]]) -> None:
        self._verdicts += [(tag, pack(verdict)) for tag, verdict in verdicts]
        if self._flushing is None:
            self._flushing = self._reactor.callLater(0, self._tell_verdicts)

    def _tell_verdicts(self) -> None:
        if self._flushing is not None and self._flushing.active():
            self._flushing.cancel()
        self._flushing = None
        if self._verdicts:
            verdicts, self._verdicts = self._verdicts, []
            self.send(Verdicts(self._core.lease_until(), verdicts))
            self._link.flush()

    def _tell_accounts(self, after: str) -> None:
        """Tell all accounts, a page in each turn, and then let the worker read."""
        self._telling = None
        if self._link.waiting < AHEAD:
            page, after = self._roster.page(after)
            self.send(page)
            if not after:
                self.send(Complete())
                return
        self._telling = self._reactor.callLater(PAUSE, self._tell_accounts, after)

    def _gone(self, why: str) -> None:
        if why:  # it may be frozen, and have yet to find out
            self.kill()
        for call in (self._telling, self._flushing, self._handing):
            if call is not None and call.active():
                call.cancel()
        self.reading = False
        for udp in self._sockets:
            udp.read()
        self._seat.mailbox.read()
        self._core.ended(self.mark)
        self._ended(why)
