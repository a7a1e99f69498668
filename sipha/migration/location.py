"""The table `location` (or another of usrloc): the bindings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Literal

from sipha.admin.imports import DomainView, NewBinding
from sipha.errors import MalformedMessage
from sipha.migration.rows import Unusable
from sipha.migration.subscriber import find_domain
from sipha.sip.headers import split_values
from sipha.sip.uri import SipUri, parse_uri

# The bits of `methods`, the lowest first (msg_parser.h of each).
METHODS = {
    "opensips": "INVITE CANCEL ACK BYE INFO OPTIONS UPDATE REGISTER MESSAGE SUBSCRIBE NOTIFY PRACK REFER PUBLISH",
    "kamailio": "INVITE CANCEL ACK BYE INFO REGISTER SUBSCRIBE NOTIFY MESSAGE OPTIONS PRACK UPDATE REFER PUBLISH",
}
_ALL = (1 << 14) - 1
_TRANSPORTS = {"1": "udp", "2": "tcp", "3": "tls", "5": "ws", "6": "wss"}
"""What Kamailio's contact parameter `alias` means by its last part."""

_LONGEST = (1 << 31) - 1


class Expired(Unusable):
    """The binding has run out: nothing is lost with it."""


@dataclass(frozen=True)
class Locations:
    """Makes bindings of rows. `now` is in seconds of the epoch, `zone` that of a date without one."""

    origin: Literal["opensips", "kamailio"]
    domains: Mapping[str, DomainView]
    now: float
    zone: tzinfo | None = None
    default_domain: str = ""

    def binding(self, row: Mapping[str, str | None]) -> NewBinding:
        """The binding of a row; raises Unusable, Expired if it has run out."""
        try:
            return self._binding(row)
        except MalformedMessage as error:
            raise Unusable(str(error)) from error

    def _binding(self, row: Mapping[str, str | None]) -> NewBinding:
        found = {name: value or "" for name, value in row.items()}
        username = found.get("username", "")
        if not username:
            raise Unusable("it has no username")
        _, domain = find_domain(row, self.domains, self.default_domain)
        contact, alias = _without_alias(found.get("contact", ""))
        received = _received(found.get("received", "")) or alias
        return NewBinding(
            aor=f"sip:{username}@{domain.name}",
            contact=contact,
            expires=self._expires(found.get("expires", "")),
            call_id=found.get("callid", ""),
            cseq=_number(found, "cseq"),
            q=_q(found.get("q", "")),
            user_agent=found.get("user_agent", ""),
            received=received,
            behind_nat=bool(received),
            socket=found.get("socket", ""),
            path=_path(found.get("path", "")),
            methods=self._methods(found.get("methods", "")),
            instance=(found.get("sip_instance") or found.get("instance") or "").strip('"'),
            reg_id=_number(found, "reg_id"),
            flags=_number(found, "flags"),
            attr=found.get("attr", ""),
            kv_store=found.get("kv_store", ""),
        )

    def _expires(self, text: str) -> int:
        """The seconds that are left: OpenSIPS has the seconds of the epoch, Kamailio a date."""
        try:
            at = int(text) if text.isdigit() else _date(text, self.zone)
        except (ValueError, OverflowError):
            raise Unusable(f"its expires, {text[:40]!r}, is neither a number nor a date") from None
        if at <= 0:
            raise Unusable("it never expires: somebody has added it by hand, and no phone refreshes it")
        left = int(at - self.now)
        if left < 1:
            raise Expired("it has run out")
        return min(left, _LONGEST)

    def _methods(self, text: str) -> str:
        """The methods as Allow has them; none if all are set, as where the phone has said nothing."""
        bits = int(text) if text.isdigit() else _ALL
        if bits & _ALL == _ALL:
            return ""
        return ",".join(name for place, name in enumerate(METHODS[self.origin].split()) if bits >> place & 1)


def _date(text: str, zone: tzinfo | None) -> float:
    date = datetime.fromisoformat(text)
    # Without a zone it is the wall clock's of the machine: timestamp() takes it for ours.
    return (date if date.tzinfo is not None or zone is None else date.replace(tzinfo=zone)).timestamp()


def _number(found: Mapping[str, str], column: str) -> int:
    text = found.get(column, "") or "0"
    if not text.isdigit():
        raise Unusable(f"its {column}, {text[:40]!r}, is no number")
    return int(text)


def _q(text: str) -> float | None:
    """The q value; -1 is none."""
    try:
        q = float(text or "-1")
    except ValueError:
        raise Unusable(f"its q, {text[:40]!r}, is no number") from None
    if q < 0:
        return None
    return min(q, 1.0)


def _received(text: str) -> str:
    """Where the phone registered from, as it is written here: with the transport, in lower case."""
    if not text:
        return ""
    uri = parse_uri(text)
    if not isinstance(uri, SipUri) or uri.address is None:
        raise Unusable(f"its received, {text[:80]!r}, is no SIP URI with an IP address")
    return _uri(uri.host, uri.address[1], uri.transport)


def _without_alias(contact: str) -> tuple[str, str]:
    """A contact without the parameter that Kamailio's set_contact_alias adds, and where that says that the phone is."""
    if ";alias=" not in contact:
        return contact, ""
    uri = parse_uri(contact)
    if not isinstance(uri, SipUri):
        return contact, ""
    host, port, transport = [*(uri.param("alias") or "").split("~"), "", ""][:3]
    if not (port.isdigit() and transport in _TRANSPORTS):
        return contact, ""
    return str(uri.without_params("alias")), _uri(host, int(port), _TRANSPORTS[transport])


def _uri(host: str, port: int, transport: str) -> str:
    return f"sip:{host}:{port};transport={transport.lower()}"


def _path(text: str) -> tuple[str, ...]:
    """The Path vector: the values of the header, in one text."""
    return tuple(split_values(text)) if text else ()
