from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from service_identity.cryptography import verify_certificate_hostname

from sipha.cluster.authority import AuthorityError, Issued, check_name, found, host_name, issue
from sipha.errors import ConfigError
from tests.cluster.certificates import any_authority

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def opened(issued: Issued) -> x509.Certificate:
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    key = load_pem_private_key(issued.key, None)
    assert certificate.public_key() == key.public_key()
    return certificate


@pytest.fixture(scope="module")
def authority() -> Issued:
    return found("prod", NOW)


def test_authority_may_sign_nodes_of_its_cluster_and_no_authorities(authority: Issued) -> None:
    ca = opened(authority)
    ca.verify_directly_issued_by(ca)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    names = ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert names.critical
    assert names.value.permitted_subtrees == [x509.DNSName("prod.sipha")]


def test_node_gets_a_certificate_for_both_sides_of_a_connection(authority: Issued) -> None:
    certificate = opened(issue(authority, "n1", NOW))
    certificate.verify_directly_issued_by(opened(authority))
    verify_certificate_hostname(certificate, "n1.prod.sipha")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.DNSName("n1.prod.sipha")]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_certificates_are_valid_a_day_back_and_ten_or_two_years_on(authority: Issued) -> None:
    for issued, years in ((authority, 10), (issue(authority, "n1", NOW), 2)):
        certificate = opened(issued)
        assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
        assert certificate.not_valid_after_utc == NOW + timedelta(days=365 * years)


def test_serial_numbers_are_random(authority: Issued) -> None:
    numbers = {opened(issue(authority, "n1", NOW)).serial_number for _ in range(5)}
    assert len(numbers) == 5
    assert all(number.bit_length() > 64 for number in numbers)


def test_node_does_not_outlive_the_authority(authority: Issued) -> None:
    certificate = opened(issue(authority, "n1", NOW + timedelta(days=3600)))
    assert certificate.not_valid_after_utc == opened(authority).not_valid_after_utc


def test_expired_authority_issues_nothing(authority: Issued) -> None:
    with pytest.raises(AuthorityError, match="has expired on 2036-05-01; make a new one"):
        issue(authority, "n1", NOW + timedelta(days=3650))


def test_key_chooses_among_old_and_new_authority(authority: Issued) -> None:
    new = found("prod", NOW)
    for bundle in (authority.certificate + new.certificate, new.certificate + authority.certificate):
        certificate = opened(issue(Issued(bundle, new.key), "n1", NOW))
        certificate.verify_directly_issued_by(opened(new))


def test_key_of_another_authority_is_refused(authority: Issued) -> None:
    with pytest.raises(AuthorityError, match="belongs to none of its certificates"):
        issue(Issued(authority.certificate, found("prod", NOW).key), "n1", NOW)


@pytest.mark.parametrize("what", ["certificate", "key"])
def test_damaged_files_are_refused(authority: Issued, what: str) -> None:
    parts = {"certificate": authority.certificate, "key": authority.key}
    parts[what] = parts[what][:100]
    with pytest.raises(AuthorityError, match="can't be read"):
        issue(Issued(**parts), "n1", NOW)


def test_authority_that_is_not_a_clusters_is_refused() -> None:
    with pytest.raises(AuthorityError, match="not made by siphactl ca init"):
        issue(any_authority(), "n1", datetime.now(UTC))


@pytest.mark.parametrize("name", ["", "A", "n_1", "n.1", "-a", "a-", "a" * 64, "ä", "a\n", "*", "a b"])
def test_names_that_can_not_stand_in_a_certificate_are_refused(authority: Issued, name: str) -> None:
    with pytest.raises(ConfigError, match="the name of the node"):
        issue(authority, name, NOW)
    with pytest.raises(ConfigError, match="the name of the cluster"):
        found(name, NOW)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
def test_name_that_is_taken_can_be_issued_and_verified(name: str) -> None:
    check_name("node", name)
    certificate = opened(issue(found(name, NOW), name, NOW))
    verify_certificate_hostname(certificate, host_name(name, name))
