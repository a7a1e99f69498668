"""Records that a node which doesn't lead hands to the leader, and those that the leader is handed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta
from twisted.logger import Logger

from sipha.cluster.proposals import DEADLINE, MAX_RECORD, Done
from sipha.cluster.wire import MAX_FRAME, ProposalOutcome, Propose, ProtocolError, RaftMessage
from sipha.errors import NoQuorum, NotLeader, QueueFull, Unavailable, UnknownOutcome
from sipha.state.entries import (
    UNDECODABLE,
    DeleteAccount,
    ImportBinding,
    PutAccount,
    PutKey,
    PutSetting,
    Record,
    Register,
    RemoveBindings,
)
from sipha.state.outcomes import Invalid, Outcome, Registered

MAX_FORWARDED = 20_000
"""Records that may be under way to the leader."""

MAX_OUTCOME = MAX_FRAME - 64
"""Bytes of the longest outcome that fits a message."""

_REFUSALS = (Unavailable, NotLeader, NoQuorum, QueueFull, UnknownOutcome)


class _Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """An Unavailable: `kind` is its place in `_REFUSALS`."""

    kind: Annotated[int, Meta(ge=0, lt=len(_REFUSALS))]
    detail: str
    retry_after: Annotated[int, Meta(ge=0, lt=1 << 31)]


_Forwardable = Register | RemoveBindings | PutAccount | DeleteAccount | PutKey | PutSetting | ImportBinding
# The other records are the leader's own, or need its leave.

_encoder = msgspec.msgpack.Encoder()
_record_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(_Forwardable)
_answer_decoder: msgspec.msgpack.Decoder[Outcome | _Refusal] = msgspec.msgpack.Decoder(Outcome | _Refusal)


class _Forwarded(NamedTuple):
    leader: str
    done: Done
    deadline: float


class _Handed:
    """What a peer has handed over on its present connection: `last` is the id of the latest record, and they rise."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


class Forwarding:
    """Both ends of the way: who hands a record over, and who is handed one.

    `send(peer, message)` is False if the peer can't take it. `propose` is the node's own log, which refuses with
    NotLeader where it doesn't lead; what came from another node is never handed on.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        send: Callable[[str, RaftMessage], bool],
        propose: Callable[[Record, Done], None],
    ) -> None:
        self._clock = clock
        self._send = send
        self._propose = propose
        self._last_id = 0
        self._forwarded: dict[int, _Forwarded] = {}  # by falling age
        self._handed: defaultdict[str, _Handed] = defaultdict(_Handed)
        self._log = Logger(namespace="sipha.cluster")

    @property
    def count(self) -> int:
        """How many records are under way to the leader."""
        return len(self._forwarded)

    def forward(self, leader: str, record: Record, done: Done) -> None:
        """Hand a record to the leader and call `done` once, with what apply returned there or why it did not come."""
        if len(self._forwarded) >= MAX_FORWARDED:
            self._tell(done, QueueFull(f"{MAX_FORWARDED} records wait for the leader already"))
            return
        try:
            data = _encoder.encode(record)
            _record_decoder.decode(data)
        except (*UNDECODABLE, ValueError, TypeError, OverflowError) as error:
            self._tell(done, Invalid(f"not a record that the leader can be handed: {error}"))
            return
        number = self._last_id + 1
        if len(data) > MAX_RECORD:
            self._tell(done, Unavailable(f"the record is longer than {MAX_RECORD} bytes"))
        elif not self._send(leader, Propose(number, data)):
            self._tell(
                done, NotLeader(f"{leader} leads the cluster, and there is no connection with it", retry_after=1)
            )
        else:
            self._last_id = number
            self._forwarded[number] = _Forwarded(leader, done, self._clock() + DEADLINE)

    def received(self, peer: str, message: Propose | ProposalOutcome) -> None:
        """Propose a peer's record, or take the answer to one of ours; raises ProtocolError."""
        if isinstance(message, Propose):
            self._receive_record(peer, message)
        else:
            self._receive_outcome(peer, message)

    def disconnected(self, peer: str) -> None:
        """No answer comes from the peer any more, and it waits for none."""
        self._handed.pop(peer, None)
        lost = [number for number, forwarded in self._forwarded.items() if forwarded.leader == peer]
        for number in lost:
            self._give_up(number, f"the connection with {peer} ended before it said what became of the record")

    def expire(self) -> None:
        """Tell those who have waited long enough."""
        now = self._clock()
        while self._forwarded:
            number, forwarded = next(iter(self._forwarded.items()))
            if forwarded.deadline > now:
                return
            self._give_up(number, f"{forwarded.leader} did not say within {DEADLINE:g} s what became of the record")

    def stop(self) -> None:
        """Tell all who wait that this node won't hear of the outcome."""
        for peer in dict.fromkeys(forwarded.leader for forwarded in self._forwarded.values()):
            self.disconnected(peer)

    # As the leader

    def _receive_record(self, peer: str, message: Propose) -> None:
        handed = self._handed[peer]
        if message.id <= handed.last:
            return  # a repeat, whose proposer may have heard that the record is refused
        handed.last = message.id
        try:
            record = _record_decoder.decode(message.record)
        except UNDECODABLE as error:  # of a later release, perhaps: no reason to part with the peer
            self._send(peer, ProposalOutcome(message.id, _encode_answer(Invalid(f"not a record: {error}"))))
            return

        def done(answer: Outcome | Unavailable) -> None:
            if self._handed.get(peer) is handed:  # else its id may mean another record on the new connection
                self._send(peer, ProposalOutcome(message.id, _encode_answer(answer)))

        self._propose(record, done)

    # As another node

    def _receive_outcome(self, peer: str, message: ProposalOutcome) -> None:
        try:
            answer = _answer_decoder.decode(message.outcome)
            if isinstance(answer, Registered):
                _ = answer.bindings  # which are decoded when they are asked for
        except UNDECODABLE:
            raise ProtocolError("not a message") from None
        forwarded = self._forwarded.get(message.id)
        if forwarded is None or forwarded.leader != peer:
            return
        del self._forwarded[message.id]
        if isinstance(answer, _Refusal):
            refusal = _REFUSALS[answer.kind](answer.detail, retry_after=answer.retry_after)
            self._tell(forwarded.done, refusal)
        else:
            self._tell(forwarded.done, answer)

    def _give_up(self, number: int, detail: str) -> None:
        forwarded = self._forwarded.pop(number, None)
        if forwarded is not None:  # a proposer who was told before may have had it given up
            self._tell(forwarded.done, UnknownOutcome(detail))

    def _tell(self, done: Done, answer: Outcome | Unavailable) -> None:
        """One proposer's failure is not the others', nor the connection's."""
        try:
            done(answer)
        except Exception:  # noqa: BLE001  whatever it is, it is logged
            self._log.failure("told of an outcome, a proposer failed")


def _encode_answer(answer: Outcome | Unavailable) -> bytes:
    if not isinstance(answer, Unavailable):
        data = _encoder.encode(answer)
        if len(data) <= MAX_OUTCOME:
            return data
        answer = UnknownOutcome("the record is applied, and the answer is too long for a message between nodes")
    kind = _REFUSALS.index(type(answer))
    return _encoder.encode(_Refusal(kind, answer.detail, answer.retry_after))
