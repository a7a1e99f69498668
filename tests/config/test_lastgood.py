from __future__ import annotations

from pathlib import Path

import pytest

from sipha.config import lastgood

TEXT = '[node]\nname = "a"\ndata_dir = "{data}"\n[[domains]]\nname = "sipha.test"\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.fixture
def path(tmp_path: Path, data: Path) -> Path:
    """A configuration whose last good copy is kept."""
    path = tmp_path / "sipha.toml"
    text = TEXT.format(data=data)
    path.write_text(text)
    (data / lastgood.NAME).write_bytes(lastgood.copy_of(path, text))
    return path


def test_copy_is_what_was_copied(path: Path) -> None:
    found = lastgood.find(path)
    assert found is not None
    assert found.text == path.read_text()
    assert found.config.node.name == "a"


@pytest.mark.parametrize(
    "broken",
    [
        'name = "a"\n[[domains]\nname = 3\n',
        "[nodes]\n",
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
def test_copy_is_found_by_what_a_broken_file_says(path: Path, data: Path, broken: str) -> None:
    path.write_text(f"  data_dir='{data}' # here\n{broken}", "latin-1")
    assert lastgood.find(path) is not None


def test_copy_is_found_where_systemd_says_when_the_file_is_gone(
    path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.unlink()
    assert lastgood.find(path) is None
    monkeypatch.setenv("STATE_DIRECTORY", str(data))
    assert lastgood.find(path) is not None


def test_copy_of_another_file_is_not_taken(path: Path, data: Path) -> None:
    (data / lastgood.NAME).write_bytes(lastgood.copy_of(path.with_name("other.toml"), path.read_text()))
    assert lastgood.find(path) is None


def test_copy_that_was_moved_to_another_directory_is_not_taken(path: Path, data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    data.rename(moved)
    path.write_text(f'data_dir = "{moved}"\n[')
    assert lastgood.find(path) is None


@pytest.mark.parametrize("damage", [b"", b"# The last good copy of nothing", b"\xff"])
def test_damaged_copy_is_not_taken(path: Path, data: Path, damage: bytes) -> None:
    (data / lastgood.NAME).write_bytes(damage)
    assert lastgood.find(path) is None
