from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from service_identity.cryptography import verify_certificate_ip_address

from sipha.admin.tls import names
from sipha.cluster import tls
from sipha.cluster.tls import Credentials
from sipha.ctl.ca import ca
from sipha.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory, and a user whose new files are open to all."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def types(*words: str) -> Result:
    return CliRunner().invoke(ca, words)


def credentials(directory: Path) -> Credentials:
    return Credentials(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir() if path.is_file()}


def test_operator_makes_an_authority_and_certificates(here: Path) -> None:
    made = types("init")
    assert made.exit_code == 0
    assert made.stdout == "made the authority of cluster sipha in .; keep ca-key.pem secret, and off the nodes\n"
    issued = types("issue", "n1")
    assert issued.exit_code == 0
    assert issued.stdout.startswith("made the certificate of node n1 in n1;")
    assert modes(here) == {"ca.pem": 0o644, "ca-key.pem": 0o600}
    assert modes(here / "n1") == {"ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}
    assert (here / "n1").stat().st_mode & 0o777 == 0o700
    loaded = tls.load(credentials(here / "n1"), "n1.sipha.sipha")
    assert timedelta(days=729) < loaded.expires - datetime.now(UTC) <= timedelta(days=730)


def test_operator_chooses_names_places_and_times(here: Path) -> None:
    assert types("init", "--dir", "deep/ca", "--name", "prod", "--days", "30").exit_code == 0
    assert types("issue", "n1", "--dir", "deep/ca", "--out", "new", "--days", "9").exit_code == 0
    loaded = tls.load(credentials(here / "new"), "n1.prod.sipha")
    assert timedelta(days=8) < loaded.expires - datetime.now(UTC) <= timedelta(days=9)
    assert types("issue", "n1", "--dir", "deep/ca").exit_code == 0  # which ends with its authority
    assert tls.expires(credentials(here / "deep" / "ca" / "n1")) - datetime.now(UTC) <= timedelta(days=30)


def test_operator_makes_the_certificate_of_a_node_whose_admin_is_asked_by_address(here: Path) -> None:
    types("init")
    assert types("issue", "n1", "--address", "192.0.2.11", "--address", "2001:db8::11").exit_code == 0
    certificate = tls.read_certificates(here / "n1" / "cert.pem")[0]
    for address in ("192.0.2.11", "2001:db8::11"):
        verify_certificate_ip_address(certificate, address)
    tls.load(credentials(here / "n1"), "n1.sipha.sipha")
    refused = types("issue", "n2", "--address", "n2.sipha.test")
    assert refused.exit_code == 2
    assert "--address: 'n2.sipha.test' does not appear to be an IPv4 or IPv6 address" in refused.stderr


def test_operator_makes_certificates_of_operators(here: Path) -> None:
    types("init", "--name", "prod")
    made = types("operator", "alice")
    assert made.exit_code == 0
    first, _, rest = made.stdout.partition("\n")
    assert first.startswith("made the certificate of alice.operators.prod.sipha in operators/alice; add this")
    (client,) = tomllib.loads(rest)["admin"]["clients"]
    assert client == {"name": "alice.operators.prod.sipha", "role": "read"}
    assert modes(here / "operators" / "alice") == {"ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}
    certificate = tls.read_certificates(here / "operators" / "alice" / "cert.pem")[0]
    assert names(certificate) == {"alice.operators.prod.sipha"}
    assert types("operator", "al.ice").exit_code == 1
    with pytest.raises(ConfigError):  # nor is it one of a node
        tls.load(credentials(here / "operators" / "alice"), "alice.prod.sipha")


def test_new_authority_issues_while_the_old_one_is_trusted(here: Path) -> None:
    types("init", "--dir", "old")
    types("init", "--dir", "new")
    both = (here / "old" / "ca.pem").read_bytes() + (here / "new" / "ca.pem").read_bytes()
    (here / "new" / "ca.pem").write_bytes(both)
    assert types("issue", "n1", "--dir", "new").exit_code == 0
    assert (here / "new" / "n1" / "ca.pem").read_bytes() == both
    tls.load(credentials(here / "new" / "n1"), "n1.sipha.sipha")


@pytest.mark.parametrize("file", ["ca.pem", "ca-key.pem", "n1/cert.pem", "n1/key.pem", "n1/ca.pem"])
def test_nothing_is_overwritten(here: Path, file: str) -> None:
    words = ("init",) if file.startswith("ca") else ("issue", "n1")
    if words[0] == "issue":
        types("init")
    (here / "n1").mkdir()
    (here / file).write_text("precious")
    before = sorted(here.rglob("*"))
    refused = types(*words)
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"siphactl: {file} exists, and is not overwritten; move it away, or name another directory\n"
    )
    assert (here / file).read_text() == "precious"
    assert sorted(here.rglob("*")) == before


def test_dangling_link_is_not_written_through(here: Path) -> None:
    (here / "ca-key.pem").symlink_to("elsewhere")
    assert types("init").exit_code == 1
    assert not (here / "elsewhere").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("issue", "n1", "--dir", "none"),
            "none/ca.pem can't be read: No such file or directory; siphactl ca init makes",
        ),
        (("issue", "N1"), "the name of the node, 'N1', must be 1 to 63 lower-case letters"),
        (("issue", ".."), "the name of the node, '..', must be"),
        (("init", "--dir", "x", "--name", "my_cluster"), "the name of the cluster, 'my_cluster', must be"),
        (("init", "--dir", "file/x"), "file/x can't be written: Not a directory"),
    ],
)
def test_mistake_is_explained(here: Path, words: tuple[str, ...], problem: str) -> None:
    types("init")
    (here / "file").touch()
    refused = types(*words)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"siphactl: {problem}")
    assert not (here / "x").exists()


@pytest.mark.parametrize("days", ["0", "-1", "99999999", "x"])
def test_days_that_can_not_be_are_refused(here: Path, days: str) -> None:
    assert types("init", "--days", days).exit_code == 2
    assert not list(here.iterdir())
