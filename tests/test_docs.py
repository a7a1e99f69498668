from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.admin.fakes import Console, FakeNode

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
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
