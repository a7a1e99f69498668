from __future__ import annotations

import os
from pathlib import Path

from bench.noise import measure_noise


def test_noise_leaves_the_process_and_the_directory_as_they_were(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    noise = measure_noise(tmp_path, cores)
    assert os.sched_getaffinity(0) == cores
    assert not list(tmp_path.iterdir())
    assert 0.0 < noise.share <= 1.0
    assert 0.0 < noise.sync.p50 <= noise.sync.p99 <= noise.sync.longest
    assert 0.0 < noise.late.p50 <= noise.late.p99
