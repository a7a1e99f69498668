"""From bytes to messages: of datagrams and of streams (RFC 3261 §7, §18.3)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from sipha.errors import MalformedMessage
from sipha.sip.headers import Headers
from sipha.sip.message import METHODS, Request, Response
from sipha.sip.uri import Uri, parse_uri
from sipha.sip.values import CSeq, Via, first, is_number, is_token, parse_cseq, parse_name_addr, parse_via

MAX_MESSAGE = 65536
"""The largest message, in bytes, that a stream may bring; a datagram can't be larger."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_SINGLE = ("From", "To", "Call-ID", "CSeq", "Max-Forwards")
_LENGTH = ("Content-Length",)
_NEEDED = (("Via", parse_via), ("From", parse_name_addr), ("To", parse_name_addr), ("CSeq", parse_cseq))
_REMEMBERED_LENGTH = 100


# A response as nearly all are: the topmost Via, then whatever needs no closer look, in any order.
_PLAIN_PARAMS = r"(?:;[A-Za-z0-9\-._]++(?:=[A-Za-z0-9\-._:]*+)?)*"
_PLAIN_ADDRESS = rf'(?:"[^"\\\r\n]*+" ?)?<[A-Za-z][A-Za-z0-9+.\-]*+:[^<>"\s]++>{_PLAIN_PARAMS}'
_PLAIN_RESPONSE = re.compile(
    r"SIP/2\.0 ([1-6][0-9]{2}) ([^\r\n]*+)\r\n"
    rf"Via: SIP/2\.0/([A-Z]++) ([A-Za-z0-9.\-]++)(?::([1-9][0-9]{{0,3}}))?({_PLAIN_PARAMS})\r\n"
    rf"(?:(?:Via: [^\r\n]*+|Record-Route: [^\r\n]*+"
    rf"|From: {first(7)}({_PLAIN_ADDRESS})|To: {first(8)}({_PLAIN_ADDRESS})|Call-ID: {first(9)}([!-~])[^\r\n]*+"
    rf"|CSeq: {first(10)}([0-9]{{1,9}}) ([A-Za-z]++)|Content-Length: {first(12)}([0-9]{{1,9}})"
    r"|(?!(?i:From|To|Call-ID|CSeq|Content-Length|Max-Forwards):)[A-Z][A-Za-z\-]++: [^\r\n]*+)\r\n)*\Z",
    re.ASCII,
)


class ParseError(MalformedMessage):
    """The bytes are no message; `request` is what can be answered, None if there must not or can't be an answer."""

    def __init__(self, detail: str, *, status: int = 400, request: Request | None = None) -> None:
        super().__init__(detail, status=status)
        self.request = request


class Keepalive(NamedTuple):
    """What stands between messages on a stream: a double CRLF asks for a CRLF, the answer (RFC 5626 §3.5.1)."""

    data: bytes

    @property
    def ping(self) -> bool:
        """True if a CRLF is to be sent back."""
        return self.data == b"\r\n\r\n"


_PING = Keepalive(b"\r\n\r\n")
_PONG = Keepalive(b"\r\n")


class _Head(NamedTuple):
    """The head of a message: its lines told apart, and what is wrong with them."""

    start_line: str
    headers: Headers
    defect: str | None


def parse(data: bytes) -> Request | Response:
    """Parse a datagram; ParseError if it is no message.

    After it, the start line is sound, and Via (the topmost), From, To, Call-ID and CSeq are there and well-formed.
    """
    # "Implementations processing SIP messages over stream-oriented transports MUST ignore any CRLF appearing before
    # the start-line" (§7.5): harmless in datagrams too.
    if data[:1] in b"\r\n":
        data = data.lstrip(b"\r\n")
    end = data.find(b"\r\n\r\n")
    if data.startswith(b"SIP/2.0 ") and (response := _plain_response(data, end + 2)) is not None:
        return response
    head = _index(data[:end]) if end >= 0 else None
    body_at = end + 4
    if head is None:
        found = _END_OF_HEAD.search(data)
        end, body_at = found.span() if found else (len(data), -1)
        head = _loose_index(data[:end].rstrip(b"\r\n"))
    try:
        message = _message(head)
        message.body = _body(head.headers, data[body_at:] if body_at >= 0 else None)
    except MalformedMessage as error:
        raise _parse_error(error, head) from None
    return message


class StreamParser:
    """Finds the messages in a stream: `feed` it what comes, then take what is complete with `next`.

    It holds no more than a message of `max_message` bytes and what was fed last. `fatal` is True once nobody can say
    where the next message begins: the connection has to be closed.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self.fatal = False
        self._max_message = max_message
        self._buffer = bytearray()
        self._searched = 0  # the head doesn't end before this
        self._head: _Head | None = None  # of the message whose body is awaited
        self._size = 0  # of that body
        self._after_crlf = False  # a lone CRLF came before; another one makes it a ping

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream."""
        if not self.fatal:
            self._buffer += data

    def next(self) -> Request | Response | Keepalive | None:
        """Return what came next; None if it isn't complete. ParseError if it is no message: it has been passed over."""
        if self.fatal:
            return None
        if self._head is None:
            keepalive = self._keepalive()
            if keepalive is not None:
                return keepalive
            if not self._read_head():
                return None
        head = self._head
        if head is None or len(self._buffer) < self._size:
            return None
        body = bytes(self._buffer[: self._size])
        del self._buffer[: self._size]
        self._head = None
        try:
            message = _message(head)
        except MalformedMessage as error:
            raise _parse_error(error, head) from None
        message.body = body
        return message

    @property
    def pending(self) -> bool:
        """True if a message has begun and isn't complete."""
        return self._head is not None or bool(self._buffer)

    def _keepalive(self) -> Keepalive | None:
        buffer = self._buffer
        if not buffer.startswith(b"\r\n"):
            return None
        if self._after_crlf or buffer.startswith(b"\r\n\r\n"):
            del buffer[: 2 if self._after_crlf else 4]
            self._after_crlf = False
            return _PING
        del buffer[:2]
        self._after_crlf = True
        return _PONG

    def _read_head(self) -> bool:
        buffer = self._buffer
        found = _END_OF_HEAD.search(buffer, self._searched)
        if found is None:
            if len(buffer) > self._max_message:
                head = _loose_index(
                    bytes(buffer[: buffer.rfind(b"\n") + 1]).rstrip(b"\r\n")
                )  # without a line cut short
                self._lose()
                error = MalformedMessage(f"the header fields are longer than {self._max_message} bytes", status=513)
                raise _parse_error(error, head)
            self._searched = max(0, len(buffer) - 3)
            return False
        end, body_at = found.span()
        lines = bytes(buffer[:end])
        head = _index(lines) or _loose_index(lines)
        self._after_crlf = False
        self._searched = 0
        try:
            size = self._body_size(head.headers, body_at)
        except MalformedMessage as error:
            self._lose()
            raise _parse_error(error, head) from None
        del buffer[:body_at]
        self._head = head
        self._size = size
        return True

    def _body_size(self, headers: Headers, head_size: int) -> int:
        size = _content_length(headers)
        if size is None:
            # "The Content-Length header field MUST be used with stream oriented transports." (§18.3)
            raise MalformedMessage("Content-Length: missing, which a stream needs")
        if head_size + size > self._max_message:
            raise MalformedMessage(f"the message is longer than {self._max_message} bytes", status=513)
        return size

    def _lose(self) -> None:
        self.fatal = True
        self._buffer.clear()


def _index(head: bytes) -> _Head | None:
    """Index a head; None if CR or LF stands in it without the other."""
    lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    text = "".join(lines)
    return None if "\n" in text or "\r" in text else _head(lines, None)


def _loose_index(head: bytes) -> _Head:
    """Index a head in which some lines may end in LF only; a CR alone could hide a header from others."""
    text = head.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    return _head(text.replace("\r", " ").split("\n"), "a CR stands without LF" if "\r" in text else None)


def _head(lines: list[str], defect: str | None) -> _Head:
    start_line = lines[0]
    del lines[0]
    headers = Headers()
    bad_line = headers.read(lines)
    return _Head(start_line, headers, defect or bad_line)


def _message(head: _Head) -> Request | Response:
    start_line, headers, defect = head
    if defect is not None:
        raise MalformedMessage(defect)
    message = _response(start_line, headers) if start_line[:4].upper() == "SIP/" else _request(start_line, headers)
    if name := headers.repeated(_SINGLE):
        raise MalformedMessage(f"{name}: more than one")
    # They are parsed here since no element can do without; what else there is, is parsed by who needs it.
    headers.parse(_NEEDED)
    if not headers.get("Call-ID"):
        raise MalformedMessage("Call-ID: missing")
    if isinstance(message, Request) and (cseq := message.cseq).method != message.method:
        raise MalformedMessage(f"CSeq: the method is {cseq.method[:40]}, not {message.method[:40]}")
    return message


def _request(start_line: str, headers: Headers) -> Request:
    # Few Request-Lines are in use: those of all REGISTERs for a domain are the same.
    read = _remembered_request_line if len(start_line) <= _REMEMBERED_LENGTH else _request_line
    method, uri, parsed = read(start_line)
    request = Request(method, uri, headers)
    request.keep_parsed_uri(parsed)
    return request


def _request_line(start_line: str) -> tuple[str, str, Uri]:
    """Return the method of a Request-Line, and the URI as text and parsed."""
    parts = start_line.split(" ")
    if parts[-1] != "SIP/2.0" and (version := parts[-1].upper()) != "SIP/2.0":
        if version.startswith("SIP/"):
            raise MalformedMessage(f"the version is {version[:20]}, not SIP/2.0", status=505)
        raise MalformedMessage(f"the request line does not end in SIP/2.0: {start_line[:80]!r}")
    if len(parts) != 3:
        raise MalformedMessage(f"the request line is not three words: {start_line[:80]!r}")
    method, uri, _ = parts
    if method not in METHODS and not is_token(method):
        raise MalformedMessage(f"the method is not a token: {method[:40]!r}")
    return method, uri, parse_uri(uri)


_remembered_request_line = lru_cache(maxsize=1024)(_request_line)


def _plain_response(data: bytes, body_at: int) -> Response | None:
    """Parse a response whose body comes after the CRLF there; None if it has to be looked at closely."""
    text = data[:body_at].decode("utf-8", "surrogateescape")
    match = _PLAIN_RESPONSE.match(text)
    if match is None:
        return None
    status, reason, transport, host, port, params, from_, to, call_id, number, method, length = match.groups()
    if not (from_ and to and call_id and number and length):
        return None
    body = data[body_at + 2 :]
    size = int(length)
    if size > len(body):
        return None
    via = Via(transport, host, int(port) if port else None, params)
    read: dict[str, object] = {"Via": via, "CSeq": CSeq(int(number), method)}
    if method == "INVITE" and status[0] == "2":
        read["To"] = parse_name_addr(to)  # its tag says which dialog has begun
    response = Response(int(status), reason, Headers(unread=read), body[:size])
    response.defer(text[match.end(2) + 2 :])
    return response


def _response(start_line: str, headers: Headers) -> Response:
    version, _, rest = start_line.partition(" ")
    status, _, reason = rest.partition(" ")
    if version.upper() != "SIP/2.0":
        raise MalformedMessage(f"the version is {version[:20]}, not SIP/2.0", status=505)
    if len(status) != 3 or not is_number(status) or not "100" <= status <= "699":
        raise MalformedMessage(f"the status is {status[:20]!r}, not 100 to 699")
    return Response(int(status), reason, headers)


def _body(headers: Headers, data: bytes | None) -> bytes:
    """Return the body of a datagram, given what came after the empty line; None if there was no such line."""
    if data is None:
        raise MalformedMessage("no empty line ends the header fields")
    size = _content_length(headers)
    if size is None:
        return data
    # "If there are additional bytes in the transport packet beyond the end of the body, they MUST be discarded. If the
    # transport packet ends before the end of the message body, this is considered an error." (§18.3)
    if size > len(data):
        raise MalformedMessage(f"Content-Length: {size}, but {len(data)} bytes came")
    return data[:size]


def _content_length(headers: Headers) -> int | None:
    text = headers.get("Content-Length")
    if text is None:
        return None
    if not is_number(text) or len(text) > 10:
        raise MalformedMessage(f"Content-Length: {text[:20]!r} is not a length")
    size = int(text)
    if headers.repeated(_LENGTH) and any(
        not is_number(other) or int(other[:11]) != size for other in headers.all("Content-Length")
    ):
        raise MalformedMessage("Content-Length: more than one, and they differ")
    return size


def _parse_error(error: MalformedMessage, head: _Head) -> ParseError:
    return ParseError(error.detail, status=error.response_status, request=_answerable(head))


def _answerable(head: _Head) -> Request | None:
    """Return a request that `response_to` can answer, each of its single headers once; None if that can't be made."""
    method, _, rest = head.start_line.partition(" ")
    # There is no response to a response, and none to an ACK (§17.2.1).
    if method == "ACK" or not is_token(method):
        return None
    if not all(head.headers.get(name) for name in ("Via", "From", "To", "Call-ID", "CSeq")):
        return None
    request = Request(method, rest.rpartition(" ")[0], head.headers.copy())
    for name in _SINGLE:
        if request.headers.count(name) > 1:
            request.headers.set(name, request.headers.get(name) or "")
    try:
        _ = request.via
    except MalformedMessage:
        return None
    return request
