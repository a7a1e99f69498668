"""The rows of a table, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from sipha.errors import SiphaError


class MigrationError(SiphaError):
    """What was to be imported can't be read at all."""


class Unusable(SiphaError):
    """A row can't be taken over; the text says why."""


class Row(NamedTuple):
    """One row: its table, its columns by name (None is NULL), and where it stands: a line, or a number.

    `done` is how far the source has been read, of its `size`. A row with a `flaw` could not be read, and says why.
    """

    table: str
    place: int
    columns: Mapping[str, str | None]
    done: int
    flaw: str = ""


class Source(Protocol):
    """Where rows come from; `unit` is what a place is (line, row), `size` how much there is to read, 0 if unknown."""

    name: str
    unit: str
    size: int

    def rows(self) -> Iterator[Row]:
        """The rows of the tables that are wanted; raises MigrationError."""

    def close(self) -> None:
        """Have done with it."""
