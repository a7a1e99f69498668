"""What the Debian package brings with it, beside what setup.cfg asks for."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sipha import __version__

HERE = Path(__file__).parents[2]
PINS = dict(
    re.findall(r"^([\w.-]+)==([\w.]+) \\\n", (HERE / "debian" / "requirements.txt").read_text("utf-8"), re.MULTILINE)
)


def wanted() -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(HERE / "setup.cfg", encoding="utf-8")
    return [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]


def test_pinned_libraries_are_those_that_setup_cfg_allows() -> None:
    for requirement in wanted():
        pinned = PINS.get(canonicalize_name(requirement.name), "")
        assert pinned, f"{requirement} is not pinned; make pins chooses anew"
        assert requirement.specifier.contains(pinned), f"{requirement}: {pinned} is pinned; make pins chooses anew"


def test_each_pinned_library_has_its_hashes() -> None:
    text = (HERE / "debian" / "requirements.txt").read_text("utf-8")
    entries = re.split(r"^(?=\w)", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    hashed = [
        entry for entry in entries if re.match(r"[\w.-]+==[\w.]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n$", entry)
    ]
    assert len(hashed) == len(PINS) > len(wanted())


def test_package_has_the_version_of_sipha() -> None:
    newest = (HERE / "debian" / "changelog").read_text("utf-8").partition("\n")[0]
    assert newest.startswith(f"sipha ({__version__}) ")
