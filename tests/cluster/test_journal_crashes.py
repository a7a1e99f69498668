"""What the journal promised outlives every end, wherever it comes; Ledger compares."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sipha.cluster import journal as module
from sipha.cluster.disk import Damaged
from sipha.cluster.journal import Journal
from tests.cluster.ledger import Ledger
from tests.cluster_sim.disk import VirtualDisk

STEPS = 200


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes in a file, in memory, in a slice, and in a group: what is rare otherwise happens all the time."""
    for name, size in (("SEGMENT", 700), ("WINDOW", 500), ("_SLICE", 300), ("_GROUP", 600)):
        monkeypatch.setattr(module, name, size)


def live(ledger: Ledger, steps: int) -> None:
    for _ in range(steps):
        if ledger.random.random() < 0.04:
            ledger.disk.crash_in(ledger.random.randrange(1, 12))
        ledger.step()


@pytest.mark.parametrize("seed", range(20))
def test_journal_keeps_what_it_promised(seed: int) -> None:
    for number in range(15):
        live(Ledger(Random(f"{seed} {number}")), STEPS)


@pytest.mark.parametrize("seed", range(20))
def test_journal_keeps_what_it_promised_on_a_disk_that_fills_up_and_fails(seed: int) -> None:
    for number in range(15):
        live(Ledger(Random(f"{seed} {number}"), spoils=2), STEPS)


@pytest.mark.parametrize("seed", range(10))
def test_journal_that_isnt_synced_keeps_what_it_promised_through_kills(seed: int) -> None:
    for number in range(15):
        live(Ledger(Random(f"{seed} {number}"), sync=False, spoils=1), STEPS)


@pytest.mark.parametrize("seed", range(10))
def test_journal_that_isnt_synced_is_no_mixture_after_a_power_cut(seed: int) -> None:
    damaged = 0
    for number in range(30):
        ledger = Ledger(Random(f"{seed} {number}"), sync=False)
        for _ in range(100):
            ledger.step()
        try:
            ledger.lose_unsynced()
        except Damaged:
            damaged += 1
    assert damaged < 30


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sync", "spoils"), [(True, 0), (True, 2), (False, 1)])
def test_journal_keeps_what_it_promised_for_long(spoils: int, *, sync: bool) -> None:
    for number in range(1500):
        live(Ledger(Random(f"long {number}"), sync=sync, spoils=spoils), STEPS)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(random=st.randoms(use_true_random=False), spoils=st.integers(0, 2))
def test_journal_keeps_what_it_promised_in_the_smallest_case(random: Random, spoils: int) -> None:
    live(Ledger(random, spoils=spoils), 40)


def run(ledger: Ledger) -> None:
    """All that a journal does on the disk, in one life: ends early if the node dies."""
    script = [
        ledger.vote, ledger.add, ledger.add, ledger.flush, ledger.wait, ledger.add, ledger.add, ledger.sync_now,
        ledger.learn_commit, ledger.save_commit, ledger.compact, ledger.wait, ledger.add, ledger.add, ledger.add,
        ledger.sync_now, ledger.cut, ledger.add, ledger.add, ledger.sync_now, ledger.vote, ledger.cut, ledger.wait,
        ledger.reset, ledger.add, ledger.add, ledger.sync_now, ledger.reopen,
    ]  # fmt: skip
    for action in script:
        ledger.guarded(action)
        if ledger.lives > 1 and action != ledger.reopen:
            break
    ledger.check()


@pytest.mark.parametrize("scenario", range(4))
def test_journal_keeps_what_it_promised_whichever_primitive_it_dies_in(scenario: int) -> None:
    first = Ledger(Random(scenario))
    opening = first.disk.steps
    run(first)
    steps = first.disk.steps
    assert steps > opening + 40
    for step in range(1, steps + 1):
        for loss in range(12):
            ledger = Ledger(Random(scenario), dies_opening=step if step <= opening else 0)
            ledger.disk._random = Random(loss)
            if step > opening:
                ledger.disk.crash_in(step - opening)
            run(ledger)
            assert ledger.lives == 2, step
            ledger.die()  # what it has now, it has made durable


@pytest.mark.parametrize("seed", range(4))
def test_opening_a_journal_may_be_interrupted_anywhere(seed: int) -> None:
    """It cuts tails, removes what a snapshot covers, and begins anew at a snapshot, each in several steps."""
    ledger = Ledger(Random(seed))
    ledger.vote()
    for number in range(2000):
        for action in (ledger.add, ledger.add, ledger.flush, ledger.wait):
            ledger.guarded(action)
        if number % 4 == 0:
            ledger.receive_snapshot()
        ledger.dies_opening = ledger.random.randrange(1, 12)
        ledger.die()
        ledger.check()
    assert ledger.lives > 2000


@pytest.mark.parametrize("seed", range(4))
def test_journal_notices_any_flipped_bit(seed: int) -> None:
    """Each is damage, or what it was in was never durable, or nothing of it is read."""
    ledger = Ledger(Random(seed))
    while ledger.last - ledger.first < 8 or len(ledger.journal._segments) < 2:
        live(ledger, 10)
        ledger.die()
    ledger.clock.advance(10)
    ledger.commit = ledger.last
    ledger.save_commit()
    base, entries, commit = ledger.base, ledger.entries, ledger.saved_commit
    image = ledger.disk.image()
    harmless = 0
    for name, content in image.items():
        for bit in range(seed, 8 * len(content), 4):
            disk = VirtualDisk(Random(0))
            disk.start(Clock())
            for each, data in image.items():
                disk.append(each, data)
            disk.flip(name, bit)
            try:
                journal = Journal.open(disk, base, sync=True, commit=commit)
            except Damaged:
                continue
            harmless += 1
            assert [journal[position] for position in range(len(journal))] == entries
            assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == ledger.ballots[0]
    assert not harmless
