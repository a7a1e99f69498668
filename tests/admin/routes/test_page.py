from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from werkzeug.exceptions import HTTPException

from sipha.admin.access import Role
from sipha.admin.routes.page import PageRoutes
from sipha.events.event import KINDS
from tests.admin.fakes import Console, FakeNode

DIRECTORY = files("sipha.admin") / "page"
FILES = {file.name: file.read_text() for file in DIRECTORY.iterdir()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
PATHS = [route.path for route in PageRoutes.routes]

_TYPES = {".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml", ".js": "text/javascript"}


class Document(HTMLParser):
    """What an HTML document has: elements with ids, what they load, and which ids they speak of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.referred: list[str] = []
        self.attributes: set[str] = set()
        self.labelled: set[str] = set()
        self.fields: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes |= given.keys()
        if "id" in given:
            self.ids.append(given["id"])
        if tag in {"script", "link"}:
            self.loaded.append(given.get("src") or given["href"])
        if tag == "label":
            self.labelled.add(given["for"])
        if tag in {"input", "select"}:
            self.fields.append(given["id"])
        self.referred += [given[name] for name in ("for", "aria-labelledby") if name in given]


DOCUMENT = Document(FILES["index.html"])


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


def test_every_file_is_served_as_it_is_with_its_headers(console: Console) -> None:
    served = {path.removeprefix("/page/") if path != "/" else "index.html": path for path in PATHS}
    assert served.keys() == FILES.keys()
    for name, path in served.items():
        reply = console.ask("GET", path)
        (kind,) = reply.headers.getRawHeaders("Content-Type", [])
        assert kind == f"{_TYPES[name[name.index('.') :]]}; charset=utf-8"
        assert reply.content.decode() == FILES[name]
        (policy,) = reply.headers.getRawHeaders("Content-Security-Policy", [])
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules.pop("default-src") == "'none'"
        assert set(rules.values()) == {"'self'", "'none'"}, "nothing from outside, nothing inline"
        assert rules["frame-ancestors"] == "'none'"
        assert reply.headers.getRawHeaders("X-Content-Type-Options") == ["nosniff"]
        assert reply.headers.getRawHeaders("Cache-Control") == ["no-cache"]


def test_browser_that_has_a_file_is_told_so(console: Console) -> None:
    (etag,) = console.ask("GET", "/").headers.getRawHeaders("ETag", [])
    again = console.ask("GET", "/", if_none_match=etag)
    assert (again.status, again.content) == (304, b"")
    assert console.ask("GET", "/", if_none_match='"of another release"').status == 200
    assert console.ask("GET", "/page/page.js").headers.getRawHeaders("ETag") != [etag]


def test_page_loads_nothing_but_what_is_served() -> None:
    imported = {f"/page/{name}" for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {*DOCUMENT.loaded, *imported} == set(PATHS) - {"/"}
    for name, text in FILES.items():
        # The namespace of SVG is a name, and is not fetched.
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), name
    assert not {name for name in DOCUMENT.attributes if name.startswith("on") or name == "style"}


def test_every_id_that_a_script_looks_up_is_in_the_page() -> None:
    looked_up = {
        found
        for text in SCRIPTS.values()
        for found in re.findall(r'(?:\$|say|show|fill|getElementById)\("([a-z-]+)"', text)
    }
    assert "nodes" in looked_up
    assert looked_up <= set(DOCUMENT.ids)
    assert len(DOCUMENT.ids) == len(set(DOCUMENT.ids))
    assert set(DOCUMENT.referred) <= set(DOCUMENT.ids)


def test_every_field_has_a_label() -> None:
    assert set(DOCUMENT.fields) == DOCUMENT.labelled


def test_every_path_that_a_script_asks_is_a_route(console: Console) -> None:
    adapter = console.api._app.url_map.bind("")
    asked = list(paths())
    assert {"/v1/status", "/v1/nodes", "/v1/events", "/v1/transfer"} <= {path for path, _ in asked}
    for path, method in asked:
        try:
            endpoint, _ = adapter.match(path, method)
        except HTTPException as error:
            pytest.fail(f"{method} {path}: {error}")
        route = next(
            route for group in console.api.groups for route in group.routes if f"{method} {route.path}" == endpoint
        )
        assert Role.READ <= route.role <= Role.OPERATE


def paths() -> Iterator[tuple[str, str]]:
    """The paths of the API that the scripts have, with a name for what varies, and how they ask for them."""
    for text in SCRIPTS.values():
        for path in re.findall(r'["`](/v1/[^"`?]*)', text):
            changes = path.endswith(("/standby", "/online", "/transfer"))
            yield re.sub(r"\$\{[^}]*\}", "x", path), "POST" if changes else "GET"


def test_kinds_of_events_that_the_page_asks_for_are_told() -> None:
    listed = re.search(r"export const KINDS = \[(.*?)\];", FILES["timeline.js"], re.DOTALL)
    assert listed
    kinds = re.findall(r'"([a-z-]+)"', listed[1])
    assert set(kinds) == {kind for kind in KINDS if not kind.startswith(("binding-", "account-", "gap", "key-"))}


def test_no_script_makes_markup_or_code_of_texts() -> None:
    for name, text in SCRIPTS.items():
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "setHTML",
        ):
            assert word not in text, name
        assert "localStorage" not in text, name
