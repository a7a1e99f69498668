from __future__ import annotations

import resource

import pytest

from sipha import config
from sipha.service.settings import make_stream_limits


@pytest.mark.parametrize(
    ("files", "connections"), [((1024, 4096), 3968), ((1024, 1_048_576), 10_000), ((64, 64), 1), ((9, -1), 10_000)]
)
def test_connections_leave_open_files_to_the_log_and_the_other_nodes(
    monkeypatch: pytest.MonkeyPatch, files: tuple[int, int], connections: int
) -> None:
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: files)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    assert make_stream_limits(config.Sip()).connections == connections
    assert given == [(files[1], files[1])]
