"""The house of the proxy's tests with two workers before it, which read what comes over UDP."""

from __future__ import annotations

from collections import deque
from dataclasses import astuple
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from twisted.internet.task import Clock

from sipha.proxy.shadow import call_of
from sipha.registrar.record import RegistrarSettings as Defaults
from sipha.service.core import Core
from sipha.sip.events import Event, RequestReceived
from sipha.sip.flow import Address, Flow
from sipha.sip.parser import parse
from sipha.workers.front import Front
from sipha.workers.mailbox import Letter
from sipha.workers.mark import make_mark, read_mark
from sipha.workers.messages import (
    Answers,
    Ceded,
    Datagrams,
    Order,
    Questions,
    Read,
    RegistrarSettings,
    Seen,
    Settings,
    Shadowed,
    Start,
    Word,
    decode_order,
    decode_word,
    frame,
)
from sipha.workers.roster import Roster
from sipha.workers.shift import Shift
from tests.proxy.ladder import VIP, VIP6, House, Phone
from tests.workers.conftest import TABLE, socket_at

WORKERS = (1, 2)


class WorkerHouse(House):
    """What is said goes over the wire, and is heard once whoever said it has done his turn.

    `workers` are those that live; `divide` says which of them reads what comes from an address. They have no key while
    they are `locked`, nothing is heard while all is `held_up`, and no mailbox takes anything unless it has `room`.
    """

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.workers: dict[int, Front] = {}
        self.marks: dict[int, str] = {}
        self._begun = 0
        self.said: deque[tuple[int, Word]] = deque()
        self.ordered: deque[tuple[int, Order]] = deque()
        self.letters: deque[tuple[int, Letter]] = deque()
        self.came_back: deque[tuple[bytes, Flow]] = deque()
        self.passed: list[bytes] = []
        self.looked_at: list[tuple[bytes, Flow, bool]] = []
        self.handed: list[bytes] = []
        self.table = TABLE
        self.table.replaced()
        self.room = True
        self._told: dict[str, bytes] = {}
        self._settling = self.locked = self.held_up = False
        super().__init__(**options)
        for number in WORKERS:
            self.start(number)

    def divide(self, remote: Address) -> int:
        return WORKERS[(sum(map(ord, remote[0])) + remote[1]) % len(WORKERS)]

    def _lead(self) -> None:
        super()._lead()
        self.core = Core.__new__(Core)
        self.core._replica = cast("Any", self.state)
        self.core._authenticator = self.proxy._authenticator
        self.core._layer = self.layer
        cast("Any", self.state).machine = SimpleNamespace(location=self)
        self.core._shadows = self.shadows
        self._silence(*self.workers)

    def begin_to_lead(self, *, shadows: bool = True) -> None:
        super().begin_to_lead(shadows=shadows)
        for number in WORKERS:
            self.start(number)

    def make_worker(self, number: int) -> Front:
        mine, defaults = self.settings, Defaults()
        settings = Settings(
            tuple(self.domains.all),
            (VIP[0], f"[{VIP6[0]}]"),
            RegistrarSettings(defaults.policy, defaults.min_expires_policy, defaults.expires_jitter, ()),
            300,
            (),
            tuple(map(str, mine.peers)),
            mine.allow_inbound,
            mine.max_breadth,
            (),
        )
        own = tuple((transport, *address) for transport in ("UDP", "TCP") for address in (VIP, VIP6))
        self._begun += 1
        mark = self.marks[number] = make_mark(self.term, self._begun, number)
        since = int(self.state.now)
        start = Start((VIP, VIP6), own, self.term, self._begun, since, mark, astuple(self.timers), settings)
        order = decode_order(frame(start)[4:])
        assert isinstance(order, Start)
        front = Front(
            self.clock,
            order,
            self.state,
            lambda: None if self.locked else self.tokens,
            lambda word: self._hear(number, front, word),
            lambda: None,
            lambda: self.now,
            self.table.file,
            cast("Any", _Post(self, number)),
        )
        front.use([socket_at(address, self._sent) for address in (VIP, VIP6)])
        front.lease(1e12, ahead=self.state.now - self.now)
        return front

    def mark(self, number: int) -> str:
        return self.marks[number]

    # What comes

    def receive(self, data: bytes, flow: Flow) -> None:
        if self.fuse == 0:
            return
        self._forget()
        self._read(data, flow)
        self.settle()

    def _read(self, data: bytes, flow: Flow) -> None:
        worker = self.workers.get(self.divide(flow.remote)) if flow.transport == "UDP" else None
        if worker is None:
            self._daemon_reads(data, flow)
        else:
            worker.datagrams_received([(data, flow)], 0.0, 0.0)

    def _daemon_reads(self, data: bytes, flow: Flow) -> None:
        mark = read_mark(data) if data.startswith(b"SIP/2.0 ") else ""
        if not (mark and self._hand(mark, data, flow)):
            super().receive(data, flow)

    def _hand(self, mark: str, data: bytes, flow: Flow) -> bool:
        for number in self.workers:
            if self.mark(number) == mark:
                self.handed.append(data)
                index = (VIP, VIP6).index(flow.local)
                self.ordered.append((number, Datagrams([(data, index, *flow.remote)])))
                return True
        return False

    def act(self, event: Event) -> None:
        if isinstance(event, RequestReceived) and not event.flow.reliable:
            request, flow = event.request, event.flow
            key = call_of(request)
            if key is not None and self._hand(self.shadows.holder(key), request.render(), flow):
                return
        super().act(event)

    def come_back(self, data: bytes, flow: Flow) -> None:
        self.came_back.append((data, flow))

    # What is said

    def _hear(self, number: int, front: Front, word: Word) -> None:
        if self.workers.get(number) is not front:
            return  # it is dead
        heard = decode_word(frame(word)[4:])
        if isinstance(heard, Shadowed):  # before anything is sent
            self.shadows.relay(heard.records, self.mark(number), self.now)
            self.share()
        else:
            self.said.append((number, heard))

    def _sent(self, data: bytes, flow: Flow) -> None:
        if not self._burn():
            return
        self.raw.append((data, flow))
        if flow.remote in {VIP, VIP6}:
            self.come_back(data, Flow("UDP", flow.remote, flow.local))
        else:
            self.inbox[flow.transport, flow.remote].append(parse(data))

    def settle(self) -> None:
        """Let all be heard that was said."""
        if self._settling or self.held_up:
            return
        self._settling = True
        while self.said or self.ordered or self.came_back or self.letters:
            if self.said:
                self._heard(*self.said.popleft())
            elif self.letters:
                self._deliver(*self.letters.popleft())
            elif self.ordered:
                self._obey(*self.ordered.popleft())
            else:
                self._read(*self.came_back.popleft())
        self._settling = False

    def _heard(self, number: int, word: Word) -> None:
        if number not in self.workers:
            return
        if isinstance(word, Datagrams):
            for data, index, host, port in word.datagrams:
                self.passed.append(data)
                self._daemon_reads(data, Flow("UDP", (VIP, VIP6)[index], (host, port)))
        elif isinstance(word, Seen):
            for data, index, host, port, sent in word.messages:
                self.looked_at.append((data, Flow("UDP", (VIP, VIP6)[index], (host, port)), sent))
        elif isinstance(word, Ceded):
            self.core.ceded(word.ceded)
        else:
            assert isinstance(word, Questions)
            self.ordered.append((number, self._answer(word)))

    def _answer(self, word: Questions) -> Answers:
        """What the daemon's side of the link makes of it."""
        shift, told = Shift.__new__(Shift), list[Answers]()
        shift._core = self.core
        shift._counters = {"questions": 0}
        shift._roster = cast("Roster", _Roster())
        shift._table = self.table
        shift._link = cast("Any", _Link())
        shift.send = told.append  # type: ignore[method-assign, assignment]
        self.core.clock = lambda: self.now
        self.core.lease_until = lambda: 1e12  # type: ignore[method-assign]
        self.core.served = lambda _method: None
        shift._answer(word)
        return told[0]

    def _obey(self, number: int, order: Order) -> None:
        front = self.workers.get(number)
        heard = decode_order(frame(order)[4:])
        if front is None:
            return
        if isinstance(heard, Answers):
            front.answered(heard)
        else:
            assert isinstance(heard, Datagrams)
            front.datagrams_handed(heard.datagrams)

    def _deliver(self, seat: int, letter: Letter) -> None:
        if seat in self.workers:
            self.workers[seat].letter_received(letter)
        else:
            for data, flow in letter:
                self._daemon_reads(data, flow)

    # What the daemon has looked up

    def packed(self, aor: str) -> bytes:
        """As Location says it."""
        self._told[aor] = msgspec.msgpack.encode(self.state.bindings(aor))
        return self._told[aor]

    def _forget(self) -> None:
        """Tell the table of what has changed, as Location does."""
        for aor, packed in list(self._told.items()):
            if self.packed(aor) != packed:
                self.table.changed(aor)

    # Time and death

    def turn(self) -> None:
        super().turn()
        self.settle()

    @property
    def dropped(self) -> int:
        return super().dropped + sum(front.calls.counts()["proxy"]["dropped"] for front in self.workers.values())

    def next_timer(self) -> float | None:
        whens = [call.getTime() for call in self.clock.getDelayedCalls()]
        return min(whens + [when for when in [super().next_timer()] if when is not None], default=None)

    def handle_timer(self) -> None:
        super().handle_timer()
        self.clock.advance(0)
        self.settle()

    def pass_time(self, until: float) -> None:
        super().pass_time(until)
        self.clock.rightNow = self.now

    def fail(self, phone: Phone) -> None:
        flow = Flow(phone.transport, VIP, phone.address)
        if phone.transport == "UDP":
            for front in self.workers.values():
                front.flows_died([(0, *phone.address)])
        self.layer.flow_failed(flow, self.now)
        self.turn()

    def kill(self, number: int) -> None:
        """A worker dies; the daemon takes its calls over."""
        self._silence(number)
        self.shadows.forsake(self.mark(number), self.now)
        self.proxy.take_over(self.now)
        self.advance(0)

    def _silence(self, *numbers: int) -> None:
        for number in numbers:
            self.workers.pop(number).lease(0.0)

    def start(self, number: int) -> None:
        """Another worker takes its place."""
        read = decode_order(frame(Read(self.core.held()))[4:])
        assert isinstance(read, Read)
        self.workers[number] = self.make_worker(number)
        self.workers[number].calls.leave(read.held, self.now)


class _Post:
    """A post whose letters are on their way like what is said, and which takes none while there is no `room`."""

    def __init__(self, house: WorkerHouse, own: int) -> None:
        self._house = house
        self._own = own
        self._letters: dict[int, Letter] = {}

    def put(self, seat: int, data: bytes, flow: Flow) -> bool:
        if seat == self._own or seat not in WORKERS:
            return False
        self._letters.setdefault(seat, []).append((data, flow))
        return True

    def send(self) -> Letter:
        letters, self._letters = self._letters, {}
        if not self._house.room:
            return [each for letter in letters.values() for each in letter]
        self._house.letters += letters.items()
        return []


class _Roster:
    @staticmethod
    def changed_since(_identity: str, _version: int) -> bool:
        return False


class _Link:
    @staticmethod
    def flush() -> None:
        """All is heard anyway."""
