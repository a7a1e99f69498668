"""A route of the API: all that is to be said of it in one place, its function.

    class Accounts:
        routes = Routes("accounts")

        @routes.get("/v1/accounts/<path:identity>", role=Role.READ, errors=(404,))
        def get_account(self, identity: str) -> AccountView:
            '''One account.'''

The docstring is what the OpenAPI document says of it. Of the function's parameters those in the path are text; `query`
is a Query, `body` what the JSON must be, and `request` is for who must see the request itself. What it returns, now or
later, is what it is annotated with. Where the route names a media type instead it is a Stream, or bytes, or None from
who has written to the request.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar, get_type_hints
from urllib.parse import quote

from sipha.admin.access import Role
from sipha.admin.queries import Query

RouteT = TypeVar("RouteT", bound=Callable[..., Any])

_SEGMENT = re.compile(r"<(?:path:)?(\w+)>")


class Place(Enum):
    """Which node can answer; another one lets it."""

    ANY = "any"
    LEADER = "the leader, while it may answer phones"
    LOG_LEADER = "the leader, even one that serves no phones"


class Stream(NamedTuple):
    """An answer that is made as fast as it is taken; `close` is called when it ends, however it does."""

    chunks: Iterator[bytes]
    close: Callable[[], object]
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """A method of a resource, and the function that answers.

    `path` is a werkzeug rule, `role` what who asks must have. `body` is the type of JSON that is taken, or its media
    type for a function that reads it itself; `answers` are the types, or the media types, by status. `errors` are the
    statuses of refusals that are the route's own.
    """

    method: str
    path: str
    role: Role
    respond: Callable[..., Any]
    query: type[Query]
    body: Any
    answers: Mapping[int, Any]
    errors: frozenset[int]
    place: Place
    parameters: frozenset[str]

    @property
    def name(self) -> str:
        """The name of the function, which is the route's own."""
        return self.respond.__name__

    @property
    def text(self) -> str:
        """What is to be said of it: a sentence, and perhaps more."""
        return inspect.getdoc(self.respond) or ""

    @property
    def segments(self) -> Sequence[str]:
        """The names of what is variable in the path."""
        return _SEGMENT.findall(self.path)

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return _SEGMENT.sub(r"{\1}", self.path)

    def fill(self, segments: Mapping[str, str]) -> str:
        """The path with these segments."""
        return _SEGMENT.sub(lambda match: segment(segments[match[1]]), self.path)

    def status(self, answer: object) -> int:
        """The status of an answer."""
        return next(
            status for status, kind in self.answers.items() if isinstance(kind, str) or isinstance(answer, kind)
        )


class Routes(list[Route]):
    """The routes of one noun."""

    def __init__(self, noun: str) -> None:
        super().__init__()
        self.noun = noun

    def add(
        self,
        method: str,
        path: str,
        *,
        role: Role,
        query: type[Query] | None = None,
        body: Any = None,
        status: int = 200,
        answers: Mapping[int, Any] | None = None,
        media: str = "",
        errors: Sequence[int] = (),
        place: Place = Place.ANY,
    ) -> Callable[[RouteT], RouteT]:
        """Let the function that is decorated answer `method` on `path`, for who has the `role`.

        `query` and `body` are for a function that has no use for them. The answer has `status`, or if there are several
        kinds, that of its kind in `answers`; or it is of the `media` type.
        """

        def decorate(function: RouteT) -> RouteT:
            kinds = get_type_hints(function)
            self.append(
                Route(
                    method,
                    path,
                    role,
                    function,
                    query or kinds.get("query", Query),
                    body or kinds.get("body"),
                    answers or {status: media or kinds["return"]},
                    frozenset(errors),
                    place,
                    frozenset(inspect.signature(function).parameters),
                )
            )
            return function

        return decorate

    def get(self, path: str, **options: Any) -> Callable[[RouteT], RouteT]:
        """Answer GET, as `add` says."""
        return self.add("GET", path, **options)

    def put(self, path: str, **options: Any) -> Callable[[RouteT], RouteT]:
        """Answer PUT, as `add` says."""
        return self.add("PUT", path, **options)

    def post(self, path: str, **options: Any) -> Callable[[RouteT], RouteT]:
        """Answer POST, as `add` says."""
        return self.add("POST", path, **options)

    def delete(self, path: str, **options: Any) -> Callable[[RouteT], RouteT]:
        """Answer DELETE, as `add` says."""
        return self.add("DELETE", path, **options)


class Group(Protocol):
    """What answers the routes of one noun."""

    routes: Routes


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="@:")
