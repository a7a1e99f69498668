"""Bytes to and from real nodes: sockets, and just enough of SIP to read what comes, independent of sipha's own parser."""

from __future__ import annotations

import hashlib
import itertools
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple, Self

PATIENCE = 5.0
"""How long an answer may take, in seconds."""

_serial = itertools.count(1)
_END_OF_HEAD = b"\r\n\r\n"
_COMPACT = {b"v": b"via", b"f": b"from", b"t": b"to", b"i": b"call-id", b"l": b"content-length", b"m": b"contact"}
_CHALLENGE = re.compile(rb'(\w+)="([^"]*)"')


class Message(NamedTuple):
    """A message as it came: its first line, its header fields (folding and all, without the last CRLF) and its body."""

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
        return [_value(field) for field in self.fields if field_name(field) == name.lower().encode()]

    def get(self, name: str) -> bytes:
        """The value of the only header field of a name."""
        (value,) = self.all(name)
        return value


def field_name(field: bytes) -> bytes:
    """The name of a header field in lower case, never its compact form."""
    name = field.partition(b":")[0].strip().lower()
    return _COMPACT.get(name, name)


def read(data: bytes) -> Message:
    """Take a message apart; ValueError if that isn't possible."""
    head, end, body = data.partition(_END_OF_HEAD)
    start_line, _, rest = head.partition(b"\r\n")
    if not end or not start_line:
        raise ValueError(f"not a message: {data[:80]!r}")
    return Message(start_line, tuple(re.split(rb"\r\n(?![ \t])", rest)), body)


def unfolded(value: bytes) -> bytes:
    """A value on one line."""
    return re.sub(rb"\s*\r\n\s+", b" ", value)


def request(method: str, uri: str, *, user: str = "tester", to: str = "", fields: Iterable[str] = (), body: bytes = b"") -> bytes:
    """A request of our own, sound and unlike any before; `user` is who sends it, `to` whom it is for (URIs)."""
    number = next(_serial)
    sender = user if user.startswith("sip:") else f"sip:{user}@tester.invalid"
    lines = (
        f"{method} {uri} SIP/2.0",
        f"Via: SIP/2.0/UDP tester.invalid;rport;branch=z9hG4bKwire{number}",
        "Max-Forwards: 70",
        f"From: <{sender}>;tag=wire{number}",
        f"To: <{to or uri}>",
        f"Call-ID: wire-{number}",
        f"CSeq: {number} {method}",
        *fields,
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def authorized(data: bytes, challenge: Message, username: str, password: str) -> bytes:
    """A request with the credentials that a 401 asks for (MD5 with qop auth), and a higher CSeq in another branch."""
    asked = {name.decode(): value.decode() for name, value in _CHALLENGE.findall(challenge.all("WWW-Authenticate")[0])}
    method, uri, _ = data.split(b" ", 2)
    nonce, cnonce = asked["nonce"], "c"
    secret = _md5(f"{username}:{asked['realm']}:{password}")
    digest = _md5(f"{secret}:{nonce}:00000001:{cnonce}:auth:{_md5(f'{method.decode()}:{uri.decode()}')}")
    credentials = (
        f'Digest username="{username}", realm="{asked["realm"]}", nonce="{nonce}", uri="{uri.decode()}", '
        f'response="{digest}", algorithm=MD5, qop=auth, cnonce="{cnonce}", nc=00000001'
    )
    head, _, body = data.partition(_END_OF_HEAD)
    return head + f"\r\nAuthorization: {credentials}".encode() + _END_OF_HEAD + body


def call_id(data: bytes) -> bytes:
    """The Call-ID of a message; empty if it has none."""
    found = re.search(rb"(?im)^(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", data)
    return found[1].strip() if found else b""


def _value(field: bytes) -> bytes:
    return field.partition(b":")[2].strip()


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


class Datagrams:
    """A UDP socket on an address of the loopback network that talks to one server."""

    def __init__(self, host: str, server: str, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((host, port))
        self._server = (server, 5060)
        self.address: tuple[str, int] = self._socket.getsockname()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._server)

    def receive(self, patience: float = PATIENCE) -> bytes:
        """The next datagram; empty if none comes in time."""
        self._socket.settimeout(patience)
        try:
            return self._socket.recv(65535)
        except TimeoutError:
            return b""

    def answers(self, data: bytes) -> list[Message]:
        """Send, and then a sound OPTIONS; what came before the answer to that."""
        self.send(data)
        return self.until_answered(options(self._server[0]))

    def until_answered(self, data: bytes) -> list[Message]:
        """Send a request, and return what came before its 200; AssertionError if that doesn't come."""
        self.send(data)
        return before(data, self._messages())

    def _messages(self) -> Iterable[Message]:
        while data := self.receive():
            yield read(data)


def options(server: str) -> bytes:
    """An OPTIONS that a node answers itself."""
    return request("OPTIONS", f"sip:{server}")


def before(data: bytes, messages: Iterable[Message]) -> list[Message]:
    """The messages that come before the 200 to a request."""
    others = []
    for message in messages:
        if message.all("Call-ID") == [call_id(data)]:
            assert message.status == 200, message
            return others
        others.append(message)
    raise AssertionError(f"no answer to {data[:40]!r}, but {others}")


class Stream:
    """A TCP connection to a server."""

    def __init__(self, host: str, server: str) -> None:
        self._server = server
        self._socket = socket.create_connection((server, 5060), timeout=PATIENCE, source_address=(host, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send all of the data, unless the server has had enough."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def receive(self, patience: float = PATIENCE) -> Message | None:
        """The next message; None if none comes in time, or the server has closed the connection (`ended`)."""
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

    def until_answered(self, data: bytes) -> list[Message]:
        """Send a request, and return what came before its 200; AssertionError if that doesn't come."""
        self.send(data)
        return before(data, self.messages())

    def messages(self) -> Iterable[Message]:
        """What comes, until nothing does."""
        while message := self.receive():
            yield message

    def _take(self) -> Message | None:
        buffer = self._buffer.lstrip(b"\r\n")
        head, end, rest = buffer.partition(_END_OF_HEAD)
        if not end:
            return None
        message = read(head + end)
        size = int(message.get("Content-Length"))
        if len(rest) < size:
            return None
        self._buffer = rest[size:]
        return message._replace(body=rest[:size])


class UserAgent:
    """A user agent on UDP that answers all requests with 200, but ACK, and keeps what came in `received`."""

    def __init__(self, host: str, server: str) -> None:
        self.received: queue.Queue[bytes] = queue.Queue()
        self.address = (host, 5060)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._server = (server, 5060)
        self._answers: queue.Queue[Message] = queue.Queue()
        threading.Thread(target=self._serve, daemon=True).start()

    def register(self, aor: str, username: str, password: str, *, contact: str = "", extra: Callable[[bytes], bytes] | None = None) -> Message:
        """Register a contact, ours if none is given; returns the final answer."""
        contact = contact or f"<sip:ua@{self.address[0]}:{self.address[1]}>"
        uri = f"sip:{aor.rpartition('@')[2]}"
        fields = (f"Contact: {contact}", "Expires: 600")
        asked = self.ask(request("REGISTER", uri, user=aor, to=aor, fields=fields))
        return self.ask(authorized(request("REGISTER", uri, user=aor, to=aor, fields=fields), asked, username, password))

    def ask(self, data: bytes) -> Message:
        """Send a request and return the answer."""
        self._socket.sendto(data, self._server)
        return self._answers.get(timeout=PATIENCE)

    def _serve(self) -> None:
        while True:
            try:
                data, remote = self._socket.recvfrom(65535)
            except OSError:
                return  # closed
            if not data:
                return
            message = read(data)
            if message.status:
                self._answers.put(message)
                continue
            self.received.put(data)
            if not data.startswith(b"ACK "):
                copied = [field for field in message.fields if field_name(field) in COPIED]
                self._socket.sendto(b"\r\n".join([b"SIP/2.0 200 OK", *copied, b"Content-Length: 0", b"", b""]), remote)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR) if False else None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self.address)
        self._socket.close()


COPIED = (b"via", b"from", b"to", b"call-id", b"cseq", b"record-route")
"""The header fields that a response repeats (RFC 3261 §8.2.6.2, §12.1.1)."""
