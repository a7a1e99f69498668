"""A table as CSV, with the names of its columns in the first line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sipha.migration.rows import MigrationError, Row

_NULL = frozenset(("\\N", "NULL"))
"""What MySQL and its tools write for NULL."""


class Sheet:
    """The rows of a CSV file; see Source. `tables` are the names of the tables of accounts and of bindings.

    Which of them it is shows in its columns: only bindings have a contact.
    """

    unit = "line"

    def __init__(self, file: IO[str], name: str, size: int, tables: tuple[str, str]) -> None:
        self.name = name
        self.size = size
        self._tables = tables
        self._file = file
        self._done = 0

    @classmethod
    def open(cls, path: Path, tables: tuple[str, str]) -> Sheet:
        """Open a file; raises OSError."""
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
        return cls(file, str(path), path.stat().st_size, tables)

    def rows(self) -> Iterator[Row]:
        """See Source."""
        reader = csv.reader(self._lines(), strict=True)
        try:
            columns = [name.strip().lower() for name in next(reader, [])]
            if "username" not in columns:
                raise MigrationError(f"{self.name}: the first line must name the columns, and username among them")
            table = self._tables["contact" in columns]
            for values in reader:
                if values:
                    yield self._row(table, reader.line_num, columns, values)
        except csv.Error as error:
            raise MigrationError(f"{self.name}: line {reader.line_num}: {error}") from error

    def close(self) -> None:
        """See Source."""
        self._file.close()

    def _row(self, table: str, line: int, columns: list[str], values: list[str]) -> Row:
        if len(values) != len(columns):
            flaw = f"it has {len(values)} values, and the first line {len(columns)} columns"
            return Row(table, line, {}, self._done, flaw)
        found = {name: None if value in _NULL else value for name, value in zip(columns, values, strict=True)}
        return Row(table, line, found, self._done)

    def _lines(self) -> Iterator[str]:
        for line in self._file:
            self._done += len(line)
            yield line
