"""The registrar's responses, each rendered in one go (RFC 3261 §10.3 step 8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from email.utils import formatdate

from sipha.errors import SipError
from sipha.sip.flow import Flow
from sipha.sip.message import Request, response_destination
from sipha.sip.status import REASONS
from sipha.state.binding import Binding


def head(request: Request) -> str:
    """The header fields that every response to a request repeats (§8.2.6.2), but To: the same for each copy of it."""
    headers = request.headers
    vias = "\r\nVia: ".join(headers.all("Via"))
    call_id, cseq = headers.get("Call-ID"), headers.get("CSeq")
    return f"Via: {vias}\r\nFrom: {headers.get('From')}\r\nCall-ID: {call_id}\r\nCSeq: {cseq}\r\n"


def to(request: Request, tag: str) -> str:
    """The To header field of a response, with our tag unless it has one."""
    value = request.headers.get("To")
    return f"To: {value};tag={tag}\r\n" if request.to.tag is None else f"To: {value}\r\n"


def destination(request: Request, flow: Flow) -> Flow:
    """Where the response goes; in the usual case, that of a client that knows RFC 3581, seen at a glance."""
    params = request.via.params
    if f";rport={flow.remote[1]};" in params:
        return flow
    return response_destination(request.via, flow)


def contacts(bindings: Sequence[Binding], time: int) -> str:
    """The Contact lines that list bindings, with what remains of each at `time` (ms of cluster time)."""
    lines = ""
    for binding in bindings:
        lines += f"Contact: <{binding.contact}>;expires={binding.remaining(time)}"
        if binding.q is not None:
            lines += f";q={binding.q / 1000:g}"
        if binding.instance:
            lines += f';+sip.instance="{binding.instance}"'
            if binding.reg_id:
                lines += f";reg-id={binding.reg_id}"
        lines += f"{binding.params}\r\n"
    return lines


def ok(head: str, contacts: str, extra: str, date: str) -> bytes:
    """The 200 OK with the Contact lines of all current bindings.

    `extra` are further header lines, each with its line end.
    """
    return f"SIP/2.0 200 OK\r\n{head}{contacts}{extra}Date: {date}\r\nContent-Length: 0\r\n\r\n".encode(
        "utf-8", "surrogateescape"
    )


def unauthorized(head: str, challenges: Iterable[tuple[str, str]]) -> bytes:
    """The 401 that asks who is there, with one challenge for each algorithm (RFC 8760 §2.4)."""
    fields = "".join([f"{name}: {value}\r\n" for name, value in challenges])
    return f"SIP/2.0 401 Unauthorized\r\n{head}{fields}Content-Length: 0\r\n\r\n".encode("utf-8", "surrogateescape")


def refusal(head: str, error: SipError, headers: Iterable[tuple[str, str]]) -> bytes:
    """The response that an error becomes, with these `headers` (the error's, or fewer)."""
    status = error.response_status
    reason = error.reason or REASONS.get(status, "Error")
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"SIP/2.0 {status} {reason}\r\n{head}{fields}Content-Length: 0\r\n\r\n".encode("utf-8", "surrogateescape")


def date(wall_time: float) -> str:
    """A Date header field's value (§20.17) for seconds since the epoch."""
    return formatdate(wall_time, usegmt=True)
