from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from sipha import toml
from sipha.config import Config
from sipha.ctl import cli
from tests.admin.fakes import Console, FakeNode
from tests.handbook import PAGES, ROOT, Block, Script, all_blocks, blocks
from tests.man.test_pages import commands
from tests.system import test_handbook

LANGUAGES = {"console", "ini", "text", "toml", "yaml"}

# What a block of TOML leaves out for brevity, and a configuration needs.
_MINIMUM: dict[str, Any] = {
    "node": {"name": "n1"},
    "domains": [{"name": "sipha.test"}],
    "cluster": {"listen": "192.0.2.11:7000", "ca": "/ca.pem", "certificate": "/cert.pem", "key": "/key.pem"},
}
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NAME = re.compile(r"\bdocs/[a-z-]+\.md\b")


def anchors(page: Path) -> set[str]:
    """What a heading is linked by, as GitHub makes it."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for name in _NAME.findall(text):
        assert (ROOT / name).exists(), name


def test_readme_leads_to_each_page() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        text = page.read_text("utf-8")
        links = [(page.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(text) if "://" not in link]
        waiting += [link for link in links if link.suffix == ".md"]
        waiting += [ROOT / name for name in _NAME.findall(text)]
    assert set(PAGES) <= reached


def test_api_page_names_each_route() -> None:
    page = (ROOT / "docs" / "admin-api.md").read_text("utf-8")
    named = re.sub(r"[A-Z]{2,}(@[A-Z]+)?", "X", page)
    console = Console(FakeNode())
    paths = {route.path for group in console.api.groups for route in group.routes if not route.path.startswith("/page")}
    for path in paths:
        assert re.sub(r"<(?:path:)?\w+>", "X", path) in named, path


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline(page: Path, beginning: str) -> list[str]:
    """What stands between backquotes and begins so."""
    return [
        text
        for text in (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page)))
        if text.startswith(beginning)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_have_a_language_and_none_is_indented(page: Path) -> None:
    assert {block.language for block in all_blocks() if block.page == page.stem} <= LANGUAGES
    assert not re.findall(r"^\n {4,}\S.*", prose(page), re.MULTILINE)


def test_each_block_of_commands_is_typed_by_one_test() -> None:
    shown = {(block.page, block.heading) for block in all_blocks() if block.language == "console"}
    typed = Counter(
        (block.page, block.heading)
        for module in (test_handbook, sys.modules[__name__])
        for function in vars(module).values()
        for mark in getattr(function, "pytestmark", [])
        if mark.name == "follows"
        for block in {block.heading: block for block in blocks(mark.args[0], "console", *mark.args[1:])}.values()
    )
    assert typed == Counter(shown)


@pytest.mark.follows("README")
@pytest.mark.follows("failover")
@pytest.mark.follows(
    *("performance", "Beside other registrars", "Curves", "Parts of a REGISTER's way", "The log", "Compiled", "Exports")
)
def test_make_knows_what_pages_let_it_make(script: Script) -> None:
    for command in script.rest():
        make = 'make() { command make --dry-run "$@"; }'
        done = subprocess.run(
            ["bash", "-c", f"{make}; {command.text}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.system
@pytest.mark.long
@pytest.mark.follows(
    *("performance", "A REGISTER", "What a follower pays", "What an entry costs its leader", "A call", "With workers")
)
def test_benches_that_a_page_shows_run(script: Script) -> None:
    for command in script.rest():
        done = subprocess.run(["bash", "-c", command.text], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_and_modules_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for text in inline(page, "make "):
        target, *variables = text.split()[1:]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), text
        assert all(f"$({variable.partition('=')[0]})" in makefile for variable in variables), text
    for text in inline(page, "python -m "):
        assert importlib.util.find_spec(text.split()[2]), text


@pytest.mark.parametrize(
    "block",
    [block for block in all_blocks() if block.language == "toml"],
    ids=lambda block: f"{block.page}-{block.heading}",
)
def test_configuration_can_be_used(block: Block) -> None:
    document = toml.parse(block.text)
    for key, least in _MINIMUM.items():
        document[key] = least | document.get(key, {}) if isinstance(least, dict) else document.get(key, least)
    toml.convert(document, Config)


@pytest.mark.parametrize(
    "block",
    [block for block in all_blocks() if block.language == "yaml"],
    ids=lambda block: f"{block.page}-{block.heading}",
)
def test_yaml_can_be_read(block: Block) -> None:
    assert isinstance(msgspec.yaml.decode(block.text), dict)


def usages() -> list[str]:
    """How docs/admin-api.md says that siphactl is used."""
    (block,) = blocks("admin-api", "text", "siphactl")
    return [re.split(r" {2,}", line)[0] for line in block.text.splitlines() if line.startswith("siphactl ")]


def mistakes(text: str) -> Iterator[str]:
    """The words of a command line that siphactl doesn't know; it isn't run."""
    command: click.Command = cli
    options = {option for parameter in cli.params for option in parameter.opts}
    for word in re.sub(r"[\[\]|…]", " ", text).split()[1:]:
        if word.startswith("-") and word.strip("-"):
            if word not in options:
                yield word
        elif isinstance(command, click.Group):
            if word not in command.commands:
                yield word
                return
            command = command.commands[word]
            options |= {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_siphactl_knows_the_commands_and_options_that_a_page_names(page: Path) -> None:
    assert not [(text, word) for text in inline(page, "siphactl ") for word in mistakes(text)]


def test_api_page_has_each_command_of_siphactl_and_none_besides() -> None:
    assert not [(text, word) for text in usages() for word in mistakes(text)]
    for path, _ in commands("siphactl", cli):
        assert any(f"{usage} ".startswith(f"{path} ") for usage in usages()), path
