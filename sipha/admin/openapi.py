"""The OpenAPI 3.1 document of the API, made of its routes and their types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import msgspec

from sipha import __version__
from sipha.admin.access import Role
from sipha.admin.queries import ANYWHERE, Read
from sipha.admin.reads import HEADERS
from sipha.admin.route import Group, Place, Route, Routes
from sipha.admin.views import FaultReply

_DESCRIPTION = """\
The admin of one node of a sipha cluster. Any node answers: reads are of its own table, writes go to the log, and what
only the leader can do is forwarded to it."""

_REASONS = {
    400: "The request isn't what it should be: path, query, or a body that isn't JSON.",
    401: "Nobody knows who asks; WWW-Authenticate says how to say it.",
    403: "Who asks lacks the role, the Host isn't this node's, or a web page of another origin has sent this.",
    404: "There is no such thing.",
    405: "This resource doesn't have the method; Allow says which it has.",
    409: "The cluster, or what it holds already, doesn't allow this.",
    413: "The body is too large.",
    415: "The body isn't said to be application/json.",
    422: "The body is JSON, but not what is wanted here.",
    429: "Who asks does so too often: again after Retry-After.",
    503: "No majority answers, or no node leads: ask again after Retry-After. A write may have been done.",
}

_TEMPLATE = "#/components/schemas/{name}"
_JSON = "application/json"


class Document:
    """The document of these groups, and the route to it."""

    routes = Routes("openapi")

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups = (*groups, self)
        self._content: msgspec.Raw | None = None

    @routes.get("/v1/openapi.json", role=Role.READ)
    def get_openapi(self) -> msgspec.Raw:
        """This document: OpenAPI 3.1."""
        if self._content is None:
            self._content = msgspec.Raw(msgspec.json.encode(document(self._groups)))
        return self._content


def document(groups: Sequence[Group]) -> dict[str, Any]:
    """The document of all routes of these groups."""
    routes = [route for group in groups for route in group.routes]
    kinds = [kind for route in routes for kind in _kinds(route)]
    schemas, components = msgspec.json.schema_components([*kinds, FaultReply], ref_template=_TEMPLATE)
    schema_of = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=False)}
    paths: dict[str, dict[str, Any]] = {}
    for group in groups:
        for route in group.routes:
            operation = _operation(route, group.routes.noun, schema_of)
            paths.setdefault(route.template, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "sipha admin", "version": __version__, "description": " ".join(_DESCRIPTION.split())},
        "tags": [{"name": group.routes.noun, "description": cleandoc(group.__doc__ or "")} for group in groups],
        "paths": paths,
        "components": {
            "schemas": {name: _tidied(schema) for name, schema in components.items()},
            "responses": {str(status): _fault(status) for status in _REASONS},
        },
    }


def _kinds(route: Route) -> Iterator[Any]:
    """The types of JSON that a route takes and gives."""
    yield from (kind for kind in (route.body, *route.answers.values()) if not isinstance(kind, str | None))


def _operation(route: Route, noun: str, schema_of: Mapping[int, Any]) -> dict[str, Any]:
    summary, _, more = route.text.partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [noun],
        "x-role": str(route.role),
        "summary": " ".join(summary.split()),
        "parameters": [*_segments(route), *_parameters(route)],
        "responses": {
            **{str(status): _answer(route, status, kind, schema_of) for status, kind in route.answers.items()},
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(_errors(route))},
        },
    }
    if more:
        operation["description"] = " ".join(more.split())
    if route.body is not None:
        content = {route.body: {}} if isinstance(route.body, str) else {_JSON: {"schema": schema_of[id(route.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _segments(route: Route) -> Iterator[dict[str, Any]]:
    for name in route.segments:
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    _, components = msgspec.json.schema_components([route.query])
    for name, schema in components[route.query.__name__]["properties"].items():
        description = schema.pop("description", "")
        yield {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _answer(route: Route, status: int, kind: Any, schema_of: Mapping[int, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(kind, str):
        answer["content"] = {kind: {}}
    else:
        answer["content"] = {_JSON: {"schema": schema_of[id(kind)]}}
    if issubclass(route.query, Read):
        answer["headers"] = {
            name: {"description": description, "schema": {"type": "string"}} for name, description in HEADERS.items()
        }
    return answer


def _errors(route: Route) -> set[int]:
    """The statuses of all refusals that a request to a route may meet with."""
    errors = {400, 401, 403, 429, *route.errors}
    if route.segments:
        errors |= {404, 405}  # a segment may make it the path of another resource
    if route.body is not None:
        errors |= {413, 415, 422}
    if route.place is not Place.ANY or issubclass(route.query, Read):
        errors |= {409, 503}
    if issubclass(route.query, ANYWHERE):
        errors |= {404, 409, 503}
    if any(isinstance(kind, str) for kind in route.answers.values()):
        errors.add(503)  # too many streams
    return errors


def _fault(status: int) -> dict[str, Any]:
    fault: dict[str, Any] = {
        "description": _REASONS[status],
        "content": {_JSON: {"schema": {"$ref": _TEMPLATE.format(name=FaultReply.__name__)}}},
    }
    if status in {429, 503}:
        fault["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return fault


def _tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose description is that of a docstring."""
    return {**schema, "description": cleandoc(schema.get("description", ""))}
