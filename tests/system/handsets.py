"""Many phones behind the NAT, on one thread: each registers, answers what comes, and notes it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import NamedTuple, Self

from sipha.sip.flow import Address
from tests.system.network import PHONES, PHONES_NETWORK, Network
from tests.system.wire import again, authorized, call_id, read, request, response

EXPIRES = 3600
_T1 = 0.5
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("=qq")


class Heard(NamedTuple):
    """A request that came: when (the kernel's wall clock), where from, and its bytes."""

    time: float
    source: Address
    data: bytes


class Handset:
    """One phone; `pings` are the OPTIONS that came, `calls` the INVITEs. When it is not `on`, it hears nothing."""

    def __init__(self, user: str, domain: str, server: Address) -> None:
        self.user = user
        self.on = True
        self.registered = False
        self.pings: list[Heard] = []
        self.calls: list[Heard] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.bind((f"{PHONES_NETWORK}.2", 0))
        self.socket.setblocking(False)
        self._domain = domain
        self._server = server
        self._register = b""
        self._sent = 0.0

    def go_on(self) -> None:
        """Register, or register again, if no answer has come."""
        if self.on and not self.registered and self._sent + _T1 < time.monotonic():
            aor, (host, port) = f"sip:{self.user}@{self._domain}", self.socket.getsockname()
            fields = (f"Contact: <sip:{self.user}@{host}:{port}>", f"Expires: {EXPIRES}")
            self._send_register(request("REGISTER", f"sip:{self._domain}", sender=aor, to=aor, fields=fields))

    def receive(self) -> None:
        """Take what has come."""
        with suppress(BlockingIOError):
            while True:
                data, control, _, source = self.socket.recvmsg(4096, 64)
                if self.on:
                    seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
                    self._received(Heard(seconds + nanoseconds / 1e9, source, data))

    def _received(self, heard: Heard) -> None:
        if not heard.data.strip(b"\r\n\0"):
            return  # a keepalive that wants no answer
        message = read(heard.data)
        if message.status:
            if call_id(heard.data) == call_id(self._register):
                self.registered |= message.status == 200
                if message.status == 401:
                    credentials = (self.user, f"{self.user}-secret")
                    self._send_register(again(authorized(self._register, message, *credentials)))
            return
        method = message.start_line.partition(b" ")[0]
        if method == b"OPTIONS":
            self.pings.append(heard)
            self._send(response(message, "200 OK", self.user), heard.source)
        elif method == b"INVITE":
            self.calls.append(heard)
            self._send(response(message, "486 Busy Here", self.user), heard.source)

    def _send_register(self, data: bytes) -> None:
        self._register = data
        self._sent = time.monotonic()
        self._send(data, self._server)

    def _send(self, data: bytes, address: Address) -> None:
        with suppress(OSError):
            self.socket.sendto(data, address)


class Handsets:
    """The phones of these users, whose passwords are USER-secret, from `with` to the end of its block."""

    def __init__(self, network: Network, users: Sequence[str], domain: str, server: Address) -> None:
        with network.inside(PHONES):
            self.phones = [Handset(user, domain, server) for user in users]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        for phone in self.phones:
            phone.socket.close()

    def wait_until_registered(self, within: float) -> None:
        """Wait until all phones have their 200; raises AssertionError if some have none in time."""
        deadline = time.monotonic() + within
        while missing := [phone.user for phone in self.phones if not phone.registered]:
            assert time.monotonic() < deadline, f"{len(missing)} phones can't register: {missing[:5]}"
            time.sleep(0.05)

    def _run(self) -> None:
        selector = DefaultSelector()
        for phone in self.phones:
            selector.register(phone.socket, EVENT_READ, phone)
        while not self._ended.is_set():
            for phone in self.phones:
                phone.go_on()
            for key, _ in selector.select(0.05):
                key.data.receive()
