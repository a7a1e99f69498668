from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.cluster.succession import Succession
from sipha.cluster.wire import read_datagram
from tests.cluster.assembly import Assembly


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged of failovers."""
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        text = formatEvent(event)
        if "failover to " in text:
            assert event["log_level"].name == "info"
            found.append(text.removeprefix("failover to "))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_failover_is_told_in_five_lines(lines: list[str]) -> None:
    clock = Clock()
    succession = Succession("b", clock.seconds)
    succession.followed()
    clock.advance(10)
    succession.noticed("a", "fell silent", 0.52)
    clock.advance(0.1)
    succession.noticed("a", "closed its connection", 0.62)
    succession.elected(7)
    clock.advance(0.05)
    succession.claimed("192.0.2.10")
    clock.advance(1.5)
    succession.served("REGISTER")
    assert lines == [
        "b, +0.000 s: a led before, and fell silent",
        "b, +0.000 s: noticed, 0.520 s after it was last heard",
        "b, +0.100 s: elected in term 7",
        "b, +0.150 s: 192.0.2.10 claimed",
        "b, +1.650 s: first request served, REGISTER",
    ]
    succession.claimed("192.0.2.10")  # another claim in the same term
    succession.served("INVITE")
    assert len(lines) == 5


def test_leader_that_is_heard_again_has_not_ended(lines: list[str]) -> None:
    clock = Clock()
    succession = Succession("b", clock.seconds)
    succession.noticed("a", "fell silent", 0.5)
    succession.followed()
    succession.elected(7)
    assert lines[0] == "b, +0.000 s: no leader was known before"


def tell(assembly: Assembly) -> str:
    """The new leader's name."""
    assembly.until(lambda: (assembly.leader() or "a") != "a")
    return str(assembly.leader())


def test_death_of_the_leader_is_told(assembly: Assembly, lines: list[str]) -> None:
    lines.clear()
    assembly.crash("a")
    leader = tell(assembly)
    assert lines[0] == f"{leader}, +0.000 s: a led before, and closed its connection"
    assert "s after it was last heard" in lines[1]
    assert f"s: elected in term {assembly.replica(leader).term}" in lines[2]
    assert len(lines) == 3


def test_silence_of_the_leader_is_told(assembly: Assembly, lines: list[str]) -> None:
    lines.clear()
    assembly.silent = {"a"}
    leader = tell(assembly)
    mine = [line for line in lines if line.startswith(leader)]
    assert mine[0] == f"{leader}, +0.000 s: a led before, and fell silent"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("", "b, +0.000 s: a led before, and hands leadership on: an operator has asked for it"),
        ("the link is down", "a led before, and hands leadership on: it is unwell: the link is down"),
    ],
)
def test_reason_of_a_handover_is_told(assembly: Assembly, lines: list[str], reason: str, told: str) -> None:
    lines.clear()
    if reason:
        assembly.replica("a").report(reason)
    else:
        assembly.replica("a").transfer("b")
    tell(assembly)
    assert told in lines[0]


def test_last_word_of_the_guard_is_told(assembly: Assembly, lines: list[str]) -> None:
    lines.clear()
    replica = assembly.replica("a")
    word = read_datagram(replica.last_word)
    for name in "bc":
        assembly.replica(name).inbox.last_word_heard(word)
    assembly.crash("a")
    leader = tell(assembly)
    assert lines[0] == f"{leader}, +0.000 s: a led before, and died, as its guard says"


def test_leader_that_is_elected_again_says_so(assembly: Assembly, lines: list[str]) -> None:
    lines.clear()
    assembly.silent = {"b", "c"}
    assembly.run(3.0)
    assembly.silent = set()
    assembly.until(assembly.leader)
    leader = str(assembly.leader())
    mine = [line for line in lines if line.startswith(leader)]
    assert "a led before, and" in mine[0]
