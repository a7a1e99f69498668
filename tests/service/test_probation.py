from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from sipha.service.probation import LIMIT, Probation


class Bench:
    """A probation, and what came of it."""

    def __init__(self, *, leads: bool, trouble: str = "", patient: bool = False) -> None:
        self.clock = Clock()
        self.leads = leads
        self.trouble = trouble
        self.verdicts: list[object] = []
        self.probation = Probation(self.clock, lambda: self.leads, lambda: self.trouble, patient=patient)
        self.probation.verdict.addBoth(self.verdicts.append)

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.1] * round(seconds * 10))


def test_node_that_doesnt_lead_has_shown_all_that_it_can() -> None:
    assert Bench(leads=False, trouble="deaf").verdicts == [""]


def test_leader_that_serves_has_passed() -> None:
    assert Bench(leads=True).verdicts == [""]


def test_leader_passes_as_soon_as_it_serves() -> None:
    bench = Bench(leads=True, trouble="deaf")
    bench.wait(LIMIT / 2)
    assert not bench.verdicts
    bench.trouble = ""
    bench.wait(0.2)
    assert bench.verdicts == [""]
    assert not bench.clock.getDelayedCalls()


def test_leader_that_doesnt_serve_in_time_has_failed() -> None:
    bench = Bench(leads=True, trouble="deaf")
    bench.wait(LIMIT - 0.5)
    assert not bench.verdicts
    bench.wait(1)
    assert bench.verdicts == ["deaf"]
    assert not bench.clock.getDelayedCalls()


def test_leadership_that_is_lost_meanwhile_is_nobodys_fault() -> None:
    bench = Bench(leads=True, trouble="deaf")
    bench.leads = False
    bench.wait(0.2)
    assert bench.verdicts == [""]


@pytest.mark.parametrize("trouble", ["", "deaf"])
def test_patient_probation_waits_for_leadership(trouble: str) -> None:
    bench = Bench(leads=False, trouble=trouble, patient=True)
    bench.wait(LIMIT / 2)
    assert not bench.verdicts
    bench.leads = True
    bench.wait(LIMIT)
    assert bench.verdicts == [trouble]


def test_patient_probation_doesnt_wait_for_ever() -> None:
    bench = Bench(leads=False, trouble="deaf", patient=True)
    bench.wait(LIMIT + 0.5)
    assert bench.verdicts == [""]


def test_probation_can_be_left_undecided() -> None:
    bench = Bench(leads=True, trouble="deaf")
    bench.probation.cancel()
    assert not bench.clock.getDelayedCalls()
    (verdict,) = bench.verdicts
    assert isinstance(getattr(verdict, "value", None), CancelledError)
