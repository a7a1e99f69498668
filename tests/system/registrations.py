"""Phones that register at random, and remember what was acknowledged to say afterwards what must be in the table."""

from __future__ import annotations

import heapq
import random
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import md5
from itertools import count
from typing import Any, NamedTuple, Self

from sipha.sip.flow import Address

T1, T2, TIMER_F = 0.5, 4.0, 32.0
"""RFC 3261 table 4, in seconds."""

CONTACTS = 4
"""How many contacts a device may bind."""

TOLERANCE = 2
"""How many seconds a binding may live too long or not long enough."""

_MOST_CHALLENGES = 3
_CONTACT = re.compile(r"<([^>]+)>;expires=([0-9]+)")
_CHALLENGE = re.compile(r'([a-z]+)="?([^",]*)')


class Answer(NamedTuple):
    """A response: its status, and by lower-case name the header fields that it has once."""

    status: int
    fields: dict[str, str]


class Granted(NamedTuple):
    """What the last 200 said of a contact: what remained of its expiry, and when."""

    seconds: int
    at: float


@dataclass
class Register:
    """A REGISTER under way: the expiry it asks for each contact, 0 to remove it; none for a query."""

    cseq: int
    branch: str
    contacts: dict[str, int]
    wildcard: bool
    data: bytes
    interval: float = T1
    challenges: int = 0


@dataclass(eq=False)
class Device:
    """One Call-ID: it sends its REGISTERs one after the other, and nobody else names its contacts.

    `possible` are the CSeqs with which a contact may be bound, 0 for not bound: a single one once the last REGISTER
    that named it has been acknowledged.
    """

    user: str
    call_id: str
    wire: Wire
    alone: bool
    possible: dict[str, set[int]]
    granted: dict[str, Granted] = field(default_factory=dict)
    cseq: int = 0
    realm: str = ""
    nonce: str = ""
    nonce_count: int = 0
    pending: Register | None = None

    def is_bound(self, contact: str) -> bool | None:
        """What is known of a contact, None if nothing is."""
        possible = self.possible[contact]
        if possible == {0}:
            return False
        return None if 0 in possible else True

    def faults(self, listed: dict[str, Any], cseq_of: Callable[[Any], int | None]) -> Iterator[str]:
        """What contradicts the acknowledgements in a list of this user's bindings."""
        for contact, possible in self.possible.items():
            if contact not in listed:
                if 0 not in possible:
                    yield f"{contact} is missing, which CSeq {sorted(possible)} of {self.call_id} bound"
            elif possible == {0}:
                yield f"{contact} is back, which CSeq {self.cseq} of {self.call_id} or an earlier one removed"
            elif (cseq := cseq_of(listed[contact])) is not None and cseq not in possible:
                yield f"{contact} has CSeq {cseq} instead of one of {sorted(possible)}"


class Wire:
    """A way to the server that several devices share: a UDP socket, or a TCP connection that is made again."""

    def __init__(self, transport: str, host: str, server: Address) -> None:
        self.transport = transport
        self._host = host
        self._server = server
        self._buffer = b""
        self.socket: socket.socket | None = None
        self.open()

    def open(self) -> bool:
        """Open the socket; False if nobody listens."""
        self._buffer = b""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if self.transport == "UDP" else socket.SOCK_STREAM)
        made.bind((self._host, 0))
        try:
            if self.transport == "TCP":
                made.settimeout(0.5)
                made.connect(self._server)
        except OSError:
            made.close()
            return False
        made.setblocking(False)
        self.socket = made
        self.sent_by = "{}:{}".format(*made.getsockname())
        return True

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def send(self, data: bytes) -> None:
        """Send, or don't; the timers care for what is lost."""
        try:
            if self.socket is not None:
                self.socket.sendto(data, self._server) if self.transport == "UDP" else self.socket.send(data)
        except OSError:
            pass

    def receive(self) -> Iterator[str] | None:
        """The messages that came; None at the end of the connection."""
        assert self.socket is not None
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return iter(())
        except OSError:
            return None
        if self.transport == "UDP":
            return iter((data.decode(),))
        if not data:
            return None
        *messages, self._buffer = (self._buffer + data).split(b"\r\n\r\n")  # none has a body
        return (message.decode() + "\r\n\r\n" for message in messages)


class Load:
    """The phones of `users`, in a thread of its own between `start` and `stop`.

    `acknowledged` counts the 200s, `statuses` all answers, `faults` says what was wrong with one. Each device waits for
    `pause` seconds on average between its REGISTERs.
    """

    def __init__(
        self, users: Iterable[str], host: str, server: Address, domain: str, *, seed: int = 1, pause: float = 0.2
    ) -> None:
        self.acknowledged = 0
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self._dice = random.Random(seed)
        self._domain = domain
        self._pause = pause
        self._serial = count(1)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._wires = [Wire("UDP", host, server) for _ in range(4)] + [Wire("TCP", host, server)]
        self._devices: dict[str, Device] = {}
        for number, user in enumerate(users):
            shared = number % 3 > 0
            for place in range(1 + shared):
                call_id = f"{user}-{place}-{seed}"
                contacts = {f"sip:{call_id}-{each}@192.0.2.1:5060": {0} for each in range(CONTACTS)}
                wire = self._dice.choice(self._wires)
                self._devices[call_id] = Device(user, call_id, wire, not shared, contacts)

    # What the test calls

    def start(self) -> None:
        for device in self._devices.values():
            self._later(self._dice.uniform(0, self._pause), self._begin, device)
        self._thread.start()

    def wait_for(self, acknowledged: int, patience: float = 60.0) -> None:
        """Wait until so many REGISTERs are acknowledged."""
        deadline = time.monotonic() + patience
        while self.acknowledged < acknowledged:
            assert time.monotonic() < deadline, f"only {self.acknowledged} of {acknowledged} REGISTERs: {self.statuses}"
            time.sleep(0.01)

    def stop(self) -> None:
        """Begin nothing more, and end when what is under way has ended."""
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()
        for wire in self._wires:
            wire.close()

    def check(self, table: Iterable[dict[str, Any]], *, stood: float = 0.0) -> list[str]:
        """What is wrong with a node's table, in which time may have stood still for so many seconds."""
        now = time.monotonic()
        bindings: dict[str, dict[str, Any]] = {}
        for binding in table:
            bindings.setdefault(binding["aor"], {})[binding["contact"]] = binding
        faults: list[str] = []
        for device in self._devices.values():
            listed = bindings.get(f"sip:{device.user}@{self._domain}", {})
            faults += device.faults(listed, lambda binding: int(binding["cseq"]))
            for contact, granted in device.granted.items():
                if contact not in listed or len(device.possible[contact]) > 1:
                    continue
                early = granted.seconds - (now - granted.at) - listed[contact]["expires"]
                if not -TOLERANCE - stood <= early < TOLERANCE + 1:  # what is listed is rounded down
                    faults.append(f"{contact} expires {early:.1f} s early")
        known = {contact for device in self._devices.values() for contact in device.possible}
        return faults + [
            f"nobody registered {contact}" for listed in bindings.values() for contact in listed.keys() - known
        ]

    # The thread

    def _later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), lambda: function(*args)))

    def _run(self) -> None:
        while not self._stopping or any(device.pending for device in self._devices.values()):
            open_wires = {wire.socket: wire for wire in self._wires if wire.socket is not None}
            for ready in select.select(open_wires, [], [], 0.005)[0]:
                self._read(open_wires[ready])
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def _read(self, wire: Wire) -> None:
        messages = wire.receive()
        if messages is not None:
            for message in messages:
                if message.startswith("SIP/2.0 "):  # else a ping, as the contacts are behind NAT
                    self._answered(message)
            return
        wire.close()
        for device in self._devices.values():
            if device.wire is wire:
                device.pending = None  # it may have been carried out or not
        self._reopen(wire)

    def _reopen(self, wire: Wire) -> None:
        if not wire.open():
            if not self._stopping:
                self._later(0.1, self._reopen, wire)
            return
        for device in self._devices.values():
            if device.wire is wire:
                self._begin(device)

    def _begin(self, device: Device) -> None:
        """Ask for something at random, unless a REGISTER is under way."""
        if device.pending is None and device.wire.socket is not None and not self._stopping:
            contacts, wildcard = self._choose(device)
            self._send(device, contacts, wildcard=wildcard)

    def _choose(self, device: Device) -> tuple[dict[str, int], bool]:
        dice, contacts = self._dice, list(device.possible)
        chosen = dice.sample(contacts, dice.choice((1, 1, 1, 2)))
        match dice.random():
            case draw if draw < 0.08:
                return {}, False
            case draw if draw < 0.12 and device.alone:
                return dict.fromkeys(contacts, 0), True
            case draw if draw < 0.3:
                return dict.fromkeys(chosen, 0), False
            case draw if draw < 0.4:
                return dict(zip(chosen, (0, 600), strict=False)), False
            case _:
                return {contact: dice.choice((120, 600, 3600)) for contact in chosen}, False

    def _send(self, device: Device, contacts: dict[str, int], *, wildcard: bool, challenges: int = 0) -> None:
        device.cseq += 1
        branch = f"z9hG4bK-{device.call_id}-{device.cseq}"
        wire = device.wire
        fields = [f"Contact: <{contact}>;expires={seconds}" for contact, seconds in contacts.items()]
        if device.nonce:
            device.nonce_count += 1
        data = render(
            device.user,
            self._domain,
            f"SIP/2.0/{wire.transport} {wire.sent_by};branch={branch};rport",
            call_id=device.call_id,
            cseq=device.cseq,
            fields=["Contact: *", "Expires: 0"] if wildcard else fields,
            nonce=(device.realm, device.nonce, device.nonce_count) if device.nonce else None,
        )
        register = Register(device.cseq, branch, contacts, wildcard, data, challenges=challenges)
        device.pending = register
        for contact, seconds in contacts.items():
            device.possible[contact].add(register.cseq if seconds else 0)
        wire.send(register.data)
        if wire.transport == "UDP":
            self._later(register.interval, self._retransmit, device, register)
        self._later(TIMER_F, self._give_up, device, register)

    def _retransmit(self, device: Device, register: Register) -> None:
        if device.pending is register:
            device.wire.send(register.data)
            register.interval = min(2 * register.interval, T2)
            self._later(register.interval, self._retransmit, device, register)

    def _give_up(self, device: Device, register: Register) -> None:
        if device.pending is register:
            self.faults.append(f"CSeq {register.cseq} of {device.call_id} was not answered within {TIMER_F:g} s")
            device.pending = None
            self._begin(device)

    def _answered(self, message: str) -> None:
        status, fields = read(message)
        device = self._devices[fields["call-id"]]
        register = device.pending
        if register is None or f"branch={register.branch};" not in fields["via"] + ";":
            return  # the answer to a retransmission
        self.statuses[status] += 1
        device.pending = None
        wait = self._dice.expovariate(1 / self._pause)
        if status == 200:
            self._accepted(device, register, dict(_CONTACT.findall(message)))
        elif status == 401 and register.challenges < _MOST_CHALLENGES:
            challenge = dict(_CHALLENGE.findall(fields["www-authenticate"]))
            device.realm, device.nonce, device.nonce_count = challenge["realm"], challenge["nonce"], 0
            self._send(device, register.contacts, wildcard=register.wildcard, challenges=register.challenges + 1)
            return
        elif status == 503 and "retry-after" in fields:
            wait = 0.3  # a phone would wait for longer, and a test for too long
        else:
            self.faults.append(f"CSeq {register.cseq} of {device.call_id} is answered {status}")
        self._later(wait, self._begin, device)

    def _accepted(self, device: Device, register: Register, listed: dict[str, str]) -> None:
        now = time.monotonic()
        for contact, seconds in register.contacts.items():
            device.possible[contact] = {register.cseq if seconds else 0}
        own = {contact: seconds for contact, seconds in listed.items() if contact in device.possible}
        for fault in device.faults(own, lambda _: None):
            self.faults.append(f"the 200 to CSeq {register.cseq}: {fault}")
        device.granted = {contact: Granted(int(seconds), now) for contact, seconds in own.items()}
        self.acknowledged += 1


class Questioner:
    """Sends REGISTERs of one user, each with a Call-ID of its own and none twice, and collects what is answered.

    `last_answer` is when the last answer came.
    """

    def __init__(self, user: str, host: str, server: Address, domain: str) -> None:
        self.answers: list[Answer] = []
        self.last_answer = 0.0
        self._user = user
        self._domain = domain
        self._server = server
        self._realm = self._nonce = ""
        self._count = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))

    def __enter__(self) -> Self:
        """Get a nonce, with a REGISTER that must be answered."""
        self.ask()
        self.listen(0.5)
        challenge = dict(_CHALLENGE.findall(self.answers.pop().fields["www-authenticate"]))
        self._realm, self._nonce = challenge["realm"], challenge["nonce"]
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self) -> None:
        """Send one, and listen for an instant."""
        self._count += 1
        call_id = f"{self._user}-{self._socket.fileno()}-{time.monotonic()}"
        host, port = self._socket.getsockname()
        data = render(
            self._user,
            self._domain,
            f"SIP/2.0/UDP {host}:{port};branch=z9hG4bK{call_id};rport",
            call_id=call_id,
            cseq=1,
            fields=[f"Contact: <sip:{self._user}@{host}:{port}>;expires=600"],
            nonce=(self._realm, self._nonce, self._count) if self._nonce else None,
        )
        self._socket.sendto(data, self._server)
        self.listen(0.005)

    def listen(self, seconds: float) -> None:
        """Collect the answers that come for some time."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0 and select.select([self._socket], [], [], remaining)[0]:
            self.answers.append(read(self._socket.recv(65536).decode()))
            self.last_answer = time.monotonic()


def read(message: str) -> Answer:
    """Read a response."""
    first, *lines = message.removesuffix("\r\n\r\n").split("\r\n")
    return Answer(
        int(first.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    )


def render(
    user: str, domain: str, via: str, *, call_id: str, cseq: int, fields: list[str], nonce: tuple[str, str, int] | None
) -> bytes:
    """A REGISTER with some header fields, and with credentials for a realm, a nonce and its count."""
    if nonce is not None:
        realm, value, number = nonce
        uri, nc = f"sip:{domain}", f"{number:08x}"
        ha1, ha2 = _md5(f"{user}:{realm}:{user}-secret"), _md5(f"REGISTER:{uri}")
        response = _md5(f"{ha1}:{value}:{nc}:c:auth:{ha2}")
        credentials = (
            f'Digest username="{user}", realm="{realm}", nonce="{value}", uri="{uri}", '
            f'response="{response}", algorithm=MD5, qop=auth, cnonce="c", nc={nc}'
        )
        fields = [*fields, f"Authorization: {credentials}"]
    return "\r\n".join(
        [
            f"REGISTER sip:{domain} SIP/2.0",
            f"Via: {via}",
            "Max-Forwards: 70",
            f"From: <sip:{user}@{domain}>;tag={call_id}",
            f"To: <sip:{user}@{domain}>",
            f"Call-ID: {call_id}",
            f"CSeq: {cseq} REGISTER",
            *fields,
            "Content-Length: 0\r\n\r\n",
        ]
    ).encode()


def _md5(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()
