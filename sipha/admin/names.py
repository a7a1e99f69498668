"""The names under which the API knows AORs and accounts."""

from __future__ import annotations

from sipha.admin.messages import Refusal
from sipha.auth.domain import Domain, Domains
from sipha.errors import MalformedMessage
from sipha.sip.uri import parse_uri


def locate(domains: Domains, text: str) -> tuple[Domain, str]:
    """The domain and AOR that `alice@sipha.test` or `sip:alice@sipha.test` names; raises Refusal."""
    try:
        located = domains.locate(parse_uri(text if text.lower().startswith("sip:") else f"sip:{text}"))
    except MalformedMessage:
        located = None
    if located is None:
        raise Refusal(404, f"{text[:80]!r} is not user@domain in a domain of this node")
    return located


def account_named(domains: Domains, identity: str) -> tuple[str, Domain]:
    """The username and domain that `alice@sipha.test` names: those of its AOR; raises Refusal."""
    domain, aor = locate(domains, identity)
    return aor.removeprefix("sip:").rpartition("@")[0], domain
