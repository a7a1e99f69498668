"""Mutual TLS 1.3 between the nodes: a node's certificate files, looked at afresh for each new connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname
from service_identity.pyopenssl import verify_hostname
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import Certificate, CertificateOptions, TLSVersion, trustRootFromCertificates
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.errors import ConfigError

_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

_NO_TLS_1_3 = frozenset({"unsupported protocol", "wrong version number", "http request"})

_PIECE = 1 << 15

Mark = tuple[int, ...] | None
"""What changes when a file does; None if it isn't there."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a node's certificates lie, in PEM: those of the authorities it trusts, its own and any between, its key."""

    ca: Path
    certificate: Path
    key: Path

    def marks(self) -> tuple[Mark, ...]:
        """What changes when one of the files does."""
        return tuple(map(mark, (self.ca, self.certificate, self.key)))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was in the files, and from when to when the other nodes will take it."""

    options: CertificateOptions
    begins: datetime
    expires: datetime


LoadedT = TypeVar("LoadedT", bound=Loaded)


class Files(Protocol):
    """The files that `Certificates` looks at."""

    @property
    def certificate(self) -> Path:
        """The one that speaks for all of them."""

    def marks(self) -> tuple[Mark, ...]:
        """What changes when one of the files does."""


class Identity(NamedTuple):
    """A certificate, those of the authorities between it and one that is trusted, and its key."""

    certificate: x509.Certificate
    between: list[x509.Certificate]
    key: PrivateKeyTypes

    def options(self) -> dict[str, Any]:
        """What `CertificateOptions` must hear of it."""
        # Twisted still declares pyOpenSSL's types here, which that has deprecated.
        return {"privateKey": self.key, "certificate": self.certificate, "extraCertChain": self.between}


def load(credentials: Credentials, name: str) -> Loaded:
    """Read the files of the node that `name` stands for; raises ConfigError if nobody could be talked to with them."""
    authorities = read_certificates(credentials.ca)
    identity = read_identity(credentials.certificate, credentials.key)
    own, between, _ = identity
    try:
        verify_certificate_hostname(own, name)
    except (VerificationError, CertificateError, ValueError):
        raise ConfigError(
            f"{credentials.certificate} is not the certificate of {name}; make one with siphactl ca issue"
        ) from None
    issuers = [issuer for issuer in (*between, *authorities) if _has_issued(issuer, own)]
    if not issuers:
        raise ConfigError(f"{credentials.certificate} was issued by none of the authorities in {credentials.ca}")
    try:
        options = CertificateOptions(
            **identity.options(),
            trustRoot=trusting(authorities),
            raiseMinimumTo=TLSVersion.TLSv1_3,
        )
        options.getContext().set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, note)
    except (SSL.Error, TypeError, ValueError) as error:
        raise ConfigError(f"{credentials.certificate} can't be used for TLS 1.3: {error}") from None
    return Loaded(options, own.not_valid_before_utc, _end(own, issuers))


def expires(credentials: Credentials) -> datetime:
    """When the other nodes will begin to refuse new connections of the node; raises ConfigError."""
    own = read_certificates(credentials.certificate)[0]
    return _end(own, [issuer for issuer in read_certificates(credentials.ca) if _has_issued(issuer, own)])


def read_identity(certificate: Path, key: Path) -> Identity:
    """Read a certificate and its key, in PEM; raises ConfigError if they can't be, or don't belong together."""
    own, *between = read_certificates(certificate)
    own_key = _key(key)
    if own_key.public_key() != own.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}; install the two together")
    return Identity(own, between, own_key)


def trusting(authorities: Iterable[x509.Certificate]) -> Any:
    """The trust root (Twisted's, whose type is private) of those who trust these authorities and no others."""
    return trustRootFromCertificates([Certificate(X509.from_cryptography(each)) for each in authorities])


def bears(transport: Any, name: str) -> bool:
    """True if the certificate at the other end, which TLS has verified, is that of `name`."""
    try:
        verify_hostname(transport.getHandle(), name)
    except (VerificationError, CertificateError, ValueError):
        return False
    return True


def fault(transport: Any, error: BaseException | None) -> str | None:
    """Why TLS has ended the connection, as one of few reasons to count; None if the other end has just gone away."""
    if not isinstance(error, SSL.Error) or not error.args or not error.args[0]:
        return None
    reason = str(error.args[0][-1][-1])
    if "certificate verify failed" in reason:
        verdict = transport.getHandle().get_app_data()
        return "certificate not valid now" if verdict in {_NOT_YET_VALID, _EXPIRED} else "certificate not ours"
    if "did not return a certificate" in reason:
        return "no certificate"
    if "alert" in reason:
        return "our certificate refused" if "certificate" in reason or "unknown ca" in reason else "TLS refused"
    return "not TLS 1.3" if reason in _NO_TLS_1_3 else "broken TLS"


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class Certificates(Generic[LoadedT]):
    """What `load` makes of the files, as they are now; it raises ConfigError.

    Each new connection begins with a look whether the files have changed; present connections live on. New files that
    can't be used are told to `complain`, once, and the old ones stay in use.
    """

    def __init__(self, files: Files, load: Callable[[], LoadedT], complain: Callable[[str], None]) -> None:
        self._files = files
        self._load = load
        self._complain = complain
        self._marks = files.marks()
        self.loaded = load()

    @property
    def expires(self) -> datetime:
        """When the others will begin to refuse new connections."""
        return self.loaded.expires

    def look(self) -> None:
        """Take the files if one has changed since the last look."""
        if self._files.marks() != self._marks:
            self.reload()

    def check(self) -> None:
        """Raise ConfigError if the files, as they are now, could not be taken; of that nobody complains once more."""
        marks = self._files.marks()
        try:
            self._usable()
        except ConfigError:
            self._marks = marks
            raise

    def reload(self) -> None:
        """Take the files, changed or not."""
        self._marks = self._files.marks()  # before they are read: what changes meanwhile is read again
        try:
            self.loaded = self._usable()
        except ConfigError as error:
            self._complain(str(error))

    def _usable(self) -> LoadedT:
        loaded = self._load()
        if not loaded.begins <= datetime.now(UTC) < loaded.expires:
            raise ConfigError(
                f"{self._files.certificate} is valid from {loaded.begins} to {loaded.expires}, which is not now"
            )
        return loaded

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLClientConnectionCreator."""
        self.look()
        return self.loaded.options.clientConnectionForTLS(tlsProtocol)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLServerConnectionCreator."""
        self.look()
        return self.loaded.options.serverConnectionForTLS(tlsProtocol)


class _Transport(BufferingTLSTransport):
    """Twisted's, but when it is lost it leaves no cycle to the collector: strangers could make many."""

    _hurries = False

    def send(self, data: bytes) -> None:
        """Give the kernel what was written, and this."""
        self._hurries = True
        if getattr(self._aggregator, "_scheduled", None):  # something waits for a later turn: both are one record
            self._aggregator.write(data)
            self._aggregator.flush()
        else:
            self._aggregator.flush()
            TLSMemoryBIOProtocol.write(self, data)
        self._hurries = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let the last look for data find an end; what it fails with otherwise is held by its own traceback."""
        connection: SSL.Connection | None = self.getHandle()
        if connection is not None:
            connection.set_shutdown(SSL.RECEIVED_SHUTDOWN)
        super().connectionLost(reason)

    def _flushSendBIO(self) -> None:
        """Twisted's would have the reactor watch the connection until it can be written to, which it can."""
        if not self._hurries:
            super()._flushSendBIO()
            return
        with suppress(SSL.WantReadError):  # there is nothing to send
            _give(self.transport, self._tlsConnection.bio_read(_PIECE))


def send(transport: Any, data: bytes) -> None:
    """Give the kernel what was written, and this: by itself it would wait for two more turns of the reactor.

    Without TLS it waits with what was written in this turn, if there is any.
    """
    if isinstance(transport, _Transport):
        transport.send(data)
    else:
        _give(transport, data)


def _give(transport: Any, data: bytes) -> None:
    """Give the kernel data, and leave to the reactor what it doesn't take, which may be that the connection is lost."""
    if transport.connected and not transport.dataBuffer and not transport._tempDataBuffer:  # noqa: SLF001  Twisted's
        written = transport.writeSomeData(data)
        if isinstance(written, int):
            data = data[written:]
    if data:
        transport.write(data)


class TlsFactory(TLSMemoryBIOFactory):
    """Puts TLS under the connections of another factory."""

    protocol = _Transport


def note(connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:  # noqa: ARG001
    """Leave the verdict as it is, and note why it isn't favourable: the exception will not tell."""
    if not ok:
        connection.set_app_data(error)
    return bool(ok)


def mark(path: Path) -> Mark:
    """What changes when the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read certificates, one after the other in PEM; raises ConfigError."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM, or a damaged one") from None


def _key(path: Path) -> PrivateKeyTypes:
    data = _read(path)
    try:
        return load_pem_private_key(data, password=None)
    except TypeError:
        raise ConfigError(f"{path} is encrypted; store the key without a password, readable by sipha alone") from None
    except ValueError:
        raise ConfigError(f"{path} holds no private key in PEM, or a damaged one") from None


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _end(own: x509.Certificate, issuers: list[x509.Certificate]) -> datetime:
    """When the certificate ends, or the last of those that it rests on."""
    ends = max((issuer.not_valid_after_utc for issuer in issuers), default=own.not_valid_after_utc)
    return min(own.not_valid_after_utc, ends)
