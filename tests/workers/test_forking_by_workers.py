"""What the proxy's tests say of it holds with workers, too."""

from __future__ import annotations

import pytest

from tests.proxy import test_forking
from tests.proxy.test_forking import *  # noqa: F403  tests and their fixtures
from tests.workers.house import WorkerHouse


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers in each house."""
    monkeypatch.setattr(test_forking, "House", WorkerHouse)
