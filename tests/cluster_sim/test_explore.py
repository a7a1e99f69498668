"""Random faults from seeds, in which at most one leads, and nothing that was acknowledged is lost."""

from __future__ import annotations

import gc
from weakref import ref

import pytest

from tests.cluster_sim.explore import explore, run
from tests.cluster_sim.world import World, seeded, small

SEEDS = 400
MANY = 3000


def check(first: int, count: int) -> None:
    results = list(run(iter(range(first, first + count))))
    assert [(result.seed, result.failure) for result in results if result.failure] == []
    assert len(results) == count
    assert sum(result.commits for result in results) > 20 * count, "hardly anything was committed"
    assert sum(result.operations for result in results) > 20 * count, "hardly anything was asked for"


@pytest.mark.timeout(600)
def test_no_fault_loses_what_was_acknowledged() -> None:
    check(1, SEEDS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_fault_of_many_loses_what_was_acknowledged() -> None:
    check(1 + SEEDS, MANY)


def test_seed_is_repeated_exactly() -> None:
    assert explore(11) == explore(11)


def test_what_a_dead_daemon_had_in_memory_is_not_freed_while_the_world_lasts() -> None:
    """It would tidy up behind itself, whenever the collector comes by, on the disk that its next life uses."""
    with seeded(1), small():
        world = World(1)
        node = world.nodes["a"]
        memory = ref(node.replica.leadership)
        node.crash()
        gc.collect()
        assert memory() is not None
        world.close()
