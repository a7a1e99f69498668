from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent
from zope.interface import implementer

from sipha.cluster.leadership import ILeader, LeaderServices, Leadership


@implementer(ILeader)
class Observer:
    def __init__(self, name: str, diary: list[str], *, failing: bool = False) -> None:
        self.name = name
        self.diary = diary
        self.failing = failing

    def gained(self) -> None:
        self.diary.append(f"+{self.name}")
        if self.failing:
            raise ZeroDivisionError

    def lost(self) -> None:
        self.diary.append(f"-{self.name}")
        if self.failing:
            raise ZeroDivisionError


class Child(Service):
    def __init__(self, stopping: Deferred[None] | None = None) -> None:
        self.diary: list[str] = []
        self.stopping = stopping

    def privilegedStartService(self) -> None:
        self.diary.append("privileged")

    def startService(self) -> None:
        super().startService()
        self.diary.append("start")

    def stopService(self) -> Any:
        super().stopService()
        self.diary.append("stop")
        return self.stopping


def test_observers_are_told_in_order_and_back() -> None:
    leadership, diary = Leadership(), list[str]()
    for name in "ab":
        leadership.observe(Observer(name, diary))
    leadership.gain()
    leadership.gain()
    leadership.lose()
    leadership.lose()
    assert diary == ["+a", "+b", "-b", "-a"]


def test_observer_that_comes_late_is_told_at_once_and_one_that_left_is_not() -> None:
    leadership, diary = Leadership(), list[str]()
    leadership.gain()
    observer = Observer("a", diary)
    leadership.observe(observer)
    leadership.forget(observer)
    leadership.lose()
    leadership.gain()
    assert diary == ["+a", "-a"], "the last that it hears"


def test_observer_that_fails_harms_no_other(failures: list[LogEvent]) -> None:
    leadership, diary = Leadership(), list[str]()
    leadership.observe(Observer("a", diary, failing=True))
    leadership.observe(Observer("b", diary))
    leadership.gain()
    leadership.lose()
    assert diary == ["+a", "+b", "-b", "-a"]
    assert len(failures) == 2


def test_leadership_is_over_when_nothing_is_left_that_needed_it() -> None:
    settled: list[bool] = []
    leadership, endings = Leadership(lambda: settled.append(leadership.over)), [Deferred[None](), Deferred[None]()]
    for ending in endings:
        services = LeaderServices(leadership)
        Child(ending).setServiceParent(services)
        services.startService()
    assert leadership.over
    leadership.gain()
    assert not leadership.over
    leadership.lose()
    endings[0].callback(None)
    assert (leadership.over, settled) == (False, [])
    endings[1].callback(None)
    assert (leadership.over, settled) == (True, [True])


def test_children_run_only_while_leading() -> None:
    leadership, parent = Leadership(), MultiService()
    services, child = LeaderServices(leadership), Child()
    services.setServiceParent(parent)
    child.setServiceParent(services)
    parent.privilegedStartService()
    parent.startService()
    assert child.diary == []
    leadership.gain()
    assert child.diary == ["start"]
    leadership.lose()
    leadership.gain()
    assert child.diary == ["start", "stop", "start"]
    parent.stopService()
    assert child.diary == ["start", "stop", "start", "stop"]
    leadership.lose()
    leadership.gain()
    assert child.diary[-1] == "stop"


def test_services_that_have_not_been_started_can_be_stopped() -> None:
    leadership = Leadership()
    services = LeaderServices(leadership)
    stopped: list[object] = []
    services.stopService().addBoth(stopped.append)
    assert stopped == [None]


def test_child_that_is_still_stopping_starts_when_it_has_stopped() -> None:
    leadership, stopping = Leadership(), Deferred[None]()
    services, child = LeaderServices(leadership), Child(stopping)
    child.setServiceParent(services)
    services.startService()
    leadership.gain()
    leadership.lose()
    leadership.gain()
    assert child.diary == ["start", "stop"]
    stopping.callback(None)
    assert child.diary == ["start", "stop", "start"]


def test_child_doesnt_start_when_leadership_ended_meanwhile() -> None:
    leadership, stopping = Leadership(), Deferred[None]()
    services, child = LeaderServices(leadership), Child(stopping)
    child.setServiceParent(services)
    services.startService()
    leadership.gain()
    leadership.lose()
    leadership.gain()
    leadership.lose()
    stopping.callback(None)
    assert child.diary == ["start", "stop"]


def test_stopping_waits_for_the_children() -> None:
    leadership, stopping = Leadership(), Deferred[None]()
    services = LeaderServices(leadership)
    Child(stopping).setServiceParent(services)
    services.startService()
    leadership.gain()
    done: list[object] = []
    services.stopService().addCallback(done.append)
    assert not done
    stopping.callback(None)
    assert len(done) == 1


def test_leadership_is_not_over_while_children_stop_that_wait_no_more() -> None:
    leadership, stopping = Leadership(), Deferred[None]()
    services = LeaderServices(leadership)
    Child(stopping).setServiceParent(services)
    services.startService()
    leadership.gain()
    services.stopService()
    leadership.lose()
    assert not leadership.over
    stopping.callback(None)
    assert leadership.over


def test_child_that_is_still_stopping_doesnt_start_again_when_nobody_waits() -> None:
    leadership, stopping = Leadership(), Deferred[None]()
    services, child = LeaderServices(leadership), Child(stopping)
    child.setServiceParent(services)
    services.startService()
    leadership.gain()
    leadership.lose()
    leadership.gain()
    services.stopService()
    stopping.callback(None)
    assert child.diary == ["start", "stop"]
