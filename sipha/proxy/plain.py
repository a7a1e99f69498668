"""The requests within dialogs of most phones, forwarded at a glance: their header fields are not even indexed.

One pattern says what is plain. What it takes, `sipha.sip.parser` understands in the same way, and `Proxy` would send
the same bytes to the same flow; what it doesn't take is theirs to judge.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sipha.proxy.dialog import sides
from sipha.proxy.glance import HIGHEST_PORT, NAME, NEVER, PARAMS, PORT, TOKEN, Sender, body_of, goes_on, own_via
from sipha.proxy.interfaces import ITransport
from sipha.sip.flow import Flow
from sipha.sip.headers import Headers
from sipha.sip.message import Request
from sipha.sip.token import Tokens
from sipha.sip.values import CSeq, Via, first

_ADDRESS = rf'{NAME}<[A-Za-z][A-Za-z0-9+.\-]*+:[^<>"\s]++>;tag=({TOKEN})'
_ONCE = ("Max-Forwards", "Route", "From", "To", "Call-ID", "CSeq", "Content-Length")
_PLAIN = re.compile(
    rf"(ACK|BYE|INFO|PRACK|UPDATE) (sip:(?:[A-Za-z0-9\-_.+]++@)?[a-z0-9.\-]++{PORT}{PARAMS}) SIP/2\.0\r\n"
    rf"Via: SIP/2\.0/UDP ([A-Za-z0-9.\-]++){PORT}{PARAMS}\r\n"
    rf"(?:(?:Max-Forwards: {first(8)}([1-9][0-9]{{0,2}})"
    rf"|Route: {first(9)}(<sip:([A-Za-z0-9\-_]++)@([0-9.]++):([1-9][0-9]{{0,4}});lr>)"
    rf"|From: {first(13)}{_ADDRESS}|To: {first(14)}{_ADDRESS}|Call-ID: {first(15)}([!-~]++)"
    rf"|CSeq: {first(16)}(0|[1-9][0-9]{{0,8}}) \1|Content-Length: {first(17)}([0-9]{{1,5}})"
    rf"|(?!(?i:{'|'.join((*_ONCE, 'Proxy-Authorization', *NEVER))}):)[A-Z][A-Za-z\-]++: [^\r\n]*+)\r\n)*\Z",
    re.ASCII,
)
_METHODS = (b"ACK ", b"BYE ", b"INFO ", b"PRACK ", b"UPDATE ")


class Plain(NamedTuple):
    """What a plain request says: groups of the pattern, as they stand there; then the lines below its topmost Via.

    `route` is the only Route, and `token` its user.
    """

    method: str
    uri: str
    sender: Sender
    max_forwards: str
    route: str
    token: str
    route_host: str
    route_port: str
    from_tag: str
    to_tag: str
    call_id: str
    cseq: str
    rest: str
    body: bytes

    def request(self, via: Via) -> Request:
        """The request as it comes out of the transaction layer, with its Via marked."""
        return self._request(via, f"Via: {via}\r\n{self.rest}")

    def forward(
        self, via: Via, flow: Flow, tokens: Tokens, transport: ITransport, now: float
    ) -> tuple[Request, Flow] | None:
        """What `forward.forward` makes of it as the only fork, or of an ACK, and the flow to the other side.

        None if it has to be parsed: its Route isn't ours or doesn't prove a dialog, that flow is a connection that is
        gone, the request has been here before, or an ACK is for a response of our own. `via` is its topmost Via, marked
        with the flow that it came by; `now` is the cluster time in seconds.
        """
        call_id, from_tag, to_tag, cseq, forks = self.call_id, self.from_tag, self.to_tag, self.cseq, 1
        if not transport.is_local(self.route_host, int(self.route_port), "UDP"):
            return None
        dialog = sides(self.token, call_id, from_tag, to_tag, tokens)
        if dialog is None:
            return None
        if self.method == "ACK":
            forks = 0
            if tokens.is_tag(to_tag, call_id, from_tag, int(cseq), f"{self.sender.sent_by} {self.sender.branch}"):
                return None
        side = dialog.callee
        out = transport.flow(side.transport, (side.host, side.port))
        if out is None or (out.reliable and not out.connection):
            return None
        loop = tokens.loop_digest((self.uri, call_id, from_tag, to_tag, cseq, self.route))
        if f".{loop}" in self.rest:
            return None
        branch = tokens.branch(self.sender.identity(flow, call_id, from_tag, cseq, out), now, forks, forks, loop)
        own = own_via(out, branch, transport)
        hops = f"\r\nMax-Forwards: {int(self.max_forwards) - 1}\r\n"
        rest = f"\r\n{self.rest}".replace(f"\r\nRoute: {self.route}\r\n", "\r\n", 1)
        rest = rest.replace(f"\r\nMax-Forwards: {self.max_forwards}\r\n", hops, 1)
        return self._request(own, f"Via: {own}\r\nVia: {via}{rest}"), out

    def _request(self, via: Via, text: str) -> Request:
        read = {"Via": via, "CSeq": CSeq(int(self.cseq), self.method)}
        request = Request(self.method, self.uri, Headers(unread=read), self.body)
        request.defer(text)
        return request


def read(data: bytes) -> Plain | None:
    """Read a datagram; None if it is no plain request within a dialog."""
    if not data.startswith(_METHODS):
        return None
    end = data.find(b"\r\n\r\n")
    text = data[: end + 2].decode("utf-8", "surrogateescape")
    match = _PLAIN.match(text)
    if match is None:
        return None
    (
        method, uri, uri_port, uri_params, host, port, params, max_forwards, route, token, route_host, route_port,
        from_tag, to_tag, call_id, cseq, content_length,
    ) = match.groups()  # fmt: skip
    if (
        not (max_forwards and route and from_tag and to_tag and call_id and cseq and content_length)
        or not goes_on(uri_port, uri_params, max_forwards)
        or int(route_port) > HIGHEST_PORT
    ):
        return None
    sender, body = Sender.of(host, port, params), body_of(data, end + 4, content_length)
    if sender is None or body is None:
        return None
    rest = text[match.end(_PARAMS_OF_VIA) + 2 :]
    return Plain(
        method, uri, sender, max_forwards, route, token, route_host, route_port, from_tag, to_tag, call_id, cseq, rest,
        body,
    )  # fmt: skip


_PARAMS_OF_VIA = 7  # the number of its group
