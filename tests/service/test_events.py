from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from sipha.events.event import AnyEvent, BindingAdded, LeaderElected, LeaseGained, VipGained, decode
from sipha.events.history import HistoryError, Page
from sipha.state.entries import Contact, Register, RemoveBindings
from tests.cluster.world import World
from tests.service.alone import Alone, configuration, found

ALICE = "sip:alice@sipha.test"
OFF = '[history]\nkeep = "0"\n'


def propose(alone: Alone, record: Any) -> None:
    done: list[object] = []
    alone.node.view.propose(record, done.append)
    alone.world.until(lambda: done)


def register(alone: Alone, cseq: int = 1) -> None:
    propose(alone, Register(ALICE, "c1", cseq, (Contact("sip:alice@127.0.0.1", 600),)))


def history(alone: Alone) -> Page:
    pages: list[Any] = []
    alone.node.view.history(ALICE, "", 100).addBoth(pages.append)
    alone.world.until(lambda: pages)
    (page,) = pages
    if not isinstance(page, Page):
        page.raiseException()
    return page  # type: ignore[no-any-return]


def told(alone: Alone, since: str = "0") -> list[AnyEvent]:
    """What the node tells who asks for all."""
    reader = alone.node.view.feed.follow(lambda: None, since, [kind for kind in KINDS if kind != "gap"])
    items, _ = reader.take()
    reader.stop()
    return [decode(item.data) for item in items]


KINDS = ("leader-elected", "lease-gained", "lease-lost", "vip-gained", "vip-lost", "alarm-raised", "binding-added")


def test_node_tells_how_it_came_to_lead(alone: Alone) -> None:
    alone.world.until(lambda: any(isinstance(event, VipGained) for event in told(alone)))
    kinds = [type(event) for event in told(alone)]
    assert kinds == [LeaderElected, LeaseGained, VipGained]
    assert {event.node for event in told(alone)} == {"n1"}


def test_node_tells_and_keeps_who_registers(alone: Alone) -> None:
    register(alone)
    event = told(alone)[-1]
    assert isinstance(event, BindingAdded)
    assert (event.aor, event.node) == (ALICE, "n1")
    assert history(alone).events == (event,)
    counters = alone.node.view.status().counters
    assert (counters["history_written"], counters["history_dropped"], counters["events_overruns"]) == (1, 0, 0)
    assert counters["events_told"] >= 3


def test_history_outlives_a_restart(world: World, tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    found(settings)
    before = threading.active_count()
    for start in (1, 2):
        alone = Alone(world, settings)
        world.until(lambda: alone.node.view.status().leading)  # noqa: B023  it is called at once
        register(alone, start)
        if start == 1:
            propose(alone, RemoveBindings(ALICE))
        page = history(alone)
        alone.end()
    assert [(event.id.endswith(".0"), type(event).__name__) for event in page.events] == [
        (True, "BindingAdded"), (True, "BindingRemoved"), (True, "BindingAdded"),
    ]  # fmt: skip
    assert threading.active_count() <= before + 2, "threads end with their node"


def test_node_keeps_no_history_if_it_is_told_so(world: World, tmp_path: Path) -> None:
    settings = configuration(tmp_path, "plaintext = true\n" + OFF)
    found(settings)
    alone = Alone(world, settings)
    world.until(lambda: alone.node.view.status().leading)
    register(alone)
    with pytest.raises(HistoryError, match=r"write history\.keep"):
        history(alone)
    assert isinstance(told(alone)[-1], BindingAdded)
    alone.end()
    assert not (tmp_path / "data" / "history").exists()


def test_history_that_cant_be_written_is_an_alarm_and_harms_nothing_else(world: World, tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    found(settings)
    (tmp_path / "data" / "history").mkdir()
    alone = Alone(world, settings)
    world.until(lambda: alone.node.view.status().leading)
    register(alone)
    world.until(lambda: alone.node.view.status().alarms)
    (alarm,) = alone.node.view.status().alarms
    assert alarm.startswith("the history of AORs can't be written: ")
    world.until(lambda: any(event.id and "AlarmRaised" in repr(event) for event in told(alone)))
    assert len(alone.node.view.bindings(ALICE)) == 1
    alone.end()


def test_disk_that_hangs_doesnt_keep_the_node_from_its_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration(tmp_path)
    found(settings)
    alone = Alone(world, settings)
    world.until(lambda: alone.node.view.status().leading)
    asked: list[Deferred[None]] = []
    recorder = alone.node.events.recorder
    assert recorder is not None

    def stop() -> Deferred[None]:
        asked.append(Deferred())
        return asked[-1]

    monkeypatch.setattr(recorder, "stop", stop)
    monkeypatch.setattr("sipha.service.events.PARTING", 0.1)
    alone.end()
    assert len(asked) == 1
