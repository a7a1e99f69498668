"""What `make compiled` makes, in the tests that it runs: the modules that setup.cfg names, and they do the same."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from sipha import RELEASE, __version__
from tests.cluster_sim.explore import explore

HERE = Path(__file__).parents[2]
SEEDS = 24

EXPLORE = """
import json, sys
from sipha import RELEASE
from tests.cluster_sim.explore import explore
results = [explore(seed) for seed in range(1, int(sys.argv[1]) + 1)]
print(json.dumps([RELEASE, [[result.trace, result.failure] for result in results]]))
"""

compiled = RELEASE.endswith("+compiled")


def named() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(HERE / "setup.cfg", encoding="utf-8")
    return setup["compiled"]["modules"].split()


@pytest.mark.parametrize("name", named())
def test_module_is_what_the_release_says(name: str) -> None:
    file = import_module(name).__file__ or ""
    assert file.endswith(tuple(EXTENSION_SUFFIXES) if compiled else ".py")


@pytest.mark.skipif(not compiled, reason="make test-compiled compares")
def test_simulated_clusters_go_the_same_way_as_interpreted() -> None:
    """All that is sent, stored and answered in them is part of the trace."""
    command = [sys.executable, "-c", EXPLORE, str(SEEDS)]
    environment = {"PYTHONPATH": str(HERE)}
    answer = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=True)
    release, interpreted = json.loads(answer.stdout)
    assert release == __version__
    assert [[result.trace, result.failure] for result in map(explore, range(1, SEEDS + 1))] == interpreted
