"""What the admin takes over from another registrar: its bindings, and first of all, for which domains."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sipha.admin.messages import Refusal
from sipha.auth.domain import Domains
from sipha.errors import MalformedMessage, Unavailable
from sipha.registrar.record import MAX_AOR, MAX_CALL_ID, MAX_CONTACT, MAX_PATH
from sipha.sip.headers import parse_name_addr
from sipha.sip.uri import SipUri, parse_uri
from sipha.state.binding import BEHIND_NAT
from sipha.state.entries import Contact, ImportBinding, Register
from sipha.state.outcomes import Conflict, Done, Outcome

SCHEMA = 4
"""The first schema of the log that knows ImportBinding."""

_Number = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Text = Annotated[str, Meta(max_length=512)]


class DomainView(msgspec.Struct, frozen=True):
    """A domain that is served: its users' hashes are of `realm`, and phones are offered `algorithms`."""

    name: str
    realm: str
    aliases: tuple[str, ...]
    algorithms: tuple[str, ...]


class DomainViews(msgspec.Struct, frozen=True):
    """The domains that are served, the default one first."""

    domains: tuple[DomainView, ...]


class NewBinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A binding that another registrar has granted; `expires` is in seconds from now, `q` from 0 to 1 or None.

    The fields are those of a BindingView. `received` is where the phone is reached, if not at its contact's address.
    """

    aor: str
    contact: str
    expires: Annotated[int, Meta(ge=1, le=0x7FFFFFFF)]
    call_id: str
    cseq: _Number
    q: Annotated[float, Meta(ge=0, le=1)] | None = None
    user_agent: str = ""
    received: str = ""
    behind_nat: bool = False
    socket: _Text = ""
    path: tuple[str, ...] = ()
    methods: str = ""
    instance: str = ""
    reg_id: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    flags: _Number = 0
    attr: _Text = ""
    kv_store: Annotated[str, Meta(max_length=4096)] = ""


class Brought(msgspec.Struct, frozen=True):
    """What became of one binding of several: 201 made, 200 it is here already or has gone since, or why not."""

    aor: str
    contact: str
    status: int
    detail: str = ""


class BroughtAll(msgspec.Struct, frozen=True):
    """What became of each binding, in the order in which they were given."""

    results: tuple[Brought, ...]


def domain_views(domains: Domains) -> DomainViews:
    """Show the domains."""
    return DomainViews(
        tuple(
            DomainView(domain.name, domain.realm, tuple(sorted(domain.aliases)), domain.algorithms)
            for domain in domains.all
        )
    )


def import_of(binding: NewBinding, domains: Domains) -> ImportBinding:
    """The record of a binding; raises Refusal with 422, as its REGISTER would have been refused."""
    try:
        return ImportBinding(_register(binding, domains))
    except (MalformedMessage, ValueError) as error:
        raise Refusal(422, f"{binding.aor[:80]}: {error}") from error


def brought(record: ImportBinding, outcome: Outcome | Unavailable) -> Brought:
    """What became of a binding that was to come here."""
    aor, contact = record.register.aor, record.register.contacts[0].uri
    match outcome:
        case Done(count=1):
            return Brought(aor, contact, 201)
        case Done():
            return Brought(aor, contact, 200)
        case Conflict():
            return Brought(aor, contact, 409, outcome.detail)
        case Unavailable():
            return Brought(aor, contact, 503, outcome.detail)
        case _:
            return Brought(aor, contact, 500, f"the log answered {outcome!r}")


def _register(binding: NewBinding, domains: Domains) -> Register:
    located = domains.locate_text(binding.aor if binding.aor.lower().startswith("sip:") else f"sip:{binding.aor}")
    if located is None or len(located[1]) > MAX_AOR:
        raise ValueError("the AOR is none of a domain of this node")
    _check("call_id", binding.call_id, MAX_CALL_ID)
    _check("contact", binding.contact, MAX_CONTACT)
    _check("instance", binding.instance, MAX_CONTACT)
    _check("path", "".join(binding.path), MAX_PATH)
    if '"' in binding.instance:
        raise ValueError("instance must be without quotes")
    parse_uri(binding.contact)
    if binding.received:
        _check("received", binding.received, MAX_CONTACT)
        received = parse_uri(binding.received)
        if not isinstance(received, SipUri) or received.address is None:
            raise ValueError("received is not a SIP URI with an IP address")
    for value in binding.path:
        parse_uri(parse_name_addr(value, "Path").uri)
    contact = Contact(
        binding.contact,
        binding.expires,
        None if binding.q is None else round(binding.q * 1000),
        binding.instance,
        binding.reg_id,
    )
    return Register(
        aor=located[1],
        call_id=binding.call_id,
        cseq=binding.cseq,
        contacts=(contact,),
        received=binding.received,
        socket=binding.socket,
        path=binding.path,
        user_agent=_printable(binding.user_agent),
        methods=_printable(binding.methods),
        outbound=bool(binding.reg_id),
        flags=binding.flags,
        cflags=BEHIND_NAT if binding.behind_nat else 0,
        attr=_printable(binding.attr),
        kv_store=binding.kv_store,
    )


def _check(field: str, text: str, most: int) -> None:
    if len(text) > most or not (text.isascii() and text.isprintable()):
        raise ValueError(f"{field} must be printable ASCII, at most {most} characters")


def _printable(text: str) -> str:
    return "".join([c if c.isprintable() else "?" for c in text[:512]])
