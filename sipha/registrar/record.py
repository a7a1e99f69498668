"""From a REGISTER to the record that is proposed to the log: RFC 3261 §10.3 steps 1 to 7, as far as one node decides.

What depends on the order of REGISTERs (CSeq, matching, limits) is decided when the record is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal, NamedTuple
from zlib import crc32

from sipha.auth.authenticator import Authenticator, Challenge, Verified
from sipha.auth.domain import Domains
from sipha.errors import MalformedMessage, SipError
from sipha.sip.flow import Flow
from sipha.sip.headers import Contact as ContactField
from sipha.sip.message import Request
from sipha.sip.uri import parse_uri
from sipha.state.entries import Contact, Policy, Register
from sipha.state.interfaces import ICredentials

MAX_CONTACT = 512
MAX_AOR = 256
MAX_CALL_ID = 256
MAX_PATH = 1024
MAX_CONTACTS = 64
_MAX_TEXT = 256
_ONE_HOUR = 3600
_SUPPORTED = frozenset(("path", "outbound"))
_OWN_PARAMS = frozenset(("expires", "q", "+sip.instance", "reg-id", "received"))


@dataclass(frozen=True, slots=True)
class RegistrarSettings:
    """What an operator decides about registrations.

    `policy` bounds expiries and contacts. `min_expires_policy`: a REGISTER that asks for less than the minimum is
    answered 423, or gets the minimum. `expires_jitter` is the percentage of an expiry that is taken off at most, so
    that phones which registered at once don't refresh at once. `out_of_order` is the answer to a CSeq that isn't
    higher: 500 as RFC 3261 §10.3 has it, or 200 with the bindings as they are. `full_status` refuses a REGISTER beyond
    the contacts allowed. Path is taken from `edges` alone, networks of proxies that are trusted. `max_pending` bounds
    the REGISTERs that wait for the log.
    """

    policy: Policy = field(default_factory=Policy)
    min_expires_policy: Literal["reject", "raise"] = "reject"
    expires_jitter: int = 0
    out_of_order: Literal[200, 500] = 500
    full_status: int = 403
    edges: tuple[IPv4Network | IPv6Network, ...] = ()
    max_pending: int = 20_000


class Prepared(NamedTuple):
    """A REGISTER that may be carried out: the record, or None if it only asks, and what its 200 repeats."""

    aor: str
    record: Register | None
    verified: Verified
    extra: str


def prepare(
    request: Request,
    flow: Flow,
    now: float,
    term: int,
    authenticator: Authenticator,
    credentials: ICredentials,
    domains: Domains,
    settings: RegistrarSettings,
) -> Prepared | Challenge:
    """Check and authenticate a REGISTER, and make its record (RFC 3261 §10.3); nothing is kept.

    `now` is the cluster time in seconds. Raises SipError with the status to refuse it with.
    """
    domain = domains.of(request.uri)
    if domain is None:
        raise SipError(f"{request.uri} is no domain of ours", status=403, reason="Domain Not Served Here")
    headers = request.headers
    required = _required(request) if "Require" in headers else ()
    outcome = authenticator.verify(request, "Authorization", domain, now, term)
    if isinstance(outcome, Challenge):
        return outcome
    aor = _authorized_aor(request, outcome, domain, credentials, domains)
    path = _path(request, flow, settings) if "Path" in headers else ()
    supported = [tag.lower() for tag in headers.values("Supported")] if "Supported" in headers else []
    extra = "".join([f"Path: {value}\r\nSupported: path\r\n" for value in path]) if "path" in supported else ""
    if "Contact" not in headers:
        return Prepared(aor, None, outcome, extra)
    call_id = request.call_id
    contacts, wildcard = _contacts(request, settings)
    ...
