"""The garbage collector's pace."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from sipha import garbage
from sipha.garbage import INTERVAL, GarbageCollection


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    service = GarbageCollection(clock)
    before = gc.get_threshold()
    service.startService()
    yield clock
    service.stopService()
    gc.unfreeze()
    assert gc.get_threshold() == before
    assert not clock.getDelayedCalls()


def old_cycle() -> weakref.ref[Cycle]:
    cycle = Cycle()
    gc.collect(1)  # it has grown old
    return weakref.ref(cycle)


def test_collection_frees_old_cycles_while_there_are_few(clock: Clock) -> None:
    for _ in range(2):
        cycle = old_cycle()
        assert cycle() is not None
        clock.advance(INTERVAL)
        assert cycle() is None


def test_collection_leaves_old_objects_alone_while_there_are_many(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "FEW", 0)
    cycle = old_cycle()
    clock.advance(INTERVAL)
    assert cycle() is not None
