"""Lists that are read page by page."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sipha.admin.reads import Read

MAX_PAGE = 1000
"""The bindings or accounts of one page."""


Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many the page holds.")]
Cursor = Annotated[str, Meta(description="Where the page begins: the cursor of the one before it.")]


class Page(Read, frozen=True, kw_only=True):
    """One page of a list."""

    limit: Limit = MAX_PAGE
    cursor: Cursor = ""
