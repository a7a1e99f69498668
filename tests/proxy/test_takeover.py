from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.proxy.agents import Callee, Caller, Network, Step
from tests.proxy.ladder import House

ALICE = "198.51.100.1"
RING, BUSY, ANSWER, SILENT = Step(0.2, 180), Step(1, 486), Step(2, 200), Step(0.1, 100)
LIVES = 10_000
"""A fuse that doesn't burn down."""


def network(*forks: tuple[int | None, Sequence[Step]], fuse: int, cancels_after: float | None = None) -> Network:
    """Alice calls bob, who has a phone for each q and script; the leader dies when it has sent `fuse` messages."""
    house = House(peers=[f"{ALICE}/32"])
    caller = Caller(house.phone("alice", ALICE), cancels_after)
    callees = [
        Callee(house.phone("bob", f"198.51.100.{10 + number}").register(q=q), script)
        for number, (q, script) in enumerate(forks)
    ]
    house.fuse = fuse
    made = Network(house, caller, callees)
    caller.call("sip:bob@sipha.test", house.now)
    return made


CALLS = {
    "one target answers": ([(None, [RING, ANSWER])], None),
    "one target is busy": ([(None, [RING, BUSY])], None),
    "one of three answers": ([(None, [RING]), (None, [RING, ANSWER]), (None, [RING])], None),
    "one of three is busy": ([(None, [RING]), (None, [RING, BUSY]), (None, [RING, ANSWER])], None),
    "all of three are busy": ([(None, [RING, BUSY]), (None, [Step(0.5, 480)]), (None, [RING, Step(2, 486)])], None),
    "one declines": ([(None, [RING]), (None, [RING, Step(1, 603)])], None),
    "the second group answers": ([(900, [RING, BUSY]), (500, [RING, ANSWER])], None),
    "the first group is silent": ([(900, []), (500, [RING, ANSWER])], None),
    "the caller cancels one": ([(None, [RING])], 1.5),
    "the caller cancels three": ([(None, [RING]), (None, [SILENT]), (None, [RING])], 1.5),
    "the caller cancels the first group": ([(900, [RING]), (500, [RING, ANSWER])], 1.5),
}


def ladder(name: str) -> int:
    """How many messages the leader sends in a call that nothing disturbs."""
    forks, cancels_after = CALLS[name]
    calm = network(*forks, fuse=LIVES, cancels_after=cancels_after)
    calm.run(60)
    assert calm.house.fuse is not None
    return LIVES - calm.house.fuse


@pytest.mark.parametrize("name", CALLS)
def test_call_ends_as_ever_wherever_the_leader_dies(name: str) -> None:
    forks, cancels_after = CALLS[name]
    calm = network(*forks, fuse=LIVES, cancels_after=cancels_after)
    calm.run(300)
    for fuse in range(ladder(name)):
        made = network(*forks, fuse=fuse, cancels_after=cancels_after)
        made.run(300)
        logs = [(agent.phone.address, agent.log) for agent in (made.caller, *made.callees)]
        assert made.failed_over
        assert made.caller.finals == calm.caller.finals, (fuse, logs)
        assert not made.caller.timed_out
        assert not made.house.errors
        for callee, undisturbed in zip(made.callees, calm.callees, strict=True):
            assert not callee.rings, (fuse, logs)
            assert len(callee.invites) == len(undisturbed.invites), (fuse, logs)
            assert (callee.final, callee.acknowledged) == (undisturbed.final, undisturbed.acknowledged), (fuse, logs)
        assert made.house.layer.transactions == 0
