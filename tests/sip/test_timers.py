from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.sip.timers import Timer, TimerName, TimerQueue, Timers


def fired(queue: TimerQueue, now: float) -> list[object]:
    subjects = []
    while timer := queue.pop(now):
        assert timer.running
        subjects.append(timer.take())
        assert not timer.running
    return subjects


class TestTimers:
    def test_timers_have_the_values_of_table_4(self) -> None:
        constant = Timers().constant()
        assert {name: constant[name] for name in constant if name is not TimerName.TRYING} == {
            **dict.fromkeys((TimerName.B, TimerName.F, TimerName.H, TimerName.J, TimerName.L, TimerName.M), 32.0),
            TimerName.D: 32.0,
            TimerName.I: 5.0,
            TimerName.K: 5.0,
        }
        assert Timers().timer_c == 185.0

    def test_timer_d_is_at_least_32_seconds_but_follows_a_longer_t1(self) -> None:
        assert Timers(t1=0.1).d == 32.0
        assert Timers(t1=1.0).d == 64.0

    def test_trying_waits_until_timer_e_is_reset_to_t2(self) -> None:
        assert Timers().trying == 0.5 + 1 + 2
        assert Timers(t1=1.0).trying == 1 + 2
        assert Timers(t1=4.0).trying == 0

    @pytest.mark.parametrize(("t1", "t2"), [(0.0, 4.0), (-1.0, 4.0), (5.0, 4.0)])
    def test_timers_that_would_never_end_are_refused(self, t1: float, t2: float) -> None:
        with pytest.raises(ValueError, match="T1"):
            Timers(t1=t1, t2=t2)


class TestTimerQueue:
    def test_queue_tells_the_earliest_of_fifos_and_heap(self) -> None:
        queue = TimerQueue(Timers().constant())
        assert queue.next() is None
        queue.start_constant(TimerName.B, "b", 0.0)
        assert queue.next() == 32.0
        queue.start_constant(TimerName.K, "k", 1.0)
        assert queue.next() == 6.0
        queue.start(2.0, TimerName.A, "a")
        assert queue.next() == 2.0

    def test_queue_fires_what_is_due_once(self) -> None:
        queue = TimerQueue(Timers().constant())
        queue.start(2.0, None, "late")
        queue.start(1.0, None, "early")
        queue.start_constant(TimerName.K, "k", 0.0)
        assert fired(queue, 0.9) == []
        assert fired(queue, 2.0) == ["early", "late"]
        assert fired(queue, 5.0) == ["k"]
        assert fired(queue, 99.0) == []
        assert queue.next() is None

    def test_queue_keeps_timers_of_one_moment_in_the_order_they_were_set(self) -> None:
        queue = TimerQueue({})
        for subject in "abc":
            queue.start(1.0, None, subject)
        assert fired(queue, 1.0) == ["a", "b", "c"]

    def test_stopped_timer_does_not_fire_and_lets_go_of_its_subject(self) -> None:
        queue = TimerQueue(Timers().constant())
        timers = [queue.start(1.0, None, "heap"), queue.start_constant(TimerName.K, "fifo", 0.0)]
        for timer in timers:
            assert timer.running
            queue.stop(timer)
            queue.stop(timer)
            assert not timer.running
            assert timer.subject is None
        assert queue.next() is None
        assert fired(queue, 99.0) == []

    def test_stopping_a_timer_that_has_fired_does_nothing(self) -> None:
        queue = TimerQueue({})
        timer = queue.start(1.0, None, "x")
        assert fired(queue, 1.0) == ["x"]
        queue.stop(timer)
        assert not timer.running

    def test_queue_stays_in_proportion_to_the_running_timers(self) -> None:
        # A phone that sends provisional responses without end has its Timer C set anew by each.
        queue = TimerQueue({})
        keep = queue.start(1000.0, None, "keep")
        for _ in range(20_000):
            queue.stop(queue.start(180.0, None, "c"))
        assert len(queue._heap) < 2000
        assert keep.running
        assert fired(queue, 1000.0) == ["keep"]

    @given(st.lists(st.tuples(st.sampled_from(["set", "constant", "stop", "fire"]), st.integers(0, 20))))
    def test_queue_fires_what_was_set_and_not_stopped_when_due(self, steps: list[tuple[str, int]]) -> None:
        queue = TimerQueue({TimerName.K: 5.0, TimerName.D: 9.0})
        now = 0.0
        running: dict[int, Timer] = {}
        for serial, (what, number) in enumerate(steps):
            if what == "set":
                running[serial] = queue.start(now + number, None, serial)
            elif what == "constant":
                name = TimerName.K if number % 2 else TimerName.D
                running[serial] = queue.start_constant(name, serial, now)
            elif what == "stop" and running:
                queue.stop(running.pop(list(running)[number % len(running)]))
            elif what == "fire":
                now += number
                due = {key for key, timer in running.items() if timer.when <= now}
                assert set(fired(queue, now)) == due
                for key in due:
                    del running[key]
            assert queue.next() == min((timer.when for timer in running.values()), default=None)
