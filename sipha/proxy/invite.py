"""The INVITEs of most phones, forwarded at a glance: their header fields are not even indexed.

One pattern says what is plain: an INVITE over UDP that begins a call, with credentials, and with no Route but one that
phones are configured with. What it takes, `sipha.sip.parser` understands in the same way, and `Proxy` would send the
same bytes to the same flows; what it doesn't take is theirs to judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from sipha.errors import MalformedMessage
from sipha.proxy.glance import NAME, NEVER, PARAMS, PORT, TOKEN, Sender, body_of, goes_on
from sipha.sip.digest import Credentials, parse_credentials
from sipha.sip.headers import Headers
from sipha.sip.message import Request, Response
from sipha.sip.values import CSeq, Via, first

_ONCE = ("Max-Forwards", "From", "To", "Call-ID", "CSeq", "Proxy-Authorization", "Content-Length")
# What forwarding, or the 100, depends on. All else that a phone may say goes on as it is.
_NEVER = (*_ONCE, *NEVER, "Via", "Route", "Max-Breadth", "Timestamp")
_PLAIN = re.compile(
    rf"INVITE (sip:[A-Za-z0-9\-_.+]++@[a-z0-9.\-]++{PORT}{PARAMS}) SIP/2\.0\r\n"
    rf"Via: SIP/2\.0/UDP ([A-Za-z0-9.\-]++){PORT}{PARAMS}\r\n"
    rf'(?:(?:Max-Forwards: {first(7)}([1-9][0-9]{{0,2}})|From: {first(8)}({NAME}<(sip:[^<>"\s]++)>;tag=({TOKEN}))'
    rf'|To: {first(11)}({NAME}<[A-Za-z][A-Za-z0-9+.\-]*+:[^<>"\s]++>)|Call-ID: {first(12)}([!-~]++)'
    rf"|CSeq: {first(13)}(0|[1-9][0-9]{{0,8}}) INVITE|Proxy-Authorization: {first(14)}(Digest [^\r\n]*+)"
    rf"|Content-Length: {first(15)}([0-9]{{1,5}})"
    rf"|Route: {first(16)}(<(sip:[a-z0-9.\-]++(?::[1-9][0-9]{{0,4}})?(?:;transport=udp)?;lr)>)"
    rf"|(?!(?i:{'|'.join(_NEVER)}):)[A-Z][A-Za-z\-]++: [^\r\n]*+)\r\n)*\Z",
    re.ASCII,
)
_PARAMS_OF_VIA = 6  # the number of its group
_COPIED = (8, 11, 12, 13)  # those of the fields that a response repeats


class Invite(NamedTuple):
    """What a plain INVITE says: groups of the pattern, as they stand there; then the lines below its only Via.

    `route` is the only Route, and `next_hop` its URI; both are None without one. `credentials` are those in
    `authorization`, which is the value of the only Proxy-Authorization. `copied` are the lines that a response repeats,
    but for the Via.
    """

    uri: str
    sender: Sender
    max_forwards: str
    from_uri: str
    from_tag: str
    call_id: str
    cseq: str
    authorization: str
    route: str | None
    next_hop: str | None
    credentials: Credentials
    copied: str
    rest: str
    body: bytes

    def request(self, via: Via) -> Request:
        """The request as it comes out of the transaction layer, with its Via marked."""
        return self._request(self.uri, via, f"Via: {via}\r\n{self.rest}")

    def routed(self, via: Via) -> Request:
        """What is forwarded to each target: without the Route, and without the credentials, which are for us."""
        return self._request(self.uri, via, f"Via: {via}{self._stripped}")

    def trying(self, via: Via) -> Response:
        """The 100 for it (§8.2.6.1)."""
        response = Response(100, "Trying", Headers(unread={"Via": via}))
        response.defer(f"Via: {via}\r\n{self.copied}Content-Length: 0\r\n")
        return response

    def forwarded(self, via: Via, own: Via, uri: str, record_routes: Iterable[str], breadth: int) -> Request:
        """What `forward.forward` makes of it for a target with this URI; `own` is the Via that it gets."""
        hops = f"\r\nMax-Forwards: {int(self.max_forwards) - 1}\r\n"
        rest = self._stripped.replace(f"\r\nMax-Forwards: {self.max_forwards}\r\n", hops, 1)
        lines = "".join([f"Record-Route: {value}\r\n" for value in record_routes])
        return self._request(uri, own, f"Via: {own}\r\n{lines}Via: {via}{rest}Max-Breadth: {breadth}\r\n")

    @property
    def _stripped(self) -> str:
        """The rest behind a CRLF, without Route and credentials."""
        rest = f"\r\n{self.rest}".replace(f"\r\nProxy-Authorization: {self.authorization}\r\n", "\r\n", 1)
        return rest if self.route is None else rest.replace(f"\r\nRoute: {self.route}\r\n", "\r\n", 1)

    def _request(self, uri: str, via: Via, text: str) -> Request:
        read = {"Via": via, "CSeq": CSeq(int(self.cseq), "INVITE")}
        request = Request("INVITE", uri, Headers(unread=read), self.body)
        request.defer(text)
        return request


def read(data: bytes) -> Invite | None:
    """Read a datagram; None if it is no plain INVITE, or its credentials aren't for its own Request-URI."""
    if not data.startswith(b"INVITE "):
        return None
    end = data.find(b"\r\n\r\n")
    text = data[: end + 2].decode("utf-8", "surrogateescape")
    match = _PLAIN.match(text)
    if match is None:
        return None
    (
        uri, uri_port, uri_params, host, port, params, max_forwards, from_, from_uri, from_tag, to, call_id, cseq,
        authorization, content_length, route, next_hop,
    ) = match.groups()  # fmt: skip
    if not (
        (max_forwards and from_ and to and call_id and cseq and authorization and content_length)
        and goes_on(uri_port, uri_params, max_forwards)
    ):
        return None
    sender, body = Sender.of(host, port, params), body_of(data, end + 4, content_length)
    if sender is None or body is None:
        return None
    try:
        credentials = parse_credentials(authorization)
    except MalformedMessage:
        return None
    if credentials is None or credentials.uri != uri:
        return None
    fields = f"From: {from_}\r\n", f"To: {to}\r\n", f"Call-ID: {call_id}\r\n", f"CSeq: {cseq} INVITE\r\n"
    copied = "".join([field for _, field in sorted(zip(map(match.start, _COPIED), fields, strict=True))])
    rest = text[match.end(_PARAMS_OF_VIA) + 2 :]
    return Invite(
        uri, sender, max_forwards, from_uri, from_tag, call_id, cseq, authorization, route, next_hop, credentials,
        copied, rest, body,
    )  # fmt: skip
