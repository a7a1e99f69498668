"""A large table, exported from a follower while phones register with the leader."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.export import loaded, measure, render

pytestmark = [pytest.mark.system, pytest.mark.long]

BINDINGS = 1_000_000
GROWTH = 50_000_000
"""Bytes by which the node that exports may grow."""

P99 = 20_000.0
"""Microseconds by which the leader may take longer for 99 of 100 REGISTERs meanwhile."""


@pytest.mark.timeout(900)
def test_follower_exports_a_million_bindings_while_phones_register(tmp_path: Path) -> None:
    with loaded(tmp_path, BINDINGS, "127.0.38") as cluster:
        result = measure(cluster, BINDINGS)
    print(render(result))
    for form, export in result.exports.items():
        assert export.lines == result.bindings + (form == "csv")
        assert export.growth < GROWTH, form
        assert result.during[form].p99_us < result.before.p99_us + P99, form
        assert not result.during[form].failed, form
