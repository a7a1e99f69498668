from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster_sim.simulation import Simulation

MEMORY = Path("/dev/shm")


@pytest.fixture
def simulate() -> Iterator[Callable[..., Simulation]]:
    simulations: list[Simulation] = []
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:

        def start(seed: int, names: str = "abc", *, minima: Sequence[float] = (0.25,)) -> Simulation:
            simulation = Simulation(seed, Path(directory) / str(len(simulations)), names, minima=minima)
            simulations.append(simulation)
            return simulation

        yield start
        for simulation in simulations:
            simulation.close_all()
