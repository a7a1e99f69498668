"""A claim on a kernel in name only: what is done in which order, and what is not done after the deadline."""

from __future__ import annotations

import pytest

from sipha.vip.claim import LAPSED, Claim, State
from sipha.vip.gate import Gate
from sipha.vip.neighbours import Sighting
from sipha.vip.placement import Placement
from tests.vip.kernel import FakeKernel

ETH = Placement("192.0.2.10", "eth0", 32)
WAN = Placement("2001:db8::10", "wan", 128)
STRANGER = Sighting("192.0.2.10", bytes.fromhex("020000000007"))


class Rig:
    """A claim for LEASE seconds, driven as the guard drives it."""

    LEASE = 0.5

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.claimed: list[float] = []
        self.ended: list[tuple[str, bool]] = []
        self.gate = Gate((ETH, WAN), self.kernel.now, self.kernel.nft)
        self.gate.install()
        self.claim = Claim(
            (ETH, WAN),
            self.kernel.now() + self.LEASE,
            self.gate,
            self.kernel.addresses,
            self.kernel.open_link,
            self.kernel.now,
            lambda: self.claimed.append(self.kernel.now()),
            self._end,
        )
        self.begun = self.kernel.now()
        self.claim.begin()

    def _end(self, reason: str, may_speak: bool) -> None:
        # Whoever is told can rely on it.
        assert not self.kernel.addresses.here
        assert not any(self.kernel.passes(placement.address) for placement in (ETH, WAN))
        self.kernel.done.append("ended")
        self.ended.append((reason, may_speak))

    def run(self, seconds: float, *, renewing: bool = True) -> None:
        """Wake the claim whenever it is due, and renew it every 50 ms."""
        end = self.kernel.now() + seconds
        renewal = self.kernel.now()
        while True:
            due = min(self.claim.due, renewal if renewing else end, end)
            self.kernel.clock.advance(max(due - self.kernel.now(), 0))
            if self.kernel.now() >= end:
                return
            if renewing and self.kernel.now() >= renewal:
                renewal += 0.05
                self.claim.renew(self.kernel.now() + self.LEASE)
            if self.kernel.now() >= self.claim.due:
                self.claim.wake()

    def hold(self) -> None:
        self.run(0.1)
        assert self.claim.state is State.HELD
        self.kernel.done.clear()

    def hear(self, sighting: Sighting) -> None:
        self.kernel.links[0].heard.append(sighting)
        self.claim.heard(self.kernel.links[0])


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_claim_probes_then_adds_then_opens_then_announces(rig: Rig) -> None:
    rig.run(0.04)
    assert rig.kernel.done == [
        "install",
        f"probe {ETH}",
        f"probe {WAN}",
        "install",
        f"add {ETH}",
        f"add {WAN}",
        "elements",
        "elements",
        f"announce {ETH}",
        f"announce {WAN}",
        *["elements"] * (len(rig.kernel.done) - 10),
    ]
    assert rig.claimed == [pytest.approx(rig.begun + 0.03, abs=0.001)]


def test_claim_ends_with_gate_shut_then_address_removed_then_word(rig: Rig) -> None:
    rig.hold()
    rig.claim.end("the daemon died", may_speak=True)
    assert rig.kernel.done == ["shut", f"remove {ETH}", f"remove {WAN}", "ended"]
    assert rig.ended == [("the daemon died", True)]


def test_claim_ends_at_its_deadline(rig: Rig) -> None:
    rig.hold()
    deadline = rig.claim.deadline
    rig.run(1, renewing=False)
    assert rig.ended == [(LAPSED, True)]
    assert not rig.kernel.passes(ETH.address)
    assert rig.claim.due == float("inf")
    rig.claim.renew(deadline + 10)
    assert rig.claim.state is State.ENDED


def test_claim_ends_once_for_its_first_reason(rig: Rig) -> None:
    rig.hold()
    rig.claim.end("")
    rig.claim.end("the daemon died", may_speak=True)
    assert rig.ended == [("", False)]


def test_claim_tells_nobody_until_the_address_is_gone(rig: Rig) -> None:
    rig.hold()
    rig.kernel.addresses.stuck = True
    rig.claim.end("the daemon died", may_speak=True)
    rig.run(1, renewing=False)
    assert not rig.ended
    assert "192.0.2.10%eth0 can't be removed: Device or resource busy" in rig.claim.alarms["removal"]
    rig.kernel.addresses.stuck = False
    rig.run(0.1, renewing=False)
    assert rig.ended == [("the daemon died", True)]


def test_claim_believes_nobody_that_the_address_is_gone(rig: Rig) -> None:
    rig.hold()
    rig.kernel.addresses.stubborn = True
    rig.claim.end("the daemon died", may_speak=True)
    rig.run(1, renewing=False)
    assert not rig.ended
    assert "192.0.2.10%eth0 is still here" in rig.claim.alarms["removal"]
    rig.kernel.addresses.stubborn = False
    rig.run(0.1, renewing=False)
    assert rig.ended == [("the daemon died", True)]


@pytest.mark.parametrize(
    ("step", "never"),
    [
        ("install", f"add {ETH}"),
        (f"add {ETH}", f"add {WAN}"),
        (f"add {WAN}", "elements"),
        ("elements", f"announce {ETH}"),
        (f"announce {ETH}", f"announce {WAN}"),
    ],
)
def test_claim_that_is_stopped_does_nothing_more(rig: Rig, step: str, never: str) -> None:
    rig.kernel.stall(step, 1.0)
    rig.run(0.04, renewing=False)
    rig.run(2, renewing=False)
    assert never not in rig.kernel.done
    assert rig.ended == [(LAPSED, True)]


def test_claim_that_still_probes_is_not_renewed_too_late(rig: Rig) -> None:
    rig.kernel.clock.advance(rig.LEASE)
    rig.claim.renew(rig.kernel.now() + 1)
    assert rig.ended == [(LAPSED, True)]


@pytest.mark.parametrize("step", [f"refresh {ETH}", f"refresh {WAN}"])
def test_claim_that_is_stopped_while_it_refreshes_removes_what_came_back(rig: Rig, step: str) -> None:
    rig.hold()
    rig.kernel.stall(step, 20.0)
    rig.run(5)
    assert rig.ended == [(LAPSED, True)]
    assert not rig.kernel.addresses.here


def test_claim_that_is_stopped_while_it_renews_does_not_open_the_gate_again(rig: Rig) -> None:
    rig.hold()
    rig.kernel.opened.clear()
    rig.kernel.stall("elements", 5.0)
    rig.claim.renew(rig.kernel.now() + 100)  # a deadline that hasn't passed when it goes on
    assert rig.ended == [(LAPSED, True)]
    assert not rig.kernel.opened


@pytest.mark.parametrize("stalls", [(1.0,), (0.0, 1.0)])
def test_gate_is_not_opened_by_a_claim_that_is_stopped_between_clock_and_kernel(
    rig: Rig, stalls: tuple[float, ...]
) -> None:
    for seconds in stalls:
        rig.kernel.stall("elements", seconds)
    rig.run(0.04, renewing=False)
    assert rig.ended == [(LAPSED, True)]
    assert not rig.kernel.opened


def test_claim_keeps_to_the_latest_deadline(rig: Rig) -> None:
    rig.hold()
    deadline = rig.claim.deadline
    rig.claim.renew(deadline - 0.2)
    assert rig.claim.deadline == deadline
    assert rig.kernel.passes(ETH.address)


def test_claim_announces_on_schedule_and_then_each_minute(rig: Rig) -> None:
    rig.run(135)
    times = [time - rig.claimed[0] for time in rig.kernel.when(f"announce {ETH}")]
    assert times == pytest.approx([0, 0.2, 0.5, 1, 2, 5, 10, 70, 130], abs=0.001)


def test_claim_refreshes_the_addresses_before_the_kernel_removes_them(rig: Rig) -> None:
    rig.hold()
    rig.run(10)
    assert rig.kernel.done.count(f"refresh {ETH}") == 3


def test_claim_waits_until_nobody_answers(rig: Rig) -> None:
    for _ in range(10):
        rig.hear(STRANGER)
        rig.run(0.031)
        assert rig.claim.state is State.PROBING
    assert list(rig.claim.alarms.values()) == ["192.0.2.10 is in use: 02:00:00:00:00:07 on eth0 answers for it"]
    rig.run(0.05)
    assert rig.claim.state is State.HELD
    assert not rig.claim.alarms


def test_claim_gives_up_when_someone_goes_on_answering(rig: Rig) -> None:
    while rig.claim.state is State.PROBING:
        rig.hear(STRANGER)
        rig.run(0.01)
    assert rig.ended == [("192.0.2.10 is in use: 02:00:00:00:00:07 on eth0 answers for it", False)]
    assert rig.kernel.now() - rig.begun == pytest.approx(2.0, abs=0.1)
    assert f"add {ETH}" not in rig.kernel.done


def test_claim_contradicts_at_once_and_not_without_end(rig: Rig) -> None:
    rig.hold()
    rig.hear(STRANGER)
    assert f"announce {ETH}" in rig.kernel.done
    for _ in range(100):
        rig.hear(STRANGER)
    assert rig.kernel.done.count(f"announce {ETH}") == 1
    assert list(rig.claim.alarms.values()) == ["192.0.2.10 is in use twice: 02:00:00:00:00:07 on eth0 has it, too"]
    rig.run(140)
    assert not rig.claim.alarms


def test_claim_ignores_what_concerns_other_addresses(rig: Rig) -> None:
    rig.hold()
    rig.hear(Sighting("192.0.2.99", b"\2" * 6))
    assert not rig.kernel.done


def test_claim_does_not_contradict_after_its_deadline(rig: Rig) -> None:
    rig.hold()
    rig.kernel.clock.advance(1)
    rig.hear(STRANGER)
    assert f"announce {ETH}" not in rig.kernel.done
    assert rig.ended == [(LAPSED, True)]


def test_claim_says_what_it_could_not_announce(rig: Rig) -> None:
    rig.hold()
    rig.kernel.links[1].down = True
    rig.run(0.2)
    assert rig.claim.alarms == {"wan": f"{WAN} can't be announced: Network is down"}
    rig.kernel.links[1].down = False
    rig.run(1)
    assert not rig.claim.alarms


def test_claim_puts_the_gate_back(rig: Rig) -> None:
    rig.hold()
    rig.kernel.gate = None
    rig.run(0.1)
    assert rig.claim.state is State.HELD
    assert rig.kernel.passes(ETH.address)
    assert "gate" in rig.claim.alarms
    rig.kernel.gate = None
    rig.claim.end("")
    assert not rig.kernel.passes(ETH.address)


def test_claim_ends_when_an_address_is_removed(rig: Rig) -> None:
    rig.hold()
    rig.claim.changed()
    assert rig.claim.state is State.HELD
    rig.kernel.addresses.here.discard(WAN)
    rig.claim.changed()
    assert rig.ended == [(f"someone has removed {WAN}", False)]
    assert not rig.kernel.addresses.here
