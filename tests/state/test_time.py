"""Cluster time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sipha.state.time import ClusterTime


def test_leader_s_time_runs_with_its_clock() -> None:
    time = ClusterTime(500.0, 1000)
    assert time.now(500.0) == 1000
    assert time.now(502.5) == 3500


def test_time_does_not_go_back_with_the_clock() -> None:
    time = ClusterTime(500.0)
    assert time.now(510.0) == 10_000
    assert time.now(400.0) == 10_000
    assert time.now(511.0) == 11_000


def test_new_leader_goes_on_from_what_it_heard_plus_what_elapsed() -> None:
    time = ClusterTime(7.0)
    time.follow(1_000_000, 10.0)
    time.advance(900_000, 11.0)
    assert time.now(12.0) == 1_002_000


def test_advance_only_raises() -> None:
    time = ClusterTime(0.0)
    time.advance(5000, 1.0)
    time.advance(3000, 1.5)
    assert time.now(2.0) == 6000


def test_follower_whose_clock_is_fast_is_led_back() -> None:
    # Its clock gains 0.5 %, for a day: without correction it would be seven minutes ahead.
    time = ClusterTime(0.0)
    for second in range(0, 86_400, 10):
        time.follow(second * 1000, second * 1.005)
    assert time.now(86_390 * 1.005) - 86_390_000 <= 51


def test_delayed_word_of_the_leader_hardly_holds_a_follower_back() -> None:
    time = ClusterTime(0.0)
    time.follow(100_000, 100.0)
    time.follow(101_000, 110.0)  # nine seconds on its way
    assert time.now(110.0) >= 109_900


def test_follower_falls_back_to_a_new_leader_that_knows_less() -> None:
    time = ClusterTime(0.0)
    time.follow(100_000, 100.0)
    assert time.now(105.0) == 105_000
    time.begin(60_000, 105.0)
    time.follow(61_000, 106.0)
    assert time.now(107.0) == 62_000


@dataclass
class Node:
    """A node whose clock has an offset and a rate of its own."""

    offset: float
    rate: float
    time: ClusterTime

    def boottime(self, real: float) -> float:
        return self.offset + real * self.rate


nodes = st.builds(
    lambda offset, rate: Node(offset, rate, ClusterTime(offset)),
    st.floats(0, 1e7),
    st.floats(0.995, 1.005),
)
steps = st.lists(
    st.tuples(st.sampled_from(["entry", "entry", "heartbeat", "elect"]), st.integers(0, 2), st.floats(0, 100)),
    max_size=60,
)


@given(st.tuples(nodes, nodes, nodes), steps)
def test_time_never_goes_back_on_any_node(
    cluster: tuple[Node, Node, Node], history: list[tuple[str, int, float]]
) -> None:
    real, leader, last_entry = 0.0, cluster[0], 0
    given: list[int] = [0, 0, 0]
    for step, number, elapsed in history:
        real += elapsed
        if step == "elect":
            leader = cluster[number]
        stated = leader.time.now(leader.boottime(real))
        for node in cluster:
            hear: Callable[[int, float], None] = node.time.follow if step == "heartbeat" else node.time.advance
            if node is not leader and step != "elect":
                hear(stated, node.boottime(real))
        if step == "entry":
            assert stated >= last_entry, "what a leader writes is never before what is in the log"
            last_entry = stated
        for place, node in enumerate(cluster):
            now = node.time.now(node.boottime(real))
            assert now >= given[place]
            given[place] = now


@given(st.floats(0.995, 1.005), st.integers(1, 200))
def test_takeover_is_off_by_no_more_than_the_clocks_and_the_last_word(rate: float, seconds: int) -> None:
    time = ClusterTime(3.0)
    for second in range(seconds):
        time.follow(second * 1000, 3.0 + second * rate)
    assert abs(time.now(3.0 + (seconds + 1) * rate) - (seconds + 1) * 1000) <= 20
