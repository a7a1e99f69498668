"""Where a node listens: opened together, changed while it serves, closed at the end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from sipha.transport.address import Bind, bound_sockets
from sipha.transport.sockets import Hearing, Listener, Sockets
from sipha.transport.stream import StreamLimits, Streams
from sipha.transport.udp import UdpSocket

RETRY_IN_USE = 0.05
"""Seconds between attempts at an address that another process still has."""

ATTEMPTS_IN_USE = 20
"""After how many attempts the log says so: a process that has just lost an address needs a moment to close it."""

_NOBODY = Hearing(lambda _datagrams, _age, _fill: None, lambda _messages, _flow: None, lambda _flows: None)


class Listeners(Sockets):
    """The listeners of a node and the connections they have.

    `bind` gives them their sockets. A UDP listener that is closed while the others live on is read and sent from for
    `parting` seconds. `udp_changed` is called when `udp` has others than before.
    """

    log: ClassVar = Logger()

    def __init__(
        self,
        reactor: Any,
        listeners: Iterable[Listener],
        *,
        bind: Bind = bound_sockets,
        receive_buffer: int = 16 << 20,
        limits: StreamLimits | None = None,
        parting: float = 300.0,
        udp_changed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._listeners = tuple(listeners)
        self._bind = bind
        self._receive_buffer = receive_buffer
        self._limits = limits or StreamLimits()
        self._parting = parting
        self._udp_changed = udp_changed
        self._hearing = _NOBODY
        self._addresses: list[Listener] = []
        self._former: dict[Listener, IDelayedCall | None] = {}  # until when those over UDP are still read
        self._starting: Deferred[bool] | None = None
        self._retry: IDelayedCall | None = None

    def open(self, hearing: Hearing) -> Deferred[bool]:
        """Open all; fires with True once they are open, with False if closed first.

        An address in use is tried again until it is free. Another error closes what is open and fails with OSError.
        """
        self._hearing = hearing
        starting: Deferred[bool] = Deferred()
        self._starting = starting
        self._open_all(list(self._listeners))
        return starting

    def close(self) -> Deferred[None]:
        """Close all, and abort the connections; fires when all of it is gone."""
        for call in (self._retry, *self._former.values()):
            if call is not None and call.active():
                call.cancel()
        self._retry = None
        for udp in self._udp.values():
            udp.close()
        waiting = [streams.stop() for streams in self._streams.values()]
        self._udp, self._streams, self._addresses, self._former, self._own = {}, {}, [], {}, {}
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.callback(False)
        return gatherResults(waiting).addCallback(lambda _: None)

    def listen(self, listeners: Iterable[Listener]) -> None:
        """Open those of the listeners that aren't open; raises OSError, and then none of them is."""
        wanted = tuple(listeners)
        if self._starting is not None:
            if wanted != self._listeners:
                raise OSError(errno.EAGAIN, "those before are still being opened")
            return
        before = set(self._udp)
        missing = [listener for listener in wanted if listener not in self._addresses]
        opened: list[Listener] = []
        try:
            for listener in missing:
                if not self._reopen(listener):
                    self._open_one(listener)
                    self._start_reading(listener)
                opened.append(listener)
        except OSError:
            self._retire(opened)
            raise
        finally:
            if self._udp.keys() != before:
                self._udp_changed()

    def retire(self, keep: Collection[Listener]) -> None:
        """Close all listeners but these.

        Connections that were accepted live on. What comes over UDP is still read for some time, so that what is under
        way can end, and an address that was ours still means us: phones have it in their Routes.
        """
        self._retire([listener for listener in self._addresses if listener not in keep])

    def limit(self, receive_buffer: int, limits: StreamLimits) -> None:
        """Let sockets and connections cost no more than this from now on."""
        self._receive_buffer, self._limits = receive_buffer, limits
        for udp in self._udp.values():
            udp.size_receive_buffer(receive_buffer)
        for streams in self._streams.values():
            streams.limit(limits)

    @property
    def addresses(self) -> Sequence[Listener]:
        """Where we listen, with the ports that the kernel chose; nowhere before all listeners are open."""
        return () if self._starting is not None else tuple(self._addresses)

    @property
    def udp(self) -> Sequence[UdpSocket]:
        """The sockets that are read for UDP, in the order in which they are used."""
        return tuple(self._udp.values())

    @property
    def connections(self) -> int:
        """How many connections of streams there are, those being opened included."""
        return sum(streams.connections for streams in self._streams.values())

    def _open_all(self, remaining: list[Listener]) -> None:
        self._retry = None
        while remaining:
            try:
                self._open_one(remaining[0])
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    self.counters["in-use"] += 1
                    if self.counters["in-use"] == ATTEMPTS_IN_USE:
                        self.log.warn("{address} is still in use; trying again", address=remaining[0])  # noqa: G010
                    self._retry = self._reactor.callLater(RETRY_IN_USE, self._open_all, remaining)
                    return
                starting, self._starting = self._starting, None
                self.close()
                if starting is not None:
                    starting.errback(error)
                return
            del remaining[0]
        for udp in self._udp.values():
            udp.start()
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.callback(True)

    def _open_one(self, listener: Listener) -> None:
        address = (listener.host, listener.port)
        if listener.transport == "UDP":
            udp = UdpSocket(
                self._reactor,
                address,
                self._hearing.datagrams,
                self._hearing.failed,
                self.counters,
                bind=self._bind,
                receive_buffer=self._receive_buffer,
            )
            self._udp[udp.address] = udp
            opened = udp.address
        else:
            streams = self._streams.get(listener.transport)
            if streams is None:
                streams = self._streams[listener.transport] = Streams(
                    self._reactor,
                    listener.transport,
                    self._hearing.messages,
                    self._hearing.failed,
                    counters=self.counters,
                    limits=self._limits,
                )
            opened = streams.listen(address, self._bind)
        own = Listener(listener.transport, *opened)
        self._former.pop(own, None)
        self._addresses.append(own)
        self._note_own(own)

    def _start_reading(self, listener: Listener) -> None:
        if listener.transport == "UDP":
            self._udp[listener.host, listener.port].start()

    def _reopen(self, listener: Listener) -> bool:
        """Go on with a listener that was closed but is still read."""
        parting = self._former.get(listener)
        if parting is None:
            return False
        parting.cancel()
        del self._former[listener]
        self._addresses.append(listener)
        return True

    def _retire(self, listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            address = (listener.host, listener.port)
            self._addresses.remove(listener)
            if listener.transport == "UDP":
                self._udp[address] = self._udp.pop(address)  # last: what begins now is sent from another
                self._former[listener] = self._reactor.callLater(self._parting, self._part, listener)
            else:
                self._streams[listener.transport].retire(address)
                self._former[listener] = None
        if any(listener.transport == "UDP" for listener in listeners):
            self._udp_changed()

    def _part(self, listener: Listener) -> None:
        self._former[listener] = None
        self._udp.pop((listener.host, listener.port)).close()
        self._udp_changed()
