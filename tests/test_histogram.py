from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sipha.histogram import LATENCIES, Histogram


def test_value_counts_up_to_its_bound() -> None:
    histogram = Histogram((1.0, 2.5))
    for value in (0.0, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert list(histogram.cumulative()) == [("1.0", 2), ("2.5", 3), ("+Inf", 4)]
    assert histogram.sum == 5.5


@given(st.lists(st.floats(0, 10)))
def test_histogram_says_how_many_values_were_not_above_each_bound(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    expected = [(str(bound), sum(value <= bound for value in values)) for bound in LATENCIES]
    assert list(histogram.cumulative()) == [*expected, ("+Inf", len(values))]
