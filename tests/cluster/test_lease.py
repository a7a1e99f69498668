from __future__ import annotations

import math
from pathlib import Path

import pytest

from sipha.cluster.lease import Lease, Promise


def test_lease_runs_from_when_the_majority_was_sent_to() -> None:
    lease = Lease(0.2, "bcde")
    lease.begin()
    lease.acknowledge("b", 10.0)
    assert not lease.valid(0.0)
    lease.acknowledge("c", 10.1)
    assert lease.until == pytest.approx(10.2)
    lease.acknowledge("d", 10.3)
    assert lease.until == pytest.approx(10.3)
    lease.acknowledge("d", 10.4)
    assert lease.until == pytest.approx(10.3)


def test_lease_of_an_even_cluster_needs_more_than_half() -> None:
    lease = Lease(0.2, "bcd")
    lease.begin()
    lease.acknowledge("b", 10.0)
    assert not lease.valid(0.0)
    lease.acknowledge("d", 10.0)
    assert lease.valid(10.1)


def test_lease_is_not_shortened_by_a_late_acknowledgement() -> None:
    lease = Lease(0.2, "bc")
    lease.begin()
    lease.acknowledge("b", 10.1)
    lease.acknowledge("b", 10.0)
    assert lease.until == pytest.approx(10.3)


def test_lease_of_a_new_term_begins_with_nothing() -> None:
    lease = Lease(0.2, "bc")
    lease.begin()
    lease.acknowledge("b", 10.0)
    lease.usable = True
    lease.end()
    assert (lease.until, lease.usable) == (0.0, False)
    lease.acknowledge("b", 10.1)
    assert lease.until == 0.0
    lease.begin()
    assert not lease.valid(10.0)


def test_lone_leader_has_a_lease_without_end() -> None:
    lease = Lease(0.2, ())
    lease.begin()
    assert lease.until == math.inf


def test_promise_outlasts_the_lease_by_a_tenth(tmp_path: Path) -> None:
    promise = Promise(tmp_path / "promise", 5.0)
    assert not promise.binds(5.0)
    promise.give(0.2, 10.0)
    assert promise.binds(10.219)
    assert not promise.binds(10.221)


def test_promise_is_not_shortened_by_a_shorter_one(tmp_path: Path) -> None:
    promise = Promise(tmp_path / "promise", 5.0)
    promise.give(1.0, 10.0)
    promise.give(0.2, 10.1)
    assert promise.binds(11.0)


def test_promise_survives_a_restart(tmp_path: Path) -> None:
    Promise(tmp_path / "promise", 5.0).give(0.64, 10.0)
    again = Promise(tmp_path / "promise", 3.0)
    assert again.binds(3.7)
    assert not again.binds(3.71)


@pytest.mark.parametrize("content", [b"", b"x", b"nan", b"-1", b"1e9", b"\xff\xfe"])
def test_unreadable_promise_counts_as_the_longest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "promise").write_bytes(content)
    assert Promise(tmp_path / "promise", 0.0).binds(10.9)
