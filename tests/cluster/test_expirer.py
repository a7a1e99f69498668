"""The leader's look at which bindings ran out, with a million phones and with a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from sipha.cluster.expirer import LIMIT, Expirer
from sipha.errors import Unavailable
from sipha.state.entries import SCHEMA, Batch, Contact, Expire, Policy, Record, Register, encode
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome


class Leader:
    """A replica, as far as an expirer asks, whose entries are applied at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.machine = Machine()
        self.removed: list[int] = []
        """How many bindings each entry has removed."""
        replica: Any = self
        self.expirer = Expirer(self.clock, replica)

    def cluster_time(self) -> float:
        return self.clock.seconds()

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        assert isinstance(record, Expire)
        self.removed.append(len(record.bindings))
        (outcome,) = self.apply(record)
        done(outcome)

    def apply(self, *records: Record) -> list[Outcome]:
        batch = Batch(SCHEMA, int(self.clock.seconds() * 1000), Policy(), records)
        return self.machine.apply(self.machine.index + 1, encode(batch))

    def register(self, count: int, cseq: int, expires: int) -> None:
        """So many phones register."""
        contact = Contact("sip:a@192.0.2.1", expires)
        self.apply(*(Register(f"sip:{phone}@x", "c", cseq, (contact,)) for phone in range(count)))

    def run(self, seconds: float) -> None:
        self.expirer.startService()
        self.clock.pump([0.01] * round(seconds / 0.01))
        self.expirer.stopService()


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_expirer_keeps_up_with_a_million_phones_that_refresh_each_minute(leader: Leader) -> None:
    """It has one second for what falls due in one."""
    leader.register(17_000, cseq=1, expires=60)
    leader.clock.advance(30.0)
    leader.register(17_000, cseq=2, expires=60)
    leader.clock.advance(31.0)
    leader.run(1.0)
    assert leader.removed == []
    assert leader.machine.location.count == 17_000
    assert not list(leader.machine.location._buckets.due(int(leader.clock.seconds()), 1))


def test_expirer_removes_all_that_run_out_at_once(leader: Leader) -> None:
    leader.register(3 * LIMIT, cseq=1, expires=60)
    leader.clock.advance(62.0)
    leader.run(1.0)
    assert leader.removed == [LIMIT] * 3
    assert leader.machine.location.count == 0
