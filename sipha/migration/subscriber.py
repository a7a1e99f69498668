"""The table `subscriber`: who may authenticate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from sipha.admin.imports import DomainView
from sipha.admin.views import HA1_LENGTHS, NewAccount
from sipha.migration.rows import Unusable
from sipha.sip.digest import ha1

COLUMNS = {"MD5": "ha1", "SHA-256": "ha1_sha256", "SHA-512-256": "ha1_sha512t256"}
"""Where the hash of each algorithm stands."""

_WITH_DOMAIN = {"MD5": "ha1b"}
"""The same for a phone that authenticates as user@domain."""

_HEX = re.compile(r"[0-9a-fA-F]+")
# What may stand unescaped as the user of a SIP URI (RFC 3261 §25.1), beside letters, digits and _.-~ .
_USER = "!*'()&=+$,;?/"


@dataclass(frozen=True)
class Subscribers:
    """Makes accounts of rows.

    `default_domain` is that of rows which name none. `auth_name` says as whom phones authenticate: as `user`, so that
    the hashes of `ha1` count, or as `user@domain`, so that `ha1b` does. `realm` is that of the hashes; empty: the
    domain that the row names.
    """

    domains: Mapping[str, DomainView]
    default_domain: str = ""
    auth_name: Literal["user", "user@domain"] = "user"
    realm: str = ""

    def account(self, row: Mapping[str, str | None]) -> NewAccount:
        """The account of a row; raises Unusable."""
        username = row.get("username") or ""
        if not username or not username.isprintable():
            raise Unusable("it has no username" if not username else "its username is not printable")
        named, domain = find_domain(row, self.domains, self.default_domain)
        full = self.auth_name == "user@domain"
        auth_name = f"{username}@{named}" if full else username
        hashes = self._hashes(row, auth_name, self.realm or named, domain, with_domain=full)
        try:
            return NewAccount(username=quote(username, safe=_USER), domain=domain.name, auth_name=auth_name, ha1=hashes)
        except ValueError as error:
            raise Unusable(str(error)) from error

    def _hashes(
        self, row: Mapping[str, str | None], auth_name: str, realm: str, domain: DomainView, *, with_domain: bool
    ) -> dict[str, str]:
        """HA1 by algorithm: of the password, unless there are hashes and they are of another one."""
        password = row.get("password") or ""
        stored = _stored(row, _WITH_DOMAIN if with_domain else COLUMNS)
        if password and all(ha1(name, auth_name, realm, password) == digits for name, digits in stored.items()):
            return {name: ha1(name, auth_name, domain.realm, password) for name in HA1_LENGTHS}
        if not stored:
            raise Unusable(f"it has neither a password nor {' or '.join(_columns(with_domain=with_domain))}")
        if realm != domain.realm:
            raise Unusable(
                f"its hashes are of realm {realm!r}, and that of domain {domain.name} is {domain.realm!r}; have it be "
                "the same in the configuration, or name that of the hashes with --realm"
            )
        return stored


def find_domain(
    row: Mapping[str, str | None], domains: Mapping[str, DomainView], default: str
) -> tuple[str, DomainView]:
    """The domain of a row as it is named there, and as it is served here; raises Unusable."""
    named = row.get("domain") or default
    if not named:
        raise Unusable("it names no domain; say which with --domain")
    domain = domains.get(named.lower())
    if domain is None:
        raise Unusable(f"{named!r} is not a domain of the cluster; add it to the configuration first")
    return named, domain


def by_name(domains: Iterable[DomainView]) -> dict[str, DomainView]:
    """Domains by each of their names, in lower case."""
    return {name.lower(): domain for domain in domains for name in (*domain.aliases, domain.name)}


def _columns(*, with_domain: bool) -> tuple[str, ...]:
    return tuple((_WITH_DOMAIN if with_domain else COLUMNS).values())


def _stored(row: Mapping[str, str | None], columns: Mapping[str, str]) -> dict[str, str]:
    stored = {}
    for algorithm, column in columns.items():
        digits = row.get(column) or ""
        if not digits:
            continue
        if len(digits) != HA1_LENGTHS[algorithm] or not _HEX.fullmatch(digits):
            raise Unusable(f"its {column} is no hash of {HA1_LENGTHS[algorithm]} hexadecimal digits")
        stored[algorithm] = digits.lower()
    return stored
