"""Bytes to and from real nodes: sockets, and enough of SIP to read what comes without the parser that is tested."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import queue
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from sipha.sandbox import Sandbox

PATIENCE = 5.0
"""How long an answer may take, in seconds."""

_serial = itertools.count(1)
_END_OF_HEAD = b"\r\n\r\n"
_COMPACT = {b"v": b"via", b"f": b"from", b"t": b"to", b"i": b"call-id", b"l": b"content-length", b"m": b"contact"}
_CHALLENGE = re.compile(rb'(\w+)="([^"]*)"')
_COPIED = frozenset((b"via", b"from", b"to", b"call-id", b"cseq", b"record-route"))
_FAULTS = re.compile(r".*(?:Traceback|a mistake of ours|Unhandled|CRITICAL|ERROR).*")


class Message(NamedTuple):
    """A message: its first line, its header fields as they came (folding and all, without the CRLF), its body."""

    start_line: bytes
    fields: tuple[bytes, ...]
    body: bytes

    @property
    def status(self) -> int:
        """The status of a response, 0 for a request."""
        version, _, rest = self.start_line.partition(b" ")
        return int(rest[:3]) if version == b"SIP/2.0" else 0

    def all(self, name: str) -> list[bytes]:
        """The values of all header fields of a name."""
        return [field.partition(b":")[2].strip() for field in self.fields if field_name(field) == name.lower().encode()]

    def get(self, name: str) -> bytes:
        """The value of the only header field of a name."""
        (value,) = self.all(name)
        return value


def read(data: bytes) -> Message:
    """Take a message apart; ValueError if that isn't possible."""
    head, end, body = data.partition(_END_OF_HEAD)
    start_line, _, rest = head.partition(b"\r\n")
    if not end or not start_line:
        raise ValueError(f"not a message: {data[:80]!r}")
    return Message(start_line, tuple(re.split(rb"\r\n(?![ \t])", rest)), body)


def field_name(field: bytes) -> bytes:
    """The name of a header field in lower case, never its compact form."""
    name = field.partition(b":")[0].strip().lower()
    return _COMPACT.get(name, name)


def unfolded(value: bytes) -> bytes:
    """A value on one line, with single spaces."""
    return re.sub(rb"\s+", b" ", value)


def request(
    method: str, uri: str, *, sender: str = "sip:tester@tester.invalid", to: str = "", fields: Iterable[str] = ()
) -> bytes:
    """Make a sound request, unlike any before; `sender` and `to` (the Request-URI, if empty) are URIs."""
    number = next(_serial)
    lines = (
        f"{method} {uri} SIP/2.0",
        f"Via: SIP/2.0/UDP tester.invalid;rport;branch=z9hG4bKwire{number}",
        "Max-Forwards: 70",
        f"From: <{sender}>;tag=wire{number}",
        f"To: <{to or uri}>",
        f"Call-ID: wire-{number}",
        f"CSeq: {number} {method}",
        *fields,
        "Content-Length: 0",
        "\r\n",
    )
    return "\r\n".join(lines).encode()


def options(server: str) -> bytes:
    """Make an OPTIONS that a node answers itself."""
    return request("OPTIONS", f"sip:{server}")


def response(message: Message, status: str, tag: str) -> bytes:
    """Make a response to a request: its status and reason, and a tag for its To if that has none."""
    copied = [
        field + f";tag={tag}".encode() if field_name(field) == b"to" and b"tag" not in field else field
        for field in message.fields
        if field_name(field) in _COPIED
    ]
    return b"\r\n".join([f"SIP/2.0 {status}".encode(), *copied, b"Content-Length: 0", b"\r\n"])


def authorized(data: bytes, challenge: Message, username: str, password: str) -> bytes:
    """Add to a request the credentials that a 401 asks for (MD5, qop auth)."""
    asked = {name.decode(): value.decode() for name, value in _CHALLENGE.findall(challenge.get("WWW-Authenticate"))}
    method, uri, _ = data.decode("latin-1").split(" ", 2)
    realm, nonce = asked["realm"], asked["nonce"]
    secret = _md5(f"{username}:{realm}:{password}")
    response = _md5(f"{secret}:{nonce}:00000001:c:auth:{_md5(f'{method}:{uri}')}")
    credentials = (
        f'Digest username="{username}", realm="{realm}", nonce="{nonce}", uri="{uri}", response="{response}", '
        f'algorithm=MD5, qop=auth, cnonce="c", nc=00000001'
    )
    head, _, body = data.partition(_END_OF_HEAD)
    return head + f"\r\nAuthorization: {credentials}".encode() + _END_OF_HEAD + body


def call_id(data: bytes) -> bytes:
    """The Call-ID of a message; empty if it has none."""
    found = re.search(rb"(?im)^(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", data)
    return found[1].strip() if found else b""


def before(data: bytes, messages: Iterable[Message]) -> list[Message]:
    """The messages that come before the 200 to a request; AssertionError if that doesn't come."""
    others: list[Message] = []
    for message in messages:
        if message.all("Call-ID") == [call_id(data)] and message.status >= 200:
            assert message.status == 200, message
            return others
        others.append(message)
    raise AssertionError(f"no answer to {data[:60]!r}, but {others}")


class _Socket:
    """What datagrams and streams have in common."""

    _socket: socket.socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def receive(self, patience: float = PATIENCE) -> Message | None:
        raise NotImplementedError

    def messages(self) -> Iterator[Message]:
        """What comes, until nothing does."""
        while message := self.receive():
            yield message

    def ask(self, data: bytes) -> Message:
        """Send a request and return its final response, passing over what else comes."""
        self.send(data)
        for message in self.messages():
            if message.all("Call-ID") == [call_id(data)] and message.status >= 200:
                return message
        raise AssertionError(f"no answer to {data[:60]!r}")

    def until_answered(self, data: bytes) -> list[Message]:
        """Send a request, and return what came before its 200."""
        self.send(data)
        return before(data, self.messages())


class Datagrams(_Socket):
    """A UDP socket at an address of the loopback network that talks to one server."""

    def __init__(self, host: str, server: str, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((host, port))
        self._server = (server, 5060)

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._server)

    def receive(self, patience: float = PATIENCE) -> Message | None:
        """The next message; None if none comes in time."""
        self._socket.settimeout(patience)
        try:
            return read(self._socket.recv(65535))
        except TimeoutError:
            return None


class Stream(_Socket):
    """A TCP connection from an address of the loopback network to a server."""

    def __init__(self, host: str, server: str, port: int = 5060) -> None:
        self._socket = socket.create_connection((server, port), timeout=PATIENCE, source_address=(host, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        """Send all of the data, unless the server has had enough."""
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # what it said before may still be there to be read

    def receive(self, patience: float = PATIENCE) -> Message | None:
        """The next message; None if none comes in time, or if the server has closed the connection (`ended`)."""
        deadline = time.monotonic() + patience
        while (message := self._take()) is None and not self.ended:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                return None
            except ConnectionResetError:
                data = b""
            self._buffer += data
            self.ended = not data
        return message

    def _take(self) -> Message | None:
        head, end, rest = self._buffer.lstrip(b"\r\n").partition(_END_OF_HEAD)
        if not end:
            return None
        message = read(head + end)
        size = int(message.get("Content-Length"))
        if len(rest) < size:
            return None
        self._buffer = rest[size:]
        return message._replace(body=rest[:size])


class Callee(Datagrams):
    """A user agent on UDP port 5060 that answers every request but ACK with 200, and keeps what came.

    `spoil` makes of each answer what is sent instead.
    """

    def __init__(self, host: str, server: str) -> None:
        super().__init__(host, server, 5060)
        self.spoil: Callable[[bytes], Iterable[bytes]] = lambda answer: [answer]
        self._contact = f"<sip:callee@{host}>"
        self._requests: queue.Queue[Message] = queue.Queue()
        self._responses: queue.Queue[Message] = queue.Queue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()  # else the address would still be in use
        super().close()

    def receive(self, patience: float = PATIENCE) -> Message | None:
        """The next response."""
        with suppress(queue.Empty):
            return self._responses.get(timeout=patience)
        return None

    def requests(self) -> list[Message]:
        """Take what has come."""
        taken = []
        with suppress(queue.Empty):
            while True:
                taken.append(self._requests.get_nowait())
        return taken

    def wait_for_requests(self, number: int) -> list[Message]:
        """Take so many requests; AssertionError if fewer come."""
        taken = []
        for _ in range(number):
            try:
                taken.append(self._requests.get(timeout=PATIENCE))
            except queue.Empty:
                raise AssertionError(f"{number} requests were to come, but only {taken}") from None
        return taken

    def register(self, aor: str, username: str, password: str) -> None:
        """Register here."""
        fields = (f"Contact: {self._contact}", "Expires: 600")
        data = request("REGISTER", f"sip:{aor.rpartition('@')[2]}", sender=aor, to=aor, fields=fields)
        answer = self.ask(again(authorized(data, self.ask(data), username, password)))
        assert answer.status == 200, answer

    def _serve(self) -> None:
        self._socket.settimeout(0.2)
        while not self._stopped.is_set():
            try:
                data, remote = self._socket.recvfrom(65535)
            except TimeoutError:
                continue
            message = read(data)
            if message.status:
                self._responses.put(message)
                continue
            self._requests.put(message)
            if not data.startswith(b"ACK "):
                for data in self.spoil(response(message, "200 OK", "callee")):
                    self._socket.sendto(data, remote)


def again(data: bytes) -> bytes:
    """The same request as another transaction: its Call-ID, and its branch if it is a unique one, are new."""
    mark = b"-%d" % next(_serial)
    head, end, body = data.partition(_END_OF_HEAD)
    head = re.sub(rb"(?im)^((?:call-id|i)[ \t]*:[ \t]*[^\r\n]*?)([ \t]*\r?)$", rb"\1" + mark + rb"\2", head)
    # Of the first Via alone; `z9hG4bK` and nothing more is what makes one of the messages what it is.
    head = re.sub(rb"(?i)(branch[ \t]*=[ \t]*(?!z9hG4bK[\r\n;,])[^\s;,]+)", rb"\1" + mark, head, count=1)
    return head + end + body


class Nodes:
    """Three nodes that serve sipha.test, where alice has an account, and what `extra` adds."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.address = sandbox.virtual_address

    def host(self, number: int) -> str:
        """An address beside those of the nodes."""
        return f"{self.sandbox.prefix}.{number}"

    def datagrams(self, host: int, port: int = 0) -> Datagrams:
        """A UDP socket at an address."""
        return Datagrams(self.host(host), self.address, port)

    def stream(self, host: int) -> Stream:
        """A TCP connection from an address."""
        return Stream(self.host(host), self.address)

    def counters(self) -> dict[str, int]:
        """What the leader has counted."""
        counters: dict[str, int] = self.sandbox.request(self.sandbox.wait_for_leader(), "GET", "/v1/status")["counters"]
        return counters

    def term(self) -> int:
        """The term of the leader: another one tells that a leader was too slow for the others."""
        term: int = self.sandbox.request(self.sandbox.wait_for_leader(), "GET", "/v1/status")["term"]
        return term

    def resident(self) -> int:
        """The leader's memory, in KiB."""
        process = self.sandbox.wait_for_leader().process
        assert process is not None
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        assert found
        return int(found[1])

    def create(self, username: str, domain: str, auth_name: str, password: str) -> None:
        """Create an account."""
        account = {"username": username, "domain": domain, "auth_name": auth_name, "password": password}
        self.sandbox.request(self.sandbox.wait_for_leader(), "POST", "/v1/accounts", account)

    def bindings(self, aor: str) -> list[dict[str, Any]]:
        """The bindings of an AOR."""
        leader = self.sandbox.wait_for_leader()
        answer = self.sandbox.request(leader, "GET", f"/v1/bindings?prefix={quote(aor, safe='')}")
        found: list[dict[str, Any]] = answer["bindings"]
        return found

    def remove_bindings(self, aor: str) -> None:
        """Remove the bindings of an AOR."""
        if self.bindings(aor):
            self.sandbox.request(self.sandbox.wait_for_leader(), "DELETE", f"/v1/bindings/{quote(aor, safe='')}")

    def check(self) -> None:
        """Assert that all nodes run, that phones are served over UDP and TCP, and that no log tells of a fault."""
        uri, aor = f"sip:{self.sandbox.domain}", f"sip:alice@{self.sandbox.domain}"
        opened: Iterable[AbstractContextManager[_Socket]] = (self.datagrams(99), self.stream(99))
        for phone in opened:
            with phone as ways:
                data = request("REGISTER", uri, sender=aor, to=aor, fields=(f"Contact: <sip:alice@{self.host(99)}>",))
                asked = ways.ask(data)
                assert asked.status == 401
                assert ways.ask(again(authorized(data, asked, "alice", "alice-secret"))).status == 200
        assert [node.name for node in self.sandbox.nodes if not node.running] == []
        assert self.counters().get("transport_mistake", 0) == 0
        assert self.faults() == []

    def faults(self) -> list[str]:
        """What the nodes' logs say of faults."""
        return [
            f"{node.name}: {line}"
            for node in self.sandbox.nodes
            for line in _FAULTS.findall((node.directory / "log").read_text(errors="replace"))
        ]


@contextmanager
def running_nodes(directory: Path, extra: str = "", sip: str = "") -> Iterator[Nodes]:
    """Run nodes on 127.0.22.11 to 13; another run of the tests waits until this one is through.

    `sip` are lines for the section [sip] of their configuration, `extra` are further sections.
    """
    with Path(tempfile.gettempdir(), "sipha-wire-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        quiet = '[nat]\nping_scope = "none"\n'  # what comes unasked would be taken for an answer
        sandbox = Sandbox(directory, prefix="127.0.22", extra=quiet + extra, sip=sip)
        try:
            sandbox.start()
            sandbox.add_accounts({"alice": "alice-secret"})
            yield Nodes(sandbox)
        finally:
            sandbox.stop()


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("latin-1")).hexdigest()
