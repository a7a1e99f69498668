from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from man import pages
from man.tables import FILE
from sipha import ctl


def plain(page: str) -> str:
    """What a page says, without its markup."""
    unescaped = re.sub(r"\\\((aq|dq|ga)", lambda found: {"aq": "'", "dq": '"', "ga": "`"}[found[1]], page)
    return " ".join(re.sub(r"^\.[A-Z]+ ?", "", unescaped.replace("\\-", "-"), flags=re.MULTILINE).split())


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(f"{path} {name}", each)
    else:
        yield path, command


@pytest.mark.parametrize(("path", "command"), [*commands("siphactl", ctl.cli)])
def test_page_has_each_command_with_its_options_and_what_it_does(path: str, command: click.Command) -> None:
    page = plain(pages.siphactl())
    assert path in page
    assert " ".join((command.help or "").split()) in page
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.opts[0] in page


def test_page_has_the_exit_statuses() -> None:
    page = plain(pages.siphactl())
    assert "130 Ctrl-C" in page
    assert "2 the command line is wrong" in page


def test_page_has_each_key_of_the_configuration_with_its_default_and_meaning() -> None:
    page = plain(pages.configuration())
    tables = tomllib.loads(FILE.read_text("utf-8"))
    keys = [key for table in tables.values() if isinstance(table, dict) for key in table]
    assert len(keys) > 50
    for key in keys:
        assert f" {key} = " in page, key
    assert "ping_interval = 25.0 less than the time after which the NATs of the phones forget" in page
    assert "which is faster, and survives every crash of processes" in page, "a comment's second line"
    assert "[[cluster.peers]] One table for each other node" in page
    assert 'name = "carrier" what the log calls it' in page, "of a table that is an example"
    assert "(integer, 1 to 65535; 5060 by default; reload)" in page


@pytest.mark.parametrize("name", pages.PAGES)
def test_page_is_well_formed(name: str, tmp_path: Path) -> None:
    if not shutil.which("groff"):
        pytest.skip("groff-base is missing")
    pages.main(str(tmp_path))
    warned = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-Tutf8", tmp_path / name], capture_output=True, text=True, check=True
    )
    assert not warned.stderr


def test_text_is_never_taken_for_markup() -> None:
    assert pages.roff(".so /etc/passwd\n'\\n") == "\\&.so /etc/passwd\n\\(aq\\en"
