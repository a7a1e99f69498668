"""Stream transports: the connections of a listener, those we open, and the limits on both (RFC 3261 §18).

TLS is TCP behind another factory: `Streams` is made per transport, and only `listen` and `_connect` touch sockets.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IListeningPort,
)
from twisted.internet.protocol import ClientFactory, Factory
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from sipha.sip.flow import Address, Flow
from sipha.transport.address import Bind, bound_sockets, family, flow_address, socket_address
from sipha.transport.connection import Connection, Received

TURN = 0.02
"""Seconds of one turn of the reactor for what connections bring, far less than the lease; the rest waits."""

_BACKLOG = 1024
_numbers: Iterator[int] = count(1)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What connections may cost: counts, bytes, and seconds.

    `first_message` is how long an accepted connection may take to its first whole message, `message` how long any
    message may take from its first byte to its last, `idle` how long a connection may be silent. `write_buffer` is
    what a peer that doesn't read may leave waiting, `stalled` for how long. `linger` is what a connection that is
    being closed has to flush.
    """

    connections: int = 10000
    connect: float = 5.0
    first_message: float = 30.0
    message: float = 10.0
    idle: float = 3600.0
    write_buffer: int = 256 << 10
    stalled: float = 10.0
    linger: float = 5.0
    max_message: int = 65536


class Streams:
    """The listeners and connections of one stream transport, indexed by number and by remote address (§18).

    `received` gets what one read completed, `failed` the flows that are gone.
    """

    def __init__(
        self,
        reactor: Any,
        transport: str,
        received: Callable[[list[Received], Flow], None],
        failed: Callable[[list[Flow]], None],
        *,
        counters: Counter[str],
        limits: StreamLimits,
    ) -> None:
        self.limits = limits
        self._reactor = reactor
        self._name = transport
        self._received = received
        self._failed = failed
        self._counters = counters
        self._prefix = transport.lower()
        self._ports: dict[Address, IListeningPort] = {}
        self._connectors: dict[Connection, IConnector] = {}
        self._by_number: dict[int, Connection] = {}
        self._by_remote: dict[Address, Connection] = {}
        self._silent = _Deadlines(limits.first_message)
        self._unfinished = _Deadlines(limits.message)
        self._idle = _Deadlines(limits.idle)
        self._stalled = _Deadlines(limits.stalled)
        self._lingering = _Deadlines(limits.linger)
        self._due: dict[Connection, None] = {}  # what they have brought waits for a later turn, in this order
        self._turn_ends: float | None = None
        self._sweep = LoopingCall(self._drop_overdue)
        self._sweep.clock = reactor
        self._stopped: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many connections there are, those being opened included."""
        return len(self._by_number)

    def listen(self, address: Address, bind: Bind = bound_sockets) -> Address:
        """Accept connections at an address and return it with its port; raises OSError if it can't be bound."""
        [bound] = bind(socket.SOCK_STREAM, address)
        try:
            bound.listen(_BACKLOG)
            local: Address = (address[0], bound.getsockname()[1])
            self._ports[local] = self._reactor.adoptStreamPort(bound.fileno(), bound.family, _Accepted(self, local))
        finally:
            bound.close()  # the reactor has its own duplicate
        if not self._sweep.running:
            self._sweep.start(1.0, now=False)
        return local

    def retire(self, local: Address) -> None:
        """Accept no more connections at an address; those that there are live on."""
        maybeDeferred(self._ports.pop(local).stopListening)

    def limit(self, limits: StreamLimits) -> None:
        """Let connections cost no more than this from now on; those that there are keep their `max_message`."""
        self.limits = limits
        self._silent.limit = limits.first_message
        self._unfinished.limit = limits.message
        self._idle.limit = limits.idle
        self._stalled.limit = limits.stalled
        self._lingering.limit = limits.linger

    def stop(self) -> Deferred[None]:
        """Close the listeners and abort all connections; fires when all are gone. No flow is reported as failed."""
        if self._stopped is None:
            self._stopped = Deferred()
            ports, self._ports = self._ports, {}
            for port in ports.values():
                maybeDeferred(port.stopListening)
            if self._sweep.running:
                self._sweep.stop()
            for connection in list(self._by_number.values()):
                self._abort(connection)
            self._reactor.callLater(0, self._finish)
        return self._stopped

    def flow(self, remote: Address) -> Flow | None:
        """The flow of the connection to an address, else one to be opened; None without a listener of its family."""
        connection = self._by_remote.get(remote)
        if connection is not None:
            return connection.flow
        for local in self._ports:
            if family(local[0]) is family(remote[0]):
                return Flow(self._name, local, remote)
        return None

    def send(self, data: bytes, flow: Flow) -> bool:
        """Send on a flow's connection, opened if there is none yet; False if the connection is gone.

        What waits for a connection to open is lost if it does not open, and then the flow is reported as failed.
        """
        connection = self._by_number.get(flow.connection) if flow.connection else self._by_remote.get(flow.remote)
        if connection is None:
            if flow.connection or flow.local not in self._ports:
                return False
            connection = self._connect(flow)
            if connection is None:
                return False
        return connection.write(data)

    def accept(self, local: Address, remote: Address) -> Connection | None:
        """A protocol for a connection that was accepted; None if there are too many."""
        if len(self._by_number) >= self.limits.connections or self._stopped is not None:
            self._counters[self._prefix + "-refused"] += 1
            return None
        connection = self._add(local, remote)
        self._silent.start(connection, self._reactor.seconds())
        return connection

    def opened(self, connection: Connection) -> None:
        """A connection is open."""
        self._connectors.pop(connection, None)
        if connection not in self._silent:
            self._idle.start(connection, self._reactor.seconds())

    def unopened(self, connection: Connection) -> None:
        """A connection could not be opened."""
        self._counters[self._prefix + "-connect"] += 1
        self.lost(connection)

    def fed(self, connection: Connection) -> None:
        """Let a connection deliver what it has read, at once or when its turn comes; until then it reads no more."""
        if connection not in self._due and self._has_time():
            connection.deliver()
        else:
            self._due[connection] = None
            connection.pause_reading()

    def is_due(self, connection: Connection) -> bool:
        """True while a connection waits for its turn."""
        return connection in self._due

    def received(self, connection: Connection, received: list[Received], *, partial: bool) -> None:
        """Note when the connection was last heard, and hand over what it brought."""
        now = self._reactor.seconds()
        if received:
            self._silent.stop(connection)
        if connection not in self._silent:
            self._idle.start(connection, now)
        if not partial:
            self._unfinished.stop(connection)
        elif received or connection not in self._unfinished:
            self._unfinished.start(connection, now)
        if received:
            self._received(received, connection.flow)

    def congested(self, connection: Connection) -> None:
        """A connection's peer doesn't read."""
        self._stalled.start(connection, self._reactor.seconds())

    def relieved(self, connection: Connection) -> None:
        """A connection's peer reads again."""
        self._stalled.stop(connection)

    def closing(self, connection: Connection) -> None:
        """A connection is being closed from our side."""
        self._lingering.start(connection, self._reactor.seconds())
        self._fail(connection)

    def ended(self, connection: Connection) -> None:
        """A connection brings nothing more: no response can come on it, but those it waits for may go."""
        self._unfinished.stop(connection)
        self._silent.stop(connection)
        self._lingering.start(connection, self._reactor.seconds())
        self._fail(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._forget(connection)
        self._fail(connection)
        self._finish()

    def drop(self, connection: Connection, why: str) -> None:
        """Abort a connection that is beyond a limit."""
        self._counters[f"{self._prefix}-{why}"] += 1
        self._abort(connection)

    def _has_time(self) -> bool:
        now = self._reactor.seconds()
        if self._turn_ends is None:
            self._turn_ends = now + TURN
            self._reactor.callLater(0, self._next_turn)
        return bool(now < self._turn_ends)

    def _next_turn(self) -> None:
        self._turn_ends = None
        while self._due and self._has_time():
            connection = next(iter(self._due))
            del self._due[connection]
            if not connection.closing:
                connection.deliver()
                connection.resume_reading()

    def _connect(self, flow: Flow) -> Connection | None:
        if not _is_reachable(flow):
            return None
        if len(self._by_number) >= self.limits.connections:
            self._counters[self._prefix + "-refused"] += 1
            return None
        connection = self._add(flow.local, flow.remote)
        # The connection comes from the listener's address, so that it is the virtual one; the port is any.
        self._connectors[connection] = self._reactor.connectTCP(
            flow.remote[0],
            flow.remote[1],
            _Opened(self, connection),
            timeout=self.limits.connect,
            bindAddress=(flow.local[0], 0),
        )
        return connection

    def _add(self, local: Address, remote: Address) -> Connection:
        number = next(_numbers)
        connection = Connection(self, Flow(self._name, local, remote, number), self.limits.max_message)
        self._by_number[number] = self._by_remote[remote] = connection
        return connection

    def _fail(self, connection: Connection) -> None:
        """Report the flow of a connection that is of no more use for requests, once."""
        if connection.failed:
            return
        connection.failed = True
        if self._by_remote.get(connection.flow.remote) is connection:
            del self._by_remote[connection.flow.remote]
        if self._stopped is None:
            self._failed([connection.flow])

    def _abort(self, connection: Connection) -> None:
        connector = self._connectors.get(connection)
        if connector is None:
            connection.abort()
        else:
            connection.closing = True
            connector.stopConnecting()

    def _forget(self, connection: Connection) -> None:
        self._by_number.pop(connection.flow.connection, None)
        self._connectors.pop(connection, None)
        self._due.pop(connection, None)
        for deadlines in (self._silent, self._unfinished, self._idle, self._stalled, self._lingering):
            deadlines.stop(connection)

    def _finish(self) -> None:
        if self._stopped is not None and not self._by_number and not self._stopped.called:
            self._stopped.callback(None)

    def _drop_overdue(self) -> None:
        now = self._reactor.seconds()
        for why, deadlines in (
            ("silent", self._silent),
            ("unfinished", self._unfinished),
            ("stalled", self._stalled),
            ("idle", self._idle),
            ("lingering", self._lingering),
        ):
            for connection in deadlines.due(now):
                self.drop(connection, why)


class _Deadlines:
    """Connections in the order in which one constant time limit (in seconds) strikes them."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._since: dict[Connection, float] = {}

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._since

    def start(self, connection: Connection, now: float) -> None:
        """Count from now."""
        self._since.pop(connection, None)
        self._since[connection] = now

    def stop(self, connection: Connection) -> None:
        """Count no more."""
        self._since.pop(connection, None)

    def due(self, now: float) -> list[Connection]:
        """Take out those whose time is up."""
        due = []
        for connection, since in self._since.items():
            if now - since < self.limit:
                break
            due.append(connection)
        for connection in due:
            del self._since[connection]
        return due


class _Accepted(Factory):
    """Makes the protocols of one listener's connections."""

    noisy = False

    def __init__(self, streams: Streams, local: Address) -> None:
        self._streams = streams
        self._local = local

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "SIP listener"

    def buildProtocol(self, addr: IAddress | None) -> Connection | None:
        """See IProtocolFactory."""
        return self._streams.accept(self._local, _remote(addr))


class _Opened(ClientFactory):
    """Hands an outgoing connection its transport."""

    noisy = False

    def __init__(self, streams: Streams, connection: Connection) -> None:
        self._streams = streams
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Connection:  # noqa: ARG002 - it was made for this address
        """See IProtocolFactory."""
        return self._connection

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:  # noqa: ARG002
        """See IClientFactory."""
        self._streams.unopened(self._connection)


def _is_reachable(flow: Flow) -> bool:
    """True if the remote address is a literal of the listener's family: nothing here asks the DNS."""
    try:
        socket_address(flow.remote, family(flow.local[0]))
    except OSError:
        return False
    return 0 < flow.remote[1] < 65536


def _remote(address: Any) -> Address:
    return flow_address(address.host, address.port, getattr(address, "scopeID", 0))
