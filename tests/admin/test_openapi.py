from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from sipha import __version__
from sipha.admin.access import Role
from sipha.admin.route import Routes
from sipha.admin.views import Leader
from tests.admin.fakes import Console, FakeNode


@pytest.fixture
def console() -> Console:
    return Console(FakeNode())


@pytest.fixture
def document(console: Console) -> dict[str, Any]:
    found: dict[str, Any] = console.ask("GET", "/v1/openapi.json").json
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for item in value.values():
                yield from references(item)
        case list():
            for item in value:
                yield from references(item)


def test_document_has_every_route_and_nothing_else(console: Console, document: dict[str, Any]) -> None:
    served = {
        (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule))
        for rule in console.api._app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert {(method, path) for method, path, _ in operations(document)} == served
    assert ("GET", "/v1/bindings/{aor}") in served


def test_every_route_is_told(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for method, path, operation in operations(document):
        assert re.fullmatch(r"[A-Z].*[.;:].*", operation["summary"] + "."), (method, path)
        assert min(operation["responses"]) in {"200", "201"}
        assert {"400", "403"} <= operation["responses"].keys()
        assert set(re.findall(r"{(\w+)}", path)) == {
            parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"
        }
        assert ("requestBody" in operation) == (method in {"POST", "PUT"})


def test_every_parameter_of_a_query_is_told(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for parameter in operation["parameters"]:
            if parameter["in"] == "query":
                assert parameter["description"], (method, path, parameter["name"])


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert "#/components/schemas/Status" in found
    for reference in found:
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_document_says_what_it_is_of(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == __version__
    reads = document["paths"]["/v1/bindings"]["get"]
    assert "Sipha-Consistency" in reads["responses"]["200"]["headers"]
    limit = next(parameter for parameter in reads["parameters"] if parameter["name"] == "limit")
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000}


class _More:
    """A group that somebody adds."""

    routes = Routes("more")

    @routes.get("/v1/more/<name>", role=Role.READ, errors=(404,))
    def get_more(self, name: str) -> Leader:
        """More of it."""
        return Leader(name)

    @routes.get("/more", role=Role.READ, media="text/plain")
    def get_much_more(self) -> bytes:
        """Much more of it."""
        return b"much more"


def test_group_that_is_added_is_served_and_told() -> None:
    console = Console(FakeNode(), None, _More())
    assert console.ask("GET", "/v1/more/b").json == {"leader": "b"}
    assert "/v1/more/{name}" in console.ask("GET", "/v1/openapi.json").json["paths"]
    reply = console.ask("GET", "/more")
    assert (reply.content, reply.headers.getRawHeaders("Content-Type")) == (b"much more", ["text/plain"])
    assert "/v1/more, /more" in console.ask("GET", "/v1/less").fault
