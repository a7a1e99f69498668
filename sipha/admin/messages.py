"""What every resource of the admin does alike: read a request, and answer it."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from twisted.web.iweb import IRequest
from twisted.web.server import Request

from sipha.admin.queries import Query
from sipha.admin.views import Fault, FaultReply
from sipha.errors import SiphaError

QueryT = TypeVar("QueryT", bound=Query)

INDEX = "Sipha-Index"
"""The header that bears the log index of the table that an answer is of."""


class Refusal(SiphaError):
    """A request that is answered with an HTTP error."""

    def __init__(self, status: int, detail: str, *, retry_after: int = 0, allow: str = "", challenge: str = "") -> None:
        super().__init__(detail)
        self.fault = FaultReply(Fault(status, detail))
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if allow:
            self.headers["Allow"] = allow
        if challenge:
            self.headers["WWW-Authenticate"] = challenge


def refuse(request: IRequest, refusal: Refusal) -> bytes:
    """The body of an answer that is not a success."""
    for name, value in refusal.headers.items():
        request.setHeader(name, value)
    request.setResponseCode(refusal.fault.error.status)
    return reply(request, refusal.fault)


def reply(request: IRequest, body: msgspec.Struct | msgspec.Raw) -> bytes:
    """The body of a JSON answer."""
    request.setHeader("Content-Type", "application/json")
    request.setHeader("Cache-Control", "no-store")
    return msgspec.json.encode(body)


def read_query(request: Request, kind: type[QueryT]) -> QueryT:
    """The query's parameters; refuses what isn't known, given twice, not UTF-8 or not what it must be."""
    known = kind.__struct_fields__
    query: dict[str, str] = {}
    for key, values in request.args.items():
        name = key.decode("utf-8", "replace")
        if name not in known:
            right = f"it has {', '.join(known)}" if known else "it has none"
            raise Refusal(400, f"{name!r} is not a query parameter of this resource; {right}")
        try:
            (query[name],) = (value.decode("utf-8") for value in values)
        except ValueError as error:
            raise Refusal(400, f"{name} must be given once, in UTF-8") from error
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"the query: {error}") from error


def read_body(request: Request, kind: Any) -> Any:
    """What the body holds: JSON of this kind, or as bytes if the kind is a media type; raises Refusal."""
    if kind is None:
        return None
    assert request.content is not None  # noqa: S101 - Twisted has read the body
    content_type = (request.getHeader(b"Content-Type") or b"").decode("ascii", "replace")
    # A web page can make a browser send a form or plain text anywhere, but not JSON.
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, f"the body is {content_type or 'of no type'}; send Content-Type: application/json")
    content = request.content.read()
    if isinstance(kind, str):
        return content
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(422, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, str(error)) from error
