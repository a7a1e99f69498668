"""What the transaction layer tells the transaction user (TU), one event at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response
from sipha.sip.timers import Timer
from sipha.sip.transaction import ClientTransaction, ServerTransaction, Transaction


class RequestReceived(NamedTuple):
    """A request came that belongs to no transaction: accept it within this event, reply to it, or drop it.

    An ACK for a 2xx comes so, a CANCEL that finds no INVITE, and each copy of a REGISTER.
    """

    request: Request
    flow: Flow


@dataclass(slots=True)
class CancelReceived:
    """A CANCEL came for an INVITE without final response; the layer has answered it with 200 (§9.2)."""

    transaction: ServerTransaction
    request: Request
    flow: Flow


@dataclass(slots=True)
class AckReceived:
    """An ACK with the branch of the INVITE came after the TU's 2xx (RFC 6026 §7.1)."""

    transaction: ServerTransaction
    request: Request


@dataclass(slots=True)
class ResponseReceived:
    """A response came for a request of ours: each provisional, the first final, and every 2xx to an INVITE."""

    transaction: ClientTransaction
    response: Response


@dataclass(slots=True)
class StrayResponse:
    """A response came that belongs to no transaction; a proxy must not forward it as it is (RFC 6026 §7.3)."""

    response: Response
    flow: Flow


@dataclass(slots=True)
class TransactionTimedOut:
    """No final response came (Timer F), none at all (Timer B, or what `start` was told), or no ACK (Timer H)."""

    transaction: Transaction


@dataclass(slots=True)
class TransactionFailed:
    """What the transaction sends does not arrive; a client transaction ends by it, a server transaction does not."""

    transaction: Transaction


@dataclass(slots=True)
class TransactionEnded:
    """The transaction is forgotten: the last event of each, whatever ended it."""

    transaction: Transaction


@dataclass(slots=True)
class TimerFired:
    """A timer that the TU had set has fired."""

    timer: Timer
    subject: object


Event = (
    RequestReceived
    | CancelReceived
    | AckReceived
    | ResponseReceived
    | StrayResponse
    | TransactionTimedOut
    | TransactionFailed
    | TransactionEnded
    | TimerFired
)
