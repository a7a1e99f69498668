"""Who may ask this node's admin, which certificate it shows, and as whom this node asks that of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import msgspec
from twisted.logger import Logger

from sipha import config
from sipha.admin.access import Access, Caller, Role, Token
from sipha.admin.tls import AdminCertificates, AdminFiles, Verification
from sipha.cluster.authority import host_name
from sipha.cluster.peers import WARNING
from sipha.errors import ConfigError


class AdminAccess:
    """What the configuration says of the admin's security; raises ConfigError.

    `is_member` says whether a node is in the cluster now: only then its word counts here.
    """

    def __init__(self, configuration: config.Config, is_member: Callable[[str], bool]) -> None:
        admin, cluster = configuration.admin, configuration.cluster
        self._settings = admin
        self._cluster = str(cluster.name)
        self._is_member = is_member
        self._log = Logger(namespace="sipha.admin")
        self._reminds = admin.certificate != cluster.certificate  # of that, the cluster does
        self.certificates = (
            AdminCertificates(
                AdminFiles(
                    admin.certificate.path,
                    admin.key.path,
                    clients=admin.ca.path if admin.ca else None,
                    nodes=cluster.ca.path if cluster.encrypted else None,
                ),
                self._complain,
            )
            if admin.certificate
            else None
        )
        self.access = Access(_tokens(admin), _clients(admin), self.certificates, self._certified_name)
        self.verification = Verification(
            [ca.path for ca in (cluster.ca, admin.ca) if ca],
            (cluster.certificate.path, cluster.key.path) if cluster.encrypted else None,
        )

    def check(self, new: config.Admin) -> None:
        """Raise ConfigError if those can't be let ask whom other settings name, or the certificates aren't sound."""
        self._told(new)
        if self.certificates is not None:
            self.certificates.check()

    def adopt(self, new: config.Admin) -> None:
        """Let those ask who are named now, and nobody else, and take the certificates as they are now."""
        self._settings = self._told(new)
        self.access.tokens, self.access.clients = _tokens(new), _clients(new)
        if self.certificates is not None:
            self.certificates.reload()

    def _told(self, new: config.Admin) -> config.Admin:
        try:
            # What is listened on stays, and strangers mustn't be served there whatever is said of it now.
            return msgspec.structs.replace(self._settings, tokens=new.tokens, clients=new.clients)
        except ValueError as error:
            raise ConfigError(f"admin.{error}") from error

    def counted(self) -> dict[str, int]:
        """How much was refused, by counter."""
        return {f"admin_refused_{reason}": count for reason, count in self.access.refused.items()}

    def alarms(self) -> Iterator[str]:
        """What an operator must know of the admin's certificate."""
        certificates = self.certificates
        if certificates is not None and self._reminds and certificates.expires - datetime.now(UTC) < WARNING:
            yield f"the certificate of the admin expires at {certificates.expires:%Y-%m-%d %H:%M} UTC: install another"

    def _certified_name(self, node: str) -> str | None:
        return host_name(node, self._cluster) if self._is_member(node) else None

    def _complain(self, problem: str) -> None:
        self._log.error("{problem}; the old certificate of the admin stays in use", problem=problem)


def _tokens(admin: config.Admin) -> tuple[Token, ...]:
    return tuple(Token(token.sha256.digest, Caller(str(token.name), _role(token.role))) for token in admin.tokens)


def _clients(admin: config.Admin) -> tuple[Caller, ...]:
    return tuple(Caller(str(client.name), _role(client.role)) for client in admin.clients)


def _role(name: config.Role) -> Role:
    return Role[name.upper()]
