"""What nodes send, taken where their cables enter the bridge: before a fault can hide it, with the kernel's time.

An address that nobody asks for is silent, so the capture asks: every 10 ms each node's kernel, at its port, by ARP or
neighbour solicitation, for each virtual address. A question reaches the node even if the node is cut off from all.
"""

from __future__ import annotations

import enum
import errno
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from itertools import pairwise
from multiprocessing.connection import Connection
from selectors import EVENT_READ, DefaultSelector
from typing import NamedTuple, Self

from tests.system.network import HUB, HUB_MAC, PREFIX, PREFIX6, Network

QUESTION_INTERVAL = 0.01
"""How often a node is asked for each address, in seconds."""

_ASKER, _ASKER6 = f"{PREFIX}.250", f"{PREFIX6}250"
_READY_WITHIN = 20.0
_BUFFER = 16 << 20
_SNAP = 128

# From <linux/socket.h>, <linux/if_packet.h> and <linux/if_ether.h>; Python doesn't have them all.
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_ETH_P_ALL, _ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD
_TIMESPEC = struct.Struct("=qq")
_STATISTICS = struct.Struct("=II")


class Kind(enum.Enum):
    """What a frame is."""

    ARP_REQUEST = "ARP request"
    ARP_REPLY = "ARP reply"
    GRATUITOUS_ARP = "gratuitous ARP"
    SOLICITATION = "neighbour solicitation"
    ADVERTISEMENT = "neighbour advertisement"
    UDP = "UDP"
    TCP = "TCP"
    OTHER = "other"


class Frame(NamedTuple):
    """A frame that a node sent: when (the kernel's wall clock), and from and for which address.

    Of ARP these are the sender's and the target's protocol address; `target` of a neighbour advertisement is the
    address that it is about.
    """

    time: float
    node: str
    kind: Kind
    source: str
    target: str

    def uses(self, addresses: Sequence[str]) -> bool:
        """True if who sends this says that he has one of the addresses."""
        return self.source in addresses or (self.kind is Kind.ADVERTISEMENT and self.target in addresses)


class Capture:
    """A process of its own that asks and listens, from `with` to the end of its block; then it has `frames`.

    `asked` says when all nodes were asked (wall clock), `dropped` how many frames the kernel had no room for.
    """

    def __init__(self, network: Network, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self.frames: list[Frame] = []
        self.asked: list[float] = []
        self.dropped = 0
        self._network = network

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        with self._network.inside(HUB):
            self._process = context.Process(
                target=_watch, args=(there, self._network.nodes, self.addresses), daemon=True
            )
            self._process.start()
        there.close()
        assert self._pipe.poll(_READY_WITHIN), "the capture doesn't start"
        self._pipe.recv()
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.send(None)
        self.frames, self.asked, self.dropped = self._pipe.recv()
        self._process.join()

    @property
    def blind(self) -> float:
        """The longest time during which nobody was asked, in seconds: a machine that is busy enough holds all up."""
        return max((after - before for before, after in pairwise(self.asked)), default=0.0)


class _Port:
    """A node's port of the bridge: what comes out of the cable, and questions that go in."""

    def __init__(self, node: str, questions: Sequence[bytes]) -> None:
        self.node = node
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self.socket.bind((node, _ETH_P_ALL))
        self.socket.setblocking(False)
        self._questions = questions

    def ask(self) -> None:
        for question in self._questions:
            with suppress(OSError):  # no cable
                self.socket.send(question)

    def frames(self) -> Iterator[Frame]:
        try:
            while True:
                data, control, _, address = self.socket.recvmsg(_SNAP, 64)
                if address[0] != self.node:  # taken before the socket was bound
                    continue
                seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
                yield parse(data, seconds + nanoseconds / 1e9, self.node)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ENETDOWN}:  # that is all, or the cable has been pulled
                raise

    def dropped(self) -> int:
        _, dropped = _STATISTICS.unpack(self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size))
        return int(dropped)


def _watch(pipe: Connection, nodes: Sequence[str], addresses: Sequence[str]) -> None:
    """Be the process: listen and ask until the pipe says something, then send what was seen."""
    with suppress(OSError):  # a busy machine must not make the capture blind
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    questions = [question(address) for address in addresses]
    ports = [_Port(node, questions) for node in nodes]
    selector = DefaultSelector()
    for port in ports:
        selector.register(port.socket, EVENT_READ, port)
    selector.register(pipe, EVENT_READ)
    frames: list[Frame] = []
    asked: list[float] = []
    due = time.monotonic()
    pipe.send(None)
    while not pipe.poll():
        for key, _ in selector.select(max(0.0, due - time.monotonic())):
            if key.data is not None:
                frames += key.data.frames()
        if time.monotonic() >= due:
            due = time.monotonic() + QUESTION_INTERVAL
            asked.append(time.time())
            for port in ports:
                port.ask()
    for port in ports:
        frames += port.frames()
    frames.sort(key=lambda frame: frame.time)
    pipe.send((frames, asked, sum(port.dropped() for port in ports)))


def question(address: str) -> bytes:
    """The frame that asks who has an address: an ARP request (RFC 826), or a neighbour solicitation (RFC 4861 §4.3)."""
    mac = bytes.fromhex(HUB_MAC.replace(":", ""))
    if ip_address(address).version == 4:
        header = b"\xff" * 6 + mac + struct.pack("!HHHBBH", _ETH_P_ARP, 1, _ETH_P_IP, 6, 4, 1)
        return header + mac + socket.inet_aton(_ASKER) + bytes(6) + socket.inet_aton(address)
    packed = IPv6Address(address).packed
    source = IPv6Address(_ASKER6).packed
    group = IPv6Address("ff02::1:ff00:0").packed[:13] + packed[13:]
    body = bytes(4) + packed + b"\x01\x01" + mac  # with the option "source link-layer address"
    sum_ = _checksum(source + group + struct.pack("!II", 4 + len(body), socket.IPPROTO_ICMPV6) + b"\x87\0\0\0" + body)
    header = struct.pack("!IHBB", 6 << 28, 4 + len(body), socket.IPPROTO_ICMPV6, 255)
    ethernet = b"\x33\x33" + group[12:] + mac + struct.pack("!H", _ETH_P_IPV6)
    return ethernet + header + source + group + struct.pack("!BBH", 135, 0, sum_) + body


def parse(data: bytes, when: float, node: str) -> Frame:
    """Take a frame apart, of which the beginning is enough."""
    (ethertype,) = struct.unpack_from("!H", data, 12)
    if ethertype == _ETH_P_ARP and len(data) >= 42:
        (operation,) = struct.unpack_from("!H", data, 20)
        source, target = data[28:32], data[38:42]
        kind = Kind.ARP_REQUEST if operation == 1 else Kind.ARP_REPLY
        if source == target:
            kind = Kind.GRATUITOUS_ARP
        return Frame(when, node, kind, socket.inet_ntoa(source), socket.inet_ntoa(target))
    if ethertype == _ETH_P_IP and len(data) >= 34:
        return Frame(when, node, _kind(data[23]), socket.inet_ntoa(data[26:30]), socket.inet_ntoa(data[30:34]))
    if ethertype == _ETH_P_IPV6 and len(data) >= 54:
        kind, target = _kind(data[20]), data[38:54]
        if data[20] == socket.IPPROTO_ICMPV6 and data[54:55] in {b"\x87", b"\x88"} and len(data) >= 78:
            kind = Kind.SOLICITATION if data[54] == 0x87 else Kind.ADVERTISEMENT
            target = data[62:78]
        return Frame(when, node, kind, _ntop6(data[22:38]), _ntop6(target))
    return Frame(when, node, Kind.OTHER, "", "")


def _kind(protocol: int) -> Kind:
    return {socket.IPPROTO_UDP: Kind.UDP, socket.IPPROTO_TCP: Kind.TCP}.get(protocol, Kind.OTHER)


def _ntop6(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, packed)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
