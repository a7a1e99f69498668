"""What the proxy's tests say of it holds with workers, too."""

from __future__ import annotations

import pytest

from tests.proxy import test_takeover
from tests.proxy.test_takeover import *  # noqa: F403  tests and their fixtures
from tests.workers.house import WorkerHouse


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers in each house."""
    monkeypatch.setattr(test_takeover, "House", WorkerHouse)


class TestBranch(test_takeover.TestBranch):  # type: ignore[no-redef]
    def test_invite_that_comes_again_is_the_same_to_the_phones(self) -> None:
        house = WorkerHouse(peers=[f"{test_takeover.ALICE}/32"])
        alice = house.phone("alice", test_takeover.ALICE)
        desk = house.phone("bob", "198.51.100.10").register()
        invite = alice.invite("sip:bob@sipha.test")
        alice.expect(100)
        first = desk.expect("INVITE")
        house.fail_over(shadows=False)
        house.state.now += 2
        alice.send(invite)
        alice.expect(100)
        again = desk.expect("INVITE")
        assert (again.via.branch, again.via.sent_by) == (first.via.branch, first.via.sent_by)
        assert again.via.param("w") != first.via.param("w")
