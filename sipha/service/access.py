"""Who may ask this node's admin, which certificate it shows, and as whom this node asks that of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from twisted.logger import Logger

from sipha import config
from sipha.admin.access import Access, Caller, NodeAccess, Role, Token
from sipha.admin.tls import AdminCertificates, AdminFiles, Expected, Verification
from sipha.cluster.authority import host_name
from sipha.cluster.membership import address_of
from sipha.cluster.peers import WARNING
from sipha.errors import ConfigError
from sipha.sip.uri import ip_literal
from sipha.state.entries import Member


class AdminAccess:
    """What the configuration says of the admin's security; raises ConfigError.

    `members` says who is in the cluster now: only their word counts here.
    """

    def __init__(self, configuration: config.Config, members: Callable[[], Iterable[Member]]) -> None:
        admin, cluster = configuration.admin, configuration.cluster
        self._settings = admin
        self._node = str(configuration.node.name)
        self._cluster = str(cluster.name)
        self._port = cluster.admin_port
        self._authority = cluster.ca.path
        self._members = members
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
        self.node_certificates = (
            AdminCertificates(
                AdminFiles(cluster.certificate.path, cluster.key.path, nodes=cluster.ca.path), self._complain
            )
            if cluster.admin_port
            else None
        )
        """Those under which nodes ask each other; None if they don't."""
        self.node_access = (
            None if self.node_certificates is None else NodeAccess(self.node_certificates, self._certified_name)
        )
        self.verification = Verification(
            [ca.path for ca in (cluster.ca, admin.ca) if ca],
            (cluster.certificate.path, cluster.key.path) if cluster.encrypted else None,
            self._expected,
        )

    def url(self, node: str) -> str | None:
        """Where another node takes what is handed on to it; None if it isn't a member, or nodes don't do that."""
        for member in self._others():
            if member.name == node:
                host, _ = address_of(member)
                return f"https://[{host}]:{self._port}" if ":" in host else f"https://{host}:{self._port}"
        return None

    def _expected(self, host: str, port: int) -> Expected | None:
        """The node that takes there what is handed on: its address isn't in its certificate."""
        address = ip_literal(host)
        for member in self._others() if port == self._port else ():
            if ip_literal(address_of(member)[0]) == address:
                # An authority that is trusted to name operators must not be able to name nodes.
                return Expected(host_name(member.name, self._cluster), self._authority)
        return None

    def _others(self) -> Iterable[Member]:
        """The nodes that something can be handed on to."""
        return [member for member in self._members() if member.name != self._node] if self._port else ()

    def check(self, new: config.Admin) -> None:
        """Raise ConfigError if those can't be let ask whom other settings name, or the certificates aren't sound."""
        self._told(new)
        if self.certificates is not None:
            self.certificates.check()

    def adopt(self, new: config.Admin) -> None:
        """Let those ask who are named now, and nobody else, and take the certificates as they are now."""
        self._settings = self._told(new)
        self.access.tokens, self.access.clients = _tokens(new), _clients(new)
        for certificates in (self.certificates, self.node_certificates):
            if certificates is not None:
                certificates.reload()

    def _told(self, new: config.Admin) -> config.Admin:
        try:
            # What is listened on stays, and strangers mustn't be served there whatever is said of it now.
            return msgspec.structs.replace(self._settings, tokens=new.tokens, clients=new.clients)
        except ValueError as error:
            raise ConfigError(f"admin.{error}") from error

    def counted(self) -> dict[str, int]:
        """How much was refused, by counter."""
        known = [access.refused for access in (self.access, self.node_access) if access is not None]
        return {f"admin_refused_{reason}": sum(refused[reason] for refused in known) for reason in self.access.refused}

    def alarms(self) -> Iterator[str]:
        """What an operator must know of the admin's certificate."""
        certificates = self.certificates
        if certificates is not None and self._reminds and certificates.expires - datetime.now(UTC) < WARNING:
            yield f"the certificate of the admin expires at {certificates.expires:%Y-%m-%d %H:%M} UTC: install another"

    def _certified_name(self, node: str) -> str | None:
        is_member = any(member.name == node for member in self._members())
        return host_name(node, self._cluster) if is_member else None

    def _complain(self, problem: str) -> None:
        self._log.error("{problem}; the old certificate of the admin stays in use", problem=problem)


def _tokens(admin: config.Admin) -> tuple[Token, ...]:
    return tuple(Token(token.sha256.digest, Caller(str(token.name), _role(token.role))) for token in admin.tokens)


def _clients(admin: config.Admin) -> tuple[Caller, ...]:
    return tuple(Caller(str(client.name), _role(client.role)) for client in admin.clients)


def _role(name: config.Role) -> Role:
    return Role[name.upper()]
