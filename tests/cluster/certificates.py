"""Certificates for tests: those of a cluster, and those that nobody should have."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from sipha.cluster import authority
from sipha.cluster.authority import Issued
from sipha.cluster.tls import Credentials

DAY = timedelta(days=1)


class Pki:
    """The authority of a cluster, and the files of its nodes."""

    def __init__(self, directory: Path, cluster: str = "sipha") -> None:
        self.directory = directory
        self.authority = authority.found(cluster, datetime.now(UTC))

    def issue(self, node: str, *, age: timedelta = timedelta(), days: int = 100) -> Issued:
        """A certificate, made some time ago."""
        return authority.issue(self.authority, node, datetime.now(UTC) - age, days)

    def install(self, node: str, issued: Issued | None = None, *, trusted: bytes = b"") -> Credentials:
        """Write a node's files; files that are there already are replaced."""
        directory = self.directory / node
        directory.mkdir(parents=True, exist_ok=True)
        credentials = Credentials(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
        issued = self.issue(node) if issued is None else issued
        replace(credentials.ca, trusted or self.authority.certificate)
        replace(credentials.certificate, issued.certificate)
        replace(credentials.key, issued.key)
        return credentials

    def tls(self, own: Issued | None, *, server: bool = False) -> ssl.SSLContext:
        """TLS as the standard library does it, for those who attack: they trust everybody."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        if own is not None:
            self.directory.mkdir(exist_ok=True)
            file = self.directory / f"{serial(own.certificate)}.pem"
            file.write_bytes(own.key + own.certificate)
            made.load_cert_chain(file)
        return made


def replace(path: Path, data: bytes) -> None:
    """Put a new file in the old one's place, as an operator should."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def serial(certificate: bytes) -> int:
    """The serial number of a certificate, or of the first one."""
    return x509.load_pem_x509_certificate(certificate).serial_number


def any_authority() -> Issued:
    """An authority of somebody's own making, which may sign any name."""
    return _sign(None, "any authority", [], ca=True)


def any_certificate(issuer: Issued, *names: str, ca: bool = False) -> Issued:
    """A certificate with any names at all, even none."""
    return _sign(issuer, "between" if ca else "any node", list(names), ca=ca)


def _sign(issuer: Issued | None, subject: str, names: list[str], *, ca: bool) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    issuer_name, issuer_key = name, key
    if issuer is not None:
        issuer_name = x509.load_pem_x509_certificate(issuer.certificate).subject
        loaded = load_pem_private_key(issuer.key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer_key = loaded
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + 100 * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return Issued(
        certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
