from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from sipha.cluster import forwarding as module
from sipha.cluster.forwarding import MAX_OUTCOME, Forwarding
from sipha.cluster.proposals import DEADLINE, MAX_RECORD
from sipha.cluster.proposals import Done as Told
from sipha.cluster.wire import MAX_FRAME, ProposalOutcome, Propose, ProtocolError, RaftMessage, frame
from sipha.errors import NoQuorum, NotLeader, QueueFull, Unavailable, UnknownOutcome
from sipha.state.binding import Binding
from sipha.state.entries import (
    Barrier,
    Contact,
    DeleteAccount,
    Expire,
    ImportBinding,
    Member,
    PutKey,
    PutMembers,
    PutSetting,
    RaiseSchema,
    Record,
    Register,
    RemoveBindings,
)
from sipha.state.outcomes import Conflict, Done, Invalid, NotFound, Outcome, Rejected, registered

REGISTER = Register("sip:a@sipha.test", "call", 7, (Contact("sip:a@192.0.2.1", 60),))
LEADERS_OWN: list[Record] = [
    Barrier(3, "a"),
    Expire((("sip:a@sipha.test", 1, 1),)),
    PutMembers((Member("a", "192.0.2.1:7000", "voter"),)),
    RaiseSchema(2),
]


class Letter(NamedTuple):
    """A message on its way."""

    sender: str
    receiver: str
    message: RaftMessage


class Node:
    """A node with both ends; what is proposed to its own log waits for the test, or is refused if it doesn't lead."""

    def __init__(self, cluster: Cluster, name: str, *, leads: bool) -> None:
        self.cluster = cluster
        self.name = name
        self.leads = leads
        self.proposed: list[tuple[Record, Told]] = []
        self.answers: list[Outcome | Unavailable] = []
        self.forwarding = Forwarding(cluster.clock.seconds, self.send, self.propose)

    def send(self, peer: str, message: RaftMessage) -> bool:
        if self.cluster.connected:
            self.cluster.letters.append(Letter(self.name, peer, message))
        return self.cluster.connected

    def propose(self, record: Record, done: Told) -> None:
        if self.leads:
            self.proposed.append((record, done))
        else:
            done(NotLeader("somebody else leads the cluster"))

    def forward(self, record: Record = REGISTER) -> None:
        self.forwarding.forward("a", record, self.answers.append)

    @property
    def kinds(self) -> list[Any]:
        return list(map(type, self.answers))


class Cluster:
    """Node a leads, b doesn't."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.connected = True
        self.letters: list[Letter] = []
        self.nodes = {"a": Node(self, "a", leads=True), "b": Node(self, "b", leads=False)}
        self.leader, self.other = self.nodes.values()

    def deliver(self) -> None:
        while self.letters:
            letter = self.letters.pop(0)
            assert isinstance(letter.message, Propose | ProposalOutcome)
            assert len(frame(letter.message)) <= MAX_FRAME
            self.nodes[letter.receiver].forwarding.received(letter.sender, letter.message)

    def reconnect(self) -> None:
        self.letters.clear()
        self.leader.forwarding.disconnected("b")
        self.other.forwarding.disconnected("a")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


numbers = st.integers(-(1 << 63), (1 << 63) - 1)
values: dict[Any, st.SearchStrategy[Any]] = {
    int: numbers,
    int | None: st.none() | numbers,
    str: st.text(),
    tuple[str, ...]: st.lists(st.text()).map(tuple),
}


def fields(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a class."""
    return st.builds(kind, *(values[field.type] for field in msgspec.structs.fields(kind)))


bindings = fields(Binding)
outcomes = st.one_of(
    st.builds(registered, st.lists(bindings, max_size=3).map(tuple), st.integers(0, 1 << 60)),
    *map(fields, [Rejected, Done, NotFound, Conflict, Invalid]),
)
refusals = st.builds(
    lambda kind, detail, retry_after: kind(detail, retry_after=retry_after),
    st.sampled_from([Unavailable, NotLeader, NoQuorum, QueueFull, UnknownOutcome]),
    st.text(),
    st.integers(0, (1 << 31) - 1),
)


# The way there and back


def test_record_is_proposed_by_the_leader_and_its_outcome_comes_back(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.deliver()
    ((record, done),) = cluster.leader.proposed
    assert record == REGISTER
    assert not cluster.other.answers
    done(Done(1))
    cluster.deliver()
    assert cluster.other.answers == [Done(1)]
    assert cluster.other.forwarding.count == 0


@settings(deadline=None)
@given(outcomes)
def test_outcome_comes_back_as_it_is(outcome: Outcome) -> None:
    cluster = Cluster()
    cluster.other.forward()
    cluster.deliver()
    cluster.leader.proposed[0][1](outcome)
    cluster.deliver()
    assert cluster.other.answers == [outcome]


@settings(deadline=None)
@given(refusals)
def test_refusal_comes_back_as_it_is(refusal: Unavailable) -> None:
    cluster = Cluster()
    cluster.other.forward()
    cluster.deliver()
    cluster.leader.proposed[0][1](refusal)
    cluster.deliver()
    (answer,) = cluster.other.answers
    assert isinstance(answer, Unavailable)
    assert type(answer) is type(refusal)
    assert (answer.detail, answer.retry_after) == (refusal.detail, refusal.retry_after)
    assert (answer.response_status, answer.headers) == (refusal.response_status, refusal.headers)


def test_every_refusal_has_its_place_in_a_message() -> None:
    assert {Unavailable, *Unavailable.__subclasses__()} == set(module._REFUSALS)


@pytest.mark.parametrize(
    "record",
    [
        REGISTER,
        ImportBinding(REGISTER),
        RemoveBindings("a"),
        DeleteAccount("a", "b"),
        PutKey(b"k" * 32),
        PutSetting("a", "b"),
    ],
)
def test_records_arrive_as_they_are(cluster: Cluster, record: Record) -> None:
    cluster.other.forward(record)
    cluster.deliver()
    assert cluster.leader.proposed[0][0] == record


def test_outcomes_come_back_to_their_own_proposers(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.other.forward()
    cluster.deliver()
    for number in (2, 0, 1):
        cluster.leader.proposed[number][1](Done(number))
    cluster.deliver()
    assert cluster.other.answers == [Done(2), Done(0), Done(1)]


def test_outcome_too_long_for_a_message_is_unknown(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.other.forward()
    cluster.deliver()
    cluster.leader.proposed[0][1](NotFound("x" * (MAX_OUTCOME - 100)))
    cluster.leader.proposed[1][1](NotFound("x" * MAX_OUTCOME))
    cluster.deliver()
    assert cluster.other.kinds == [NotFound, UnknownOutcome]


# No loops, no repeats


def test_node_that_doesnt_lead_says_so_and_hands_nothing_on(cluster: Cluster) -> None:
    cluster.leader.leads = False
    cluster.other.forward()
    cluster.deliver()
    assert cluster.other.kinds == [NotLeader]
    assert not cluster.leader.proposed
    assert cluster.leader.forwarding.count == 0


def test_repeated_record_is_proposed_once(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.letters *= 2
    cluster.deliver()
    assert len(cluster.leader.proposed) == 1


def test_record_that_was_refused_isnt_proposed_when_it_comes_again(cluster: Cluster) -> None:
    cluster.leader.leads = False
    cluster.other.forward()
    again = cluster.letters.copy()
    cluster.deliver()
    cluster.leader.leads = True
    cluster.letters += again
    cluster.deliver()
    assert cluster.other.kinds == [NotLeader]
    assert not cluster.leader.proposed


def test_repeated_answer_is_told_once(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.deliver()
    cluster.leader.proposed[0][1](Done(1))
    cluster.letters *= 2
    cluster.deliver()
    assert cluster.other.answers == [Done(1)]


def test_answer_of_a_node_that_was_not_asked_is_ignored(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.deliver()
    cluster.leader.proposed[0][1](Done(1))
    (letter,) = cluster.letters
    assert isinstance(letter.message, ProposalOutcome)
    cluster.other.forwarding.received("c", letter.message)
    assert not cluster.other.answers
    cluster.deliver()
    assert cluster.other.answers == [Done(1)]


def test_answer_to_an_earlier_connection_is_not_sent_on_the_new_one(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.deliver()
    cluster.reconnect()
    cluster.nodes["b"] = cluster.other = Node(cluster, "b", leads=False)  # it begins anew with its ids
    cluster.other.forward(RemoveBindings("b"))
    cluster.deliver()
    (_, earlier), (record, later) = cluster.leader.proposed
    assert record == RemoveBindings("b")
    earlier(Done(7))
    cluster.deliver()
    assert not cluster.other.answers
    later(Done(8))
    cluster.deliver()
    assert cluster.other.answers == [Done(8)]


# Limits


def test_proposer_waits_no_longer_than_the_deadline(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.clock.advance(DEADLINE / 2)
    cluster.other.forward()
    cluster.deliver()
    cluster.clock.advance(DEADLINE / 2)
    cluster.other.forwarding.expire()
    assert cluster.other.kinds == [UnknownOutcome]
    cluster.leader.proposed[0][1](Done(1))  # too late
    cluster.leader.proposed[1][1](Done(2))
    cluster.deliver()
    assert cluster.other.answers[1:] == [Done(2)]


def test_lost_connection_makes_the_outcome_unknown(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.other.forwarding.forward("c", REGISTER, cluster.other.answers.append)
    cluster.other.forwarding.disconnected("a")
    assert cluster.other.kinds == [UnknownOutcome]
    assert cluster.other.forwarding.count == 1


def test_node_that_stops_tells_all_who_wait(cluster: Cluster) -> None:
    cluster.other.forward()
    cluster.other.forwarding.forward("c", REGISTER, cluster.other.answers.append)
    cluster.other.forwarding.stop()
    assert cluster.other.kinds == [UnknownOutcome] * 2
    assert cluster.other.forwarding.count == 0


def test_record_that_was_not_sent_is_certainly_not_applied(cluster: Cluster) -> None:
    cluster.connected = False
    cluster.other.forward()
    assert cluster.other.kinds == [NotLeader]
    assert cluster.other.forwarding.count == 0


def test_number_under_way_is_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FORWARDED", 3)
    for _ in range(5):
        cluster.other.forward()
    assert cluster.other.kinds == [QueueFull] * 2
    cluster.deliver()
    assert len(cluster.leader.proposed) == 3
    cluster.leader.proposed[0][1](Done(1))
    cluster.deliver()
    cluster.other.forward()
    assert cluster.other.forwarding.count == 3


def test_record_too_long_for_an_entry_is_refused(cluster: Cluster) -> None:
    cluster.other.forward(RemoveBindings("x" * MAX_RECORD))
    assert cluster.other.kinds == [Unavailable]
    assert not cluster.letters


@pytest.mark.parametrize(
    "record",
    [RemoveBindings("\udcff"), Register("sip:a", "c", 1 << 70), Register("sip:a", "c", -1), *LEADERS_OWN],
    ids=lambda record: type(record).__name__,
)
def test_record_that_the_leader_would_not_take_is_refused_alone(cluster: Cluster, record: Record) -> None:
    cluster.other.forward(record)
    cluster.other.forward()
    assert cluster.other.kinds == [Invalid]
    assert len(cluster.letters) == 1


# What no node sends


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\xa3reg", msgspec.msgpack.encode(["rm"]), b"\x91" * 5000])
def test_bytes_that_are_no_record_are_refused_and_the_peer_is_kept(cluster: Cluster, data: bytes) -> None:
    cluster.leader.forwarding.received("b", Propose(1, data))
    assert not cluster.leader.proposed
    (letter,) = cluster.letters
    assert isinstance(letter.message, ProposalOutcome)
    assert b"not a record" in letter.message.outcome


@pytest.mark.parametrize("record", LEADERS_OWN, ids=lambda record: type(record).__name__)
def test_record_that_is_the_leaders_own_is_refused(cluster: Cluster, record: Record) -> None:
    cluster.leader.forwarding.received("b", Propose(1, msgspec.msgpack.encode(record)))
    assert not cluster.leader.proposed
    (letter,) = cluster.letters
    assert isinstance(letter.message, ProposalOutcome)
    assert b"not a record" in letter.message.outcome


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["done"]),
        msgspec.msgpack.encode(["registered", [["sip:a@x"]], 5]),
        msgspec.msgpack.encode(["refused", 5, "", 5]),
        msgspec.msgpack.encode(["refused", 0, "", -1]),
        msgspec.msgpack.encode(["refused", 0, "", 1 << 40]),
    ],
)
def test_bytes_that_are_no_outcome_break_the_protocol(cluster: Cluster, data: bytes) -> None:
    cluster.other.forward()
    with pytest.raises(ProtocolError, match="not a message"):
        cluster.other.forwarding.received("a", ProposalOutcome(1, data))
    assert not cluster.other.answers
    cluster.other.forwarding.disconnected("a")  # which the error brings about
    assert cluster.other.kinds == [UnknownOutcome]


@given(st.binary(max_size=100))
def test_random_bytes_are_a_record_or_break_the_protocol(data: bytes) -> None:
    cluster = Cluster()
    with suppress(ProtocolError):
        cluster.leader.forwarding.received("b", Propose(1, data))
    with suppress(ProtocolError):
        cluster.leader.forwarding.received("b", ProposalOutcome(1, data))


def test_failing_proposer_is_not_the_others_fault(cluster: Cluster, failures: list[LogEvent]) -> None:
    def fail(_: Outcome | Unavailable) -> None:
        raise ZeroDivisionError

    cluster.other.forwarding.forward("a", REGISTER, fail)
    cluster.other.forward()
    cluster.other.forwarding.disconnected("a")
    assert cluster.other.kinds == [UnknownOutcome]
    assert len(failures) == 1
