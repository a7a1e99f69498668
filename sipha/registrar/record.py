"""From a REGISTER to the record that is proposed to the log: RFC 3261 §10.3 steps 1 to 7, as far as one node decides.

What depends on the order of REGISTERs (CSeq, matching, limits) is decided when the record is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal
from zlib import crc32

import msgspec

from sipha.auth.authenticator import Authenticator, Challenge, Verified
from sipha.auth.domain import Domain, Domains
from sipha.errors import MalformedMessage, SipError
from sipha.registrar.plain import Plain
from sipha.sip.flow import Address, Flow
from sipha.sip.headers import NameAddr, is_number, is_token, parse_name_addr, parse_seconds, split_params
from sipha.sip.message import Request
from sipha.sip.uri import SipUri, parse_uri
from sipha.state.accounts import Account
from sipha.state.binding import BEHIND_NAT, Binding
from sipha.state.entries import Contact, Policy, Register
from sipha.state.interfaces import ICredentials

MAX_CONTACT = 512
MAX_AOR = 256
MAX_CALL_ID = 256
MAX_PATH = 1024
MAX_CONTACTS = 32
MAX_REQUIRED = 32
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


class Prepared:
    """A REGISTER that may be carried out: the record, or None if it only asks, and what its 200 repeats."""

    __slots__ = ("aor", "domain", "extra", "record", "verified")

    def __init__(self, domain: Domain, aor: str, record: Register | None, verified: Verified, extra: str) -> None:
        self.domain = domain
        self.aor = aor
        self.record = record
        self.verified = verified
        self.extra = extra


def prepare(
    request: Request,
    flow: Flow,
    now: float,
    term: int,
    *,
    authenticator: Authenticator,
    credentials: ICredentials,
    domains: Domains,
    settings: RegistrarSettings,
    behind_nat: bool = False,
) -> Prepared | Challenge:
    """Check and authenticate a REGISTER, and make its record (RFC 3261 §10.3); nothing is kept.

    `now` is the cluster time in seconds; `behind_nat` says whether the phone is. Raises SipError with the status to
    refuse it with.
    """
    domain = domains.of(request.uri)
    if domain is None:
        raise SipError(f"{request.uri} is no domain of ours", status=403, reason="Domain not served here")
    headers = request.headers
    required = _required(request) if "Require" in headers else ()
    outcome = authenticator.verify(request, "Authorization", domain, now, term)
    if isinstance(outcome, Challenge):
        return outcome
    aor = _authorized_aor(request, outcome.account, domain, credentials, domains)
    path = _path(request, flow, settings) if "Path" in headers else ()
    extra = f"Path: {', '.join(path)}\r\nSupported: path\r\n" if path and _supports(request, "path") else ""
    if "Contact" not in headers:
        return Prepared(domain, aor, None, outcome, extra)
    call_id = request.call_id
    if len(call_id) > MAX_CALL_ID:
        raise _bad_request("Callid too long")
    if not _is_printable(call_id):
        raise _bad_request("Callid is not printable ASCII")
    plain = _plain_contact(request)
    wildcard = plain is None and "*" in [contact.uri for contact in request.contacts]
    if wildcard:
        contacts = _no_contacts(request)
    else:
        asked_for = _contacts(request, settings) if plain is None else (plain,)
        contacts = _admitted(asked_for, call_id, request.cseq.number, settings)
    outbound = _is_outbound(request, contacts, path)
    if outbound:
        extra += "Require: outbound\r\n"
    elif "outbound" in required:
        raise SipError("The first hop does not support outbound", status=439, reason="First Hop Lacks Outbound Support")
    record = Register(
        aor=aor,
        call_id=call_id,
        cseq=request.cseq.number,
        contacts=contacts,
        wildcard=wildcard,
        received=_received(flow),
        socket=_socket(flow.transport, flow.local),
        flow=str(flow.connection) if flow.connection else "",
        path=path,
        user_agent=_text(headers.get("User-Agent") or ""),
        methods=_text(",".join(headers.all("Allow")).replace(" ", "")) if "Allow" in headers else "",
        outbound=outbound,
        cflags=BEHIND_NAT if behind_nat else 0,
    )
    return Prepared(domain, aor, record, outcome, extra)


def prepare_plain(
    plain: Plain,
    flow: Flow,
    now: float,
    term: int,
    *,
    authenticator: Authenticator,
    domains: Domains,
    settings: RegistrarSettings,
    behind_nat: bool,
) -> Prepared | Challenge | None:
    """Do as `prepare` does with the message; None if it takes the message to find out what that does."""
    domain, credentials = domains.of(plain.uri), plain.credentials
    if domain is None:
        return None
    if credentials is None:
        return authenticator.challenge("Authorization", domain, now, term, stale=False)
    if credentials.realm != domain.realm:
        return None
    outcome = authenticator.verify_credentials(
        credentials, domain, now, term, method="REGISTER", header="Authorization"
    )
    if isinstance(outcome, Challenge):
        return outcome
    account, aor = outcome.account, plain.aor
    if aor != account.aor or account.domain != domain.name or len(aor) > MAX_AOR:
        return None
    if len(plain.contact) + len(plain.instance) > MAX_CONTACT:
        return None
    seconds = plain.expires
    _check_interval(seconds, settings)
    jitter = _jitter(plain.call_id, plain.cseq, seconds, settings)
    record = Register(
        aor=aor,
        call_id=plain.call_id,
        cseq=plain.cseq,
        contacts=(Contact(plain.contact, seconds, None, plain.instance, 0, "", jitter),),
        received=_received(flow),
        socket=_socket(flow.transport, flow.local),
        user_agent=plain.user_agent[:_MAX_TEXT],
        methods=plain.methods[:_MAX_TEXT],
        cflags=BEHIND_NAT if behind_nat else 0,
    )
    return Prepared(domain, aor, record, outcome, "")


def is_repeat(record: Register, bindings: Sequence[Binding]) -> bool:
    """Return True if the bindings are already what the record would make them.

    The same Call-ID and CSeq, each contact that was to be there is, and none that was to be gone.
    """
    made = {b.contact for b in bindings if b.cseq == record.cseq and b.call_id == record.call_id}
    if not made or record.wildcard:
        return False
    present = {contact.uri for contact in record.contacts if contact.expires != 0}
    return present == made and not any(
        contact.expires == 0 and contact.uri == binding.contact for contact in record.contacts for binding in bindings
    )


def _required(request: Request) -> frozenset[str]:
    """The option tags that the phone requires; 420 if we lack one (§8.2.2.3)."""
    required = request.headers.values("Require")
    if len(required) > MAX_REQUIRED or not all(map(is_token, required)):
        raise MalformedMessage("Require: not a list of option tags")
    unsupported = [tag for tag in required if tag.lower() not in _SUPPORTED]
    if unsupported:
        # "If a UAS does not understand an option-tag listed in a Require header field, it MUST respond by generating
        # a response with status code 420 (Bad Extension). The UAS MUST add an Unsupported header field".
        raise SipError("Unsupported extension", status=420, headers=(("Unsupported", ", ".join(unsupported)),))
    return frozenset(tag.lower() for tag in required)


def _supports(request: Request, option: str) -> bool:
    return any(tag.lower() == option for tag in request.headers.values("Supported"))


def _authorized_aor(
    request: Request, account: Account, domain: Domain, credentials: ICredentials, domains: Domains
) -> str:
    """The AOR of the To header, once it is certain that the account may change its bindings (§10.3 steps 4 and 5)."""
    to, sender_uri, own = request.to.uri, request.from_.uri, account.aor
    if to == own == sender_uri and account.domain == domain.name and len(own) <= MAX_AOR:
        return own
    located = domains.locate_text(to)
    # "If the address-of-record is not valid for the domain in the Request-URI, the registrar MUST send a 404".
    if located is None or located[0] is not domain:
        if domains.of(to) is domain:
            raise _bad_request("No username in To URI")
        raise SipError("To is no AOR of the domain in the Request-URI", status=404)
    aor = located[1]
    if len(aor) > MAX_AOR:
        raise _bad_request("Address Of Record too long")
    # "If the authenticated user is not authorized to modify bindings, the registrar MUST return a 403 (Forbidden)".
    sender = located if sender_uri == to else domains.locate_text(sender_uri)
    if sender is None or sender[1] != own:
        raise SipError("From is not the identity of the account", status=403)
    if aor != own:
        if not domain.third_party:
            raise SipError("Third-party registration is not allowed", status=403)
        if not credentials.known(aor):
            raise SipError("Nobody has this AOR", status=404)
    return aor


def _path(request: Request, flow: Flow, settings: RegistrarSettings) -> tuple[str, ...]:
    """The Path that an edge of ours added (RFC 3327 §5.3); from anyone else it would aim our calls at a victim."""
    if not _is_edge(flow, settings):
        return ()
    values = tuple(request.headers.values("Path"))
    if sum(map(len, values)) > MAX_PATH or not _is_printable("".join(values)):
        raise _bad_request("Path parse error")
    try:
        for value in values:
            parse_uri(parse_name_addr(value, "Path").uri)
    except MalformedMessage:
        raise _bad_request("Path parse error") from None
    return values


def full(settings: RegistrarSettings) -> SipError:
    """The refusal of a REGISTER beyond the contacts allowed: the phone's own matter, not the server's (§21.5.4)."""
    headers = (("Retry-After", "60"),) if settings.full_status == 503 else ()
    return SipError(
        "Too many contacts", status=settings.full_status, reason="Too many registered contacts", headers=headers
    )


def _is_edge(flow: Flow, settings: RegistrarSettings) -> bool:
    """Return True if a message came from a proxy that is trusted."""
    if not settings.edges:
        return False
    address = ip_address(flow.remote[0].partition("%")[0])
    return any(address in network for network in settings.edges)


def _no_contacts(request: Request) -> tuple[Contact, ...]:
    """What `Contact: *` makes of the contacts: none (§10.3 step 6)."""
    # "If the request has additional Contact fields or an expiration time other than zero, the request is invalid".
    if len(request.contacts) > 1:
        raise _bad_request("* used in contact and more than 1 contact")
    if request.expires != 0:
        raise _bad_request("* used in contact and expires is not zero")
    return ()


def _plain_contact(request: Request) -> Contact | None:
    """The contact of a REGISTER with a single one in its usual spelling; None if they have to be parsed."""
    plain = request.plain_contact
    if plain is None or len(plain.uri) + len(plain.instance) > MAX_CONTACT:
        return None
    uri, _, _, expires, instance = plain
    return Contact(uri, request.expires if expires is None else expires, None, instance)


def _admitted(
    asked_for: Sequence[Contact], call_id: str, cseq: int, settings: RegistrarSettings
) -> tuple[Contact, ...]:
    """The contacts as they go into the record, of the REGISTER with this Call-ID and CSeq; 423 for too short a time."""
    contacts = []
    for contact in asked_for:
        _check_interval(contact.expires, settings)
        jitter = _jitter(call_id, cseq, contact.expires, settings)
        contacts.append(msgspec.structs.replace(contact, jitter=jitter) if jitter else contact)
    return tuple(contacts)


def _check_interval(asked: int | None, settings: RegistrarSettings) -> None:
    # "If and only if the requested expiration interval is greater than zero AND smaller than one hour AND less
    # than a registrar-configured minimum, the registrar MAY reject the registration with a response of 423".
    least = settings.policy.min_expires
    if asked and asked < least and asked < _ONE_HOUR and settings.min_expires_policy == "reject":
        raise SipError("Interval too brief", status=423, headers=(("Min-Expires", str(least)),))


def _contacts(request: Request, settings: RegistrarSettings) -> list[Contact]:
    fields = request.contacts
    if not fields:
        raise MalformedMessage("Contact: empty")
    if len(fields) > MAX_CONTACTS:
        raise full(settings)
    default = request.expires
    return [_contact(field_, default) for field_ in fields]


def _contact(field_: NameAddr, default: int | None) -> Contact:
    """One contact as it was asked for; `default` is what the Expires header says (§10.2.1.1)."""
    uri, text = field_.uri, field_.params
    if len(uri) > MAX_CONTACT or len(text) > MAX_CONTACT:
        raise _bad_request("Contact/received too long")
    parse_uri(uri)
    if not _is_printable(uri) or not _is_printable(text):
        raise _bad_request("Contact is not printable ASCII")
    params = split_params(text)
    values = {name.lower(): value for name, value in params}
    if len(values) != len(params):
        raise _bad_request("Contact has a parameter twice")
    # "Malformed values SHOULD be treated as equivalent to 3600" (§20.10), as `parse_seconds` does.
    seconds = parse_seconds((values["expires"] or "").strip('"')) if "expires" in values else default
    instance = values.get("+sip.instance") or ""
    if instance.startswith('"'):
        instance = instance[1:-1]
    others = values.keys() - _OWN_PARAMS
    return Contact(
        uri,
        seconds,
        _q(field_) if "q" in values else None,
        instance,
        _reg_id(values["reg-id"]) if instance and "reg-id" in values else 0,
        "".join([_param(name, value) for name, value in params if name.lower() in others]) if others else "",
    )


def _param(name: str, value: str | None) -> str:
    return f";{name}" if value is None else f";{name}={value}"


def _q(field_: NameAddr) -> int | None:
    try:
        return field_.q
    except MalformedMessage:
        raise _bad_request("Invalid q param in contact") from None


def _reg_id(text: str | None) -> int:
    """The number of a device's flow, 1 to 2**31 - 1 (RFC 5626 §4.2)."""
    if text is None or not is_number(text) or len(text) > 10 or not 0 < int(text) < 2**31:
        raise _bad_request("Invalid reg-id param in contact")
    return int(text)


def _is_outbound(request: Request, contacts: tuple[Contact, ...], path: tuple[str, ...]) -> bool:
    """Return True if the bindings are flows of a device: the phone and its first hop support it (RFC 5626 §6)."""
    if not [contact for contact in contacts if contact.reg_id] or not _supports(request, "outbound"):
        return False
    if len(request.vias) == 1:
        return True
    uri = parse_uri(parse_name_addr(path[-1], "Path").uri) if path else None
    return isinstance(uri, SipUri) and uri.has_param("ob")


def _jitter(call_id: str, cseq: int, asked: int | None, settings: RegistrarSettings) -> int:
    """What to take off an expiry: different from phone to phone, and from one refresh to the next."""
    if not settings.expires_jitter or asked == 0:
        return 0
    policy = settings.policy
    granted = max(policy.default_expires if asked is None else asked, policy.min_expires)
    if policy.max_expires:
        granted = min(granted, policy.max_expires)
    share = crc32(f"{cseq} {call_id}".encode("utf-8", "surrogateescape")) & 0xFFFF
    return granted * settings.expires_jitter * share // (100 << 16)


def _received(flow: Flow) -> str:
    host, port = flow.remote
    return f"sip:{_bracketed(host)}:{port};transport={flow.transport.lower()}"


@lru_cache(maxsize=64)
def _socket(transport: str, local: Address) -> str:
    host, port = local
    return f"{transport.lower()}:{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_printable(text: str) -> bool:
    # What is stored is sent to other phones and shown to operators; the grammar allows no more (§25.1).
    return text.isascii() and (text.isprintable() or text.replace("\t", " ").isprintable())


def _text(text: str) -> str:
    """A header field's text as it is kept: cut to a length, without control characters and bytes that aren't UTF-8."""
    text = text[:_MAX_TEXT]
    return text if text.isprintable() else "".join([c if c.isprintable() else "?" for c in text])


def _bad_request(reason: str) -> SipError:
    return SipError(reason, status=400, reason=reason)
