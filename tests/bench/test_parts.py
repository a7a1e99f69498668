from __future__ import annotations

from pathlib import Path

import pytest

from bench import parts, table
from bench.cluster import REPLICATED
from bench.result import Plan


@pytest.mark.system
def test_parts_are_those_of_the_goals(tmp_path: Path) -> None:
    figures = parts.measure(REPLICATED, tmp_path, Plan(seconds=0.5, phones=1000, bindings=1000))
    assert set(figures) == {table.MEMORY, table.START, table.STALL, table.PINGS}
    assert all(min(rounds) > 0 for rounds in figures.values())
