"""The simulation misses each guard that is taken out of the core."""

from __future__ import annotations

import pytest

from tests.cluster_sim.mutations import MUTATIONS, SEEDS, Mutation, missed

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.guard)
def test_guard_can_be_removed(mutation: Mutation) -> None:
    """Its text is still where it was; else the mutation must follow the code."""
    with mutation.applied():
        pass


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.guard)
def test_some_seed_fails_without_the_guard(mutation: Mutation) -> None:
    assert missed(mutation) is not None, f"none of the first {SEEDS} seeds fails"
