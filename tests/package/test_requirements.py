"""What the Debian package brings with it, and what it takes to compile it, beside what setup.cfg asks for."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sipha import __version__

HERE = Path(__file__).parents[2]
BROUGHT, BUILDING = "requirements.txt", "build-requirements.txt"


def pins(name: str) -> dict[str, str]:
    text = (HERE / "debian" / name).read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+) \\\n", text, re.MULTILINE))


def wanted(name: str) -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(HERE / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].split("\n")
    if name == BUILDING:
        lines += setup["options.extras_require"]["compile"].split("\n")
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("name", [BROUGHT, BUILDING])
def test_pinned_libraries_are_those_that_setup_cfg_allows(name: str) -> None:
    for requirement in wanted(name):
        pinned = pins(name).get(canonicalize_name(requirement.name), "")
        assert pinned, f"{requirement} is not pinned; make pins chooses anew"
        assert requirement.specifier.contains(pinned), f"{requirement}: {pinned} is pinned; make pins chooses anew"


@pytest.mark.parametrize("name", [BROUGHT, BUILDING])
def test_each_pinned_library_has_its_hashes(name: str) -> None:
    text = (HERE / "debian" / name).read_text("utf-8")
    entries = re.split(r"^(?=\w)", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    hashed = [
        entry for entry in entries if re.match(r"[\w.-]+==[\w.]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n$", entry)
    ]
    assert len(hashed) == len(pins(name)) > len(wanted(name))


def test_what_is_brought_is_what_it_was_compiled_beside() -> None:
    assert pins(BROUGHT).items() <= pins(BUILDING).items()


def test_package_has_the_version_of_sipha() -> None:
    newest = (HERE / "debian" / "changelog").read_text("utf-8").partition("\n")[0]
    assert newest.startswith(f"sipha ({__version__}) ")
