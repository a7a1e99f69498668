"""What `python -m build` makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]

# As in an environment where the wheel is installed, and the checkout isn't.
FIND = """
import sys
sys.path[:] = [sys.argv[1], *(path for path in sys.path if path != sys.argv[2])]
import twisted
from twisted.scripts.twistd import ServerOptions
assert not twisted.__file__.startswith(sys.argv[1])
(options,) = [options for name, _, options, _ in ServerOptions().subCommands if name == "sipha"]
print(sys.modules[type(options()).__module__].__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the source archive, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("built")
    checkout = directory / "sipha"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / name, checkout / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(checkout)]
    subprocess.run(build, check=True, capture_output=True)
    return directory


def test_wheel_has_sipha_and_its_plugin_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"sipha", "twisted"}
    assert [name for name in names if name.startswith("twisted/")] == ["twisted/plugins/sipha_plugin.py"]
    assert "sipha/py.typed" in names
    ours = {str(path.relative_to(HERE)) for path in (HERE / "sipha").rglob("*.py")}
    assert ours <= set(names)
    assert not [name for name in names if name.endswith((".c", ".h", ".so"))]


def test_twistd_finds_sipha_in_the_wheel_and_keeps_its_own(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [sys.executable, "-I", "-c", FIND, str(tmp_path), str(HERE)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(tmp_path / "sipha" / "tap.py")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_installed_wheel_gives_the_commands(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    commands = tmp_path / "venv" / "bin"
    subprocess.run([commands / "python", "-m", "pip", "install", "--quiet", wheel], check=True)
    run = ["twistd", "--nodaemon", "--pidfile=", "sipha", "run", "--config", "absent.toml"]
    node = subprocess.run([commands / run[0], *run[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert node.returncode == 1
    assert "absent.toml" in node.stderr
    assert subprocess.run([commands / "sipha-guard", "--wanted", "--config", tmp_path], check=False).returncode == 0
    assert subprocess.run([commands / "siphactl", "--version"], check=False).returncode == 0


def test_source_archive_has_all_that_the_debian_package_is_built_of(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"debian/rules", "debian/requirements.txt", "etc/sipha.toml", "man/sipha.8", "man/pages.py"} <= names
    assert {str(path.relative_to(HERE)) for path in (HERE / "docs").glob("*.md")} <= names
    assert {str(path.relative_to(HERE)) for path in (HERE / "sipha").rglob("*.[ch]")} <= names
    assert not [name for name in names if name.endswith(("dropin.cache", ".pyc"))]
