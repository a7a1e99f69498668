"""Where a request says that it comes from: what detection of NAT compares with where it was seen to come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sipha.errors import MalformedMessage
from sipha.sip.message import Request
from sipha.sip.uri import SipUri, default_port


class Origin(NamedTuple):
    """The addresses in a request, those that are left out being the default ones.

    `host` and `port` are the topmost Via's, `rport` says whether that asks for the response where the request came from
    (RFC 3581). `contacts` are host and port of each contact that is a SIP URI. `direct` is False if a proxy passed the
    request on. `media` are the hosts in a session description.
    """

    host: str
    port: int
    rport: bool
    contacts: Sequence[tuple[str, int]]
    direct: bool
    media: Sequence[str]


def origin_of(request: Request) -> Origin:
    """Return what a request says."""
    via, vias = request.via, request.headers.all("Via")
    return Origin(
        via.host,
        via.port or default_port(via.transport),
        via.has_param("rport"),
        _contacts(request),
        len(vias) == 1 and "," not in vias[0],
        _media(request),
    )


def _contacts(request: Request) -> Sequence[tuple[str, int]]:
    """Host and port of each contact; it is the registrar's to refuse what can't be understood."""
    plain = request.plain_contact
    if plain is not None and plain.port is not None:
        return ((plain.host, plain.port),)
    found = []
    try:
        for contact in request.contacts:
            uri = None if contact.star else contact.parsed_uri
            if isinstance(uri, SipUri):
                found.append((uri.host, uri.port or default_port(uri.transport)))
    except MalformedMessage:
        pass
    return found


def _media(request: Request) -> Sequence[str]:
    """The hosts of the connection data in a session description (RFC 8866 §5.7)."""
    if not (request.headers.get("Content-Type") or "").lower().startswith("application/sdp"):
        return ()
    return [
        line[len("c=IN IP4 ") :].decode("ascii", "replace").partition("/")[0].strip()
        for line in request.body.splitlines()
        if line.startswith((b"c=IN IP4 ", b"c=IN IP6 "))
    ]
