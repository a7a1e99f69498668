from __future__ import annotations

import errno
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
from twisted.internet import reactor
from twisted.internet.defer import DeferredQueue
from twisted.trial.unittest import TestCase

from sipha.sip.flow import Address, Flow
from sipha.transport import udp as udp_module
from sipha.transport.address import Bind, bound_sockets
from sipha.transport.udp import (
    BYTES_PER_WAKE,
    DATAGRAMS_PER_WAKE,
    RUSH,
    RUSH_AGE,
    RUSH_OTHERS,
    UdpSocket,
    drain_by_calls,
    send_by_calls,
)
from tests.kernels import kernel


class StillReactor:
    """A reactor in which nothing happens by itself."""

    def __init__(self) -> None:
        self.readers: list[object] = []
        self.calls: list[Callable[[], object]] = []

    def addReader(self, reader: object) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: object) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def callLater(self, delay: float, call: Callable[[], object]) -> None:
        self.calls.append(call)


class UdpSocketTests(TestCase):
    host = "127.0.0.1"
    timeout = 10
    family = socket.AF_INET

    def setUp(self) -> None:
        self.counters: Counter[str] = Counter()
        self.datagrams: DeferredQueue[list[tuple[bytes, Flow]]] = DeferredQueue()
        self.waiting: list[tuple[float, float]] = []
        self.failures: DeferredQueue[list[Flow]] = DeferredQueue()
        self.udp = self.udp_socket(reactor)
        self.phone = self.raw_socket()

    def udp_socket(self, on: object, host: str | None = None, bind: Bind = bound_sockets) -> UdpSocket:
        made = UdpSocket(
            on,  # type: ignore[arg-type]
            (host or self.host, 0),
            self.received,
            self.failures.put,
            self.counters,
            bind=bind,
        )
        self.addCleanup(made.close)
        return made

    def received(self, datagrams: list[tuple[bytes, Flow]], age: float, fill: float) -> None:
        self.datagrams.put(datagrams)
        self.waiting.append((age, fill))

    def raw_socket(self) -> socket.socket:
        made = socket.socket(self.family, socket.SOCK_DGRAM)
        made.bind((self.host, 0))
        made.settimeout(5)
        self.addCleanup(made.close)
        return made

    @property
    def phone_address(self) -> Address:
        host, port = self.phone.getsockname()[:2]
        return host, port

    def unused_address(self) -> Address:
        with socket.socket(self.family, socket.SOCK_DGRAM) as gone:
            gone.bind((self.host, 0))
            return self.host, gone.getsockname()[1]

    def test_socket_tells_what_still_waits(self) -> None:
        udp = self.udp_socket(StillReactor())
        udp.start()
        time.sleep(0.05)  # the kernel begins to note times when it has a moment
        for _ in range(3 * DATAGRAMS_PER_WAKE - 1):
            self.phone.sendto(bytes(500), udp.address)
        sent = time.monotonic()
        time.sleep(0.05)
        for _ in range(3):
            udp.doRead()
        passed = time.monotonic() - sent
        (first, second), (third, fourth), last = self.waiting
        assert all(0.05 <= age <= passed + 0.05 for age in (first, third))
        assert all(0.0 < fill < 1.0 for fill in (second, fourth))
        assert last == (0.0, 0.0)

    async def test_socket_hands_over_datagrams_with_their_flow(self) -> None:
        self.udp.start()
        self.phone.sendto(b"one", self.udp.address)
        [received] = await self.datagrams.get()
        assert received == (b"one", Flow("UDP", self.udp.address, self.phone_address))
        assert self.udp.send(b"two", received[1].remote) == 0
        assert self.phone.recvfrom(100)[0] == b"two"

    async def test_socket_reports_the_flow_of_an_icmp_error_and_reads_on(self) -> None:
        self.udp.start()
        nobody = self.unused_address()
        assert self.udp.send(b"anybody?", nobody) == 0
        assert await self.failures.get() == [Flow("UDP", self.udp.address, nobody)]
        self.phone.sendto(b"I am", self.udp.address)
        [(data, _)] = await self.datagrams.get()
        assert data == b"I am"
        assert self.counters["udp-icmp"] == 1

    def test_socket_counts_what_the_kernel_drops_for_want_of_room(self) -> None:
        crowded = self.udp_socket(StillReactor())
        crowded._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        assert crowded.dropped == 0
        for _ in range(50):
            self.phone.sendto(bytes(500), crowded._socket.getsockname())
        assert 0 < crowded.dropped < 50

    def test_send_is_not_hit_by_the_icmp_error_of_another_destination(self) -> None:
        still = StillReactor()
        udp = self.udp_socket(still)
        nobody = self.unused_address()
        assert udp.send(b"anybody?", nobody) == 0
        assert udp.send(b"hello", self.phone_address) == 0
        assert self.phone.recvfrom(100)[0] == b"hello"
        [report] = still.calls
        report()
        assert self.successResultOf(self.failures.get()) == [Flow("UDP", udp.address, nobody)]

    @pytest.mark.interpreted
    def test_send_is_not_hit_by_an_icmp_error_that_another_process_reads(self) -> None:
        udp = self.udp_socket(StillReactor())
        theirs = udp._socket.dup()  # a worker's
        self.addCleanup(theirs.close)
        nobody = self.unused_address()
        read, errors = udp._read_errors, list[object]()

        def read_second() -> bool:
            while not errors:
                errors.append(theirs.recvmsg(1, 512, socket.MSG_ERRQUEUE))
            return read()

        udp._read_errors = read_second  # type: ignore[method-assign]
        assert udp.send(b"anybody?", nobody) == 0
        assert udp.send(b"hello", self.phone_address) == 0
        assert self.phone.recvfrom(100)[0] == b"hello"
        assert len(errors) == 1

    def test_socket_drops_what_came_before_it_was_started(self) -> None:
        still = StillReactor()
        udp = self.udp_socket(still)
        for _ in range(3):
            self.phone.sendto(b"stale", udp.address)
        udp.start()
        self.phone.sendto(b"fresh", udp.address)
        udp.doRead()
        [(data, _)] = self.successResultOf(self.datagrams.get())
        assert data == b"fresh"
        assert self.counters["udp-stale"] == 3

    def test_socket_takes_a_bounded_number_of_datagrams_at_a_time(self) -> None:
        udp = self.udp_socket(StillReactor())
        udp.start()
        for number in range(DATAGRAMS_PER_WAKE + 5):
            self.phone.sendto(b"%d" % number, udp.address)
        udp.doRead()
        udp.doRead()
        first = self.successResultOf(self.datagrams.get())
        second = self.successResultOf(self.datagrams.get())
        assert [data for data, _ in first + second] == [b"%d" % number for number in range(DATAGRAMS_PER_WAKE + 5)]
        assert len(first) == DATAGRAMS_PER_WAKE

    def test_socket_takes_a_bounded_number_of_bytes_at_a_time(self) -> None:
        udp = self.udp_socket(StillReactor())
        udp.start()
        for _ in range(5):
            self.phone.sendto(bytes(BYTES_PER_WAKE // 2), udp.address)
        taken = []
        for _ in range(3):
            udp.doRead()
            taken.append(len(self.successResultOf(self.datagrams.get())))
        assert taken == [2, 2, 1]

    def test_socket_takes_more_registers_at_a_time_while_they_have_waited_for_long(self) -> None:
        udp = self.udp_socket(StillReactor())
        udp.start()
        time.sleep(0.05)  # the kernel begins to note times when it has a moment
        long = 1.1 * RUSH_AGE
        for wait, others, times in (
            (0.0, 0, 1),
            (long, 0, RUSH),
            (long, RUSH_OTHERS - 1, RUSH),
            (long, RUSH_OTHERS, 1),
        ):
            sent = (2 + RUSH) * DATAGRAMS_PER_WAKE
            for number in range(sent):
                is_other = 0 <= number - DATAGRAMS_PER_WAKE < others
                self.phone.sendto(b"OPTIONS sip:x" if is_other else b"REGISTER sip:x", udp.address)
            time.sleep(wait)
            taken = list[int]()
            while sum(taken) < sent:
                udp.doRead()
                taken.append(len(self.successResultOf(self.datagrams.get())))
            assert taken[:2] == [DATAGRAMS_PER_WAKE, times * DATAGRAMS_PER_WAKE]

    def test_send_returns_why_nothing_was_sent_and_never_raises(self) -> None:
        still = StillReactor()
        udp = self.udp_socket(still)
        for remote in (
            ("phone.example.com", 5060),
            ("", 5060),
            ("<broadcast>", 5060),
            (self.host, 65536),
            ("1.2.3", 1),
        ):
            assert udp.send(b"x", remote) == errno.EINVAL
        assert udp.send(bytes(70_000), self.phone_address) == errno.EMSGSIZE
        udp.close()
        udp.close()
        assert udp.send(b"x", self.phone_address) == errno.EBADF
        assert self.counters["udp-send-EINVAL"] == 5
        assert self.counters["udp-send-EMSGSIZE"] == 1

    def test_send_to_the_other_family_is_refused(self) -> None:
        other = "127.0.0.1" if self.family is socket.AF_INET6 else "::1"
        assert self.udp.send(b"x", (other, 5060)) == errno.EINVAL

    def test_address_in_use_is_an_os_error(self) -> None:
        with pytest.raises(OSError, match="in use"):
            UdpSocket(StillReactor(), self.udp.address, print, print, self.counters)  # type: ignore[arg-type]

    def test_reader_is_taken_back_only_while_the_socket_is_open(self) -> None:
        still = StillReactor()
        udp = self.udp_socket(still)
        udp.start()
        udp.close()
        udp.connectionLost(None)  # type: ignore[arg-type]
        assert still.readers == []

    def test_shares_are_read_and_closed_with_the_first(self) -> None:
        still = StillReactor()
        udp = self.udp_socket(still, bind=lambda kind, address: bound_sockets(kind, address, shares=3))
        assert {share.address for share in udp.shares} == {udp.address}
        udp.start()
        assert still.readers == list(udp.shares)
        udp.close()
        assert still.readers == []
        self.udp_socket(still, bind=lambda kind, _: bound_sockets(kind, udp.address)).close()

    def test_share_that_rests_is_not_read_until_it_is_told_to(self) -> None:
        still = StillReactor()
        udp = self.udp_socket(still, bind=lambda kind, address: bound_sockets(kind, address, shares=2))
        udp.start()
        udp.rest()
        udp.connectionLost(None)  # type: ignore[arg-type]
        assert still.readers == [udp.shares[1]]
        udp.read()
        udp.read()
        assert still.readers == [udp.shares[1], udp]
        udp.close()
        udp.read()
        assert still.readers == []

    def test_what_was_dropped_is_counted_over_all_shares(self) -> None:
        udp = self.udp_socket(StillReactor(), bind=lambda kind, address: bound_sockets(kind, address, shares=2))
        udp.size_receive_buffer(4096)
        phones = [self.raw_socket() for _ in range(8)]
        for phone in phones:
            for _ in range(50):
                phone.sendto(bytes(1000), udp.address)
        assert udp.dropped == sum(share.dropped for share in udp.shares[1:]) + udp._memory()[-1]
        assert all(share.dropped for share in udp.shares)

    def test_socket_binds_an_absent_address_with_freebind_only(self) -> None:
        absent = "2001:db8::1" if self.family is socket.AF_INET6 else "192.0.2.1"
        with pytest.raises(OSError, match="assign"):
            self.udp_socket(StillReactor(), absent)
        assert self.udp_socket(StillReactor(), absent, partial(bound_sockets, freebind=True)).address[0] == absent

    def test_nothing_leaves_from_an_absent_ipv4_address(self) -> None:
        udp = self.udp_socket(StillReactor(), "192.0.2.1", partial(bound_sockets, freebind=True))
        assert udp.send(b"x", ("192.0.2.2", 5060)) in {errno.ENETUNREACH, errno.EINVAL}


class Ipv6UdpSocketTests(UdpSocketTests):
    host = "::1"
    family = socket.AF_INET6

    def test_ipv6_socket_takes_no_ipv4(self) -> None:
        dual = self.udp_socket(StillReactor(), "::")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ipv4:
            ipv4.bind(("127.0.0.1", dual.address[1]))


class Source:
    """A socket's number, as the kernel asks for it, where no real socket has what comes of it."""

    def __init__(self, number: object) -> None:
        self.number = number

    def fileno(self) -> object:
        return self.number


drain_by_kernel = kernel("sipha.transport._udp").drainer(Flow)
send_many = kernel("sipha.transport._udp").send_many
RECVERR = {
    socket.AF_INET: (socket.IPPROTO_IP, udp_module._IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, udp_module._IPV6_RECVERR),
}


class DrainTests(TestCase):
    """What is taken by the kernel, and by calls of the interpreter, of sockets to which the same has come."""

    host = "127.0.0.1"
    family = socket.AF_INET

    def setUp(self) -> None:
        self.phone = self.socket()
        self.ways = ((self.socket(), drain_by_calls), (self.socket(), drain_by_kernel))

    def socket(self) -> socket.socket:
        made = socket.socket(self.family, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        made.bind((self.host, 0))
        return made

    def taken(self, most: int, left: int) -> list[tuple[bytes, Flow]]:
        """What both take, until they have no more."""
        local = ("192.0.2.1", 5060)
        came: list[list[tuple[bytes, Flow]]] = []
        ends: list[list[tuple[int, int]]] = []
        for source, drain in self.ways:
            all_: list[tuple[bytes, Flow]] = []
            came.append(all_)
            ends.append([])
            while not ends[-1] or ends[-1][-1][0] == 0:
                datagrams: list[tuple[bytes, Flow]] = []
                ends[-1].append(drain(source, local, datagrams, most, left))
                assert len(datagrams) <= most
                all_ += datagrams
        assert came[0] == came[1]
        assert ends[0] == ends[1]
        assert ends[0][-1][0] == errno.EAGAIN
        assert {type(flow) for _, flow in came[1]} <= {Flow}
        return came[1]

    def test_kernel_takes_what_calls_take(self) -> None:
        sizes = [0, 1, 7, 700, 1, 0, 65_507, 1400, 512, 513, 40_000, 3]
        for source, _ in self.ways:
            for size in sizes:
                self.phone.sendto(bytes([size % 251]) * size, source.getsockname())
        host, port = self.phone.getsockname()[:2]
        taken = self.taken(5, 65_536)
        assert [len(data) for data, _ in taken] == sizes
        assert {flow for _, flow in taken} == {Flow("UDP", ("192.0.2.1", 5060), (host, port))}

    def test_kernel_stops_where_calls_do(self) -> None:
        for most, left in ((0, 1), (1, 1), (3, 10), (3, 11), (100, 1), (100, 0), (2, -1)):
            for source, drain in self.ways:
                for _ in range(4):
                    self.phone.sendto(bytes(10), source.getsockname())
                datagrams: list[tuple[bytes, Flow]] = []
                error, rest = drain(source, ("a", 1), datagrams, most, left)
                expected = 0 if left <= 0 else min(most, -(-left // 10))
                assert (error, rest, len(datagrams)) == (0, left - 10 * expected, expected)
                drain(source, ("a", 1), [], 100, 1000)

    def test_kernel_says_what_went_wrong_as_calls_do(self) -> None:
        gone = self.socket()
        name = gone.getsockname()
        gone.close()
        for source, drain in self.ways:
            source.connect(name)
            source.send(b"anybody?")
            assert drain(source, ("a", 1), [], 9, 9) == (errno.ECONNREFUSED, 9)
            assert drain(source, ("a", 1), [], 9, 9) == (errno.EAGAIN, 9)
            source.close()
            assert drain(source, ("a", 1), [], 9, 9) == (errno.EBADF, 9)

    def test_kernel_refuses_what_it_is_not_made_for(self) -> None:
        source = self.ways[1][0]
        wrong: list[tuple[object, ...]] = [(), (source,), (source, ["a", 1], [], 9, 9), (source, ("a", 1), (), 9, 9)]
        for arguments in wrong:
            with pytest.raises(TypeError):
                drain_by_kernel(*arguments)
        for number in ("1", None):
            with pytest.raises(TypeError):
                drain_by_kernel(Source(number), ("a", 1), [], 9, 9)
        with pytest.raises(AttributeError):
            drain_by_kernel(5, ("a", 1), [], 9, 9)
        for type_ in (tuple, Source, 1, Address):
            with pytest.raises(TypeError):
                kernel("sipha.transport._udp").drainer(type_)

    def test_kernel_leaves_no_references(self) -> None:
        source, local = self.ways[1][0], ("192.0.2.1", 5060)
        datagrams: list[tuple[bytes, Flow]] = []
        watched = (source, local, datagrams, Flow)
        before = list(map(sys.getrefcount, watched))
        for _ in range(200):
            self.phone.sendto(bytes(10), source.getsockname())
            drain_by_kernel(source, local, datagrams, 9, 99)
            datagrams.clear()
        assert list(map(sys.getrefcount, watched)) == before


class Ipv6DrainTests(DrainTests):
    host = "::1"
    family = socket.AF_INET6


class SendByCallsTests(TestCase):
    """What is sent at once, and where that ends: by calls of the interpreter, which is the reference."""

    host = "127.0.0.1"
    family = socket.AF_INET
    way: ClassVar = staticmethod(send_by_calls)
    groups = False

    def setUp(self) -> None:
        self.server, self.phones = self.bound(), [self.bound() for _ in range(3)]
        self.local = self.server.getsockname()[:2]
        self.flows = [Flow("UDP", self.local, phone.getsockname()[:2]) for phone in self.phones]
        self.asked = 0

    def bound(self) -> socket.socket:
        made = socket.socket(self.family, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        made.setblocking(False)
        made.bind((self.host, 0))
        return made

    def clock(self) -> float:
        self.asked += 1
        return float(self.asked)

    def send(self, messages: Any, place: int = 0, until: float = 1e9, together: int = 1) -> int:
        place = self.way(self.server, self.local, messages, place, until, self.clock, together)
        assert isinstance(place, int)
        return place

    def came(self, phone: socket.socket) -> list[bytes]:
        got = []
        try:
            while True:
                got.append(phone.recv(70_000))
        except BlockingIOError:
            return got

    def test_each_message_goes_where_it_is_to_go(self) -> None:
        for together in (1, 7, 8, 64):
            messages = [(b"%d" % number * number, self.flows[number % 3]) for number in range(30)]
            self.asked = 0
            assert self.send(messages, 2, together=together) == 30
            assert self.asked == (-(-28 // together) if self.groups else 28)
            for number, phone in enumerate(self.phones):
                assert self.came(phone) == [data for data, flow in messages[2:] if flow == self.flows[number]]
        assert self.send([]) == 0
        assert self.send([(b"", self.flows[0])], 5) == 5

    def test_clock_ends_it(self) -> None:
        messages = [(b"%d" % number, self.flows[0]) for number in range(10)]
        assert self.send(messages, until=4.0) == 3
        assert self.send(messages, until=0.0) == 0
        self.asked = 0
        sent = 8 if self.groups else 2
        assert self.send(messages, until=3.0, together=4) == sent
        assert len(self.came(self.phones[0])) == 3 + sent

    def test_what_is_not_plain_ends_it(self) -> None:
        plain, flow = (b"x", self.flows[0]), self.flows[0]
        odd = [
            (b"x", flow._replace(transport="TCP")),
            (b"x", flow._replace(local=("192.0.2.1", 5060))),
            *(
                (b"x", flow._replace(remote=(host, 5060)))
                for host in ("nowhere", "", "fe80::1%1", "fe80::1%\udcff", "\udc80", "\0", "127.0.0.1\0x")
            ),
            *((b"x", flow._replace(remote=(self.host, port))) for port in (-1, 65536, 1 << 70)),
            (b"x", flow._replace(remote=("1.2.3.4" if ":" in self.host else "::1", 5060))),
            (bytes(70_000), flow),
        ]
        for message in odd:
            for together in (1, 8):
                assert self.send([plain, plain, message, plain], together=together) == 2
                assert self.send([message], together=together) == 0
        assert len(self.came(self.phones[0])) == 4 * len(odd)

    def test_what_fails_ends_it(self) -> None:
        gone = self.bound()
        flow = self.flows[0]._replace(remote=gone.getsockname()[:2])
        gone.close()
        self.server.setsockopt(*RECVERR[self.family], 1)
        assert self.send([(b"anybody?", flow)]) == 1
        assert self.send([(b"x", self.flows[0])]) == 0
        assert self.send([(b"x", self.flows[0])]) == 1
        self.server.close()
        assert self.send([(b"x", self.flows[0])]) == 0


class Ipv6SendByCallsTests(SendByCallsTests):
    host = "::1"
    family = socket.AF_INET6


class SendManyTests(SendByCallsTests):
    """The same by the kernel in C."""

    way = staticmethod(send_many)
    groups = True

    def test_kernel_sends_nothing_but_messages(self) -> None:
        flow = self.flows[0]
        wrong: list[object] = [None, (), [b"x"], [("x", flow)], [(b"x",)], [[b"x", flow]], [(bytearray(b"x"), flow)]]
        for messages in wrong:
            with pytest.raises(TypeError):
                self.send(messages)
        for flow_ in (None, (), ("UDP",), tuple(flow)[:3], flow._replace(remote=(self.host, "5060"))):  # type: ignore[arg-type]
            assert self.send([(b"x", flow_)]) == 0
        for place, together in ((-1, 1), (0, 0), (0, 65)):
            with pytest.raises(ValueError, match="together"):
                self.send([(b"x", flow)], place, together=together)
        with pytest.raises(ZeroDivisionError):
            send_many(self.server, self.local, [(b"x", flow)], 0, 1.0, lambda: 1 / 0, 1)

    def test_kernel_leaves_no_references(self) -> None:
        messages = [(b"%d" % number, flow) for number, flow in enumerate(self.flows)]
        watched = (self.server, self.local, messages, *messages, *self.flows, self.clock)
        before = list(map(sys.getrefcount, watched))
        for _ in range(50):
            self.send(messages, together=2)
            self.send([(b"x", self.flows[0]._replace(remote=("nowhere", 1)))])
        assert list(map(sys.getrefcount, watched)) == before


class Ipv6SendManyTests(SendManyTests):
    host = "::1"
    family = socket.AF_INET6


class KernelUdpSocketTests(UdpSocketTests):
    """The same with the kernel."""

    def setUp(self) -> None:
        self.patch(udp_module, "_drain", drain_by_kernel)
        self.patch(udp_module, "_send_many", send_many)
        super().setUp()


class Ipv6KernelUdpSocketTests(Ipv6UdpSocketTests, KernelUdpSocketTests):
    pass
