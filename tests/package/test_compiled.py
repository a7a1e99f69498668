"""What `make compiled` makes, in the tests that it runs: the modules that setup.cfg names, and they do the same."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
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


def named(key: str) -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(HERE / "setup.cfg", encoding="utf-8")
    return setup["compiled"][key].split()


@pytest.mark.parametrize("name", named("modules"))
def test_module_is_what_the_release_says(name: str) -> None:
    file = import_module(name).__file__ or ""
    assert file.endswith(tuple(EXTENSION_SUFFIXES) if compiled else ".py")


@pytest.mark.parametrize("name", named("kernels"))
def test_kernel_is_there_if_the_release_is_compiled(name: str) -> None:
    found = find_spec(name)
    assert (found is not None) is compiled
    assert found is None or (found.origin or "").endswith(tuple(EXTENSION_SUFFIXES))


def test_each_source_in_c_is_a_kernel_with_its_types() -> None:
    for ending in (".c", ".pyi"):
        found = {str(path.relative_to(HERE)) for path in (HERE / "sipha").rglob(f"*{ending}")}
        assert found == {name.replace(".", "/") + ending for name in named("kernels")}


@pytest.mark.skipif(not compiled, reason="make test-compiled compares")
def test_simulated_clusters_go_the_same_way_as_interpreted() -> None:
    """All that is sent, stored and answered in them is part of the trace."""
    command = [sys.executable, "-c", EXPLORE, str(SEEDS)]
    environment = {"PYTHONPATH": str(HERE)}
    answer = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=True)
    release, interpreted = json.loads(answer.stdout)
    assert release == __version__
    assert [[result.trace, result.failure] for result in map(explore, range(1, SEEDS + 1))] == interpreted
