"""One ping: which way it goes, and what it looks like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

from sipha.errors import MalformedMessage
from sipha.nat.interfaces import IPingTransport
from sipha.sip.flow import Address, Flow
from sipha.sip.token import MAGIC_COOKIE
from sipha.sip.uri import SipUri, ip_literal, parse_uri
from sipha.sip.values import parse_name_addr
from sipha.state.binding import Binding

ZEROS = bytes(4)
"""What is no message of any protocol, and passes a NAT all the same."""

DOUBLE_CRLF = b"\r\n\r\n"
"""The keepalive of streams (RFC 5626 §3.5.1)."""

BRANCH = f"{MAGIC_COOKIE}-ping-"
"""What the branch of a ping begins with, before its token."""

ANSWER = re.compile(
    rb"SIP/2\.0 ([1-6][0-9]{2}) [^\r\n]*+\r\n(?:Via|v): [^\r\n;,]*+;branch=%s([\w-]++)" % BRANCH.encode()
)
"""An answer that begins as most do, with status and token; all else has to be parsed."""

USUAL = re.compile(r"sip:([0-9.]++):([0-9]{1,5});transport=udp\Z")
"""The registrar's own spelling of where a phone registered from over UDP, with host and port."""

_RECEIVED = re.compile(r"sip:([0-9.]++):([0-9]{1,5});transport=([a-z]++)\Z")


class Pings:
    """Makes pings, of what is known of the listeners of one leadership; `sender` is the URI in From."""

    def __init__(self, sender: str) -> None:
        self._sender = sender
        self._locals: dict[str, Address | None] = {}
        self._vias: dict[tuple[str, Address], str] = {}  # ours, without its branch, by transport and local address

    def ping(
        self, binding: Binding, path: Sequence[str], token: str, transport: IPingTransport
    ) -> tuple[bytes, Flow] | None:
        """Return a ping and its way: an OPTIONS if there is a token, else what nobody answers; None without a way."""
        flow = self._flow(binding, path, transport)
        if flow is None or (flow.reliable and not flow.connection and not path):
            return None  # nobody can open a connection to a phone behind NAT
        if token:
            return options(binding.request_uri, self._via(flow, transport), path, self._sender, token), flow
        return None if path else (DOUBLE_CRLF if flow.reliable else ZEROS, flow)

    def _via(self, flow: Flow, transport: IPingTransport) -> str:
        name, local, _, _ = flow
        via = self._vias.get((name, local))
        if via is None:
            via = self._vias[name, local] = f"SIP/2.0/{name} {transport.sent_by(flow)}"
        return via

    def _flow(self, binding: Binding, path: Sequence[str], transport: IPingTransport) -> Flow | None:
        """The way to a phone: through its edge, or back where it registered from, from the address that it knows."""
        if not path and (usual := USUAL.match(binding.received)):
            local = self._locals.get(binding.socket)
            if local is not None:
                return Flow("UDP", local, (usual[1], int(usual[2])))
        name, remote = destination(path[0] if path else binding.received or binding.contact)
        if remote is None:
            return None
        if name == "UDP" and not path:
            local = self._locals.get(binding.socket)
            if local is None:
                local = self._locals[binding.socket] = listener(binding.socket, transport)
            if local is not None:
                return Flow(name, local, remote)
        return transport.flow(name, remote)


def options(uri: str, via: str, path: Sequence[str], sender: str, token: str) -> bytes:
    """Return an OPTIONS whose branch, Call-ID, tag and CSeq no other has: some phones ignore one that they know.

    `via` is our Via without its branch, which is made of `token`; `sender` the URI in From.
    """
    routes = "".join([f"Route: {hop}\r\n" for hop in path]) if path else ""
    return (
        f"OPTIONS {uri} SIP/2.0\r\nVia: {via};branch={BRANCH}{token}\r\n{routes}"
        f"Max-Forwards: 70\r\nFrom: <{sender}>;tag={token[-12:]}\r\nTo: <{uri}>\r\nCall-ID: {token}\r\n"
        f"CSeq: {crc32(token.encode()) & 0x7FFFFFFF} OPTIONS\r\nContent-Length: 0\r\n\r\n"
    ).encode("utf-8", "surrogateescape")


def path_of(binding: Binding, transport: IPingTransport) -> Sequence[str]:
    """Return the Path vector without what leads to ourselves."""
    path = binding.path
    while path:
        name, address = destination(path[0])
        if address is None or not transport.is_local(*address, name):
            break
        path = path[1:]
    return path


def destination(text: str) -> tuple[str, Address | None]:
    """Return the transport and address that a URI, or a Path value, leads to; None where that is a name or nonsense."""
    usual = _RECEIVED.match(text)
    if usual is not None:
        host, port, name = usual.groups()
        return name.upper(), (host, int(port))
    try:
        uri = parse_uri(parse_name_addr(text, "Path").uri if "<" in text else text)
    except MalformedMessage:
        return "", None
    return (uri.transport, uri.address) if isinstance(uri, SipUri) else ("", None)


def listener(socket: str, transport: IPingTransport) -> Address | None:
    """Return the address that a binding's `socket` names (`udp:192.0.2.10:5060`); None if we don't listen there."""
    name, _, rest = socket.partition(":")
    host, _, port = rest.rpartition(":")
    literal = ip_literal(host)
    if literal is None or not port.isdecimal() or not transport.is_local(literal, int(port), name.upper()):
        return None
    return literal, int(port)
