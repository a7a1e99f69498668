"""The pool with workers of this process, each on its own link and its own share of the sockets."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import count

import pytest
from twisted.internet.error import ProcessExitedAlready
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import provider

from sipha.auth.authenticator import Ceded
from sipha.auth.claim import Claim
from sipha.proxy.shadow import Key
from sipha.proxy.target import TargetSet, Wanted
from sipha.registrar.registry import Registry
from sipha.sip.flow import Address, Flow
from sipha.sip.timers import Timers
from sipha.sip.token import MAKERS
from sipha.transport.address import bound_sockets
from sipha.transport.udp import UdpSocket
from sipha.vip.clock import boottime
from sipha.workers import pool as pools
from sipha.workers import shift as shifts
from sipha.workers.mailbox import Post
from sipha.workers.messages import Lease, Report, Settings
from sipha.workers.pool import OFTEN, RENEWAL, Pool
from sipha.workers.shift import Shift
from sipha.workers.worker import Worker
from tests.cluster.world import World
from tests.registrar.conftest import Phone, Site
from tests.workers.conftest import WorkerSite

SHARES = 2


class Core:
    """What the workers work for: a registry over a table of its own, and what they have passed on."""

    def __init__(self, site: WorkerSite) -> None:
        self.site = site
        self.term = site.replica.term
        self.registry: Registry = site.registry
        self.until = 1e12
        self.looked_on = False
        self.passed: list[tuple[bytes, Flow]] = []
        self.dead: list[Flow] = []
        self.counts: Counter[str] = Counter()
        self.methods: list[str] = []
        self.timing = astuple(Timers())
        self.asked: list[tuple[Wanted, Claim | None]] = []
        self.targets: TargetSet | None = None
        self.records: list[tuple[str, bytes]] = []
        self.gone: list[str] = []
        self.looked_at: list[tuple[bytes, Flow, bool]] = []
        self.callers: list[Key] = []

    def clock(self) -> float:
        return boottime()

    def cluster_time(self) -> float:
        return self.site.replica.now

    def lease_until(self) -> float:
        return self.until

    def watched(self) -> bool:
        return self.looked_on

    def keys(self) -> dict[int, bytes]:
        return {1: b"k" * 32}

    def settings(self) -> Settings:
        return self.site.worker_settings

    def own(self) -> tuple[tuple[str, str, int], ...]:
        return ()

    def timers(self) -> tuple[float, float, float, float, float]:
        return self.timing

    def held(self) -> list[Key]:
        return self.callers

    def served(self, method: str) -> None:
        self.methods.append(method)

    def find(self, wanted: Wanted, claim: Claim | None, caller: Key | None) -> TargetSet | None:
        self.asked.append((wanted, claim))
        return self.targets

    def packed(self, aor: str) -> bytes | None:
        return self.site.replica.machine.location.packed(aor)

    def ceded(self, ceded: list[Ceded]) -> None:
        self.site.authenticator.take(ceded, self.site.replica.now)

    def shadowed(self, records: list[bytes], mark: str) -> None:
        self.records += [(mark, record) for record in records]

    def ended(self, mark: str) -> None:
        self.gone.append(mark)

    def seen(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        self.looked_at.append((data, flow, sent))

    def datagrams_received(self, datagrams: list[tuple[bytes, Flow]], *, late: bool) -> None:
        assert not late
        self.passed += datagrams

    def flows_failed(self, flows: list[Flow]) -> None:
        self.dead += flows

    def reported(self, report: Report) -> None:
        self.counts.update(report.counts)


class Hand:
    """A worker in this process, in the place of a process of its own."""

    def __init__(self, world: World, files: Sequence[int]) -> None:
        link, lookups, *others = map(os.dup, files)
        mailbox, *sockets = [socket.socket(fileno=number) for number in others]
        self.ended = False
        self.signals: list[str] = []
        self.worker = Worker(
            world.reactor, socket.socket(fileno=link), lookups, mailbox, sockets[:SHARES], sockets[SHARES:], self.end
        )

    def signalProcess(self, signal: str) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(signal)
        self.end()

    def end(self) -> None:
        """Close all that a process has, as the kernel does."""
        if not self.ended:
            self.ended = True
            self.worker._link.close()
            self.worker._mailbox.close()
            for udp in self.worker._sockets:
                udp.close()


class Line(socket.socket):
    """Where a phone is, which gets what is sent there."""

    def __init__(self, world: World, to: Address) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.bind(("127.0.0.1", 0))
        self.connect(to)
        self.setblocking(False)
        self._world = world

    def ask(self, data: bytes) -> bytes:
        self.send(data)
        return self.answer()

    def answer(self) -> bytes:
        answers: list[bytes] = []

        def answered() -> bool:
            answers.extend(self.answers())
            return bool(answers)

        self._world.until(answered)
        return answers[0]

    def answers(self) -> Iterator[bytes]:
        while True:
            try:
                yield self.recv(65535)
            except BlockingIOError:
                return


class Rig:
    def __init__(self) -> None:
        self.world = World()
        self.site = WorkerSite()
        self.core = Core(self.site)
        self.hands: list[Hand] = []
        self.fails = 0
        self.read_here: list[tuple[bytes, Flow]] = []
        self.udp = UdpSocket(
            self.world.reactor,
            ("127.0.0.1", 0),
            lambda datagrams, _age, _fill: self.read_here.extend(datagrams),
            print,
            Counter(),
            bind=lambda kind, address: bound_sockets(kind, address, shares=SHARES),
        )
        self.udp.start()
        self.pool = Pool(
            self.world.reactor, self.core, self.site.replica.machine, lambda: [self.udp], count(1), self.spawn
        )
        self.pool.start()
        self.lines = [Line(self.world, self.udp.address) for _ in range(16)]

    def spawn(self, number: int, seats: int, files: Sequence[int]) -> Hand:
        assert seats == SHARES
        if self.fails:
            self.fails -= 1
            raise OSError("no more processes")
        self.hands.append(Hand(self.world, files))
        return self.hands[-1]

    def ready(self) -> None:
        """Wait until all workers read."""
        self.world.until(lambda: self.pool.reading == SHARES)

    def phone(self, user: str = "alice") -> Phone:
        phone = Phone(self.site, user)
        phone.flow = Flow("UDP", self.udp.address, ("127.0.0.1", 5060))
        return phone

    def end_pool(self) -> None:
        ended: list[object] = []
        self.pool.stop().addBoth(ended.append)
        self.world.until(lambda: ended)

    def end(self) -> None:
        if self.pool._stopped is None:
            self.end_pool()
        self.udp.close()
        for line in self.lines:
            line.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.end()


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def register(rig: Rig, line: Line, phone: Phone) -> int:
    """Register a phone from where a line is; the status of the last answer."""
    answer = line.ask(phone.message(phone.contact()))
    if status(answer) == 401:
        phone.nonce, phone.count = answer.partition(b'nonce="')[2].partition(b'"')[0].decode(), 0
        answer = line.ask(phone.message(phone.contact()))
    return status(answer)


def of(rig: Rig, line: Line) -> Hand:
    """The worker that the kernel gives what comes from a line."""
    before = [hand.worker._front.registry.counters.challenged for hand in rig.hands if hand.worker._front]
    phone = rig.phone()
    assert status(line.ask(phone.message(phone.contact()))) == 401
    after = [hand.worker._front.registry.counters.challenged for hand in rig.hands if hand.worker._front]
    [changed] = [number for number, counts in enumerate(zip(before, after, strict=True)) if counts[0] != counts[1]]
    return rig.hands[changed]


def test_all_workers_serve_phones(rig: Rig) -> None:
    rig.ready()
    assert {id(of(rig, line)) for line in rig.lines} == {id(hand) for hand in rig.hands}
    for line, user in zip(rig.lines, ("alice", "bob"), strict=False):
        assert register(rig, line, rig.phone(user)) == 200
    assert rig.pool.counters["registers"] == 2
    assert rig.core.methods == ["REGISTER", "REGISTER"]
    rig.world.until(lambda: rig.core.counts["registrar/challenged"] == len(rig.lines) + 2)
    assert not rig.read_here


def test_daemon_reads_what_nobody_else_does_yet(rig: Rig) -> None:
    for line in rig.lines:
        line.send(b"early")
    rig.world.until(lambda: len(rig.read_here) == len(rig.lines))
    assert rig.pool.reading == 0


def test_what_is_no_register_is_passed_on(rig: Rig) -> None:
    rig.ready()
    for line in rig.lines:
        line.send(b"OPTIONS sip:sipha.test SIP/2.0\r\n\r\n")
    rig.world.until(lambda: len(rig.core.passed) == len(rig.lines))
    assert {flow.remote for _, flow in rig.core.passed} == {line.getsockname() for line in rig.lines}
    assert {flow.local for _, flow in rig.core.passed} == {rig.udp.address}
    assert rig.pool.counters["datagrams"] == len(rig.lines)


def test_nonce_count_that_was_used_with_one_worker_is_used_with_all(rig: Rig) -> None:
    rig.ready()
    here = rig.lines[0]
    there = next(line for line in rig.lines if of(rig, line) is not of(rig, here))
    phone = rig.phone()
    assert register(rig, here, phone) == 200
    stolen = phone.last.replace(b"Call-ID: ", b"Call-ID: x")
    assert b"stale=true" in there.ask(stolen)


def test_password_that_was_changed_is_another_for_all(rig: Rig) -> None:
    rig.ready()
    phone = rig.phone()
    assert register(rig, rig.lines[0], phone) == 200
    rig.site.replica.put_account("alice", MD5="0" * 32)
    for line in rig.lines:
        assert status(line.ask(phone.message(phone.contact()))) == 401


def test_register_that_was_verified_by_an_old_password_is_challenged_anew(rig: Rig) -> None:
    rig.ready()
    phone, line = rig.phone(), rig.lines[0]
    assert register(rig, line, phone) == 200
    line.send(phone.message(phone.contact()))
    rig.world.until(lambda: of_any_waits(rig))
    rig.site.replica.put_account("alice", MD5="0" * 32)
    assert b"stale=true" in line.ask(b"\r\n")
    assert rig.pool.counters["registers"] == 2


def of_any_waits(rig: Rig) -> bool:
    return any(hand.worker._front and hand.worker._front.registry._waiting for hand in rig.hands)


def test_worker_that_has_ended_is_missed_by_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REST", 0.2)
    rig.ready()
    line = rig.lines[0]
    lost = of(rig, line)
    theirs = [each for each in rig.lines if of(rig, each) is lost]
    lost.end()
    rig.world.until(lambda: rig.pool.reading == SHARES - 1)
    for each in rig.lines:
        each.send(b"OPTIONS sip:sipha.test SIP/2.0\r\n\r\n")
    rig.world.until(lambda: len(rig.read_here) + len(rig.core.passed) == len(rig.lines))
    assert {flow.remote for _, flow in rig.read_here} == {each.getsockname() for each in theirs}
    rig.ready()
    assert rig.pool.counters["restarts"] == 1
    assert {id(of(rig, each)) for each in theirs} == {id(rig.hands[-1])}
    assert register(rig, line, rig.phone()) == 200


def test_nonces_of_a_worker_that_has_ended_are_good_with_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REST", 0.01)
    rig.ready()
    line, phone = rig.lines[0], rig.phone()
    assert register(rig, line, phone) == 200
    unused = phone.message(phone.contact())
    of(rig, line).end()
    rig.world.until(lambda: len(rig.hands) > SHARES)
    rig.ready()
    assert b"stale=true" in line.ask(unused)
    assert b"stale=true" in line.ask(phone.last.replace(b"Call-ID: ", b"Call-ID: x"))


def test_lives_without_end_make_nonces_of_their_own_and_never_the_daemons(rig: Rig) -> None:
    rig.pool._lives = count(MAKERS - 1)
    rig.pool.replace()
    rig.world.until(lambda: len(rig.hands) == 2 * SHARES)
    rig.ready()
    fronts = [hand.worker._front for hand in rig.hands[SHARES:]]
    assert {front._authenticator._window.maker for front in fronts if front} == {MAKERS - 1, 1}


def test_worker_that_is_not_understood_is_killed_since_it_may_not_know_that_its_link_has_ended(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "REST", 0.01)
    rig.ready()
    hand = rig.hands[0]
    hand.worker._link._socket.send(b"\xff" * 4)
    rig.world.until(lambda: len(rig.hands) > SHARES)
    assert hand.signals == ["KILL"]
    rig.ready()


@pytest.mark.parametrize("steady", [True, False])
def test_worker_accepts_no_nonces_of_one_who_lives_or_has_just_ended(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, *, steady: bool
) -> None:
    monkeypatch.setattr(pools, "REST", 0.01)
    rig.ready()
    line, phone = rig.lines[0], rig.phone()
    lost = of(rig, line)
    other = next(each for each in rig.lines if of(rig, each) is not lost)
    assert register(rig, other if steady else line, phone) == 200
    front = of(rig, other if steady else line).worker._front
    assert front
    rig.pool._lives = count(MAKERS - 1 + (front._authenticator._window.maker or 0))
    lost.end()
    rig.world.until(lambda: len(rig.hands) > SHARES)
    rig.ready()
    assert b"stale=true" in line.ask(phone.last.replace(b"Call-ID: ", b"Call-ID: x"))


def letter_for(rig: Rig, seat: int, mark: str) -> bytes:
    """Put a response that bears this mark into the mailbox of a seat."""
    response = f"SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bK1;w={mark}\r\n\r\n".encode()
    post = Post({seat: rig.pool._ends[seat]})
    post.put(seat, response, Flow("UDP", rig.udp.address, rig.lines[0].getsockname()))
    assert post.send() == []
    return response


def test_letters_are_read_by_the_daemon_while_nobody_is_at_the_seat(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    early = letter_for(rig, 0, "1-1-0")
    rig.world.until(lambda: rig.core.passed)
    rig.ready()
    monkeypatch.setattr(pools, "REST", 60.0)
    shift = next(shift for shift in rig.pool._shifts() if shift._seat.index == 1)
    hand = next(hand for hand in rig.hands if hand.worker._front.calls._mark == shift.mark)  # type: ignore[union-attr]
    hand.end()
    rig.world.until(lambda: rig.pool.reading == SHARES - 1)
    late = letter_for(rig, 1, shift.mark)
    rig.world.until(lambda: len(rig.core.passed) == 2)
    assert [data for data, _ in rig.core.passed] == [early, late]
    assert {flow for _, flow in rig.core.passed} == {Flow("UDP", rig.udp.address, rig.lines[0].getsockname())}


def test_letter_for_who_had_the_seat_before_is_passed_on(rig: Rig) -> None:
    rig.ready()
    response = letter_for(rig, 0, "1-99-0")
    rig.world.until(lambda: rig.core.passed)
    assert [data for data, _ in rig.core.passed] == [response]
    assert rig.pool.counters["datagrams"] == 1


def test_letters_wait_while_there_is_no_lease(rig: Rig) -> None:
    rig.ready()
    rig.core.until = 0.0
    rig.world.turn(3 * RENEWAL)
    letter_for(rig, 0, "1-99-0")
    rig.world.turn(3 * RENEWAL)
    assert not rig.core.passed
    rig.core.until = 1e12
    rig.world.until(lambda: rig.core.passed)


def test_table_follows_what_is_bound_until_the_last_worker_has_ended(rig: Rig) -> None:
    rig.ready()
    location = rig.site.replica.machine.location
    assert location.observer is rig.pool._table
    rig.end_pool()
    assert location.observer is None
    assert register_alone(rig) == 200  # and nobody has to be told


def register_alone(rig: Rig) -> int:
    """Register a phone without any worker."""
    phone = Phone(Site(rig.site.replica))
    return phone.register(phone.contact()).status


def test_worker_that_does_not_answer_is_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifts, "PATIENCE", 3)
    rig.ready()
    stuck = rig.hands[0]
    rig.world.reactor.removeReader(stuck.worker._link)
    rig.world.until(lambda: stuck.signals)
    assert stuck.signals == ["KILL"]
    rig.world.until(lambda: len(rig.hands) == SHARES + 1)
    rig.ready()


def test_operator_is_told_of_a_worker_that_ends_again_and_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REST", 0.01)
    rig.ready()
    assert not list(rig.pool.alarms())
    rig.fails = OFTEN - 1
    rig.hands[0].end()
    rig.world.until(lambda: list(rig.pool.alarms()))
    assert list(rig.pool.alarms()) == ["worker 1 ends again and again; the daemon does its work: look into the log"]
    rig.ready()


def test_workers_are_silent_once_the_lease_has_ended(rig: Rig) -> None:
    rig.ready()
    rig.core.until = 0.0
    rig.world.turn(3 * RENEWAL)
    phone = rig.phone()
    for line in rig.lines:
        line.send(phone.message(phone.contact()))
    rig.world.turn(3 * RENEWAL)
    assert not [answer for line in rig.lines for answer in line.answers()]
    assert not rig.core.passed
    rig.core.until = 1e12
    for line in rig.lines:  # the lease has come back, and what has waited is served
        assert status(line.answer()) == 401


def test_register_that_is_handed_over_without_a_lease_is_carried_out_once_it_comes_again(rig: Rig) -> None:
    rig.ready()
    phone, line = rig.phone(), rig.lines[0]
    assert register(rig, line, phone) == 200
    rig.pool._renewing.stop()  # so that no worker hears of it before
    rig.core.until = 0.0
    line.send(phone.message(phone.contact()))
    rig.world.until(lambda: of_any_waits(rig))
    rig.world.turn(2 * RENEWAL)
    assert not list(line.answers())
    assert not of_any_waits(rig)
    rig.core.until = 1e12
    rig.pool._renewing.start(RENEWAL)
    assert status(line.ask(phone.last)) == 401, "its nonce count is used up, since the worker couldn't know"
    assert register(rig, line, phone) == 200


def test_worker_reads_nothing_before_it_has_a_lease(rig: Rig) -> None:
    rig.core.until = 0.0
    for shift in rig.pool._shifts():
        shift.send(Lease(0.0, boottime(), 0.0, watched=False))
    rig.world.turn(3 * RENEWAL)
    assert rig.pool.reading == 0
    rig.core.until = 1e12
    rig.ready()


def test_worker_that_was_held_up_hears_the_daemon_before_phones(rig: Rig) -> None:
    rig.ready()
    line = rig.lines[0]
    held_up = of(rig, line)
    rig.world.reactor.removeReader(held_up.worker._link)
    held_up.worker._front.lease(0.0)  # type: ignore[union-attr]
    rig.world.turn(2 * RENEWAL)
    phone = rig.phone()
    assert status(line.ask(phone.message(phone.contact()))) == 401


def test_what_is_carried_out_when_the_pool_stops_is_answered(rig: Rig) -> None:
    rig.ready()
    phone, line = rig.phone(), rig.lines[0]
    assert register(rig, line, phone) == 200
    rig.site.replica.held = True
    line.send(phone.message(phone.contact()))
    rig.world.until(lambda: rig.site.registry.pending)
    rig.site.replica.commit()
    rig.end_pool()
    assert status(line.recv(65535)) == 200
    assert all(hand.ended for hand in rig.hands)
    assert not rig.hands[0].signals


def test_workers_are_replaced_by_those_that_have_other_sockets(rig: Rig) -> None:
    rig.ready()
    rig.pool.replace()
    rig.world.until(lambda: len(rig.hands) == 2 * SHARES)
    rig.ready()
    assert rig.pool.counters["restarts"] == 0
    assert register(rig, rig.lines[0], rig.phone()) == 200


def test_worker_that_fails_says_why_before_it_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.ready()
    said: list[str] = []

    @provider(ILogObserver)
    def hear(event: LogEvent) -> None:
        said.append(event["text"])

    monkeypatch.setattr(Shift, "log", Logger(observer=hear))
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        Logger(observer=rig.hands[0].worker).failure("a mistake")
    rig.world.until(lambda: said)
    assert said[0].startswith("a mistake\nTraceback")
    assert said[0].endswith("ZeroDivisionError: division by zero\n")


def test_worker_that_can_not_be_told_of_the_lease_is_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.ready()
    with monkeypatch.context() as broken:
        broken.setattr(rig.core, "watched", lambda: 1 / 0)
        rig.world.until(lambda: all(hand.signals for hand in rig.hands[:SHARES]))
    rig.ready()
