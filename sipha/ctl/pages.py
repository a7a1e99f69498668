"""Lists that come page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from sipha.admin.views import Accounts, Bindings

PageT = TypeVar("PageT", Bindings, Accounts)


async def pages(next_page: Callable[[str], Coroutine[Deferred[Any], Any, PageT]]) -> AsyncIterator[PageT]:
    """All pages, of which `next_page` gives the one after a cursor."""
    cursor: str | None = ""
    while cursor is not None:
        page = await next_page(cursor)
        yield page
        cursor = page.cursor
