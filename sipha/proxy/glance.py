"""What the requests have in common that are forwarded at a glance: parts of their patterns, and their topmost Via."""

from __future__ import annotations

from typing import NamedTuple

from sipha.proxy.interfaces import ITransport
from sipha.sip.flow import Flow
from sipha.sip.token import MAGIC_COOKIE
from sipha.sip.transaction import Key
from sipha.sip.values import Via

TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]++"  # noqa: S105 - the grammar's word
PORT = r"(?::([1-9][0-9]{0,4}))?"
PARAMS = r"((?:;[A-Za-z0-9\-._]++(?:=[A-Za-z0-9\-._:]*+)?)*)"
NAME = r'(?:"[^"\\\r\n]*+" ?)?'
NEVER = ("Proxy-Require", "P-Asserted-Identity", "P-Preferred-Identity", "Remote-Party-ID")
"""What forwarding depends on. All else that a phone may say goes on as it is."""

HIGHEST_PORT = 65535

_MAX_FORWARDS = 255
_DEFAULT_PORT = 5060  # of UDP


class Sender(NamedTuple):
    """The topmost Via of a plain request, which asks for rport with nothing in it to be replaced when it is marked.

    `before` and `after` are its parameters around the rport; `branch` and `sent_by` are as `Via` has them.
    """

    host: str
    port: int | None
    before: str
    after: str
    branch: str
    sent_by: str

    @classmethod
    def of(cls, host: str, port: str | None, params: str) -> Sender | None:
        """The sender by the parts of a Via over UDP; None if it has to be parsed."""
        before, rport, after = params.partition(";rport")
        branch = params.partition(";branch=")[2].partition(";")[0]
        if (
            not rport
            or after[:1] not in {"", ";"}
            or "received" in params.lower()
            or not branch.startswith(MAGIC_COOKIE)
            or branch == MAGIC_COOKIE
        ):
            return None
        number = int(port) if port else None
        if number is not None and number > HIGHEST_PORT:
            return None
        return cls(host, number, before, after, branch, f"{host.lower()}:{number or _DEFAULT_PORT}")

    def via(self, flow: Flow) -> Via:
        """The Via, marked with the flow that the request came by."""
        host, port = flow.remote
        params = f"{self.before};rport={port}{self.after};received={host}"
        return Via("UDP", self.host, self.port, params, self.branch)

    def key(self, method: str) -> Key:
        """What `server_key` makes of the request, for a transaction begun with `method`."""
        return self.branch, self.sent_by, method

    def identity(self, came: Flow, call_id: str, from_tag: str, cseq: str, goes: Flow) -> tuple[str, ...]:
        """What `forward.branch_identity` makes of a request that came by one flow and goes by another."""
        host, port = came.remote
        target = f"{goes.transport} {goes.remote[0]} {goes.remote[1]}"
        return self.sent_by, self.branch, host, str(port), call_id, from_tag, cseq, target


def own_via(flow: Flow, branch: str, transport: ITransport) -> Via:
    """The Via of ours for what goes out by a flow."""
    host, _, port = transport.sent_by(flow).rpartition(":")
    return Via(flow.transport, host, int(port), f";branch={branch}{transport.mark}", branch)


def goes_on(uri_port: str | None, uri_params: str, max_forwards: str) -> bool:
    """Return True if a request has hops left, and its Request-URI is nothing but a target (§16.3, §16.4).

    Parameters may mark it as a strict router's, or name another host.
    """
    lower = uri_params.lower()
    return (
        "lr" not in lower
        and "maddr" not in lower
        and (not uri_port or int(uri_port) <= HIGHEST_PORT)
        and int(max_forwards) <= _MAX_FORWARDS
    )


def body_of(data: bytes, start: int, content_length: str) -> bytes | None:
    """The body that begins there, whatever comes behind it; None if there is less than Content-Length says (§18.3)."""
    end = start + int(content_length)
    return data[start:end] if end <= len(data) else None
