from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from twisted.logger import globalLogPublisher

from tests.cluster_sim.cluster import Cluster, Simulate
from tests.cluster_sim.explore import Complaints
from tests.cluster_sim.node import Options
from tests.cluster_sim.world import seeded


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Make clusters, all of whose chance comes from their seed; nothing in them may fail unnoticed."""
    complaints = Complaints()
    globalLogPublisher.addObserver(complaints)
    with ExitStack() as stack:
        stack.callback(globalLogPublisher.removeObserver, complaints)

        def start(seed: int, names: str = "abc", options: Options | None = None) -> Cluster:
            stack.enter_context(seeded(seed))
            cluster = Cluster(seed, names, options)
            stack.callback(cluster.close)
            return cluster

        yield start
    assert not complaints.heard


@pytest.fixture
def cluster(simulate: Simulate) -> Cluster:
    """Three nodes, one of which leads and has acknowledged a binding."""
    cluster = simulate(7)
    cluster.propose(cluster.elect())
    cluster.advance(0.5)
    assert cluster.acknowledged
    return cluster
