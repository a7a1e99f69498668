"""`siphactl init` and `join`, as an operator types them."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sipha import config
from sipha.cluster import authority
from sipha.config.draft import ADMIN_PORT, EXAMPLE
from sipha.ctl import setup
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator

DELIVERED = Path(__file__).parents[2] / "etc" / "sipha.toml"
WORDS = (
    *("init", "--name", "n1", "--address", "192.0.2.11", "--virtual-address", "192.0.2.10%eth0"),
    *("--domain", "Example.com", "--peer", "n2=192.0.2.12", "--peer", "n3=[2001:db8::13]:7001"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "sipha.toml"


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """What siphactl ca makes for n1."""
    now = datetime.now(UTC)
    own = authority.found("sipha", now)
    made = authority.issue(own, "n1", now)
    directory = tmp_path / "n1"
    directory.mkdir()
    for name, data in (("ca.pem", own.certificate), ("cert.pem", made.certificate), ("key.pem", made.key)):
        (directory / name).write_bytes(data)
    return directory


def test_operator_writes_a_configuration_that_the_daemon_takes(operator: Operator, file: Path) -> None:
    before = os.umask(0o077)
    try:
        written = operator.types(*WORDS, "--config", str(file))
    finally:
        os.umask(before)
    assert written.exit_code == 0, written.output
    assert written.stdout.splitlines() == [
        f"wrote {file}",
        f"put ca.pem, cert.pem, key.pem into {file.parent}: siphactl ca makes them",
    ]
    assert file.stat().st_mode & 0o777 == 0o644
    loaded = config.load(file)
    assert (loaded.node.name, loaded.cluster.name, loaded.cluster.listen) == ("n1", "sipha", "192.0.2.11:7000")
    assert [(peer.name, peer.address, peer.admin) for peer in loaded.cluster.peers] == [
        ("n2", "192.0.2.12:7000", ""),
        ("n3", "[2001:db8::13]:7001", ""),
    ]
    assert (loaded.virtual_address.mode, loaded.virtual_address.addresses) == ("netlink", ("192.0.2.10%eth0",))
    assert [domain.name for domain in loaded.domains] == ["example.com"]
    assert loaded.cluster.key == str(file.parent / "key.pem")
    assert loaded.cluster.admin_port == ADMIN_PORT
    assert "# the addresses that phones use; the leader has them" in file.read_text()


def test_operator_has_the_certificates_installed(operator: Operator, file: Path, certificates: Path) -> None:
    written = operator.types(*WORDS, "--config", str(file), "--certificates", str(certificates))
    assert written.stdout == f"wrote {file}\n"
    for name in ("ca.pem", "cert.pem", "key.pem"):
        installed = file.parent / name
        assert installed.read_bytes() == (certificates / name).read_bytes()
        assert installed.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["ca.pem", "cert.pem", "key.pem", "sipha.toml"]


def test_certificates_of_another_node_are_refused(operator: Operator, file: Path, certificates: Path) -> None:
    words = [word.replace("n1", "n4") for word in WORDS]
    refused = operator.types(*words, "--config", str(file), "--certificates", str(certificates))
    assert refused.exit_code == 1
    assert "cert.pem is not the certificate of n4.sipha.sipha" in refused.stderr
    assert not file.exists()


def test_nodes_of_one_machine_need_no_certificates(operator: Operator, file: Path) -> None:
    words = (
        "init",
        "--name",
        "n1",
        "--address",
        "127.0.0.11",
        "--virtual-address",
        "127.0.0.10",
        "--domain",
        "sipha.test",
    )
    assert operator.types(*words, "--peer", "n2=127.0.0.12", "--config", str(file)).exit_code == 0
    loaded = config.load(file)
    assert loaded.cluster.plaintext
    assert loaded.virtual_address.mode == "loopback"


def test_interface_is_that_of_the_nodes_address(operator: Operator, file: Path) -> None:
    words = (
        "init",
        "--name",
        "n1",
        "--address",
        "127.0.0.1",
        "--virtual-address",
        "192.0.2.10",
        "--domain",
        "sipha.test",
    )
    assert operator.types(*words, "--config", str(file)).exit_code == 0
    assert config.load(file).virtual_address.addresses == ("192.0.2.10%lo",)
    elsewhere = [word.replace("127.0.0.1", "192.0.2.99") for word in words]
    refused = operator.types(*elsewhere, "--config", str(file), "--force")
    assert refused.exit_code == 2
    assert "no interface of this machine has 192.0.2.99" in refused.stderr


def test_nothing_is_overwritten_but_the_example(operator: Operator, file: Path, certificates: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(DELIVERED.read_bytes())
    assert config.load(file) == EXAMPLE
    assert operator.types(*WORDS, "--config", str(file)).exit_code == 0
    written = file.read_bytes()
    refused = operator.types(*WORDS, "--config", str(file))
    assert (refused.exit_code, refused.stderr) == (
        1,
        f"siphactl: {file} exists, and is not overwritten without --force\n",
    )
    (file.parent / "key.pem").write_text("another")
    file.unlink()
    refused = operator.types(*WORDS, "--config", str(file), "--certificates", str(certificates))
    assert f"{file.parent}/key.pem exists, and is not overwritten without --force" in refused.stderr
    forced = operator.types(*WORDS, "--config", str(file), "--certificates", str(certificates), "--force")
    assert forced.exit_code == 0
    assert file.read_bytes() == written
    file.write_text("no TOML")
    assert operator.types(*WORDS, "--config", str(file)).exit_code == 1


def test_init_asks_for_what_is_not_said(operator: Operator, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_at_terminal", lambda: True)
    answers = "n1\n192.0.2.11\n192.0.2.10%eth0 2001:db8::10%eth0\nexample.com\nn2=192.0.2.12 n3=192.0.2.13\n"
    asked = operator.types("init", "--config", str(file), stdin=answers)
    assert asked.exit_code == 0, asked.output
    loaded = config.load(file)
    assert loaded.virtual_address.addresses == ("192.0.2.10%eth0", "2001:db8::10%eth0")
    assert [peer.name for peer in loaded.cluster.peers] == ["n2", "n3"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n1": "N 1"}, "--name: 'N 1' is not a name"),
        ({"192.0.2.11": "host.test"}, "--address: 'host.test' is not an IP address"),
        ({"192.0.2.10%eth0": "x"}, "--virtual-address: 'x' is not an IP address"),
        ({"n2=192.0.2.12": "192.0.2.12"}, "--peer: '192.0.2.12' is no node and its address"),
        ({"Example.com": "a b"}, "--domain: 'a b' is not a domain"),
    ],
)
def test_wrong_words_are_named(operator: Operator, file: Path, change: dict[str, str], problem: str) -> None:
    refused = operator.types(*(change.get(word, word) for word in WORDS), "--config", str(file))
    assert refused.exit_code == 2
    assert problem in " ".join(refused.stderr.split())
    assert not file.exists()


def test_what_the_daemon_would_refuse_is_not_written(operator: Operator, file: Path) -> None:
    words = [word.replace("n3=", "n1=") for word in WORDS]
    refused = operator.types(*words, "--config", str(file))
    assert refused.exit_code == 1
    assert refused.stderr.startswith("siphactl: cluster.peers: 'n1' is this node itself")
    assert list(file.parent.iterdir()) == []


def test_what_is_missing_is_named_where_nobody_can_be_asked(operator: Operator, file: Path) -> None:
    refused = operator.types("init", "--name", "n1", "--config", str(file))
    assert refused.exit_code == 2
    assert "--address is missing" in refused.stderr


class TestJoin:
    @pytest.fixture
    def configured(self, operator: Operator, file: Path) -> str:
        operator.types(*WORDS, "--config", str(file))
        return str(file)

    def test_node_has_itself_made_a_member(self, node: FakeNode, operator: Operator, configured: str) -> None:
        joined = operator.types("join", "--config", configured, "--url", "http://127.0.0.1:8080", "--no-wait")
        assert (joined.exit_code, joined.stdout) == (0, "n1 is a member, and will vote when it has caught up\n")
        assert node.members["n1"].address == "192.0.2.11:7000"

    def test_node_asks_the_admins_that_its_configuration_names(
        self, node: FakeNode, operator: Operator, configured: str
    ) -> None:
        path = Path(configured)
        admin = 'address = "192.0.2.12:7000"\nadmin = "http://127.0.0.1:8080"'
        path.write_text(path.read_text().replace('address = "192.0.2.12:7000"', admin))
        assert operator.types("join", "--config", configured, "--no-wait").exit_code == 0
        assert "n1" in node.members

    def test_node_says_what_to_type_elsewhere(self, operator: Operator, configured: str) -> None:
        refused = operator.types("join", "--config", configured)
        assert refused.exit_code == 1
        assert "on one of them, run siphactl node add n1 192.0.2.11:7000" in refused.stderr

    def test_node_joins_through_ssh_on_the_first_that_leads(
        self, operator: Operator, configured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ssh = tmp_path / "ssh"
        ssh.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n[ "$2" = n3 ]\n')
        ssh.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        words = "join", "--config", configured, "--ssh", "n2", "--ssh", "n3", "--ssh", "n4"
        assert operator.types(*words).exit_code == 0
        command = "siphactl node add n1 192.0.2.11:7000"
        assert (tmp_path / "asked").read_text() == f"-- n2 {command}\n-- n3 {command}\n"
        failed = operator.types("join", "--config", configured, "--ssh", "n2")
        assert (failed.exit_code, failed.stderr) == (1, "siphactl: n1 is no member yet\n")

    def test_a_configuration_that_is_wrong_is_named(self, operator: Operator, file: Path) -> None:
        assert operator.types("join", "--config", str(file)).exit_code == 1
