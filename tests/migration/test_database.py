from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sipha.migration.database import Database
from sipha.migration.rows import MigrationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sip users.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE subscriber (id INTEGER, UserName TEXT, ha1 TEXT)")
        connection.executemany("INSERT INTO subscriber VALUES (?, ?, ?)", [(1, "alice", "x"), (2, "bob", None)])
        connection.commit()
    return path


def test_database_has_the_rows_of_the_tables_that_are_there(file: Path) -> None:
    with closing(Database(f"sqlite://{file}", ("subscriber", "location"))) as database:
        assert database.size == 2
        found = list(database.rows())
    assert [row.columns for row in found] == [
        {"id": "1", "username": "alice", "ha1": "x"},
        {"id": "2", "username": "bob", "ha1": None},
    ]
    assert [(row.table, row.place, row.done) for row in found] == [("subscriber", 1, 1), ("subscriber", 2, 2)]


def test_database_refuses_what_has_no_such_table(file: Path) -> None:
    with pytest.raises(MigrationError, match="there is no table users or contacts"):
        Database(f"sqlite://{file}", ("users", "contacts"))


def test_database_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="there is no such file"):
        Database(f"sqlite://{tmp_path}/none.db", ("subscriber",))


@pytest.mark.parametrize("url", ["mysql://root@127.0.0.1:1/sip", "postgresql://root@127.0.0.1:1/sip"])
def test_database_that_does_not_answer_is_named_without_the_password(url: str) -> None:
    with pytest.raises(MigrationError, match=r"127\.0\.0\.1/sip: ") as error:
        Database(url.replace("root@", "root:secret@"), ("subscriber",))
    assert "secret" not in str(error.value)
