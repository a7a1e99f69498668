"""The sockets that messages leave by, and which addresses are ours."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred, succeed

from sipha.sip.flow import Address, Flow
from sipha.transport.address import canonical, family
from sipha.transport.connection import Received
from sipha.transport.stream import Streams
from sipha.transport.udp import UdpSocket


class Listener(NamedTuple):
    """Where to listen: the transport as in a Via, an IP literal without brackets, and a port."""

    transport: str
    host: str
    port: int


class Hearing(NamedTuple):
    """Who is told what comes: datagrams with their age and how full the buffer is, messages of a stream, dead flows."""

    datagrams: Callable[[list[tuple[bytes, Flow]], float, float], None]
    messages: Callable[[list[Received], Flow], None]
    failed: Callable[[list[Flow]], None]


class Sockets:
    """UDP sockets that somebody else reads, once they are lent by `borrow`.

    `counters` counts by reason what was dropped or failed. `mark` is what our Vias bear besides.
    """

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        self.counters: Counter[str] = Counter()
        self._udp: dict[Address, UdpSocket] = {}
        self._streams: dict[str, Streams] = {}
        self._own: dict[Address, set[str]] = {}  # the transports at each address that means us

    def borrow(self, sockets: Iterable[UdpSocket], listeners: Iterable[Listener]) -> None:
        """Send by these; it is at `listeners` that we are heard."""
        self._udp = {udp.address: udp for udp in sockets}
        for listener in listeners:
            self._note_own(listener)

    def open(self, hearing: Hearing) -> Deferred[bool]:  # noqa: ARG002  what comes is read elsewhere
        """Have what comes told; fires with True once all is open, with False if it was closed before."""
        return succeed(True)

    def close(self) -> Deferred[None]:
        """Have nothing told any more, and send nothing; fires when all is closed."""
        self._udp, self._own = {}, {}
        return succeed(None)

    @property
    def dropped(self) -> int:
        """How many datagrams have come and were dropped by the kernel, for want of room."""
        return sum([udp.dropped for udp in self._udp.values()])

    @property
    def own(self) -> Sequence[Listener]:
        """What means us: where we listen, and where we have done so."""
        return tuple(Listener(name, *address) for address, names in self._own.items() for name in names)

    def _note_own(self, listener: Listener) -> None:
        self._own.setdefault((canonical(listener.host), listener.port), set()).add(listener.transport)

    def flow(self, transport: str, remote: Address) -> Flow | None:
        """The flow to an address: its connection, else one to be opened; None if no listener has its kind."""
        if transport == "UDP":
            for local in self._udp:
                if family(local[0]) is family(remote[0]):
                    return Flow("UDP", local, remote)
            return None
        streams = self._streams.get(transport)
        return None if streams is None else streams.flow(remote)

    def sent_by(self, flow: Flow) -> str:
        """The `host:port` of the listener behind a flow, as in a Via."""
        host, port = flow.local
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def is_local(self, host: str, port: int, transport: str | None = None) -> bool:
        """True if we listen at an address, or have done so, for one transport or for any."""
        transports = self._own.get((canonical(host), port))
        return transports is not None and (transport is None or transport in transports)

    def udp_of(self, flow: Flow) -> UdpSocket | None:
        """The UDP socket that a flow goes by; None if it goes by a connection, or by what we don't have any more."""
        return self._udp.get(flow.local) if flow.transport == "UDP" else None

    def send(self, data: bytes, flow: Flow) -> int:
        """Send, and return 0, or the errno why it was not sent."""
        transport, local, remote, _ = flow
        if transport == "UDP":
            udp = self._udp.get(local)
            if udp is not None:
                return udp.send(data, remote)
        else:
            streams = self._streams.get(transport)
            if streams is not None and streams.send(data, flow):
                return 0
        self.counters["unsent"] += 1
        return errno.ENOTCONN
