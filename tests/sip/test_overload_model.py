"""Phones and a server in a model, whose server has the real judge: what becomes of loads that it can't serve.

The costs are measured ones in proportion (docs/performance.md): to refuse a REGISTER takes a sixth of what it takes to
serve it, to ignore it a fifteenth, a challenge half. The server is ten times slower than a real one, and its buffer and
the numbers of phones are a tenth, so that times are as they are in life.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from typing import NamedTuple

import pytest

from sipha.sip.overload import Overload, Verdict
from tests.sip.test_overload import KNOWN, PHONE, REGISTER, decide

SERVE = 400e-6
CHALLENGE, REFUSE, IGNORE = SERVE / 2, SERVE / 6, SERVE / 15
TURN = 1e-3
"""Seconds that a turn of the reactor takes beside."""

BUFFER = 1450
WAKE = 128
STORM = 10_000
T2 = 4.0
COPIES = 10
"""How often a phone sends a request at most (Timer F)."""


class Request(NamedTuple):
    """A request as it comes: `number` tells a phone's requests apart, copies have the same."""

    at: float
    phone: int
    known: bool
    number: int
    copy: int


class Server:
    """Takes requests from a buffer as UdpSocket and Endpoint do; `now` is as far as its processor has come."""

    def __init__(self) -> None:
        self.now = 0.0
        self.buffer: deque[Request] = deque()
        self.overload = Overload()

    def receive(self, request: Request) -> None:
        if len(self.buffer) < BUFFER:
            self.buffer.append(request)

    def turn(self) -> list[tuple[Request, Verdict]]:
        """Decide on what one wake-up reads."""
        read = [self.buffer.popleft() for _ in range(min(WAKE, len(self.buffer)))]
        left = len(self.buffer)
        overloaded = self.overload.waited(self.now - read[-1].at if left else 0.0, left / BUFFER)
        decided = []
        for request in read:
            verdict = Verdict.SERVED
            if overloaded:
                verdict = decide(self.overload, KNOWN if request.known else REGISTER, PHONE, self.now)
            cost = {Verdict.REFUSED: REFUSE, Verdict.IGNORED: IGNORE}
            self.now += cost.get(verdict, SERVE if request.known else CHALLENGE)
            decided.append((request, verdict))
        self.now += TURN
        return decided


@pytest.fixture(autouse=True)
def a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipha.sip.overload.CREDIT", 4_000)


@pytest.mark.parametrize(("times", "share"), [(1.5, 0.85), (2, 0.8), (4, 0.6), (10, 0.3)])
def test_server_serves_on_and_soon_whatever_is_offered(times: float, share: float) -> None:
    server, sent, waits, seconds = Server(), 0, list[float](), 20
    interval = SERVE / times
    while server.now < seconds:
        while sent * interval <= server.now:
            server.receive(Request(sent * interval, sent, known=True, number=0, copy=0))
            sent += 1
        if not server.buffer:
            server.now = sent * interval
            continue
        waits += [server.now - request.at for request, verdict in server.turn() if verdict is Verdict.SERVED]
    assert len(waits) >= share * seconds / SERVE
    assert sorted(waits)[int(0.99 * len(waits))] < 1.0


@pytest.mark.parametrize(("slowness", "longest"), [(1, 15.0), (4, 50.0)])
def test_storm_of_phones_that_register_for_the_first_time_passes(
    monkeypatch: pytest.MonkeyPatch, slowness: int, longest: float
) -> None:
    """They are through within so many seconds, and none gives up; to serve them one by one takes 6 s, and 24."""
    for name in ("SERVE", "CHALLENGE", "REFUSE", "IGNORE"):
        monkeypatch.setitem(globals(), name, globals()[name] * slowness)
    dice, server = random.Random(1), Server()
    coming = [Request(dice.random() / 2, phone, known=False, number=0, copy=0) for phone in range(STORM)]
    heapq.heapify(coming)
    numbers, registered = [0] * STORM, set[int]()

    def ask(phone: int, after: float, *, known: bool) -> None:
        numbers[phone] += 1
        heapq.heappush(coming, Request(server.now + after, phone, known, numbers[phone], 0))

    while len(registered) < STORM:
        while coming and coming[0].at <= server.now:
            request = heapq.heappop(coming)
            if request.number == numbers[request.phone]:
                server.receive(request)
                assert request.copy < COPIES, "a phone gives up"
                again = request.at + min(0.5 * 2**request.copy, T2)
                heapq.heappush(coming, request._replace(at=again, copy=request.copy + 1))
        if not server.buffer:
            server.now = coming[0].at
            continue
        for request, verdict in server.turn():
            if request.number != numbers[request.phone] or verdict is Verdict.IGNORED:
                continue
            if verdict is Verdict.REFUSED:
                wait = server.overload.retry_after(dice.getrandbits(32), server.now)
                ask(request.phone, wait, known=False)
            elif not request.known:
                ask(request.phone, 0.001, known=True)
            else:
                numbers[request.phone] += 1
                registered.add(request.phone)
    assert server.now < longest
