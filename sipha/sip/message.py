"""Requests and responses: their parts are parsed when they are asked for, once (RFC 3261 §7)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.headers import (
    Contact,
    CSeq,
    Headers,
    NameAddr,
    Via,
    is_number,
    parse_contact,
    parse_cseq,
    parse_name_addr,
    parse_seconds,
    parse_via,
    split_first,
)
from sipha.sip.status import REASONS
from sipha.sip.uri import Uri, ip_literal, parse_uri

_IPV4 = re.compile(r"[0-9.]++\Z")
_DEFAULT_PORTS = {"TLS": 5061, "WS": 80, "WSS": 443}


class Message:
    """What requests and responses share: header fields, and a body that is bytes.

    Each accessor raises a MalformedMessage that names the header, if that is missing or can't be understood. After
    `parser.parse`, `via`, `from_`, `to`, `call_id` and `cseq` don't.
    """

    __slots__ = ("body", "headers")

    def __init__(self, headers: Headers | Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.body = body

    @property
    def via(self) -> Via:
        """The topmost Via value: the last hop (§20.42)."""
        return self.headers.parsed("Via", _top_via)

    @property
    def vias(self) -> list[Via]:
        """All Via values, the last hop first."""
        return [parse_via(value) for value in self.headers.values("Via")]

    @property
    def from_(self) -> NameAddr:
        """The From value (§20.20)."""
        return self.headers.parsed("From", _name_addr)

    @property
    def to(self) -> NameAddr:
        """The To value (§20.39)."""
        return self.headers.parsed("To", _name_addr)

    @property
    def call_id(self) -> str:
        """The Call-ID (§20.8)."""
        return _required(self.headers, "Call-ID")

    @property
    def cseq(self) -> CSeq:
        """The CSeq value (§20.16)."""
        return self.headers.parsed("CSeq", _cseq)

    @property
    def contacts(self) -> list[Contact]:
        """The Contact values (§20.10), of which one may be `*`."""
        return self.headers.parsed("Contact", _contacts) if "Contact" in self.headers else []

    @property
    def routes(self) -> list[NameAddr]:
        """The Route values (§20.34), the next hop first."""
        return self.headers.parsed("Route", _name_addrs) if "Route" in self.headers else []

    @property
    def record_routes(self) -> list[NameAddr]:
        """The Record-Route values (§20.30), the last hop first."""
        return self.headers.parsed("Record-Route", _name_addrs) if "Record-Route" in self.headers else []

    @property
    def paths(self) -> list[NameAddr]:
        """The Path values (RFC 3327), the last hop first."""
        return self.headers.parsed("Path", _name_addrs) if "Path" in self.headers else []

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
        headers = self.headers
        length = headers.get("Content-Length")
        size = len(self.body)
        if length is None or not is_number(length) or len(length) > 20 or int(length) != size:
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
        super().__init__(headers, body)
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
        super().__init__(headers, body)
        self.status = status
        self.reason = reason

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


def mark_received(request: Request, flow: Flow) -> None:
    """Write into the top Via where the request came from (§18.2.1, RFC 3581 §4); what the sender claimed is removed."""
    via = request.via
    host, port = flow.remote
    params = via.params
    if via.has_param("rport"):
        # "it MUST set the value of the parameter to the source port of the request", and "MUST also insert a
        # "received" parameter ... even if it is identical to the value of the "sent-by" component."
        marked = via.with_params(("rport", str(port)), ("received", host))
    elif via.host != host and ip_literal(via.host) != host:
        marked = via.with_params(("received", host))
    elif ";received" in params.lower():
        marked = via.with_params(("received", host))
    else:
        return
    if marked.params != params:
        request.headers.replace_value("Via", str(marked))
        request.headers.keep_parsed("Via", marked)


def response_destination(via: Via, flow: Flow) -> Flow:
    """Return the flow for a response with this top Via, to a request that came by `flow` (§18.2.2, RFC 3581 §4).

    A host name in the Via, which would have to be looked up, gives way to where the request came from.
    """
    # "If the "sent-protocol" is a reliable transport protocol such as TCP or SCTP, or TLS over those, the response
    # MUST be sent using the existing connection to the source of the original request"
    if flow.reliable:
        return flow
    port = via.port or _DEFAULT_PORTS.get(via.transport, 5060)
    maddr = via.param("maddr")
    if maddr and (host := ip_literal(maddr)):
        return flow._replace(remote=(host, port))
    received = via.received
    if received and (host := ip_literal(received)):
        return flow._replace(remote=(host, via.rport or port))
    host = ip_literal(via.host)
    return flow if host is None else flow._replace(remote=(host, port))


_COPIED = frozenset(("Via", "From", "To", "Call-ID", "CSeq"))
# "When a 100 (Trying) response is generated, any Timestamp header field present in the request MUST be copied into
# this 100 (Trying) response." (§8.2.6.1)
_COPIED_100 = _COPIED | {"Timestamp"}


def _lacks_tag(request: Request) -> bool:
    try:
        return request.to.tag is None
    except MalformedMessage:
        return False


def _required(headers: Headers, name: str) -> str:
    value = headers.get(name)
    if not value:
        raise MalformedMessage(f"{name}: missing")
    return value


def _top_via(headers: Headers, name: str) -> Via:
    return parse_via(split_first(_required(headers, name))[0])


def _name_addr(headers: Headers, name: str) -> NameAddr:
    return parse_name_addr(_required(headers, name), name)


def _name_addrs(headers: Headers, name: str) -> list[NameAddr]:
    return [parse_name_addr(value, name) for value in headers.values(name)]


def _cseq(headers: Headers, name: str) -> CSeq:
    return parse_cseq(_required(headers, name))


def _contacts(headers: Headers, name: str) -> list[Contact]:
    return [parse_contact(value) for value in headers.values(name)]
