from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.admin.limits import BURST, MAX_ADDRESSES, Rates


@given(
    st.floats(1, 1000),
    st.lists(st.floats(0, 3), min_size=1, max_size=300),
)
def test_no_address_is_given_more_than_its_rate_and_one_burst(rate: float, pauses: list[float]) -> None:
    rates = Rates(rate)
    now = given = 0.0
    for pause in pauses:
        now += pause
        given += not rates.take("192.0.2.1", now)
        assert given <= BURST * rate + now * rate + 1e-6


@given(st.floats(1, 1000), st.integers(1, 5000))
def test_who_waits_as_told_is_served(rate: float, asked: int) -> None:
    rates = Rates(rate)
    wait = 0.0
    for _ in range(asked):
        wait = rates.take("192.0.2.1", 0.0)
    if wait:
        assert rates.take("192.0.2.1", wait * 0.9) > 0
        assert rates.take("192.0.2.1", wait * 1.0001 + 1e-9) == 0


def test_asking_in_vain_costs_nothing() -> None:
    rates = Rates(10.0)
    for _ in range(1000):
        rates.take("192.0.2.1", 0.0)
    assert rates.take("192.0.2.1", 0.2) == 0


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("2001:db8:0:1:ffff::9", True),
        ("2001:db8:0:2::1", False),
        ("2001:db8:0:1::1", True),
        ("192.0.2.1", False),
    ],
)
def test_addresses_of_one_network_count_as_one(other: str, same: bool) -> None:
    rates = Rates(1.0)
    while not rates.take("2001:db8:0:1::1", 0.0):
        pass
    assert bool(rates.take(other, 0.0)) is same


def test_mapped_address_is_the_one_that_it_maps() -> None:
    rates = Rates(1.0)
    while not rates.take("192.0.2.1", 0.0):
        pass
    assert rates.take("::ffff:192.0.2.1", 0.0) > 0
    assert rates.take("::ffff:192.0.2.2", 0.0) == 0


def test_no_more_addresses_are_remembered_than_may_be() -> None:
    rates = Rates(1.0)
    for number in range(MAX_ADDRESSES + 100):
        rates.take(f"10.0.{number // 256}.{number % 256}", 0.0)
        rates.take("192.0.2.1", 0.0)
    assert len(rates._buckets) == MAX_ADDRESSES
    assert rates.take("192.0.2.1", 0.0) > 0  # who asks all the time isn't forgotten
