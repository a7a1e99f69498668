"""TLS of the admin: what it shows, whose certificates it takes, and how those who ask verify it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion, optionsForClientTLS, platformTrust
from twisted.web.iweb import IPolicyForHTTPS
from twisted.web.server import Request
from zope.interface import implementer

from sipha.cluster import tls
from sipha.cluster.tls import Certificates, Mark, read_certificates, read_identity, trusting
from sipha.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AdminFiles:
    """Where the admin's certificate and key lie, and the certificates of authorities; all in PEM.

    Who shows a certificate from one of `clients` is an operator; from one of `nodes`, another node.
    """

    certificate: Path
    key: Path
    clients: Path | None = None
    nodes: Path | None = None

    def marks(self) -> tuple[Mark, ...]:
        """What changes when one of the files does."""
        paths = (self.certificate, self.key, self.clients, self.nodes)
        return tuple(None if path is None else tls.mark(path) for path in paths)


@dataclass(frozen=True, slots=True)
class Loaded(tls.Loaded):
    """What was in the files."""

    clients: frozenset[x509.Certificate]
    nodes: frozenset[x509.Certificate]


class Shown(NamedTuple):
    """A certificate that TLS has verified: the names in it, and the authority that it rests on."""

    names: frozenset[str]
    authority: x509.Certificate


class AdminCertificates(Certificates[Loaded]):
    """The certificates of the admin, as the files are now; raises ConfigError if they can't be used."""

    def __init__(self, files: AdminFiles, complain: Callable[[str], None]) -> None:
        super().__init__(files, partial(load, files), complain)


def load(files: AdminFiles) -> Loaded:
    """Read the files; raises ConfigError if nobody could be served with them."""
    identity = read_identity(files.certificate, files.key)
    clients, nodes = (
        frozenset(() if path is None else read_certificates(path)) for path in (files.clients, files.nodes)
    )
    trusted = clients | nodes
    try:
        options = CertificateOptions(
            **identity.options(),
            trustRoot=trusting(trusted) if trusted else None,
            raiseMinimumTo=TLSVersion.TLSv1_3,
        )
        context = options.getContext()
        if trusted:
            context.set_verify(SSL.VERIFY_PEER, tls.note)  # but who has no certificate may have a token
    except (SSL.Error, TypeError, ValueError) as error:
        raise ConfigError(f"{files.certificate} can't be used for TLS 1.3: {error}") from None
    own = identity.certificate
    return Loaded(options, own.not_valid_before_utc, own.not_valid_after_utc, clients, nodes)


def shown_by(request: Request) -> Shown | None:
    """The certificate that the sender of a request has shown; None if there is none."""
    transport: Any = request.channel.transport
    chain = transport.getHandle().get_verified_chain(as_cryptography=True)
    return Shown(names(chain[0]), chain[-1]) if chain else None


def names(certificate: x509.Certificate) -> frozenset[str]:
    """The DNS names and mail addresses in a certificate, or its common name if there is no alternative name at all."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return frozenset(str(attribute.value) for attribute in common)
    return frozenset(found.get_values_for_type(x509.DNSName)) | frozenset(found.get_values_for_type(x509.RFC822Name))


class Expected(NamedTuple):
    """Who must be at a host and port: the name in the certificate, and the file of the authority that it rests on."""

    name: str
    authority: Path


@implementer(IPolicyForHTTPS)
class Verification:
    """Verifies a server by the host in its URL, and shows it a certificate, if there is one.

    `authorities` are files, in PEM, of those that are trusted; if there are none, the system's are. `identity` is the
    certificate and its key. All are read for each connection; one fails with ConfigError if they can't be. `expected`
    may say of a host and port who must be there instead.
    """

    def __init__(
        self,
        authorities: Sequence[Path] = (),
        identity: tuple[Path, Path] | None = None,
        expected: Callable[[str, int], Expected | None] = lambda *_: None,
    ) -> None:
        self._authorities = authorities
        self._identity = identity
        self._expected = expected

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """See IPolicyForHTTPS."""
        name, authorities = hostname.decode("ascii"), self._authorities
        expected = self._expected(name, port)
        if expected is not None:
            name, authorities = expected.name, (expected.authority,)
        trusted = [certificate for path in authorities for certificate in read_certificates(path)]
        own = {} if self._identity is None else read_identity(*self._identity).options()
        return optionsForClientTLS(
            name,
            trustRoot=trusting(trusted) if authorities else platformTrust(),
            extraCertificateOptions=own,
        )
