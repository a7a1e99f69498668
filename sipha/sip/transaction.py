"""The four transaction machines of RFC 3261 §17, as amended by RFC 6026 and RFC 4320, and the transactions they drive.

Rule 1: all that a transaction does stands in the four tables: (state, input) → (actions, next state).

Rule 2: what isn't in a table does nothing. A late timer, a provisional response after the final one, a second final
response of the transaction user (TU): the RFC has each of them discarded, and nobody can break a transaction with them.

Rule 3: a table does not know what it acts on. `sipha.sip.layer` makes inputs of messages, timers and calls, and
performs the actions in their order; the state has changed before the first of them.

Rule 4: a transaction has one timer that retransmits (A, E or G) and one that ends what it is in (all the others). The
name of a timer among the actions starts it, in the place of the one of its kind that runs.

Where the tables differ from the figures of RFC 3261:

- Figures 5 and 7 have the state Accepted with its Timers M and L (RFC 6026 §7): an INVITE transaction outlives its
  first 2xx, so that a retransmitted INVITE isn't taken for a new one, and each 2xx finds its transaction.
- A server transaction tells of a transport error and stays as it is (RFC 6026 §8.8).
- A non-INVITE request gets no provisional response but a 100, when the client's Timer E has grown to T2; the
  transaction sends it itself. It never gets a 408, which would come too late anyway (RFC 4320 §4).
- The 100 (Trying) to an INVITE is the TU's, at once (§17.2.1 lets it wait for 200 ms).
- Timers A and B don't run on in Proceeding, where the figure gives them nothing to do.
- Whatever the state, the TU may end a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response
from sipha.sip.timers import Timer, TimerName
from sipha.sip.token import MAGIC_COOKIE


class State(StrEnum):
    """The states of figures 5 to 8 and of RFC 6026."""

    CALLING = "Calling"
    TRYING = "Trying"
    PROCEEDING = "Proceeding"
    COMPLETED = "Completed"
    CONFIRMED = "Confirmed"
    ACCEPTED = "Accepted"
    TERMINATED = "Terminated"


class Input(StrEnum):
    """What happens to a transaction, beside the timers."""

    RESPONSE_1XX = "1xx"
    RESPONSE_2XX = "2xx"
    RESPONSE_3XX_6XX = "300-699"
    REQUEST = "request again"
    ACK = "ACK"
    TU_1XX = "1xx from TU"
    TU_2XX = "2xx from TU"
    TU_3XX_6XX = "300-699 from TU, but 408"
    TU_408 = "408 from TU"
    TRANSPORT_ERROR = "transport error"
    TERMINATE = "end from TU"


class Action(StrEnum):
    """What a transaction does, beside starting timers."""

    SEND_REQUEST = "pass the request to the transport, and keep it to be sent again"
    SEND_AGAIN = "pass what was sent last to the transport"
    SEND_RESPONSE = "pass the response of the TU to the transport, and keep it to be sent again"
    SEND_TRYING = "make a 100, pass it to the transport, and keep it to be sent again"
    SEND_ACK = "make the ACK of §17.1.1.3 and pass it to the transport"
    RESPONSE_TO_TU = "pass the response to the TU"
    ACK_TO_TU = "pass the ACK to the TU"
    TIMEOUT_TO_TU = "tell the TU of the timeout"
    ERROR_TO_TU = "tell the TU of the transport error"
    DOUBLE_A = "start Timer A with twice its interval"
    DOUBLE_E = "start Timer E with twice its interval, at most T2"
    DOUBLE_G = "start Timer G with twice its interval, at most T2"
    SLOW_E = "start Timer E with T2"
    STOP_A = "stop Timer A, and forget the request's bytes"
    STOP_B = "stop Timer B"
    STOP_E = "stop Timer E, and forget the request's bytes"
    STOP_G = "stop Timer G, and forget the response's bytes"
    RESTORE_F = "let Timer F have its 64*T1 after all, if it was shortened for the first response"
    END = "stop the timers, forget the transaction and tell the TU that it has ended"


Transition = tuple[tuple[Action | TimerName, ...], State]
"""What an input does in a state: the actions and the next state."""


class Machine(NamedTuple):
    """What a transaction does as it begins, and then upon each input in each state."""

    begin: Transition
    table: Mapping[tuple[State, Input | TimerName], Transition]


A, I, S, T = Action, Input, State, TimerName  # noqa: E741 - for the tables only
_ENDED: Final = (A.END,), S.TERMINATED
_TIMED_OUT: Final = (A.TIMEOUT_TO_TU, A.END), S.TERMINATED
_FAILED: Final = (A.ERROR_TO_TU, A.END), S.TERMINATED

# RFC 3261 figure 5, RFC 6026 §7.2
INVITE_CLIENT: Final = Machine(
    ((A.SEND_REQUEST, T.A, T.B), S.CALLING),
    {
        (S.CALLING, T.A): ((A.SEND_AGAIN, A.DOUBLE_A), S.CALLING),
        (S.CALLING, T.B): _TIMED_OUT,
        (S.CALLING, I.TRANSPORT_ERROR): _FAILED,
        (S.CALLING, I.RESPONSE_1XX): ((A.STOP_A, A.STOP_B, A.RESPONSE_TO_TU), S.PROCEEDING),
        (S.CALLING, I.RESPONSE_2XX): ((A.STOP_A, A.RESPONSE_TO_TU, T.M), S.ACCEPTED),
        (S.CALLING, I.RESPONSE_3XX_6XX): ((A.STOP_A, A.SEND_ACK, A.RESPONSE_TO_TU, T.D), S.COMPLETED),
        (S.CALLING, I.TERMINATE): _ENDED,
        (S.PROCEEDING, I.TRANSPORT_ERROR): _FAILED,
        (S.PROCEEDING, I.RESPONSE_1XX): ((A.RESPONSE_TO_TU,), S.PROCEEDING),
        (S.PROCEEDING, I.RESPONSE_2XX): ((A.RESPONSE_TO_TU, T.M), S.ACCEPTED),
        (S.PROCEEDING, I.RESPONSE_3XX_6XX): ((A.SEND_ACK, A.RESPONSE_TO_TU, T.D), S.COMPLETED),
        (S.PROCEEDING, I.TERMINATE): _ENDED,
        (S.COMPLETED, T.D): _ENDED,
        (S.COMPLETED, I.TRANSPORT_ERROR): _FAILED,
        (S.COMPLETED, I.RESPONSE_3XX_6XX): ((A.SEND_ACK,), S.COMPLETED),
        (S.COMPLETED, I.TERMINATE): _ENDED,
        (S.ACCEPTED, T.M): _ENDED,
        # "Any 2xx responses that match this client transaction and that are received while in the "Accepted" state
        # MUST be passed up to the TU.  The client transaction MUST NOT generate an ACK to the 2xx response."
        (S.ACCEPTED, I.RESPONSE_2XX): ((A.RESPONSE_TO_TU,), S.ACCEPTED),
        (S.ACCEPTED, I.TERMINATE): _ENDED,
    },
)

# RFC 3261 figure 6
NON_INVITE_CLIENT: Final = Machine(
    ((A.SEND_REQUEST, T.E, T.F), S.TRYING),
    {
        (S.TRYING, T.E): ((A.SEND_AGAIN, A.DOUBLE_E), S.TRYING),
        (S.TRYING, T.F): _TIMED_OUT,
        (S.TRYING, I.TRANSPORT_ERROR): _FAILED,
        # Timer E runs on: only its next interval is T2.
        (S.TRYING, I.RESPONSE_1XX): ((A.RESTORE_F, A.RESPONSE_TO_TU), S.PROCEEDING),
        (S.TRYING, I.RESPONSE_2XX): ((A.STOP_E, A.RESPONSE_TO_TU, T.K), S.COMPLETED),
        (S.TRYING, I.RESPONSE_3XX_6XX): ((A.STOP_E, A.RESPONSE_TO_TU, T.K), S.COMPLETED),
        (S.TRYING, I.TERMINATE): _ENDED,
        (S.PROCEEDING, T.E): ((A.SEND_AGAIN, A.SLOW_E), S.PROCEEDING),
        (S.PROCEEDING, T.F): _TIMED_OUT,
        (S.PROCEEDING, I.TRANSPORT_ERROR): _FAILED,
        (S.PROCEEDING, I.RESPONSE_1XX): ((A.RESPONSE_TO_TU,), S.PROCEEDING),
        (S.PROCEEDING, I.RESPONSE_2XX): ((A.STOP_E, A.RESPONSE_TO_TU, T.K), S.COMPLETED),
        (S.PROCEEDING, I.RESPONSE_3XX_6XX): ((A.STOP_E, A.RESPONSE_TO_TU, T.K), S.COMPLETED),
        (S.PROCEEDING, I.TERMINATE): _ENDED,
        (S.COMPLETED, T.K): _ENDED,
        (S.COMPLETED, I.TERMINATE): _ENDED,
    },
)

# RFC 3261 figure 7, RFC 6026 §7.1
INVITE_SERVER: Final = Machine(
    ((), S.PROCEEDING),
    {
        (S.PROCEEDING, I.REQUEST): ((A.SEND_AGAIN,), S.PROCEEDING),
        (S.PROCEEDING, I.TU_1XX): ((A.SEND_RESPONSE,), S.PROCEEDING),
        (S.PROCEEDING, I.TU_2XX): ((A.SEND_RESPONSE, T.L), S.ACCEPTED),
        (S.PROCEEDING, I.TU_3XX_6XX): ((A.SEND_RESPONSE, T.G, T.H), S.COMPLETED),
        (S.PROCEEDING, I.TU_408): ((A.SEND_RESPONSE, T.G, T.H), S.COMPLETED),
        (S.PROCEEDING, I.TRANSPORT_ERROR): ((A.ERROR_TO_TU,), S.PROCEEDING),
        (S.PROCEEDING, I.TERMINATE): _ENDED,
        (S.COMPLETED, T.G): ((A.SEND_AGAIN, A.DOUBLE_G), S.COMPLETED),
        (S.COMPLETED, T.H): _TIMED_OUT,
        (S.COMPLETED, I.REQUEST): ((A.SEND_AGAIN,), S.COMPLETED),
        (S.COMPLETED, I.ACK): ((A.STOP_G, T.I), S.CONFIRMED),
        (S.COMPLETED, I.TRANSPORT_ERROR): ((A.ERROR_TO_TU,), S.COMPLETED),
        (S.COMPLETED, I.TERMINATE): _ENDED,
        (S.CONFIRMED, T.I): _ENDED,
        (S.CONFIRMED, I.TERMINATE): _ENDED,
        (S.ACCEPTED, T.L): _ENDED,
        # A retransmitted INVITE is absorbed here: whoever sent the 2xx repeats it until it has the ACK.
        (S.ACCEPTED, I.ACK): ((A.ACK_TO_TU,), S.ACCEPTED),
        (S.ACCEPTED, I.TU_2XX): ((A.SEND_RESPONSE,), S.ACCEPTED),
        (S.ACCEPTED, I.TRANSPORT_ERROR): ((A.ERROR_TO_TU,), S.ACCEPTED),
        (S.ACCEPTED, I.TERMINATE): _ENDED,
    },
)

# RFC 3261 figure 8, RFC 4320 §4
NON_INVITE_SERVER: Final = Machine(
    ((T.TRYING,), S.TRYING),
    {
        # "an SIP element MUST respond to a non-INVITE request with a Status-Code of 100 if it has not otherwise
        # responded after the amount of time it takes a client transaction's Timer E to be reset to T2."
        (S.TRYING, T.TRYING): ((A.SEND_TRYING,), S.PROCEEDING),
        (S.TRYING, I.TU_2XX): ((A.SEND_RESPONSE, T.J), S.COMPLETED),
        (S.TRYING, I.TU_3XX_6XX): ((A.SEND_RESPONSE, T.J), S.COMPLETED),
        # "A transaction-stateful SIP element MUST NOT send a response with Status-Code of 408 to a non-INVITE
        # request."  There is no 1xx from the TU in this table for a like reason.
        (S.TRYING, I.TU_408): ((T.J,), S.COMPLETED),
        (S.TRYING, I.TRANSPORT_ERROR): ((A.ERROR_TO_TU,), S.TRYING),
        (S.TRYING, I.TERMINATE): _ENDED,
        (S.PROCEEDING, I.REQUEST): ((A.SEND_AGAIN,), S.PROCEEDING),
        (S.PROCEEDING, I.TU_2XX): ((A.SEND_RESPONSE, T.J), S.COMPLETED),
        (S.PROCEEDING, I.TU_3XX_6XX): ((A.SEND_RESPONSE, T.J), S.COMPLETED),
        (S.PROCEEDING, I.TU_408): ((T.J,), S.COMPLETED),
        (S.PROCEEDING, I.TRANSPORT_ERROR): ((A.ERROR_TO_TU,), S.PROCEEDING),
        (S.PROCEEDING, I.TERMINATE): _ENDED,
        (S.COMPLETED, I.REQUEST): ((A.SEND_AGAIN,), S.COMPLETED),
        (S.COMPLETED, T.J): _ENDED,
        (S.COMPLETED, I.TRANSPORT_ERROR): ((A.ERROR_TO_TU,), S.COMPLETED),
        (S.COMPLETED, I.TERMINATE): _ENDED,
    },
)

Key = tuple[object, ...]
"""What a message and its transaction have in common (§17.1.3, §17.2.3)."""


class Transaction:
    """One request and its responses, as one side sees them; `context` is the transaction user's."""

    __slots__ = (
        "context",
        "destination",
        "ending",
        "flow",
        "interval",
        "key",
        "last_sent",
        "machine",
        "request",
        "retransmission",
        "state",
    )

    def __init__(self, machine: Machine, key: Key, request: Request, flow: Flow, destination: Flow) -> None:
        self.machine = machine
        self.state = machine.begin[1]
        self.key = key
        self.request = request
        self.flow = flow
        self.destination = destination
        self.last_sent = b""
        self.interval = 0.0
        self.retransmission: Timer | None = None
        self.ending: Timer | None = None
        self.context: object | None = None

    @property
    def branch(self) -> str:
        """The branch by which it is known, empty for the request of an RFC 2543 client."""
        branch = self.key[0]
        return branch if isinstance(branch, str) else ""

    def rest(self) -> None:
        """Let go of the request: for half a minute only copies come, known by the key. Its method is all that is left.

        At any time most transactions are at rest, thousands of them.
        """
        if self.key[0] is not None:
            self.request = _at_rest(self.request.method)

    def __repr__(self) -> str:
        """Return the method, state and branch."""
        return f"<{type(self).__name__} {self.request.method} {self.state} {self.branch}>"


class ClientTransaction(Transaction):
    """A request that we sent over `flow`."""

    __slots__ = ("expires_at", "patience")

    def __init__(self, request: Request, flow: Flow, expires_at: float) -> None:
        machine = INVITE_CLIENT if request.method == "INVITE" else NON_INVITE_CLIENT
        super().__init__(machine, client_key(request), request, flow, flow)
        self.expires_at = expires_at
        """When Timer B or F ends it; only a timeout for the first response may come sooner."""
        self.patience: float | None = None
        """That timeout in seconds, if it is shorter than Timers B and F."""


class ServerTransaction(Transaction):
    """A request that came over `flow`; its responses go to `destination`, found once (§18.2.2)."""

    __slots__ = ("to_tag",)

    def __init__(self, key: Key, request: Request, flow: Flow, destination: Flow) -> None:
        machine = INVITE_SERVER if request.method == "INVITE" else NON_INVITE_SERVER
        super().__init__(machine, key, request, flow, destination)
        self.to_tag: str | None = None
        """The To tag of the last response to an RFC 2543 client, for `matches`."""

    def note_to_tag(self, response: Response) -> None:
        """Remember the To tag that goes to an RFC 2543 client, whose ACK is known by it."""
        if self.key[0] is None:
            self.to_tag = response.to.tag

    def matches(self, request: Request) -> bool:
        """Return True unless the To tag of a request with the same key shows that it isn't of this transaction.

        Only the requests of RFC 2543 clients are told apart by it (§17.2.3).
        """
        if self.key[0] is not None:
            return True
        tag = request.to.tag
        return tag == (self.to_tag if request.method == "ACK" else self.request.to.tag)


@lru_cache(maxsize=64)
def _at_rest(method: str) -> Request:
    return Request(method, "")


def client_key(message: Request | Response) -> Key:
    """Return what identifies the client transaction of a request or response (§17.1.3)."""
    return message.via.branch, message.cseq.method


def server_key(request: Request, method: str) -> Key:
    """Return what identifies the server transaction, begun with `method`, that a request belongs to (§17.2.3).

    A branch that is no more than the magic cookie identifies nothing, so it is treated as that of an RFC 2543 client
    (RFC 4475 §3.2.1). The key of such a client begins with None, and leaves out the To tag: see `matches`.
    """
    via = request.via
    branch = via.branch
    if branch is not None and branch.startswith(MAGIC_COOKIE) and branch != MAGIC_COOKIE:
        # "The sent-by value is used as part of the matching process because there could be accidental or malicious
        # duplication of branch parameters from different clients."
        return branch, via.sent_by, method
    return None, method, request.uri, request.from_.tag, request.call_id, request.cseq.number, str(via)


def ack_for(request: Request, response: Response) -> Request:
    """Make the ACK for a non-2xx final response to an INVITE that we sent (§17.1.1.3)."""
    # "The ACK MUST contain a single Via header field, and this MUST be equal to the top Via header field of the
    # original request."
    ack = Request("ACK", request.uri, [("Via", str(request.via)), ("Max-Forwards", "70")])
    # "The ACK request constructed by the client transaction MUST contain values for the Call-ID, From, and Request-URI
    # that are equal to the values of those header fields in the request passed to the transport by the client
    # transaction", and "If the INVITE request whose response is being acknowledged had Route header fields, those
    # header fields MUST appear in the ACK."
    ack.headers.copy_from(request.headers, _COPIED_TO_ACK)
    ack.headers.add("To", response.headers.get("To") or "")
    ack.headers.add("CSeq", f"{request.cseq.number} ACK")
    return ack


_COPIED_TO_ACK = frozenset(("Route", "From", "Call-ID"))
