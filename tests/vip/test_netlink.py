"""The daemon's side of the guard, against a guard that a test plays, on a clock."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from sipha.errors import NotClaimed
from sipha.sip.flow import Flow
from sipha.vip import netlink
from sipha.vip.messages import (
    MAX_FLOWS,
    Alarms,
    Claim,
    Claimed,
    Ended,
    Release,
    Renew,
    Renewed,
    Report,
    Tickle,
    decode_order,
    encode,
)
from sipha.vip.netlink import LATE, NetlinkAddress
from sipha.vip.placement import Placement

PLACEMENTS = (Placement("192.0.2.10", "eth0", 32), Placement("2001:db8::10", "eth0", 128))
PEERS = (("192.0.2.2", 7000),)
LEASE = 0.3


class Rig:
    """The daemon's side, and the guard that it has reached."""

    def __init__(self, path: Path, *command: str) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.reactor.advance(1000)
        self.lost: list[str] = []
        self.troubles: list[str] = []
        self.path = path
        self.address = NetlinkAddress(
            self.reactor,
            PLACEMENTS,
            path,
            self.lost.append,
            self.troubles.append,
            command=command,
            clock=self.reactor.seconds,
        )
        self.listener: socket.socket | None = None
        self.guard: socket.socket | None = None
        self.address.start()

    @property
    def now(self) -> float:
        return float(self.reactor.seconds())

    def start_guard(self) -> None:
        self.listen()
        self.report(Alarms(()))

    def listen(self) -> None:
        """Start a guard that has yet to say that it serves us."""
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.reactor.advance(netlink.RETRY)
        self.guard, _ = self.listener.accept()
        self.guard.setblocking(False)

    def kill_guard(self) -> None:
        assert self.guard is not None
        assert self.listener is not None
        self.guard.close()
        self.listener.close()
        self.read()

    def orders(self) -> list[Any]:
        """What the guard has been told since the last time."""
        assert self.guard is not None
        told: list[Any] = []
        while True:
            try:
                told.append(decode_order(self.guard.recv(65536)))
            except BlockingIOError:
                return told

    def report(self, *reports: Report) -> None:
        assert self.guard is not None
        for report in reports:
            self.guard.send(encode(report))
        self.read()

    def read(self) -> None:
        for reader in tuple(self.reactor.readers):
            reader.doRead()

    def claim(self) -> list[object]:
        return outcome(self.address.claim(b"word", PEERS, self.now + LEASE))

    def hold(self) -> Claim:
        """Claim, and be told that the addresses are here."""
        claimed = self.claim()
        order = self.orders()[0]
        assert isinstance(order, Claim)
        self.report(Claimed(order.number))
        assert claimed == [None]
        return order

    def close(self) -> None:
        for each in (self.guard, self.listener):
            if each is not None:
                each.close()
        outcome(self.address.stop())
        self.reactor.advance(10)


def outcome(deferred: Deferred[Any]) -> list[object]:
    """A list that will have what the Deferred fires with; a failure as its message."""
    fired: list[object] = []

    def failed(failure: Failure) -> None:
        failure.trap(NotClaimed)
        fired.append(failure.getErrorMessage())

    deferred.addCallbacks(fired.append, failed)
    return fired


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "guard")
    made.start_guard()
    yield made
    made.close()


def test_claim_is_told_to_the_guard_and_fires_when_the_addresses_are_here(rig: Rig) -> None:
    claimed = rig.claim()
    assert rig.orders() == [Claim(1, ("192.0.2.10", "2001:db8::10"), b"word", PEERS, rig.now + LEASE)]
    assert not rig.address.held
    rig.report(Claimed(1))
    assert claimed == [None]
    assert rig.address.held


def test_claim_fails_with_the_guards_reason(rig: Rig) -> None:
    claimed = rig.claim()
    rig.report(Ended(1, "192.0.2.10 is in use"))
    assert claimed == ["192.0.2.10 is in use"]
    assert not rig.lost
    assert rig.claim() == []
    assert rig.orders()[1].number == 2


def test_claim_waits_for_a_guard_that_starts(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "guard")
    claimed = rig.claim()
    for _ in range(20):
        rig.reactor.advance(0.05)
        rig.address.renew(rig.now + LEASE)
    assert claimed == []
    assert "start sipha-guard.service" in next(rig.address.alarms())
    rig.start_guard()
    (order,) = rig.orders()
    assert order.deadline == pytest.approx(rig.now + LEASE - netlink.RETRY)
    assert not list(rig.address.alarms())
    rig.close()


def test_claim_that_nobody_hears_of_fails_at_its_deadline(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "guard")
    claimed = rig.claim()
    rig.reactor.pump([0.01] * 40)
    assert len(claimed) == 1
    assert "no guard at" in str(claimed[0])
    assert not rig.lost
    rig.close()


def test_claim_is_given_up_when_no_guard_comes(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "guard")
    claimed = rig.claim()
    for _ in range(int(netlink.ABSENT / 0.05)):
        rig.address.renew(rig.now + LEASE)
        rig.reactor.advance(0.05)
    assert claimed == []
    for _ in range(10):
        rig.address.renew(rig.now + LEASE)
        rig.reactor.advance(0.05)
    assert "no guard at" in str(claimed[0])
    assert not rig.lost
    rig.close()


def test_one_renewal_is_under_way_at_a_time(rig: Rig) -> None:
    rig.hold()
    begun = rig.now
    for _ in range(4):
        rig.reactor.advance(0.04)
        rig.address.renew(rig.now + LEASE)
    assert rig.orders() == [Renew(1, begun + 0.04 + LEASE)]
    rig.report(Renewed(1, begun + 0.04 + LEASE))
    assert rig.orders() == [Renew(1, rig.now + LEASE)], "the latest that was asked for"


def test_held_ends_with_what_the_guard_has_confirmed(rig: Rig) -> None:
    rig.hold()
    rig.reactor.advance(0.2)
    rig.address.renew(rig.now + LEASE)
    rig.reactor.advance(0.1)
    assert not rig.address.held, "the guard hasn't said that they stay"
    assert not rig.lost, "but they may"


def test_frozen_guard_is_noticed_when_the_kernel_has_shut_the_gate(rig: Rig) -> None:
    rig.hold()
    begun = rig.now
    for _ in range(20):
        rig.reactor.advance(0.05)
        rig.address.renew(rig.now + LEASE)
        if rig.lost:
            break
    assert rig.lost == rig.troubles[-1:] == ["the guard doesn't answer"]
    last = begun + 0.05 + LEASE
    assert last + LATE <= rig.now < last + LATE + 0.06
    assert len(rig.orders()) == 1
    rig.report(Ended(1, "it was not renewed in time"))
    assert not rig.troubles[-1], "it goes on"


def test_guard_is_not_blamed_for_what_it_said_while_we_were_held_up(rig: Rig) -> None:
    rig.hold()
    rig.reactor.advance(0.04)
    rig.address.renew(rig.now + LEASE)
    assert rig.guard is not None
    for report in (Renewed(1, rig.now + LEASE), Ended(1, "it was not renewed in time")):
        rig.guard.send(encode(report))
    del rig.troubles[:]
    rig.reactor.advance(2.0)
    assert rig.lost == ["it was not renewed in time"]
    assert not rig.troubles


def test_dead_guards_claim_is_lost_when_the_kernel_has_shut_the_gate(rig: Rig) -> None:
    rig.hold()
    deadline = rig.now + LEASE
    rig.kill_guard()
    rig.reactor.pump([0.01] * 33)
    assert not rig.lost
    assert rig.address.held == (rig.now < deadline)
    rig.reactor.pump([0.01] * 3)
    assert rig.lost == ["the guard is gone (it hung up); see its log"]
    rig.start_guard()
    assert not rig.orders(), "an old claim isn't told to a new guard"


def test_new_guard_is_not_told_to_renew_what_the_dead_one_held(rig: Rig) -> None:
    rig.hold()
    rig.kill_guard()
    rig.start_guard()
    rig.address.renew(rig.now + LEASE)
    assert not rig.orders()
    rig.reactor.pump([0.01] * 40)
    assert len(rig.lost) == 1
    rig.hold()


def test_claim_that_the_guard_has_ended_is_lost_once(rig: Rig) -> None:
    rig.hold()
    rig.report(Ended(1, "it was not renewed in time"), Ended(1, "it has ended already"))
    assert rig.lost == ["it was not renewed in time"]
    rig.reactor.advance(1)
    assert len(rig.lost) == 1


def test_claim_that_is_not_renewed_is_lost(rig: Rig) -> None:
    rig.hold()
    rig.reactor.pump([0.01] * 40)
    assert rig.lost == ["it was not renewed in time"]


def test_release_fires_when_the_guard_has_done_it(rig: Rig) -> None:
    rig.hold()
    released, again = outcome(rig.address.release()), outcome(rig.address.release())
    assert rig.orders() == [Release(1), Release(1)]
    assert not rig.address.held
    assert released == []
    rig.report(Ended(1, ""), Ended(1, ""))
    assert released == again == [None]
    assert not rig.lost
    assert outcome(rig.address.release()) == [None]


def test_release_of_what_is_not_here_yet_fails_the_claim(rig: Rig) -> None:
    claimed = rig.claim()
    released = outcome(rig.address.release())
    rig.report(Claimed(1))  # it was on its way
    assert claimed == []
    rig.report(Ended(1, ""))
    assert claimed == ["it was released"]
    assert released == [None]


def test_release_fires_when_the_kernel_has_shut_the_gate_of_a_dead_guard(rig: Rig) -> None:
    rig.hold()
    rig.kill_guard()
    released = outcome(rig.address.release())
    assert released == []
    rig.reactor.pump([0.01] * 36)
    assert released == [None]
    assert not rig.lost


def test_second_claim_waits_for_the_end_of_the_first(rig: Rig) -> None:
    rig.hold()
    assert rig.claim() == ["an earlier claim has not ended yet"]


def test_reports_of_an_earlier_claim_change_nothing(rig: Rig) -> None:
    rig.claim()
    rig.report(Ended(1, "192.0.2.10 is in use"))
    rig.claim()
    rig.report(Claimed(1), Renewed(1, rig.now + 9), Ended(1, "late"))
    assert not rig.address.held
    rig.report(Claimed(2))
    assert rig.address.held


def test_tickles_are_of_streams_in_portions(rig: Rig) -> None:
    rig.hold()
    ours, theirs = ("192.0.2.10", 5060), ("198.51.100.7", 40000)
    rig.address.tickle([Flow("UDP", ours, theirs), *[Flow("TCP", ours, theirs, 1)] * (MAX_FLOWS + 1)])
    first, second = rig.orders()
    assert isinstance(first, Tickle)
    assert (len(first.flows), second.flows) == (MAX_FLOWS, ((ours, theirs),))


def test_alarms_are_the_guards(rig: Rig) -> None:
    rig.report(Alarms(("192.0.2.10 is in use twice",)))
    assert list(rig.address.alarms()) == ["192.0.2.10 is in use twice"]
    rig.kill_guard()
    assert list(rig.address.alarms()) == ["the guard is gone (it hung up); see its log"]


def test_guard_that_is_gone_is_a_trouble_until_one_serves_us(rig: Rig) -> None:
    del rig.troubles[:]
    rig.kill_guard()
    gone = "the guard is gone (it hung up); see its log"
    assert rig.troubles == [gone]
    rig.listen()
    rig.kill_guard()  # it serves another
    assert rig.troubles == [gone]
    rig.start_guard()
    assert rig.troubles == [gone, ""]
    rig.report(Alarms(()))
    assert rig.troubles == [gone, ""]


def test_guard_that_is_late_at_first_is_no_trouble_to_who_starts_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "guard", "sh", "-c", "exec sleep 10", "guard")
    rig.reactor.pump([netlink.RETRY] * 3)
    assert not rig.troubles
    assert rig.address._child is not None
    rig.address._child.kill()
    rig.close()


def test_guard_that_cant_be_started_is_tried_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "guard", str(tmp_path / "missing"))
    assert list(rig.address.alarms()) == ["the guard can't be started: No such file or directory"]
    (tmp_path / "missing").symlink_to("/bin/true")
    rig.reactor.pump([netlink.RETRY] * 12)
    child = rig.address._child
    assert child is not None
    child.wait(5)
    rig.close()


def test_guard_that_talks_nonsense_is_left(rig: Rig) -> None:
    assert rig.guard is not None
    rig.guard.send(msgspec.msgpack.encode(["claimed", "x"]))
    rig.read()
    assert not rig.reactor.readers
    rig.start_guard()
    rig.hold()


def test_guard_of_our_own_is_started_with_our_process_id(tmp_path: Path) -> None:
    said = tmp_path / "said"
    rig = Rig(tmp_path / "guard", "sh", "-c", f'echo "$0 $1 $2" >{said}; exit 7', "guard")
    child = rig.address._child
    assert child is not None
    assert child.wait(5) == 7
    assert said.read_text().startswith("guard --parent ")
    rig.reactor.pump([0.1] * 5)
    assert list(rig.address.alarms()) == ["the guard ended with status 7; see its log"]
    assert rig.address._child is child, "it isn't started again at once"
    rig.reactor.pump([0.1] * 6)
    assert rig.address._child is not child
    rig.close()
