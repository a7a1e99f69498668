"""Who may ask the admin, and for what (docs/admin-api.md).

A caller is known by a bearer token, by the certificate of a client, or by the word of another node that forwards what
it was asked. Each route says what role it is for (admin/route.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from hmac import compare_digest
from types import MappingProxyType
from typing import NamedTuple

from twisted.web.server import Request
from zope.interface import Interface, implementer

from sipha.admin.messages import Refusal
from sipha.admin.tls import AdminCertificates, Loaded, Shown, shown_by

FORWARDED_BY = "Sipha-Forwarded-By"
"""The header that bears the name of the node that forwarded a request; such a request isn't forwarded again."""

FORWARDED_FOR = "Sipha-Forwarded-For"
FORWARDED_ROLE = "Sipha-Forwarded-Role"
"""Who asked that node, and in which role; it is believed if its certificate is a member's."""

REFUSED: Mapping[int, str] = MappingProxyType({401: "unknown", 403: "forbidden", 413: "too_large", 429: "too_often"})
"""The statuses of what is refused for who asks, or for how much: the reasons that it is counted under."""

CONNECTION = "connection"
"""The reason that a connection is counted under which was closed before anything was asked."""

_CHALLENGE = 'Bearer realm="sipha"'


class Role(IntEnum):
    """What a caller may do: look; or operate, too; or everything. A route for NONE tells nothing, and asks nobody."""

    NONE = 0
    READ = 1
    OPERATE = 2
    ADMIN = 3

    def __str__(self) -> str:
        """As operators write it."""
        return self.name.lower()


class ICaller(Interface):
    """Who sent a request."""


@implementer(ICaller)
@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what he may do."""

    name: str
    role: Role


ANYONE = Caller("anyone", Role.ADMIN)
"""Whoever asks an admin that asks nobody who he is."""

NOBODY = Caller("nobody", Role.NONE)
"""Whoever asks for what is for everybody."""


class Token(NamedTuple):
    """Who bears the token that has this SHA-256, and what he may do."""

    digest: bytes
    caller: Caller


class Access:
    """Who may ask; everyone, if neither tokens nor clients are named.

    `tokens` and `clients` (by a name in their certificate) may be replaced at any time. `certificates` are those by
    which the admin knows who is at the other end, None without TLS. `certified_name` says which name the certificate
    of a member of the cluster bears, and None of who isn't one. `refused` counts who may not, by reason.
    """

    def __init__(
        self,
        tokens: Iterable[Token] = (),
        clients: Iterable[Caller] = (),
        certificates: AdminCertificates | None = None,
        certified_name: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.tokens = tuple(tokens)
        self.clients = tuple(clients)
        self._certificates = certificates
        self._certified_name = certified_name
        self.refused = Counter(dict.fromkeys((*REFUSED.values(), CONNECTION), 0))

    def identify(self, request: Request) -> Caller:
        """Return who sent the request; raises Refusal."""
        if not (self.tokens or self.clients):
            return ANYONE
        authorization = request.getHeader(b"Authorization")
        if authorization is not None:
            return self._bearer(authorization)
        trusted = None if self._certificates is None else self._certificates.loaded
        shown = None if trusted is None else shown_by(request)
        if trusted is None or shown is None:
            raise _unknown("say who you are: send Authorization: Bearer and a token, or show a client certificate")
        if self._is_node(request, trusted, shown):
            return _forwarded(request)
        if shown.authority in trusted.clients:
            for client in self.clients:
                if client.name in shown.names:
                    return client
        raise Refusal(403, f"the certificate of {', '.join(sorted(shown.names)) or 'nobody'} has no role here")

    def _is_node(self, request: Request, trusted: Loaded, shown: Shown) -> bool:
        """Return True if the certificate is that of the member which the request says it comes from."""
        return shown.authority in trusted.nodes and self._certified_name(_header(request, FORWARDED_BY)) in shown.names

    def _bearer(self, authorization: bytes) -> Caller:
        scheme, _, token = (part.strip() for part in authorization.partition(b" "))
        if scheme.lower() != b"bearer" or not token:
            raise _unknown("send Authorization: Bearer and a token; no other scheme is known")
        digest = sha256(token).digest()
        # All are compared, each in the same time, whichever it is.
        callers = [known.caller for known in self.tokens if compare_digest(known.digest, digest)]
        if not callers:
            raise _unknown("the token is none of this node's", ', error="invalid_token"')
        return callers[0]


class NodeAccess(Access):
    """Who may ask where nodes ask each other: another node, in the name of whom it speaks for, and nobody else."""

    def __init__(self, certificates: AdminCertificates, certified_name: Callable[[str], str | None]) -> None:
        super().__init__(certificates=certificates, certified_name=certified_name)
        self._trusted = certificates

    def identify(self, request: Request) -> Caller:
        """Return for whom the node speaks that sent the request; raises Refusal."""
        shown = shown_by(request)
        if shown is None or not self._is_node(request, self._trusted.loaded, shown):
            raise Refusal(403, "only the other nodes of the cluster are served here")
        return _forwarded(request)


def caller_of(request: Request) -> Caller:
    """Return who sent a request, as `Access.identify` has found; raises Refusal if it wasn't asked."""
    caller: Caller | None = request.getComponent(ICaller)
    if caller is None:
        raise _unknown("nobody has asked who you are")
    return caller


def check(request: Request, role: Role) -> None:
    """Raise Refusal unless who sent a request has the role."""
    caller = caller_of(request)
    if caller.role < role:
        raise Refusal(403, f"this needs the role {role}, and {caller.name} has {caller.role}")


def vouch(node: str, caller: Caller) -> dict[str, str]:
    """The headers with which a node forwards what a caller asked it."""
    return {FORWARDED_BY: node, FORWARDED_FOR: caller.name, FORWARDED_ROLE: str(caller.role)}


def _forwarded(request: Request) -> Caller:
    """Whom a node speaks for; it has no role of its own."""
    name, role = _header(request, FORWARDED_FOR), _header(request, FORWARDED_ROLE)
    try:
        return Caller(name, Role[role.upper()])
    except KeyError:
        raise Refusal(403, f"a node must say for whom it speaks; {FORWARDED_ROLE} is {role[:20]!r}") from None


def _header(request: Request, name: str) -> str:
    return (request.getHeader(name.encode()) or b"").decode("latin-1")


def _unknown(detail: str, error: str = "") -> Refusal:
    return Refusal(401, detail, challenge=_CHALLENGE + error)
