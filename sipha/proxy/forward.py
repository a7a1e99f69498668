"""Forwarding one request to one target: the copy of RFC 3261 §16.6, steps 1 to 9, and the keyed branch."""

from __future__ import annotations

from typing import NamedTuple

from sipha.proxy.dialog import RECORD_ROUTED, listening, record_routes
from sipha.proxy.interfaces import ITransport
from sipha.proxy.route import postprocess, push
from sipha.proxy.target import Target, next_hop
from sipha.sip.flow import Flow
from sipha.sip.headers import Via
from sipha.sip.message import Message, Request
from sipha.sip.token import NOBODY, Tokens

_MAX_FORWARDS = 70


class Passage(NamedTuple):
    """What all forks of a request have in common.

    `request` is what each starts from, `incoming` the flow it came by. `loop` is the digest of `loop_digest`, `now` the
    cluster time in seconds. `users` are the marks of whose phones the two sides of a dialog are. `made` is what is sent
    to the only target and the flow to it, if that has been made already.
    """

    request: Request
    incoming: Flow
    tokens: Tokens
    loop: str = ""
    now: float = 0.0
    users: tuple[bytes, bytes] = (NOBODY, NOBODY)
    made: tuple[Request, Flow] | None = None


def forward(
    passage: Passage,
    target: Target,
    transport: ITransport,
    *,
    fork: int = 0,
    forks: int = 0,
    breadth: int = 0,
    branch: str = "",
) -> tuple[Request, Flow] | None:
    """Make what is sent to a target, as fork `fork` of `forks` (0 of 0: an ACK), and find the flow it is sent by.

    None if no flow leads to the target. `breadth` is its share of Max-Breadth (RFC 5393 §5.3.3); 0 leaves the header as
    it is. `branch` is the one that the fork has had before, with what its Via bore behind that, if another process has
    forwarded it.
    """
    if passage.made is not None:
        return passage.made
    request = passage.request.copy()  # 1. Copy request
    request.uri = target.uri  # 2. Request-URI
    max_forwards = request.max_forwards  # 3. Max-Forwards
    request.headers.set("Max-Forwards", str(_MAX_FORWARDS if max_forwards is None else max_forwards - 1))
    push(request, target.routes)  # 6. Postprocess routing information
    hop = postprocess(request)
    flow = next_hop(target, request, hop, transport)  # 7. Next hop
    if flow is None:
        return None
    if request.method in RECORD_ROUTED:  # 4. Record-Route, which says by which flow the request leaves
        caller = listening(request.via, passage.incoming)
        token = passage.tokens.route(request.call_id, request.from_.tag or "", caller, flow, passage.users)
        for value in reversed(record_routes(token, passage.incoming, flow, transport)):
            request.headers.prepend("Record-Route", value)
    if breadth:  # 5. Additional header fields
        request.headers.set("Max-Breadth", str(breadth))
    if not branch:
        identity = branch_identity(request, request.via, flow.transport, flow.remote)
        branch = passage.tokens.branch(identity, passage.now, fork, forks, passage.loop) + transport.mark  # 8. Via
    request.headers.prepend("Via", f"SIP/2.0/{flow.transport} {transport.sent_by(flow)};branch={branch}")
    return request, flow  # 9. Content-Length is set when the request is rendered


def branch_identity(message: Message, via: Via, transport: str, target: tuple[str, int]) -> tuple[str, ...]:
    """What a branch of ours is made of: `via` is the next Via, `target` where the request was sent (design §5)."""
    cseq = message.cseq.number
    host, port = target
    return (
        via.sent_by,
        via.branch or "",
        via.received or "",
        str(via.rport or ""),
        message.call_id,
        message.from_.tag or "",
        str(cseq),
        f"{transport} {host} {port}",
    )


def loop_digest(request: Request, tokens: Tokens) -> str:
    """The digest of all that decides the way of a request as it came: the same again is a loop (RFC 5393 §4.2.1).

    Neither method nor credentials count, so that CANCEL and ACK match.
    """
    headers = request.headers
    return tokens.loop_digest(
        (
            request.uri,
            request.call_id,
            request.from_.tag or "",
            request.to.tag or "",
            str(request.cseq.number),
            *headers.all("Route"),
            *headers.all("Proxy-Require"),
        )
    )


def cancel_for(request: Request, reasons: tuple[str, ...]) -> Request:
    """Make the CANCEL for a request that we sent (§9.1), with the Reason fields it is to bear (RFC 3326)."""
    headers = request.headers
    # "The Request-URI, Call-ID, To, the numeric part of CSeq, and From header fields in the CANCEL request MUST be
    # identical to those in the request being cancelled, including tags. A CANCEL constructed by a client MUST have only
    # a single Via header field value matching the top Via value in the request being cancelled."
    cancel = Request("CANCEL", request.uri, [("Via", str(request.via))])
    for value in headers.all("Route"):
        cancel.headers.add("Route", value)
    cancel.headers.add("Max-Forwards", str(_MAX_FORWARDS))
    for name in ("From", "To", "Call-ID"):
        cancel.headers.add(name, headers.get(name) or "")
    cancel.headers.add("CSeq", f"{request.cseq.number} CANCEL")
    for reason in reasons:
        cancel.headers.add("Reason", reason)
    return cancel
