"""Requests and responses: their parts are parsed when they are asked for, once (RFC 3261 §7)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.headers import Headers
from sipha.sip.status import REASONS
from sipha.sip.uri import Uri, default_port, ip_literal, parse_uri
from sipha.sip.values import (
    CSeq,
    NameAddr,
    PlainContact,
    Via,
    is_number,
    parse_contact,
    parse_cseq,
    parse_name_addr,
    parse_seconds,
    parse_via,
    plain_contact,
    set_params,
)

METHODS = frozenset(
    (
        "ACK",
        "BYE",
        "CANCEL",
        "INFO",
        "INVITE",
        "MESSAGE",
        "NOTIFY",
        "OPTIONS",
        "PRACK",
        "PUBLISH",
        "REFER",
        "REGISTER",
        "SUBSCRIBE",
        "UPDATE",
    )
)
"""Those of the RFCs (IANA's registry of SIP methods)."""

_CRLF = "\r\n"
_IPV4 = re.compile(r"[0-9.]++\Z")


class Message:
    """What requests and responses share: header fields, and a body that is bytes.

    Each accessor raises a MalformedMessage that names the header, if that is missing or can't be understood. After
    `parser.parse`, `via`, `from_`, `to`, `call_id` and `cseq` don't.
    """

    __slots__ = ("_headers", "_text", "body")

    def __init__(self, headers: Headers | Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self._headers = headers if isinstance(headers, Headers) else Headers(headers)
        self._text = ""
        self.body = body

    def defer(self, text: str) -> None:
        """Let the header fields, which are `unread`, be those of a text, each line with its CRLF, none folded.

        They are indexed when `headers` is asked for. What is remembered of them by then is Via at least, the topmost
        one, which stands alone in the first line. From, To, Call-ID and CSeq are well-formed, and Content-Length is
        right.
        """
        self._text = text

    @property
    def headers(self) -> Headers:
        """The header fields."""
        if self._text:
            text, self._text = self._text, ""
            self._headers.read(text[:-2].split("\r\n"))
        return self._headers

    def replace_via(self, via: Via) -> None:
        """Replace the topmost Via value."""
        if self._text:
            self._text = f"Via: {via}{self._text[self._text.index(_CRLF) :]}"
            self._headers.remembered["Via"] = via
        else:
            self._headers.replace_value("Via", str(via), via)

    @property
    def via(self) -> Via:
        """The topmost Via value: the last hop (§20.42)."""
        value: Via | None = self._headers.remembered.get("Via")
        return value or self.headers.parsed("Via", parse_via)

    @property
    def vias(self) -> list[Via]:
        """All Via values, the last hop first."""
        return [parse_via(value) for value in self.headers.values("Via")]

    @property
    def from_(self) -> NameAddr:
        """The From value (§20.20)."""
        value: NameAddr | None = self._headers.remembered.get("From")
        return value or self.headers.parsed("From", parse_name_addr)

    @property
    def to(self) -> NameAddr:
        """The To value (§20.39)."""
        value: NameAddr | None = self._headers.remembered.get("To")
        return value or self.headers.parsed("To", parse_name_addr)

    @property
    def call_id(self) -> str:
        """The Call-ID (§20.8)."""
        value = self.headers.get("Call-ID")
        if not value:
            raise MalformedMessage("Call-ID: missing")
        return value

    @property
    def cseq(self) -> CSeq:
        """The CSeq value (§20.16)."""
        value: CSeq | None = self._headers.remembered.get("CSeq")
        return value or self.headers.parsed("CSeq", parse_cseq)

    @property
    def contacts(self) -> list[NameAddr]:
        """The Contact values (§20.10), of which one may be `*`."""
        return self.headers.parsed_values("Contact", parse_contact)

    @property
    def plain_contact(self) -> PlainContact | None:
        """The only Contact, if it is written as most phones do; None if `contacts` must be asked."""
        fields = self.headers.all("Contact")
        return plain_contact(fields[0]) if len(fields) == 1 else None

    @property
    def routes(self) -> list[NameAddr]:
        """The Route values (§20.34), the next hop first."""
        return self.headers.parsed_values("Route", parse_name_addr)

    @property
    def record_routes(self) -> list[NameAddr]:
        """The Record-Route values (§20.30), the last hop first."""
        return self.headers.parsed_values("Record-Route", parse_name_addr)

    @property
    def paths(self) -> list[NameAddr]:
        """The Path values (RFC 3327), the last hop first."""
        return self.headers.parsed_values("Path", parse_name_addr)

    @property
    def max_forwards(self) -> int | None:
        """Max-Forwards, 0 to 255 (§20.22); None if absent."""
        text = self.headers.get("Max-Forwards")
        if text is None:
            return None
        if not is_number(text) or len(text) > 20 or int(text) > 255:
            raise MalformedMessage(f"Max-Forwards: {text[:20]!r} is not a number from 0 to 255")
        return int(text)

    @property
    def expires(self) -> int | None:
        """Expires in seconds (§20.19): at most 2**32-1, 3600 if malformed; None if absent."""
        text = self.headers.get("Expires")
        return None if text is None else parse_seconds(text)

    @property
    def start_line(self) -> str:
        """The first line, without its CRLF."""
        raise NotImplementedError

    def render(self) -> bytes:
        """Return the message's bytes; Content-Length is made to say how long the body is."""
        if self._text:
            return f"{self.start_line}{_CRLF}{self._text}{_CRLF}".encode("utf-8", "surrogateescape") + self.body
        headers = self._headers
        length = headers.get("Content-Length")
        size = len(self.body)
        if length != str(size) and (length is None or not is_number(length) or len(length) > 20 or int(length) != size):
            headers.set("Content-Length", str(size))
        head = "\r\n".join([self.start_line, *headers.lines, "\r\n"])
        return head.encode("utf-8", "surrogateescape") + self.body

    def __repr__(self) -> str:
        """Return the first line and the headers."""
        return f"<{self.start_line} {self.headers!r}>"


class Request(Message):
    """A request; `uri` is the text of its Request-URI."""

    __slots__ = ("_parsed_uri", "method", "uri")

    def __init__(
        self, method: str, uri: str, headers: Headers | Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        # As Message does; a call less, for each message that comes.
        self._headers = headers if isinstance(headers, Headers) else Headers(headers)
        self._text = ""
        self.body = body
        self.method = method
        self.uri = uri
        self._parsed_uri: tuple[str, Uri] | None = None

    @property
    def parsed_uri(self) -> Uri:
        """The Request-URI in its parts; MalformedMessage if it is none."""
        parsed = self._parsed_uri
        if parsed is None or parsed[0] != self.uri:
            parsed = self._parsed_uri = (self.uri, parse_uri(self.uri))
        return parsed[1]

    def keep_parsed_uri(self, parsed: Uri) -> None:
        """Let `parsed_uri` return this, which is what `uri` says."""
        self._parsed_uri = (self.uri, parsed)

    @property
    def start_line(self) -> str:
        """The Request-Line (§7.1)."""
        return f"{self.method} {self.uri} SIP/2.0"

    def copy(self) -> Request:
        """Return a request that can be changed without changing this one."""
        request = Request(self.method, self.uri, self.headers.copy(), self.body)
        request._parsed_uri = self._parsed_uri
        return request


class Response(Message):
    """A response."""

    __slots__ = ("reason", "status")

    def __init__(
        self, status: int, reason: str, headers: Headers | Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        self._headers = headers if isinstance(headers, Headers) else Headers(headers)
        self._text = ""
        self.body = body
        self.status = status
        self.reason = reason

    def pop_via(self) -> bool:
        """Remove the topmost Via value (§16.7 step 3); False if there is no other."""
        if self._text:
            rest = self._text[self._text.index(_CRLF) + 2 :]
            if rest.startswith("Via: ") or "\r\nVia: " in rest:
                self._text = rest
                del self._headers.remembered["Via"]
                return True
        self.headers.pop_value("Via")
        return "Via" in self.headers

    @property
    def start_line(self) -> str:
        """The Status-Line (§7.2)."""
        return f"SIP/2.0 {self.status} {self.reason}"

    def copy(self) -> Response:
        """Return a response that can be changed without changing this one."""
        return Response(self.status, self.reason, self.headers.copy(), self.body)


def response_to(
    request: Request,
    status: int,
    reason: str | None = None,
    *,
    to_tag: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> Response:
    """Make the response that §8.2.6 asks for: Vias, From, To, Call-ID and CSeq of the request, as they came.

    `to_tag` is added to a To that has none. Nothing is parsed but the To, so that it works for a request that is wrong
    elsewhere.
    """
    response = Response(status, REASONS.get(status, "Unknown") if reason is None else reason, Headers(), body)
    response.headers.copy_from(request.headers, _COPIED_100 if status == 100 else _COPIED)
    if to_tag is not None and _lacks_tag(request):
        # "the UAS MUST add a tag to the To header field in the response (with the exception of the 100 (Trying)
        # response, in which a tag MAY be present)."
        response.headers.set("To", f"{request.headers.get('To')};tag={to_tag}")
    for name, value in headers:
        response.headers.add(name, value)
    return response


def mark_received(request: Request, flow: Flow, *, force_rport: bool = False) -> None:
    """Write into the top Via where the request came from (§18.2.1, RFC 3581 §4); what the sender claimed is removed.

    With `force_rport` the response goes back to that port even if the sender didn't ask for it.
    """
    via = request.via
    sent_by, params = via.host, via.params
    host, port = flow.remote
    # "it MUST set the value of the parameter to the source port of the request", and "MUST also insert a "received"
    # parameter ... even if it is identical to the value of the "sent-by" component."
    before, rport, after = params.partition(";rport")
    if rport and (not after or after[0] == ";") and "received" not in params.lower():
        params = f"{before};rport={port}{after};received={host}"
    elif force_rport or via.has_param("rport"):
        params = set_params(params, ("rport", str(port)), ("received", host))
    elif via.has_param("received") or (sent_by != host and ip_literal(sent_by) != host):
        params = set_params(params, ("received", host))
    else:
        return
    marked = Via(via.transport, sent_by, via.port, params)
    request.replace_via(marked)


def response_destination(via: Via, flow: Flow) -> Flow:
    """Return the flow for a response with this top Via, to a request that came by `flow` (§18.2.2, RFC 3581 §4).

    A host name in the Via, which would have to be looked up, gives way to where the request came from. So does an
    maddr: it is for requests that were sent by multicast, which we don't hear, and would aim our answers at a victim.
    """
    # "If the "sent-protocol" is a reliable transport protocol such as TCP or SCTP, or TLS over those, the response
    # MUST be sent using the existing connection to the source of the original request"
    if flow.reliable:
        return flow
    port = via.port or default_port(via.transport)
    received = via.received
    if received and (host := ip_literal(received)):
        port = via.rport or port
    else:
        host = ip_literal(via.host)
    if host is None or (host, port) == flow.remote:
        return flow
    return flow._replace(remote=(host, port))


_COPIED = frozenset(("Via", "From", "To", "Call-ID", "CSeq"))
# "When a 100 (Trying) response is generated, any Timestamp header field present in the request MUST be copied into
# this 100 (Trying) response." (§8.2.6.1)
_COPIED_100 = _COPIED | {"Timestamp"}


def _lacks_tag(request: Request) -> bool:
    try:
        return request.to.tag is None
    except MalformedMessage:
        return False
