"""The tables of a database that runs, or of an SQLite file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sipha.migration.rows import MigrationError, Row

SCHEMES = ("sqlite", "mysql", "mariadb", "postgresql", "postgres")
"""What the URL of a database begins with."""

_PIECE = 1000
"""Rows that are fetched at a time."""


class Database:
    """The rows of some tables of a database; see Source.

    The URL is sqlite:///FILE, mysql://USER@HOST/DATABASE (with ?unix_socket=FILE), or what libpq takes. A password that
    doesn't stand in it comes from where the database's own tools take it: MYSQL_PWD or ~/.my.cnf, PGPASSWORD or
    ~/.pgpass.
    """

    unit = "row"

    def __init__(self, url: str, tables: Collection[str]) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        self._kind = {"mariadb": "mysql", "postgres": "postgresql"}.get(parts.scheme, parts.scheme)
        try:
            self._connection = _CONNECT[self._kind](url)
            self._tables = [table for table in tables if self._has(table)]
            self.size = sum(self._count(table) for table in self._tables)
        except MigrationError:
            raise
        except Exception as error:  # each driver has its own
            raise MigrationError(f"{self.name}: {_reason(error)}") from error
        if not self._tables:
            raise MigrationError(f"{self.name}: there is no table {' or '.join(tables)}")

    def rows(self) -> Iterator[Row]:
        """See Source."""
        done = 0
        for table in self._tables:
            try:
                with closing(self._cursor()) as cursor:
                    cursor.execute(f"SELECT * FROM {self._quoted(table)}")  # noqa: S608  see _quoted
                    number = 0
                    columns: list[str] = []
                    while rows := cursor.fetchmany(_PIECE):
                        columns = columns or [column[0].lower() for column in cursor.description]
                        for values in rows:
                            number += 1
                            done += 1
                            yield Row(table, number, dict(zip(columns, map(_text, values), strict=True)), done)
            except Exception as error:
                raise MigrationError(f"{self.name}: {table}: {_reason(error)}") from error

    def close(self) -> None:
        """See Source."""
        self._connection.close()

    def _has(self, table: str) -> bool:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(_LISTED[self._kind])
            return table in {row[0] for row in cursor.fetchall()}

    def _count(self, table: str) -> int:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {self._quoted(table)}")  # noqa: S608  see _quoted
            return int(cursor.fetchone()[0])

    def _cursor(self) -> Any:
        """A cursor that leaves the rows at the server until they are fetched."""
        if self._kind == "mysql":
            from pymysql.cursors import SSCursor  # noqa: PLC0415

            return self._connection.cursor(SSCursor)
        return self._connection.cursor("sipha") if self._kind == "postgresql" else self._connection.cursor()

    def _quoted(self, table: str) -> str:
        """The name of a table, which the database itself has listed."""
        mark = "`" if self._kind == "mysql" else '"'
        return mark + table.replace(mark, mark * 2) + mark


def _sqlite(url: str) -> Any:
    path = Path(unquote(urlsplit(url).path))
    if not path.is_file():
        raise MigrationError(f"{path}: there is no such file; for one in this directory write sqlite:///$PWD/FILE")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _mysql(url: str) -> Any:
    try:
        import pymysql  # noqa: PLC0415
    except ImportError:
        raise MigrationError("the driver of MySQL and MariaDB is missing: pip install 'sipha[mysql]'") from None
    parts, given = urlsplit(url), {}
    if sockets := parse_qs(parts.query).get("unix_socket"):
        given["unix_socket"] = sockets[0]
    options = Path("~/.my.cnf").expanduser()
    if options.exists():
        given["read_default_file"] = str(options)
    return pymysql.connect(
        host=parts.hostname or "localhost",
        port=parts.port or 3306,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else os.environ.get("MYSQL_PWD", ""),
        database=unquote(parts.path[1:]),
        charset="utf8mb4",
        **given,
    )


def _postgresql(url: str) -> Any:
    try:
        import psycopg  # noqa: PLC0415
    except ImportError:
        raise MigrationError("the driver of PostgreSQL is missing: pip install 'sipha[postgresql]'") from None
    return psycopg.connect(url)


_LISTED = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')",
    "mysql": "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()",
    "postgresql": "SELECT table_name FROM information_schema.tables WHERE table_schema = ANY (current_schemas(false))",
}
"""What lists the tables."""

_CONNECT = {"sqlite": _sqlite, "mysql": _mysql, "postgresql": _postgresql}


def _text(value: object) -> str | None:
    """A value as its dump would have it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _reason(error: Exception) -> str:
    text = str(error.args[-1]) if error.args else type(error).__name__
    return text.strip().partition("\n")[0]
