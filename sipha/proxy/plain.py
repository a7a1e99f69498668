"""The requests within dialogs of most phones, forwarded at a glance: their header fields are not even indexed.

One pattern says what is plain. What it takes, `sipha.sip.parser` understands in the same way, and `Proxy` would send
the same bytes to the same flow; what it doesn't take is theirs to judge.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sipha.proxy.dialog import sides
from sipha.proxy.interfaces import ITransport
from sipha.sip.flow import Flow
from sipha.sip.message import Request, mark_received
from sipha.sip.token import MAGIC_COOKIE, Tokens
from sipha.sip.values import CSeq, Via, parse_via

_TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]++"  # noqa: S105 - the grammar's word
_PORT = r"(?::([1-9][0-9]{0,4}))?"
_PARAMS = r"((?:;[A-Za-z0-9\-._]++(?:=[A-Za-z0-9\-._:]*+)?)*)"
_ADDRESS = rf'(?:"[^"\\\r\n]*+" ?)?<[A-Za-z][A-Za-z0-9+.\-]*+:[^<>"\s]++>;tag=({_TOKEN})'
_ONCE = ("Max-Forwards", "Route", "From", "To", "Call-ID", "CSeq", "Content-Length")
_STARTS = tuple(f"\r\n{name}: " for name in _ONCE)
# What forwarding depends on. All else that a phone may say goes on as it is.
_NEVER = ("Proxy-Authorization", "Proxy-Require", "P-Asserted-Identity", "P-Preferred-Identity", "Remote-Party-ID")
_PLAIN = re.compile(
    rf"(ACK|BYE|INFO|PRACK|UPDATE) (sip:(?:[A-Za-z0-9\-_.+]++@)?[a-z0-9.\-]++{_PORT}{_PARAMS}) SIP/2\.0\r\n"
    rf"Via: SIP/2\.0/UDP ([A-Za-z0-9.\-]++){_PORT}{_PARAMS}\r\n"
    r"(?:(?:Max-Forwards: ([1-9][0-9]{0,2})|Route: (<sip:([A-Za-z0-9\-_]++)@([0-9.]++):([1-9][0-9]{0,4});lr>)"
    rf"|From: {_ADDRESS}|To: {_ADDRESS}"
    r"|Call-ID: ([!-~]++)|CSeq: (0|[1-9][0-9]{0,8}) \1|Content-Length: ([0-9]{1,5})"
    rf"|(?!(?i:{'|'.join((*_ONCE, *_NEVER))}):)[A-Z][A-Za-z\-]++: [^\r\n]*+)\r\n)*\Z",
    re.ASCII,
)
_METHODS = (b"ACK ", b"BYE ", b"INFO ", b"PRACK ", b"UPDATE ")
_MAX_FORWARDS = 255
_HIGHEST_PORT = 65535


class Plain(NamedTuple):
    """What a plain request says: the groups of the pattern, as they stand there; then the lines below its topmost Via.

    `host`, `port` and `params` are those of that Via. `route` is the only Route, and `token` its user.
    """

    method: str
    uri: str
    uri_port: str | None
    uri_params: str
    host: str
    port: str | None
    params: str
    max_forwards: str
    route: str
    token: str
    route_host: str
    route_port: str
    from_tag: str
    to_tag: str
    call_id: str
    cseq: str
    content_length: str
    rest: str
    body: bytes

    def request(self, flow: Flow) -> Request:
        """The request as it comes out of the transaction layer: marked with the flow that it came by."""
        via = Via("UDP", self.host, int(self.port) if self.port else None, self.params)
        request = Request(self.method, self.uri, (), self.body)
        request.defer(f"Via: {via}\r\n{self.rest}", {"Via": via, "CSeq": CSeq(int(self.cseq), self.method)})
        mark_received(request, flow)
        return request

    def forward(self, via: Via, tokens: Tokens, transport: ITransport, now: float) -> tuple[Request, Flow] | None:
        """What `forward.forward` makes of it as the only fork, or of an ACK, and the flow to the other side.

        None if it has to be parsed: its Route isn't ours or doesn't prove a dialog, that flow is a connection that is
        gone, the request has been here before, or an ACK is for a response of our own. `via` is its topmost Via, marked
        with where it came from; `now` is the cluster time in seconds.
        """
        call_id, from_tag, to_tag, cseq, forks = self.call_id, self.from_tag, self.to_tag, self.cseq, 1
        branch, sent_by = via.branch or "", via.sent_by
        if not transport.is_local(self.route_host, int(self.route_port), "UDP"):
            return None
        dialog = sides(self.token, call_id, from_tag, to_tag, tokens)
        if dialog is None:
            return None
        if self.method == "ACK":
            forks = 0
            if tokens.is_tag(to_tag, call_id, from_tag, int(cseq), f"{sent_by} {branch}"):
                return None
        side = dialog.callee
        flow = transport.flow(side.transport, (side.host, side.port))
        if flow is None or (flow.reliable and not flow.connection):
            return None
        loop = tokens.loop_digest((self.uri, call_id, from_tag, to_tag, cseq, self.route))
        if f".{loop}" in self.rest:
            return None
        target = f"{flow.transport} {flow.remote[0]} {flow.remote[1]}"
        identity = (sent_by, branch, via.received or "", str(via.rport or ""), call_id, from_tag, cseq, target)
        own = f"SIP/2.0/{flow.transport} {transport.sent_by(flow)};branch="
        own += tokens.branch(identity, now, forks, forks, loop) + transport.mark
        hops = f"\r\nMax-Forwards: {int(self.max_forwards) - 1}\r\n"
        rest = f"\r\n{self.rest}".replace(f"\r\nRoute: {self.route}\r\n", "\r\n", 1)
        rest = rest.replace(f"\r\nMax-Forwards: {self.max_forwards}\r\n", hops, 1)
        request = Request(self.method, self.uri, (), self.body)
        read = {"Via": parse_via(own), "CSeq": CSeq(int(cseq), self.method)}
        request.defer(f"Via: {own}\r\nVia: {via}{rest}", read)
        return request, flow


_NEEDED = slice(Plain._fields.index("max_forwards"), Plain._fields.index("rest"))
_BELOW_VIA = Plain._fields.index("params") + 1


def read(data: bytes) -> Plain | None:
    """Read a datagram; None if it is no plain request within a dialog."""
    if not data.startswith(_METHODS):
        return None
    end = data.find(b"\r\n\r\n")
    text = data[: end + 2].decode("utf-8", "surrogateescape")
    match = _PLAIN.match(text)
    if match is None:
        return None
    groups = match.groups()
    if None in groups[_NEEDED]:
        return None
    plain = Plain._make((*groups, text[match.end(_BELOW_VIA) + 2 :], data[end + 4 :]))
    size, params, uri_params = int(plain.content_length), plain.params, plain.uri_params.lower()
    _, rport, after = params.partition(";rport")
    branch = params.partition(";branch=")[2].partition(";")[0]
    if (
        # Each of those fields once: the pattern remembers the last.
        any(text.count(line) != 1 for line in _STARTS)
        # A Via that asks for rport, with nothing in it to be replaced when it is marked
        or not rport
        or after[:1] not in {"", ";"}
        or "received" in params.lower()
        or not branch.startswith(MAGIC_COOKIE)
        or branch == MAGIC_COOKIE
        # What is the mark of a strict router, or names another host (RFC 3261 §16.4)
        or "lr" in uri_params
        or "maddr" in uri_params
        or int(plain.max_forwards) > _MAX_FORWARDS
        or max(int(plain.port or 0), int(plain.uri_port or 0), int(plain.route_port)) > _HIGHEST_PORT
        or size > len(plain.body)
    ):
        return None
    return plain if size == len(plain.body) else plain._replace(body=plain.body[:size])
