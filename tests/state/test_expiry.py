"""The buckets of AORs by the second at which they are looked at."""

from __future__ import annotations

from sipha.state.expiry import ExpiryBuckets


def test_buckets_before_the_second_are_due_earliest_first() -> None:
    buckets = ExpiryBuckets()
    for aor, second in (("c", 7), ("a", 5), ("b", 5), ("d", 8)):
        buckets.add(aor, second)
    assert list(buckets.due(8, 10)) == [("a", 5), ("b", 5), ("c", 7)]
    assert list(buckets.due(8, 2)) == [("a", 5), ("b", 5)]
    assert list(buckets.due(5, 10)) == []


def test_what_is_due_may_be_moved_as_it_is_taken() -> None:
    buckets = ExpiryBuckets()
    for aor, second in (("a", 5), ("b", 5), ("c", 7), ("d", 9)):
        buckets.add(aor, second)
    taken = []
    for aor, second in buckets.due(8, 10):
        taken.append(aor)
        buckets.remove(aor, second)
        buckets.add(aor, 9)
    assert taken == ["a", "b", "c"]
    assert sorted(buckets.due(10, 10)) == [("a", 9), ("b", 9), ("c", 9), ("d", 9)]


def test_empty_bucket_is_dropped() -> None:
    buckets = ExpiryBuckets()
    for aor in ("a", "b"):
        buckets.add(aor, 5)
        buckets.add(aor, 5)
    assert len(buckets) == 2
    buckets.remove("a", 5)
    assert list(buckets.due(6, 10)) == [("b", 5)]
    buckets.remove("b", 5)
    assert len(buckets._buckets) == 0
