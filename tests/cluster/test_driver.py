"""Steps of the log: taken in time, and no more of them once one can't be trusted."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from sipha.cluster.driver import _MAX_FAILURES, TICK, Driver
from sipha.cluster.guards import DivergedError
from sipha.cluster.wire import ProtocolError
from sipha.state.entries import UnknownSchema
from sipha.state.machine import DamagedMemory


class Log:
    """A log that notes each step; one of them raises `error`, if it is set."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.steps: list[str] = []
        self.reasons: list[str] = []
        self.error: Exception | None = None
        self.driver = Driver(self.clock, self.clock.seconds, self.advance, self.look_around, self.reasons.append)

    def advance(self) -> None:
        self.steps.append("advance")
        if self.error is not None:
            raise self.error

    def look_around(self) -> None:
        self.steps.append("look around")

    def let(self, seconds: float) -> list[str]:
        """Let time pass, and return the steps that were taken."""
        self.steps = []
        self.clock.advance(seconds)
        return self.steps


@pytest.fixture
def log() -> Log:
    log = Log()
    log.driver.start()
    assert log.let(0) == ["advance", "look around"]
    return log


def test_log_is_advanced_and_looked_around_with_each_tick(log: Log) -> None:
    for _ in range(3):
        assert log.let(TICK) == ["advance", "look around"]


def test_log_is_advanced_once_in_a_turn_for_all_that_asks_for_it(log: Log) -> None:
    for _ in range(3):
        log.driver.kick()
    log.driver.guard(lambda: log.steps.append("a message"))
    assert log.let(0) == ["advance"]


def test_stopped_driver_takes_no_step(log: Log) -> None:
    log.driver.kick()
    log.driver.stop()
    log.driver.guard(lambda: log.steps.append("a message"))
    log.driver.kick()
    assert log.let(1.0) == []
    assert not log.reasons


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the disk can't be written: [Errno 28] No space left on device"),
        (MemoryError(), "the memory is full"),
        (DivergedError("entry 7 is committed here"), "entry 7 is committed here"),
        (DamagedMemory("a row has changed"), "a row has changed; restart the node"),
        (UnknownSchema(9), "9"),
    ],
)
def test_node_leaves_at_once_when_nothing_can_be_promised_any_more(log: Log, error: Exception, reason: str) -> None:
    log.error = error
    assert log.let(TICK) == ["advance"]
    assert log.driver.state == "failed"
    assert log.reasons == [log.driver.reason]
    assert reason in log.driver.reason
    log.driver.give_up(error)
    assert log.let(1.0) == []
    assert len(log.reasons) == 1


def test_failing_step_ends_nothing_unless_the_next_ones_fail_too(log: Log, failures: list[LogEvent]) -> None:
    for _ in range(3 * _MAX_FAILURES):
        log.error = ValueError("a bug")
        assert log.let(TICK) == ["advance", "look around"]
        log.error = None
        log.let(1.0)
    assert log.driver.running
    log.error = ValueError("a bug")
    for _ in range(_MAX_FAILURES):
        log.let(TICK)
    assert log.reasons == ["the log fails again and again"]
    assert len(failures) == 4 * _MAX_FAILURES
    failures.clear()


def test_peers_mistake_is_the_peers(log: Log) -> None:
    def receive() -> None:
        raise ProtocolError("not our log")

    with pytest.raises(ProtocolError):
        log.driver.guard(receive)
    assert log.driver.running
