"""UDP: a socket drained in bounded turns, whose ICMP errors name the flow that failed (RFC 3261 §18.4)."""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from collections.abc import Callable
from fcntl import ioctl
from struct import Struct
from typing import ClassVar, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements

from sipha.sip.flow import Address, Flow
from sipha.transport.address import Bind, bound_sockets, flow_address, giving, socket_address

DATAGRAMS_PER_WAKE = 128
"""How many datagrams are taken before the reactor gets its turn."""

BYTES_PER_WAKE = 65536
"""With the datagram that completes as many bytes the turn ends too: parsing takes time by the byte, and a turn must
stay far shorter than the lease."""

RUSH, RUSH_AGE, RUSH_OTHERS = 4, 0.1, 32
"""Once datagrams have waited for so many seconds up to so many times as much is taken in a turn, until as many of them
aren't REGISTERs: such a load can't afford what each turn takes by itself, and a call takes ten times as long."""

TRANSIENT = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE})
"""Send errors that say nothing of the destination: the datagram is lost, the flow is not."""

_MAX_DATAGRAM = 65535
_MAX_STALE = 65536
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_MEMORY = Struct("=9I")  # linux/sock_diag.h: the first two are what is taken of the receive buffer, the last are drops
_SIOCGSTAMPNS = 0x8907
_TIMESPEC = Struct("@ll")
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_EXTENDED_ERROR = Struct("=IBBBxII")  # struct sock_extended_err: errno, origin, type, code, info, data
_ORIGIN_ICMP = 2
_ORIGIN_ICMP6 = 3
# RFC 3261 §18.4: "Host, network, port or protocol unreachable errors, or parameter problem errors SHOULD cause the
# transport layer to inform the transport user of a failure in sending. Source quench and TTL exceeded ICMP errors
# SHOULD be ignored." (origin, ICMP type)
_UNREACHABLE = frozenset({(_ORIGIN_ICMP, 3), (_ORIGIN_ICMP, 12), (_ORIGIN_ICMP6, 1), (_ORIGIN_ICMP6, 4)})


class Reactor(Protocol):
    """What a UDP socket needs of the reactor."""

    def addReader(self, reader: IReadDescriptor) -> object:
        """See IReactorFDSet."""

    def removeReader(self, reader: IReadDescriptor) -> object:
        """See IReactorFDSet."""

    def callLater(self, delay: float, call: Callable[[], object], /) -> IDelayedCall:
        """See IReactorTime."""


class UdpSocket:
    """One bound UDP socket: `received` gets the datagrams of each wake-up, `failed` the flows that ICMP says are dead.

    It is bound at once and read from `start` on; what arrived in between is stale and dropped. Raises OSError if
    the address can't be bound. `receive_buffer` is the kernel's, in bytes; None leaves it as it is. If more is to be
    read, `received` is told with the datagrams how old the last of them was, in seconds, and which share of that buffer
    is taken; else twice 0. `shares` are this one, and the others at its address if `bind` gives several: what is done
    with this one is done with them, too, but for sending, and where it says so.
    """

    log: ClassVar = Logger()

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        received: Callable[[list[tuple[bytes, Flow]], float, float], None],
        failed: Callable[[list[Flow]], None],
        counters: Counter[str],
        *,
        bind: Bind = bound_sockets,
        receive_buffer: int | None = 8 << 20,
    ) -> None:
        self._reactor = reactor
        self._received = received
        self._failed = failed
        self._counters = counters
        self._dead: list[Flow] = []
        self._socket, *others = bind(socket.SOCK_DGRAM, address)
        self._family = self._socket.family
        self._open = True
        self._reading = False
        self._late = False
        self._others = [
            UdpSocket(reactor, address, received, failed, counters, bind=giving(other), receive_buffer=receive_buffer)
            for other in others
        ]
        self.shares = (self, *self._others)
        if self._family is socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        if receive_buffer is not None:
            self.size_receive_buffer(receive_buffer)
        self.address: Address = (address[0], self._socket.getsockname()[1])

    def start(self) -> None:
        """Drop what has queued since the socket was bound, then read."""
        self._drop_stale()
        self.read()
        for other in self._others:
            other.start()

    def read(self) -> None:
        """Read this one of the shares."""
        if self._open and not self._reading:
            self._reading = True
            self._age()  # from the first question on the kernel notes when datagrams come
            self._reactor.addReader(self)

    def rest(self) -> None:
        """Leave this one of the shares to another process."""
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    def _drop_stale(self) -> None:
        buffer = bytearray(1)
        for _ in range(_MAX_STALE):
            try:
                self._socket.recv_into(buffer)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error that was pending, reported once
            self._counters["udp-stale"] += 1

    def close(self) -> None:
        """Stop reading and release the address."""
        if self._open:
            self.rest()
            self._open = False
            self._socket.close()
        for other in self._others:
            other.close()

    def send(self, data: bytes, remote: Address) -> int:
        """Send one datagram; return 0, or the errno why it was not sent. An errno in TRANSIENT condemns no flow."""
        try:
            self._socket.sendto(data, socket_address(remote, self._family))
        except (OSError, OverflowError, ValueError) as error:
            return self._send_again(data, remote, _number(error))
        return 0

    def send_many(
        self,
        messages: list[tuple[bytes, Flow]],
        place: int,
        until: float,
        clock: Callable[[], float],
        together: int,
    ) -> int:
        """Send from a place on those that go by this socket, as far as nothing is amiss, `until` then by the clock.

        Return the place of the first that wasn't sent so, for whatever reason: it is for `send`. The clock is read
        before each call of the kernel, by which so many may be sent together.
        """
        return _send_many(self._socket, self.address, messages, place, until, clock, together)

    def _send_again(self, data: bytes, remote: Address, error: int) -> int:
        """Send once more what the kernel has not sent because it had an ICMP error of an earlier datagram to report.

        Who has the same socket, daemon or worker, may have read of it by now.
        """
        if error not in TRANSIENT:
            if self._read_errors():
                self._reactor.callLater(0, self._report)
            try:
                self._socket.sendto(data, socket_address(remote, self._family))
            except (OSError, OverflowError, ValueError) as again:
                error = _number(again)
            else:
                return 0
        self._counters["udp-send-" + errno.errorcode.get(error, str(error))] += 1
        return error

    def size_receive_buffer(self, size: int) -> None:
        """Let the kernel's buffer have this many bytes, or as many as it allows, which the log then says."""
        for other in self._others:
            other.size_receive_buffer(size)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        given = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # it says twice what it was told
        if given < size:
            self.log.warn(  # noqa: G010  Twisted's
                "{host} has a receive buffer of {given} bytes, not {size}: raise net.core.rmem_max, or write less in "
                "sip.receive_buffer",
                host=self._socket.getsockname()[0],
                given=given,
                size=size,
            )

    @property
    def dropped(self) -> int:
        """How many datagrams the kernel has dropped, for want of room, since the socket was made."""
        return self._memory()[-1] + sum([other.dropped for other in self._others])

    def fileno(self) -> int:
        """See IReadDescriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "udp"

    def doRead(self) -> None:
        """Take DATAGRAMS_PER_WAKE datagrams or BYTES_PER_WAKE, and hand them over together (IReadDescriptor)."""
        datagrams, more = self._take()
        for _ in range(1, RUSH if self._late else 1):
            if not more or sum([not data.startswith(b"REGISTER ") for data, _ in datagrams]) >= RUSH_OTHERS:
                break
            further, more = self._take()
            datagrams += further
        age = fill = 0.0
        if more and datagrams:
            taken, room, *_ = self._memory()
            age, fill = self._age() if taken else 0.0, taken / room
        self._late = age > RUSH_AGE
        if datagrams:
            self._received(datagrams, age, fill)
        self._report()

    def _take(self) -> tuple[list[tuple[bytes, Flow]], bool]:
        """Take what a turn may take; False with it if no more waits."""
        datagrams: list[tuple[bytes, Flow]] = []
        error, left = 0, BYTES_PER_WAKE
        for _ in range(DATAGRAMS_PER_WAKE):
            error, left = _drain(self._socket, self.address, datagrams, DATAGRAMS_PER_WAKE, left)
            if error in {0, errno.EAGAIN}:
                break
            self._read_errors()
        return datagrams, error != errno.EAGAIN

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - always the same
        """Read the error queue: Twisted takes its EPOLLERR for a lost connection (IReadDescriptor)."""
        if self._reading:
            self._read_errors()
            self._reactor.addReader(self)
            self._report()

    def _memory(self) -> tuple[int, ...]:
        return _MEMORY.unpack(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMORY.size))

    def _age(self) -> float:
        """For how many seconds the datagram that was read last had waited.

        The kernel's stamp is wall time. Should that jump, what waits at this moment seems older or younger than it is.
        """
        try:
            seconds, nanoseconds = _TIMESPEC.unpack(ioctl(self._socket, _SIOCGSTAMPNS, bytes(_TIMESPEC.size)))
        except OSError:
            return 0.0  # none was read since the kernel notes it
        age: float = time.time() - seconds - nanoseconds / 1e9
        return max(age, 0.0)

    def _read_errors(self) -> bool:
        """Read the error queue (ip(7), IP_RECVERR); True if there was anything in it."""
        found = False
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                _, ancillary, _, peer = self._socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            except OSError:
                break
            found = True
            for _, _, data in ancillary:
                _, origin, kind, code, _, _ = _EXTENDED_ERROR.unpack_from(data)
                self._counters["udp-icmp"] += 1
                # "Fragmentation needed" is the kernel's business: it learns the path's MTU and fragments.
                if (origin, kind) in _UNREACHABLE and not (origin == _ORIGIN_ICMP and kind == 3 and code == 4):
                    remote = peer if len(peer) == 2 else flow_address(peer[0], peer[1], peer[3])
                    self._dead.append(Flow("UDP", self.address, remote))
        return found

    def _report(self) -> None:
        if self._dead:
            dead, self._dead = self._dead, []
            self._failed(dead)


def _number(error: Exception) -> int:
    """The errno of what was raised; no such port, and a host that is no literal of this family, have none."""
    return (isinstance(error, OSError) and error.errno) or errno.EINVAL


classImplements(UdpSocket, IReadDescriptor)


def drain_by_calls(
    source: socket.socket, local: Address, datagrams: list[tuple[bytes, Flow]], most: int, left: int
) -> tuple[int, int]:
    """Take datagrams from a socket until there are `most`, or no bytes are `left`; an error ends it, too.

    Return its number, or 0, and how many bytes are left.
    """
    while len(datagrams) < most and left > 0:
        try:
            data, peer = source.recvfrom(_MAX_DATAGRAM)
        except OSError as error:
            return error.errno or errno.EINVAL, left
        remote = peer if len(peer) == 2 else flow_address(peer[0], peer[1], peer[3])
        datagrams.append((data, Flow("UDP", local, remote)))
        left -= len(data)
    return 0, left


def send_by_calls(  # noqa: PLR0917  what a kernel takes
    source: socket.socket,
    local: Address,
    messages: list[tuple[bytes, Flow]],
    place: int,
    until: float,
    clock: Callable[[], float],
    _together: int,
) -> int:
    """Send messages from a place on, until one of them can't be sent just so; return the place of that one."""
    family = source.family
    for at in range(place, len(messages)):
        data, (transport, own, remote, _) = messages[at]
        if transport != "UDP" or own != local or clock() >= until:
            return at
        try:
            socket.inet_pton(family, remote[0])  # else Python would ask the DNS, and block
            source.sendto(data, remote)
        except (OSError, OverflowError, ValueError, TypeError):
            return at
    return max(place, len(messages))


def _by_the_hundred() -> tuple[
    Callable[[socket.socket, Address, list[tuple[bytes, Flow]], int, int], tuple[int, int]],
    Callable[[socket.socket, Address, list[tuple[bytes, Flow]], int, float, Callable[[], float], int], int],
]:
    try:
        from sipha.transport import _udp  # noqa: PLC0415  if it has been built
    except ImportError:
        return drain_by_calls, send_by_calls
    return _udp.drainer(Flow), _udp.send_many


_drain, _send_many = _by_the_hundred()
