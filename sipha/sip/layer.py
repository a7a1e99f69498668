"""The transaction layer (RFC 3261 §17): messages, timers and calls of the transaction user in, bytes and events out.

The one who holds the sockets feeds every message to `receive`, takes all events of `next_event`, sends all
`messages_to_send`, and calls `handle_timer` at `next_timer`; in this order after each wake-up.

Messages are taken one by one: `next_event` looks at the next message only when the transaction user (TU) has had all
events of the one before. So of an INVITE, its copy and its CANCEL that came in one wake-up the first is accepted before
the second is matched.

Nothing is kept of a request before the TU accepts it (design §6). What it does not accept it answers with `reply`, and
its copies come again. REGISTER is never matched: the registrar answers each copy of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2s
from math import inf
from typing import Any

from sipha.errors import SipError
from sipha.sip.events import (
    AckReceived,
    CancelReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StrayResponse,
    TimerFired,
    TransactionEnded,
    TransactionFailed,
    TransactionTimedOut,
)
from sipha.sip.flow import Address, Flow
from sipha.sip.message import METHODS, Request, Response, mark_received, response_destination, response_to
from sipha.sip.timers import Timer, TimerName, TimerQueue, Timers
from sipha.sip.transaction import (
    Action,
    ClientTransaction,
    Input,
    Key,
    ServerTransaction,
    State,
    Transaction,
    ack_for,
    client_key,
    server_key,
)

# The timers of a transaction that has done its work, and waits for what may still be on its way.
_ABSORBING = frozenset((TimerName.I, TimerName.J, TimerName.K, TimerName.L, TimerName.M))
_OPEN = frozenset((State.PROCEEDING, State.COMPLETED))
_NEVER_ACCEPTED = frozenset(("ACK", "CANCEL", "REGISTER"))


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    requests_received: int = 0
    responses_received: int = 0
    stray_responses: int = 0
    retransmissions_received: int = 0
    retransmissions_sent: int = 0
    server_transactions: int = 0
    client_transactions: int = 0
    transactions_refused: int = 0
    transactions_timed_out: int = 0
    transport_errors: int = 0


class TransactionLayer:
    """All transactions of a node; `max_transactions` bounds the server transactions, and the client transactions.

    `force_rport` tells of a request, and the flow that it came by, whether its responses go back there in any case.
    `responses` are those sent to requests, each once, by method (of METHODS, or `other`) and status.
    """

    def __init__(
        self,
        timers: Timers | None = None,
        *,
        max_transactions: int = 200_000,
        force_rport: Callable[[Request, Flow], bool] = lambda _request, _flow: False,
    ) -> None:
        self.timers = timers or Timers()
        self.counters = Counters()
        self.responses: Counter[tuple[str, int]] = Counter()
        self.force_rport = force_rport
        self._max_transactions = max_transactions
        self._servers: dict[Key, ServerTransaction] = {}
        self._clients: dict[Key, ClientTransaction] = {}
        # By transport and remote address; a dict is a set that keeps its order.
        self._destinations: dict[tuple[str, Address], dict[Transaction, None]] = {}
        self._queue = TimerQueue(self.timers.constant())
        self._received: deque[tuple[Request | Response, Flow, float]] = deque()
        self._events: deque[Event] = deque()
        self._outgoing: list[tuple[bytes, Flow]] = []
        self._perform = self._actions()

    @property
    def stream_calls(self) -> int:
        """How many INVITEs that came over streams have no final response yet."""
        return sum(
            server.flow.reliable and server.request.method == "INVITE" and server.state is State.PROCEEDING
            for server in self._servers.values()
        )

    def open_invites(self) -> list[Request]:
        """The INVITEs that came and have no 2xx yet, whose copies, CANCEL or ACK may come."""
        servers = self._servers.values()
        return [server.request for server in servers if server.request.method == "INVITE" and server.state in _OPEN]

    # What the holder of the sockets calls

    def receive(self, message: Request | Response, flow: Flow, now: float) -> None:
        """Take a message that has been parsed; a request is marked with where it came from (§18.2.1)."""
        if isinstance(message, Request):
            self.mark(message, flow)
        self._received.append((message, flow, now))

    def mark(self, request: Request, flow: Flow) -> None:
        """Write into a request where it came from (§18.2.1); once more changes nothing."""
        mark_received(request, flow, force_rport=self.force_rport(request, flow))

    def is_copy(self, request: Request, flow: Flow) -> bool:
        """Return True if a request, which is marked, has begun a transaction that is still there."""
        self.mark(request, flow)
        return self._server(request, request.method) is not None

    def next_event(self) -> Event | None:
        """Return what the TU has to know next, or None if that is all for now."""
        events = self._events
        while True:
            while events:
                event = events.popleft()
                if not isinstance(event, TimerFired) or event.timer.take() is not None:
                    return event
            if not self._received:
                return None
            message, flow, now = self._received.popleft()
            if isinstance(message, Request):
                self._request_received(message, flow, now)
            else:
                self._response_received(message, flow, now)

    def messages_to_send(self) -> list[tuple[bytes, Flow]]:
        """Return what has to be sent since the last call, and over which flow."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_timer(self) -> float | None:
        """Return when `handle_timer` is to be called next, or None."""
        return self._queue.next()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        while timer := self._queue.pop(now):
            if timer.name is None:
                # Until the TU has this event it may still stop the timer.
                self._events.append(TimerFired(timer, timer.subject))
            else:
                self._feed(timer.take(), timer.name, now)

    def flow_failed(self, flow: Flow, now: float) -> None:
        """Tell the transactions that send over a flow that it is broken, or that its remote address can't be reached.

        A transaction whose connection was yet to be opened (0) may have been using any to its remote address.
        """
        self.counters.transport_errors += 1
        for transaction in tuple(self._destinations.get((flow.transport, flow.remote), ())):
            if transaction.destination.connection in (0, flow.connection):
                self._feed(transaction, Input.TRANSPORT_ERROR, now)

    # What the transaction user calls

    def accept(self, request: Request, flow: Flow, now: float) -> ServerTransaction:
        """Begin the server transaction of a request just received; its responses go where its Via says (§18.2.2).

        SipError 503 (without Retry-After, which only a phone may be told) if there are too many transactions, 482 if
        the request has been accepted before. Never accepted are ACK, REGISTER, and CANCEL: the layer answers those that
        match, and the others get a stateless 481.
        """
        destination = response_destination(request.via, flow)
        return self.accept_as(server_key(request, request.method), request, flow, destination, now)

    def accept_as(self, key: Key, request: Request, flow: Flow, destination: Flow, now: float) -> ServerTransaction:
        """Do as `accept` does, for who knows what `server_key` makes of the request, and where its responses go."""
        if request.method in _NEVER_ACCEPTED:
            raise ValueError(f"no server transaction for {request.method}")
        if len(self._servers) >= self._max_transactions:
            self.counters.transactions_refused += 1
            raise SipError("too many server transactions", status=503)
        return self._begin_server(ServerTransaction(key, request, flow, destination), now)

    def respond(self, transaction: ServerTransaction, response: Response, now: float) -> None:
        """Send a response through its transaction; one that the transaction's state doesn't allow is discarded."""
        status = response.status
        if status < 200:
            self._feed(transaction, Input.TU_1XX, now, response)
        elif status < 300:
            self._feed(transaction, Input.TU_2XX, now, response)
        elif status == 408:
            self._feed(transaction, Input.TU_408, now, response)
        else:
            self._feed(transaction, Input.TU_3XX_6XX, now, response)

    def reply(self, response: Response, flow: Flow) -> None:
        """Send a response without a transaction (§8.2.7), to a request that came over `flow`."""
        self.count((response.headers.get("CSeq") or "").rpartition(" ")[2], response.status)
        self._outgoing.append((response.render(), response_destination(response.via, flow)))

    def start(
        self, request: Request, flow: Flow, now: float, *, branch_timeout: float | None = None
    ) -> ClientTransaction:
        """Send a request, whose top Via is ours, through a new client transaction, which keeps it: don't change it.

        `branch_timeout` bounds the wait for the first response, in seconds; without it Timers B and F do. SipError 503
        if there are too many transactions (a CANCEL is sent all the same), 482 if this branch has been started before.
        An ACK for a 2xx has no transaction: `send` it.
        """
        transaction = self._new_client(request, flow, now)
        if branch_timeout is not None and branch_timeout < self.timers.timeout:
            transaction.patience = branch_timeout
        self._begin(transaction, now)
        return transaction

    def adopt(self, request: Request, flow: Flow, now: float) -> ClientTransaction:
        """Go on with the client transaction of an INVITE that another node has sent, and which has been answered 1xx.

        What is known of the request must do for its ACK and its CANCEL. Raises SipError as `start` does.
        """
        transaction = self._new_client(request, flow, now)
        transaction.state = State.PROCEEDING
        self._enlist(transaction)
        return transaction

    def send(self, message: Request | Response, flow: Flow) -> None:
        """Send a message once, without a transaction: an ACK for a 2xx, or what is forwarded statelessly (§16.11)."""
        self._outgoing.append((message.render(), flow))

    def terminate(self, transaction: Transaction) -> None:
        """End a transaction whatever its state; nothing is sent."""
        self._feed(transaction, Input.TERMINATE, 0.0)

    def set_timer(self, when: float, subject: object) -> Timer:
        """Have TimerFired(timer, subject) delivered at `when`: for Timer C, and whatever else the TU waits for.

        The subject is not None: that is how a stopped timer looks.
        """
        return self._queue.start(when, None, subject)

    def stop_timer(self, timer: Timer) -> None:
        """Stop a timer of the TU, whose event does not come then; if it has come, nothing happens."""
        self._queue.stop(timer)

    def reconsider(self, message: Request | Response, flow: Flow, now: float) -> None:
        """Match a message once more, before all others: its transaction has been made since it was received."""
        self._received.appendleft((message, flow, now))

    def server(self, key: Key) -> ServerTransaction | None:
        """Return the server transaction of this key, as `server_key` makes it."""
        return self._servers.get(key)

    @property
    def transactions(self) -> int:
        """How many transactions there are now."""
        return len(self._servers) + len(self._clients)

    # Matching

    def _request_received(self, request: Request, flow: Flow, now: float) -> None:
        self.counters.requests_received += 1
        method = request.method
        if method == "REGISTER":
            self._events.append(RequestReceived(request, flow))
        elif transaction := self._server(request, "INVITE" if method == "ACK" else method):
            self._feed(transaction, Input.ACK if method == "ACK" else Input.REQUEST, now, request)
        elif method == "CANCEL" and (invite := self._cancelled(request)):
            self._cancel_received(invite, request, flow, now)
        else:
            self._events.append(RequestReceived(request, flow))

    def _response_received(self, response: Response, flow: Flow, now: float) -> None:
        self.counters.responses_received += 1
        transaction = self._clients.get(client_key(response))
        if transaction is None:
            self.counters.stray_responses += 1
            self._events.append(StrayResponse(response, flow))
        elif response.status < 200:
            self._feed(transaction, Input.RESPONSE_1XX, now, response)
        elif response.status < 300:
            self._feed(transaction, Input.RESPONSE_2XX, now, response)
        else:
            self._feed(transaction, Input.RESPONSE_3XX_6XX, now, response)

    def _server(self, request: Request, method: str) -> ServerTransaction | None:
        transaction = self._servers.get(server_key(request, method))
        return transaction if transaction is not None and transaction.matches(request) else None

    def _cancelled(self, cancel: Request) -> ServerTransaction | None:
        # Another CANCEL of an RFC 2543 client, with another To tag, may have had this key.
        return None if server_key(cancel, "CANCEL") in self._servers else self._server(cancel, "INVITE")

    def _cancel_received(self, invite: ServerTransaction, cancel: Request, flow: Flow, now: float) -> None:
        # "Regardless of the method of the original request, as long as the CANCEL matched an existing transaction, the
        # UAS answers the CANCEL request itself with a 200 (OK) response." (§9.2)
        key, destination = server_key(cancel, "CANCEL"), response_destination(cancel.via, flow)
        transaction = self._begin_server(ServerTransaction(key, cancel, flow, destination), now)
        tag = blake2s(repr(transaction.key).encode(), digest_size=8).hexdigest()
        self.respond(transaction, response_to(cancel, 200, to_tag=tag), now)
        # "If it has already sent a final response for the original request, the CANCEL request has no effect"
        if invite.state is State.PROCEEDING:
            self._events.append(CancelReceived(invite, cancel, flow))

    # The machines

    def _begin_server(self, transaction: ServerTransaction, now: float) -> ServerTransaction:
        if transaction.key in self._servers:
            raise SipError("this request has been accepted before", status=482)
        self._servers[transaction.key] = transaction
        self.counters.server_transactions += 1
        self._begin(transaction, now)
        return transaction

    def _new_client(self, request: Request, flow: Flow, now: float) -> ClientTransaction:
        if request.method == "ACK":
            raise ValueError("no client transaction for ACK")
        if len(self._clients) >= self._max_transactions and request.method != "CANCEL":
            self.counters.transactions_refused += 1
            raise SipError("too many client transactions", status=503)
        transaction = ClientTransaction(request, flow, now + self.timers.timeout)
        if transaction.key in self._clients:
            raise SipError("this branch has been sent before", status=482)
        self._clients[transaction.key] = transaction
        self.counters.client_transactions += 1
        return transaction

    def _begin(self, transaction: Transaction, now: float) -> None:
        self._enlist(transaction)
        for action in transaction.machine.begin[0]:
            self._perform[action](transaction, transaction.request, now)

    def _enlist(self, transaction: Transaction) -> None:
        """Let the transaction hear of its flow."""
        destination = transaction.destination
        self._destinations.setdefault((destination.transport, destination.remote), {})[transaction] = None

    def _feed(
        self, transaction: Transaction, what: Input | TimerName, now: float, message: Request | Response | None = None
    ) -> None:
        if what is Input.REQUEST:
            self.counters.retransmissions_received += 1
        transition = transaction.machine.table.get((transaction.state, what))
        if transition is None:
            return
        actions, transaction.state = transition
        for action in actions:
            self._perform[action](transaction, message, now)

    def _actions(self) -> dict[Action | TimerName, Callable[[Any, Any, float], None]]:
        name, t2 = TimerName, self.timers.t2
        return {
            Action.SEND_REQUEST: self._send_request,
            Action.SEND_AGAIN: self._send_again,
            Action.SEND_RESPONSE: self._send_response,
            Action.SEND_TRYING: self._send_trying,
            Action.SEND_ACK: self._send_ack,
            Action.RESPONSE_TO_TU: self._response_to_tu,
            Action.ACK_TO_TU: self._ack_to_tu,
            Action.TIMEOUT_TO_TU: self._timeout_to_tu,
            Action.ERROR_TO_TU: self._error_to_tu,
            Action.DOUBLE_A: partial(self._double, name.A, inf),
            Action.DOUBLE_E: partial(self._double, name.E, t2),
            Action.DOUBLE_G: partial(self._double, name.G, t2),
            Action.SLOW_E: partial(self._slow_down, name.E),
            Action.STOP_A: self._stop_retransmission,
            Action.STOP_B: self._stop_ending,
            Action.STOP_E: self._stop_retransmission,
            Action.STOP_G: self._stop_retransmission,
            Action.RESTORE_F: self._restore_f,
            Action.END: self._end,
            **{timer: partial(self._start_retransmission, timer) for timer in (name.A, name.E, name.G)},
            **{timer: partial(self._start_absorbing, timer) for timer in (name.D, name.I, name.J, name.K)},
            **{timer: partial(self._start_ending, timer) for timer in (name.H, name.L, name.M, name.TRYING)},
            **{timer: partial(self._start_waiting, timer) for timer in (name.B, name.F)},
        }

    # The actions: each takes the transaction, the message of the input if it has one, and the time

    def _send_request(self, transaction: ClientTransaction, request: Request, _now: float) -> None:
        transaction.last_sent = request.render()
        self._outgoing.append((transaction.last_sent, transaction.destination))

    def _send_again(self, transaction: Transaction, _message: object, _now: float) -> None:
        if transaction.last_sent:
            self._outgoing.append((transaction.last_sent, transaction.destination))
            self.counters.retransmissions_sent += 1

    def _send_response(self, transaction: ServerTransaction, response: Response, _now: float) -> None:
        self.count(transaction.request.method, response.status)
        transaction.last_sent = response.render()
        transaction.note_to_tag(response)
        self._outgoing.append((transaction.last_sent, transaction.destination))

    def count(self, method: str, status: int, times: int = 1) -> None:
        """Count a response to a request, or several; those that were sent otherwise, too."""
        self.responses[method if method in METHODS else "other", status] += times

    def _send_trying(self, transaction: ServerTransaction, _message: object, now: float) -> None:
        self._send_response(transaction, response_to(transaction.request, 100), now)

    def _send_ack(self, transaction: ClientTransaction, response: Response, _now: float) -> None:
        # "The ACK MUST be sent to the same address, port, and transport to which the original request was sent."
        self._outgoing.append((ack_for(transaction.request, response).render(), transaction.destination))

    def _response_to_tu(self, transaction: ClientTransaction, response: Response, _now: float) -> None:
        self._events.append(ResponseReceived(transaction, response))

    def _ack_to_tu(self, transaction: ServerTransaction, ack: Request, _now: float) -> None:
        self._events.append(AckReceived(transaction, ack))

    def _timeout_to_tu(self, transaction: Transaction, _message: object, _now: float) -> None:
        self.counters.transactions_timed_out += 1
        self._events.append(TransactionTimedOut(transaction))

    def _error_to_tu(self, transaction: Transaction, _message: object, _now: float) -> None:
        self._tell(transaction, TransactionFailed(transaction))

    def _start_retransmission(self, name: TimerName, transaction: Transaction, _message: object, now: float) -> None:
        # "If a reliable transport is being used, the client transaction SHOULD NOT start timer A"; likewise E and G.
        if not transaction.destination.reliable:
            self._retransmit_after(self.timers.t1, name, transaction, now)

    def _double(self, name: TimerName, cap: float, transaction: Transaction, _message: object, now: float) -> None:
        self._retransmit_after(min(2 * transaction.interval, cap), name, transaction, now)

    def _slow_down(self, name: TimerName, transaction: Transaction, _message: object, now: float) -> None:
        self._retransmit_after(self.timers.t2, name, transaction, now)

    def _retransmit_after(self, interval: float, name: TimerName, transaction: Transaction, now: float) -> None:
        transaction.interval = interval
        transaction.retransmission = self._queue.start(now + interval, name, transaction)

    def _stop_retransmission(self, transaction: Transaction, _message: object, _now: float) -> None:
        if transaction.retransmission is not None:
            self._queue.stop(transaction.retransmission)
            transaction.retransmission = None
        transaction.last_sent = b""

    def _start_ending(self, name: TimerName, transaction: Transaction, _message: object, now: float) -> None:
        if name in _ABSORBING:
            transaction.rest()
        if transaction.ending is not None:
            self._queue.stop(transaction.ending)
        transaction.ending = self._queue.start_constant(name, transaction, now)

    def _start_absorbing(self, name: TimerName, transaction: Transaction, message: object, now: float) -> None:
        # D, I, J and K: "zero seconds for reliable transports"
        if transaction.destination.reliable:
            self._feed(transaction, name, now)
        else:
            self._start_ending(name, transaction, message, now)

    def _start_waiting(self, name: TimerName, transaction: ClientTransaction, message: object, now: float) -> None:
        if transaction.patience is None:
            self._start_ending(name, transaction, message, now)
        else:
            transaction.ending = self._queue.start(now + transaction.patience, name, transaction)

    def _end_at(self, transaction: Transaction, name: TimerName, when: float) -> None:
        self._stop_ending(transaction, None, when)
        transaction.ending = self._queue.start(when, name, transaction)

    def _restore_f(self, transaction: ClientTransaction, _message: object, _now: float) -> None:
        if transaction.ending is not None and transaction.ending.when < transaction.expires_at:
            self._end_at(transaction, TimerName.F, transaction.expires_at)

    def _stop_ending(self, transaction: Transaction, _message: object, _now: float) -> None:
        if transaction.ending is not None:
            self._queue.stop(transaction.ending)
            transaction.ending = None

    def _end(self, transaction: Transaction, message: object, now: float) -> None:
        self._stop_retransmission(transaction, message, now)
        self._stop_ending(transaction, message, now)
        if isinstance(transaction, ServerTransaction):
            del self._servers[transaction.key]
        else:
            del self._clients[transaction.key]
        place = transaction.destination.transport, transaction.destination.remote
        there = self._destinations[place]
        del there[transaction]
        if not there:
            del self._destinations[place]
        self._tell(transaction, TransactionEnded(transaction))

    def _tell(self, transaction: Transaction, event: TransactionFailed | TransactionEnded) -> None:
        # The server transaction of a CANCEL is the layer's own.
        if isinstance(transaction, ClientTransaction) or transaction.request.method != "CANCEL":
            self._events.append(event)
