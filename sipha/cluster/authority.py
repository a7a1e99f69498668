"""The cluster's own certificate authority: it says which key speaks as which node, or which operator.

Pure: PEM in, PEM out, and the time is an argument. The authority's certificate is good for names of its own cluster
alone, and for no further authorities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sipha.errors import ConfigError, SiphaError

AUTHORITY_DAYS = 3650
NODE_DAYS = 730
OPERATOR_DAYS = 365

BACKDATED = timedelta(days=1)
"""How long before it was made a certificate is valid, for nodes whose clocks are slow."""

IPAddress = IPv4Address | IPv6Address

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class AuthorityError(SiphaError):
    """The authority can't issue this."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, or several one after the other, and the private key of one of them: both in PEM."""

    certificate: bytes
    key: bytes


def check_name(what: str, name: str) -> None:
    """Raise ConfigError unless the name of a node or cluster can stand in a certificate: one label of a host name."""
    if not _LABEL.fullmatch(name):
        raise ConfigError(
            f"the name of the {what}, {name!r}, must be 1 to 63 lower-case letters, digits and hyphens, with no hyphen "
            "first or last"
        )


def host_name(node: str, cluster: str) -> str:
    """The name in the certificate of a node, which the other nodes verify."""
    return f"{node}.{cluster}.sipha"


def operator_name(operator: str, cluster: str) -> str:
    """The name in the certificate of an operator, which no node can have."""
    return f"{operator}.operators.{cluster}.sipha"


def found(cluster: str, now: datetime, days: int = AUTHORITY_DAYS) -> Issued:
    """Make the authority of a cluster; raises ConfigError for a name that can't be used."""
    check_name("cluster", cluster)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(cluster, "sipha cluster authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(subject, subject, key, now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(f"{cluster}.sipha")], None), critical=True)
    )
    return _sealed(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Issued, node: str, now: datetime, days: int = NODE_DAYS, addresses: Sequence[IPAddress] = ()
) -> Issued:
    """Make the certificate of a node, which doesn't outlive the authority's; its admin may be asked at `addresses`.

    Where old and new authorities stand side by side, the one that the key belongs to issues it. Raises ConfigError for
    a name that can't be used, and AuthorityError.
    """
    check_name("node", node)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _issue(authority, node, partial(host_name, node), purposes, now, days, addresses)


def issue_operator(authority: Issued, operator: str, now: datetime, days: int = OPERATOR_DAYS) -> Issued:
    """Make the certificate of an operator, good only for asking; raises as `issue` does."""
    check_name("operator", operator)
    return _issue(
        authority, operator, partial(operator_name, operator), [ExtendedKeyUsageOID.CLIENT_AUTH], now, days, ()
    )


def name_in(issued: Issued) -> str:
    """The name of the node or operator in a certificate."""
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)[0]


def _issue(  # noqa: PLR0917  whose, what for, for how long
    authority: Issued,
    subject: str,
    name: Callable[[str], str],
    purposes: Sequence[x509.ObjectIdentifier],
    now: datetime,
    days: int,
    addresses: Sequence[IPAddress],
) -> Issued:
    """Make a certificate for the name that `name` makes of the cluster's."""
    ca, ca_key = _opened(authority)
    cluster = _cluster(ca)
    if ca.not_valid_after_utc <= now:
        raise AuthorityError(
            f"the certificate of the authority has expired on {ca.not_valid_after_utc:%Y-%m-%d}; make a new one with "
            "siphactl ca init, and let the nodes trust both for a while"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    names: list[x509.GeneralName] = [x509.DNSName(name(cluster)), *map(x509.IPAddress, addresses)]
    issuer_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    end = min(now + timedelta(days=days), ca.not_valid_after_utc)
    builder = (
        _builder(_subject(cluster, subject), ca.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    return _sealed(builder.sign(ca_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(cluster: str, name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _sealed(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _opened(authority: Issued) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        key = load_pem_private_key(authority.key, password=None)
        certificates = x509.load_pem_x509_certificates(authority.certificate)
    except (ValueError, TypeError) as error:
        raise AuthorityError(f"the authority's files can't be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError("the authority's key was not made by siphactl ca init")
    for certificate in certificates:
        if certificate.public_key() == key.public_key():
            return certificate, key
    raise AuthorityError("the authority's key belongs to none of its certificates")


def _cluster(ca: x509.Certificate) -> str:
    """The cluster whose names the authority may sign."""
    try:
        names = ca.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or ()
        (domain,) = (name.value for name in names)
    except (x509.ExtensionNotFound, ValueError):
        raise AuthorityError("the authority's certificate was not made by siphactl ca init") from None
    return str(domain).removesuffix(".sipha")
