"""From bytes to messages: of datagrams and of streams (RFC 3261 §7, §18.3)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from sipha.errors import MalformedMessage
from sipha.sip.headers import CSeq, Headers, is_number, is_token
from sipha.sip.message import Message, Request, Response
from sipha.sip.uri import Uri, parse_uri

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(r"\n(?=[ \t])")
_BARE_CR = re.compile(r"\r(?!\n)")
_VERSION = re.compile(r"SIP/[0-9]+\.[0-9]+\Z", re.IGNORECASE)
_SINGLE = ("From", "To", "Call-ID", "CSeq", "Max-Forwards")
_CACHED_URI_SIZE = 100

MAX_MESSAGE = 65536
"""The largest message, in bytes, that a stream may bring; a datagram can't be larger."""


class ParseError(MalformedMessage):
    """The bytes are no message; `request` is what a response can be made to, None if there must not or can't be one."""

    def __init__(self, detail: str, *, status: int = 400, request: Request | None = None) -> None:
        super().__init__(detail, status=status)
        self.request = request


class Keepalive(NamedTuple):
    """What stands between messages on a stream: a double CRLF asks for a CRLF, which is the answer (RFC 5626 §3.5.1)."""

    data: bytes

    @property
    def ping(self) -> bool:
        """True if a CRLF is to be sent back."""
        return self.data == b"\r\n\r\n"


def parse(data: bytes) -> Request | Response:
    """Parse a datagram; ParseError if it is no message."""
    head_end = data.find(b"\r\n\r\n")
    body_at = head_end + 4
    if head_end < 0 or data[:2] == b"\r\n" or data.find(b"\n\n", 0, head_end) >= 0:
        # "Implementations processing SIP messages over stream-oriented transports MUST ignore any CRLF appearing before
        # the start-line" (§7.5): harmless in datagrams too, as are lines that end in LF only.
        data = data.lstrip(b"\r\n")
        end = _END_OF_HEAD.search(data)
        head_end, body_at = (len(data), len(data)) if end is None else end.span()
    else:
        end = True
    message, defect = _parse_head(data[:head_end])
    if defect is None and not end:
        defect = ParseError("no empty line ends the header fields")
    if defect is not None:
        raise _with_request(defect, message)
    body = data[body_at:]
    try:
        size = _content_length(message.headers)
    except ParseError as error:
        raise _with_request(error, message) from None
    if size is not None:
        # "If there are additional bytes in the transport packet beyond the end of the body, they MUST be discarded. If
        # the transport packet ends before the end of the message body, this is considered an error." (§18.3)
        if size > len(body):
            raise _with_request(ParseError(f"Content-Length: {size}, but {len(body)} bytes came"), message)
        body = body[:size]
    message.body = body
    return message
