"""What the proxy's tests say of it holds with workers, too."""

from __future__ import annotations

import pytest

from tests.proxy import test_admission
from tests.proxy.test_admission import *  # noqa: F403  tests and their fixtures
from tests.workers.house import WorkerHouse


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers in each house."""
    monkeypatch.setattr(test_admission, "House", WorkerHouse)


class TestCredentials(test_admission.TestCredentials):  # type: ignore[no-redef]
    def test_no_key_in_the_log_is_503_of_the_endpoint(self, house: WorkerHouse) -> None:  # type: ignore[override]
        house.locked = True
        alice = house.phone("alice", "198.51.100.1")
        alice.invite("sip:bob@sipha.test")
        assert alice.expect(503).headers.get("Retry-After")
