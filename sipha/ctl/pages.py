"""Lists that come page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from sipha.admin.queries import Page, Search
from sipha.admin.views import Accounts, Bindings

PageT = TypeVar("PageT", Bindings, Accounts)
QueryT = TypeVar("QueryT", Page, Search)


async def pages(
    next_page: Callable[[QueryT], Coroutine[Deferred[Any], Any, PageT]], query: QueryT
) -> AsyncIterator[PageT]:
    """All pages, each of which `next_page` gives, from the first that the query asks for."""
    cursor: str | None = query.cursor
    while cursor is not None:
        page = await next_page(replace(query, cursor=cursor))
        yield page
        cursor = page.cursor
