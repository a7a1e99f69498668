from __future__ import annotations

from collections.abc import Iterator
from socket import socket

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from sipha.cluster.raft import Timing
from sipha.sip.flow import Address
from tests.cluster.assembly import Assemble, Assembly
from tests.cluster.ballot import Ballot, Convene
from tests.cluster.world import World


@pytest.fixture
def convene() -> Iterator[Convene]:
    """Make voters."""
    ballots: list[Ballot] = []

    def start(names: str = "abc", timing: Timing | None = None, learners: str = "") -> Ballot:
        ballots.append(Ballot(names, timing, learners))
        return ballots[-1]

    yield start
    for ballot in ballots:
        ballot.close()


@pytest.fixture
def ballot(convene: Convene) -> Ballot:
    return convene()


@pytest.fixture
def assemble(failures: list[LogEvent]) -> Iterator[Assemble]:
    """Found a cluster; its nodes are yet to be started. No step of theirs may fail."""
    assemblies: list[Assembly] = []

    def found(founders: str = "abc", timing: Timing | None = None) -> Assembly:
        assemblies.append(Assembly(founders, timing))
        assemblies[-1].found()
        return assemblies[-1]

    yield found
    for assembly in assemblies:
        assembly.close()
    assert not failures


@pytest.fixture
def assembly(assemble: Assemble) -> Assembly:
    """Three nodes, of which a leads, and nothing is under way."""
    assembly = assemble()
    assembly.start("abc")
    assembly.elect("a")
    assembly.run(0.1)
    return assembly


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for call in world.reactor.getDelayedCalls():
        call.cancel()
    world.reactor.removeAll()
    world.reactor._poller.close()


@pytest.fixture
def addresses() -> dict[str, Address]:
    """A free loopback address for each of a, b and c."""
    sockets = {name: socket() for name in "abc"}
    for number, each in enumerate(sockets.values(), 21):
        each.bind((f"127.0.0.{number}", 0))
    found = {name: each.getsockname() for name, each in sockets.items()}
    for each in sockets.values():
        each.close()
    return found


@pytest.fixture
def failures() -> Iterator[list[LogEvent]]:
    """What is logged as a failure while the test runs; it must be asserted."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)
