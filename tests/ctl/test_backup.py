from __future__ import annotations

from pathlib import Path

import pytest

from sipha.state.entries import PutAccount
from sipha.state.snapshot import Frozen, Loader
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator


@pytest.fixture
def filled(node: FakeNode) -> FakeNode:
    for number in range(500):
        node.register(f"sip:user{number}@sipha.test", user_agent="x" * 200)
    node.apply(PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32}))
    return node


@pytest.mark.usefixtures("filled")
def test_operator_writes_a_backup(node: FakeNode, operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    written = operator.types("backup", str(file))
    assert written.exit_code == 0, written.stderr
    assert written.stdout == f"wrote 500 bindings and 1 accounts, as of entry 501, to {file}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    loader = Loader()
    loader.feed(file.read_bytes())
    assert loader.finish().header.hash.hex() == node.machine.hash_hex()
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]


@pytest.mark.usefixtures("filled")
def test_backup_is_never_overwritten_without_force(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_text("precious")
    refused = operator.types("backup", str(file))
    assert refused.exit_code == 1
    assert refused.stderr == f"siphactl: {file} exists, and is not overwritten without --force\n"
    assert operator.network.asked == []
    assert file.read_text() == "precious"
    assert operator.reads("backup", "--force", str(file))["bindings"] == 500
    assert file.stat().st_size > 10_000


@pytest.mark.usefixtures("filled")
def test_backup_doesnt_overwrite_what_came_meanwhile(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "backup"

    def write() -> None:
        file.write_text("precious")

    operator.meanwhile = write
    refused = operator.types("backup", str(file))
    assert refused.exit_code == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


class Cut:
    """A backup that ends too early."""

    def __init__(self, frozen: Frozen) -> None:
        self.header = frozen.header
        self._frozen = frozen

    def __iter__(self) -> Cut:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._frozen)
        if len(chunk) < 100:  # the footer
            raise StopIteration
        return chunk

    def close(self) -> object:
        return self._frozen.close()


def test_backup_that_isnt_whole_is_not_kept(
    filled: FakeNode, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = filled.backup()
    monkeypatch.setattr(filled, "backup", lambda: Cut(frozen))
    refused = operator.types("backup", str(tmp_path / "backup"))
    assert refused.exit_code == 1
    assert "is no whole backup: the snapshot is cut short" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["none/backup", "."])
def test_backup_that_cant_be_written_is_status_1(operator: Operator, tmp_path: Path, name: str) -> None:
    refused = operator.types("backup", str(tmp_path / name))
    assert refused.exit_code == 1
    assert refused.stderr.startswith("siphactl: ")
