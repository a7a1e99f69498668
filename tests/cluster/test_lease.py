from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sipha.cluster.lease import Lease, Promise, commit_to
from sipha.cluster.seal import seal
from sipha.cluster.sealed import Longest
from tests.cluster_sim.disk import VirtualDisk

SECRET = b"secret"
COMMITMENT = commit_to(SECRET)


def begun(others: str, duration: float = 0.2) -> Lease:
    """A lease of a leader with these other voters, under its first claim."""
    lease = Lease(duration)
    lease.set_others(others, 0.0)
    lease.begin()
    return lease


def acknowledge(lease: Lease, node: str, sent: float, claim: int = 1) -> None:
    """The acknowledgement comes at once."""
    lease.acknowledge(node, claim, sent, sent)


def test_lease_runs_from_when_the_majority_was_sent_to() -> None:
    lease = begun("bcde")
    acknowledge(lease, "b", 10.0)
    assert not lease.valid(0.0)
    acknowledge(lease, "c", 10.1)
    assert lease.until == pytest.approx(10.2)
    acknowledge(lease, "d", 10.15)
    assert lease.until == pytest.approx(10.3)
    acknowledge(lease, "d", 10.2)
    assert lease.until == pytest.approx(10.3)


def test_lease_counts_from_the_sending_however_late_the_answer_is() -> None:
    lease = begun("bc")
    lease.acknowledge("b", 1, 10.0, 10.15)
    assert lease.until == pytest.approx(10.2)


def test_lease_of_an_even_cluster_needs_more_than_half() -> None:
    lease = begun("bcd")
    acknowledge(lease, "b", 10.0)
    assert not lease.valid(0.0)
    acknowledge(lease, "d", 10.0)
    assert lease.valid(10.1)


def test_lease_is_not_shortened_by_a_late_acknowledgement() -> None:
    lease = begun("bc")
    acknowledge(lease, "b", 10.1)
    lease.acknowledge("b", 1, 10.0, 10.1)
    assert lease.until == pytest.approx(10.3)


def test_lease_of_a_new_claim_begins_with_nothing() -> None:
    lease = begun("bc")
    acknowledge(lease, "b", 10.0)
    lease.usable = True
    assert lease.end()
    assert (lease.until, lease.usable, lease.held) == (0.0, False, False)
    acknowledge(lease, "b", 10.1)
    assert lease.until == 0.0
    lease.begin()
    assert (lease.until, lease.usable, lease.held) == (0.0, False, True)
    acknowledge(lease, "b", 10.15, claim=2)
    assert lease.until == pytest.approx(10.35)


def test_acknowledgement_of_an_ended_claim_doesnt_count() -> None:
    lease = begun("bc")
    lease.end()
    lease.begin()
    acknowledge(lease, "b", 10.0, claim=1)
    assert not lease.valid(0.0)


def test_claim_that_is_begun_in_place_of_another_is_not_acknowledged_yet() -> None:
    lease = begun("bc")
    acknowledge(lease, "b", 10.0)
    lease.usable = True
    lease.begin()
    assert not lease.valid(0.0)
    assert not lease.usable


def test_each_claim_has_a_secret_of_its_own() -> None:
    lease, secrets = Lease(0.2), set[bytes]()
    for number in range(1, 6):
        lease.begin()
        assert lease.claim == number
        assert lease.commitment == commit_to(lease.secret)
        secrets.add(lease.secret)
        assert lease.end() in secrets
        assert (lease.secret, lease.commitment) == (b"", b"")
        assert lease.end() == b""
    assert len(secrets) == 5
    assert {len(secret) for secret in secrets} == {32}


def test_lease_that_has_run_out_needs_a_new_claim() -> None:
    """Whoever guards its address may have told its secret meanwhile."""
    lease = begun("bc")
    first = lease.secret
    acknowledge(lease, "b", 10.0)
    lease.acknowledge("b", 1, 10.1, 10.21)
    assert not lease.valid(10.21)
    assert (lease.claim, lease.held) == (2, True)
    assert lease.secret != first
    lease.acknowledge("b", 1, 10.2, 10.22)
    assert not lease.valid(10.22)
    acknowledge(lease, "b", 10.25, claim=2)
    assert lease.valid(10.3)


def test_lease_follows_its_voters() -> None:
    lease = begun("bcde")
    acknowledge(lease, "b", 10.0)
    acknowledge(lease, "c", 10.1)
    assert lease.until == pytest.approx(10.2)
    lease.set_others("bc", 10.15)
    assert lease.until == pytest.approx(10.3)
    acknowledge(lease, "d", 10.15)
    assert lease.until == pytest.approx(10.3)
    lease.set_others("bcde", 10.15)
    assert lease.until == pytest.approx(10.3), "what d has promised counts again"
    assert lease.claim == 1


def test_lease_ends_when_more_are_needed_than_have_promised() -> None:
    """What remains of it would depend on who is counted; another claim begins."""
    lease = begun("bc")
    acknowledge(lease, "b", 10.0)
    lease.set_others("bcde", 10.1)
    assert not lease.valid(10.1)
    assert lease.claim == 2
    acknowledge(lease, "d", 10.15)
    assert not lease.valid(10.15)
    for node in "de":
        acknowledge(lease, node, 10.15, claim=2)
    assert lease.until == pytest.approx(10.35)


def test_lease_of_a_lone_leader_ends_when_another_must_promise() -> None:
    lease = begun("")
    lease.set_others("b", 10.0)
    assert not lease.valid(10.0)
    acknowledge(lease, "b", 10.0, claim=lease.claim)
    assert lease.until == pytest.approx(10.2)


def test_lease_that_has_run_out_doesnt_come_back_when_fewer_are_needed() -> None:
    lease = begun("bcd")
    acknowledge(lease, "c", 10.0)
    acknowledge(lease, "b", 10.1)
    lease.set_others("bc", 10.21)
    assert not lease.valid(10.21)
    assert (lease.claim, lease.held) == (2, True)


def test_lease_that_has_run_out_is_noticed_without_any_answer() -> None:
    lease = begun("bc")
    lease.lapse(1e9)
    assert lease.claim == 1, "it was never acknowledged"
    acknowledge(lease, "b", 10.0)
    lease.lapse(10.19)
    assert (lease.claim, lease.valid(10.19)) == (1, True)
    lease.lapse(10.2)
    assert (lease.claim, lease.held, lease.valid(10.19)) == (2, True, False)
    lease.end()
    lease.lapse(1e9)
    assert (lease.claim, lease.held) == (2, False)


def test_lone_leader_has_a_lease_without_end() -> None:
    lease = begun("")
    assert lease.until == math.inf
    assert lease.end()
    assert not lease.valid(0.0)


@given(st.integers(2, 7), st.data())
def test_lease_lasts_no_longer_than_what_a_majority_promised(voters: int, data: st.DataObject) -> None:
    """Whatever comes in whatever order: more than half, the leader included, were sent to within the duration."""
    others = "bcdefgh"[: voters - 1]
    lease, sent = begun(others), dict.fromkeys(others, -math.inf)
    for _ in range(data.draw(st.integers(1, 12))):
        node = data.draw(st.sampled_from(others + "x"))
        at = data.draw(st.integers(100, 110)) / 100
        claim = data.draw(st.sampled_from([1, 1, 1, 0, 2]))
        lease.acknowledge(node, claim, at, 1.1)
        if node in sent and claim == 1:
            sent[node] = max(sent[node], at)
    supporters = sum(at + lease.duration >= lease.until for at in sent.values()) + 1
    assert lease.until == 0.0 or 2 * supporters > voters


# The follower's side


@pytest.fixture
def disk() -> VirtualDisk:
    disk = VirtualDisk(Random(1))
    disk.start(Clock())
    return disk


def test_promise_outlasts_the_lease_by_a_tenth(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    assert not promise.binds(5.0)
    assert promise.give(0.2, 10.0, (1, 1), COMMITMENT)
    assert promise.binds(10.219)
    assert not promise.binds(10.221)


def test_promise_is_not_shortened_by_a_shorter_one(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    promise.give(1.0, 10.0, (1, 1), COMMITMENT)
    promise.give(0.2, 10.1, (1, 1), COMMITMENT)
    assert promise.binds(11.0)


def test_promise_survives_a_power_cut(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    promise.give(0.64, 10.0, (1, 1), COMMITMENT)
    promise.give(0.2, 20.0, (1, 1), COMMITMENT)
    disk.lose_power()
    disk.start(Clock())
    again = Promise(disk, 3.0)
    assert again.binds(3.7)
    assert not again.binds(3.71)
    assert not again.release(SECRET), "it doesn't know any more whose claim it was"
    assert again.binds(3.7)


def test_promise_that_cant_be_kept_isnt_given(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    disk.failing = {"sync"}
    with pytest.raises(OSError, match="sync fails"):
        promise.give(0.64, 10.0, (1, 1), COMMITMENT)


@pytest.mark.parametrize("content", [b"", b"x", b"nan", b"-1", b"1e9", b"0.2", b"\xff\xfe"])
def test_unreadable_promise_counts_as_the_longest(disk: VirtualDisk, content: bytes) -> None:
    disk.replace("promise", content)
    promise = Promise(disk, 0.0)
    assert promise.binds(10.9)
    assert not promise.binds(11.1)


def test_promise_with_a_flipped_bit_is_unreadable(disk: VirtualDisk) -> None:
    """It must not pass for a shorter one."""
    Promise(disk, 0.0).give(0.64, 0.0, (1, 1), COMMITMENT)
    for bit in range(8 * len(disk.image()["promise"])):
        disk.flip("promise", bit)
        assert Promise(disk, 0.0).binds(0.704)
        disk.flip("promise", bit)


def test_promise_longer_than_any_heartbeat_states_is_unreadable(disk: VirtualDisk) -> None:
    disk.replace("promise", seal(Longest(1e9)))
    assert not Promise(disk, 0.0).binds(11.1)


def test_unreadable_promise_is_written_anew_when_the_longest_has_passed(disk: VirtualDisk) -> None:
    """Else each start would wait for it."""
    disk.replace("promise", b"x")
    promise = Promise(disk, 0.0)
    promise.give(0.2, 5.0, (1, 1), COMMITMENT)
    assert Promise(disk, 6.0).binds(16.9)
    promise.give(0.2, 11.1, (1, 1), COMMITMENT)
    assert not Promise(disk, 12.0).binds(12.3)


def test_promise_without_a_commitment_is_none(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    assert not promise.give(0.2, 10.0, (1, 1), b"")
    assert not promise.binds(10.0)


def test_secret_ends_the_promise_for_good(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    promise.give(0.2, 10.0, (1, 1), COMMITMENT)
    for guess in (b"", b"guess", COMMITMENT):
        assert not promise.release(guess)
        assert promise.binds(10.1)
    assert promise.release(SECRET)
    assert promise.secret == SECRET
    assert not promise.binds(10.1)
    assert not promise.give(0.2, 10.1, (1, 1), COMMITMENT), "a heartbeat of the same claim that comes late"
    assert not promise.binds(10.1)


def test_promise_that_was_never_given_has_no_secret(disk: VirtualDisk) -> None:
    Promise(disk, 0.0).give(0.64, 0.0, (1, 1), COMMITMENT)
    promise = Promise(disk, 5.0)
    assert not promise.release(b"")
    assert not promise.release(SECRET)
    assert promise.binds(5.7)


@pytest.mark.parametrize("later", [(1, 2), (2, 1)])
def test_later_claim_is_not_ended_by_the_secret_of_an_earlier_one(disk: VirtualDisk, later: tuple[int, int]) -> None:
    promise, other = Promise(disk, 5.0), b"another secret"
    promise.give(0.2, 10.0, (1, 1), COMMITMENT)
    assert promise.give(0.2, 10.1, later, commit_to(other))
    assert not promise.release(SECRET)
    assert promise.binds(10.3)
    assert promise.release(other)
    assert not promise.binds(10.3)


def test_later_claim_binds_after_an_earlier_one_was_ended(disk: VirtualDisk) -> None:
    promise = Promise(disk, 5.0)
    promise.give(0.2, 10.0, (1, 1), COMMITMENT)
    promise.release(SECRET)
    assert promise.give(0.2, 10.1, (1, 2), commit_to(b"another secret"))
    assert promise.secret == b""
    assert promise.binds(10.3)
    assert not promise.release(SECRET)


def test_earlier_claims_heartbeat_that_comes_late_changes_nothing(disk: VirtualDisk) -> None:
    promise, other = Promise(disk, 5.0), b"another secret"
    promise.give(0.2, 10.0, (1, 2), commit_to(other))
    until = promise.until
    for earlier in [(1, 1), (0, 9)]:
        assert not promise.give(5.0, 10.1, earlier, COMMITMENT)
        assert promise.until == until
        assert not promise.release(SECRET)
    assert promise.release(other)
