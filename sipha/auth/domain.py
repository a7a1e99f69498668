"""The domains that are served: whose AORs are ours, and how their users authenticate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sipha.sip.uri import SipUri, Uri, ip_literal, parse_uri

# What most users are called: nothing in it needs unescaping, so that the text is nearly the AOR.
_PLAIN_AOR = re.compile(r"sip:([A-Za-z0-9\-_.+]++)@([A-Za-z0-9.-]++)\Z")
_REMEMBERED = 4096
_REMEMBERED_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain of ours: `name` stands in the AORs of its users, also when they write one of the `aliases`.

    `algorithms` are what a challenge offers, the strongest first (RFC 8760 §2.4): the domain's, never an account's,
    which would reveal who exists. `third_party` lets a user register for another of the domain (RFC 3261 §10.2).
    """

    name: str
    realm: str
    aliases: frozenset[str] = frozenset()
    algorithms: tuple[str, ...] = ("MD5",)
    case_sensitive: bool = True
    third_party: bool = False


class Domains:
    """All domains that are served; the first is the default one, which our own `addresses` stand for.

    An address is written as in a URI: IPv6 in brackets.
    """

    __slots__ = ("_by_host", "_by_name", "_by_uri", "all", "default", "realms")

    def __init__(self, domains: Iterable[Domain], addresses: Iterable[str] = ()) -> None:
        self.become(domains, addresses)

    def become(self, domains: Iterable[Domain], addresses: Iterable[str] = ()) -> None:
        """Let these be the domains from now on, for all who ask."""
        self.all = tuple(domains)
        self.default = self.all[0]
        self.realms = frozenset(domain.realm for domain in self.all)
        self._by_name = {_comparable(alias): domain for domain in self.all for alias in domain.aliases}
        self._by_name.update((_comparable(domain.name), domain) for domain in self.all)
        self._by_host = {_comparable(address): self.default for address in addresses} | self._by_name
        self._by_uri: dict[str, Domain | None] = {}

    def find(self, host: str) -> Domain | None:
        """The domain that a URI's host names, or None if it isn't ours."""
        return self._by_host.get(host) or self._by_host.get(_comparable(host))

    def named(self, host: str) -> Domain | None:
        """The domain with this name or alias, which may be an IP literal; our own addresses aren't looked at."""
        return self._by_name.get(_comparable(host))

    def of(self, text: str) -> Domain | None:
        """The domain that a URI names, or None if it isn't ours; remembered, since few Request-URIs are in use.

        Raises MalformedMessage if it is no URI.
        """
        if text in self._by_uri:
            return self._by_uri[text]
        uri = parse_uri(text)
        domain = self.find(uri.host) if isinstance(uri, SipUri) else None
        if len(text) <= _REMEMBERED_LENGTH:
            if len(self._by_uri) >= _REMEMBERED:
                self._by_uri.clear()
            self._by_uri[text] = domain
        return domain

    def locate(self, uri: Uri) -> tuple[Domain, str] | None:
        """The domain and AOR that a URI names, or None if it is none of ours or names no user (RFC 3261 §10.3).

        The AOR stands under the domain's own name, by the domain's rule for upper and lower case.
        """
        if not isinstance(uri, SipUri) or not uri.user:
            return None
        domain = self.find(uri.host)
        if domain is None:
            return None
        return domain, uri._replace(host=domain.name.lower()).aor(case_sensitive=domain.case_sensitive)

    def locate_text(self, text: str) -> tuple[Domain, str] | None:
        """The same for the text of a URI; raises MalformedMessage if it is none."""
        return self.locate_plain(text) or self.locate(parse_uri(text))

    def locate_plain(self, text: str) -> tuple[Domain, str] | None:
        """The same for a URI of nothing but a user and a domain that is ours; None says nothing of any other."""
        plain = _PLAIN_AOR.match(text)
        if plain is None:
            return None
        user, host = plain.groups()
        domain = self._by_host.get(host) or self.find(host)
        if domain is None:
            return None
        return domain, f"sip:{user if domain.case_sensitive else user.lower()}@{domain.name.lower()}"


def _comparable(host: str) -> str:
    # RFC 5954 §4.2: IPv6 addresses are compared as addresses, not as text.
    if host.startswith("["):
        return f"[{ip_literal(host) or host}]"
    return host.lower().removesuffix(".")
