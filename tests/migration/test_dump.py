"""Reading what mysqldump, mariadb-dump and others write."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.migration import dump
from sipha.migration.dump import Dump
from sipha.migration.rows import MigrationError, Row

TABLE = b"""\
/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19; don't mind the quote
/*!40101 SET NAMES utf8mb4 */;
DROP TABLE IF EXISTS `subscriber`;
CREATE TABLE `subscriber` (
  `id` int(10) unsigned NOT NULL AUTO_INCREMENT,
  `username` varchar(64) NOT NULL DEFAULT '',
  `ha1` varchar(64) NOT NULL DEFAULT 'a,b',
  PRIMARY KEY (`id`),
  UNIQUE KEY `account_idx` (`username`,`ha1`)
) ENGINE=InnoDB DEFAULT CHARSET=latin1;
LOCK TABLES `subscriber` WRITE;
"""


def rows(text: bytes, *tables: str) -> list[Row]:
    return list(Dump(io.BytesIO(text), "dump.sql", len(text), tables or ("subscriber", "location")).rows())


def columns(text: bytes) -> list[dict[str, str | None]]:
    found = rows(text)
    assert [row.flaw for row in found] == [""] * len(found)
    return [dict(row.columns) for row in found]


def test_reader_takes_the_names_of_columns_from_create_table() -> None:
    assert columns(TABLE + b"INSERT INTO `subscriber` VALUES (1,'alice','aa'),(2,'bob',NULL);\n") == [
        {"id": "1", "username": "alice", "ha1": "aa"},
        {"id": "2", "username": "bob", "ha1": None},
    ]


def test_reader_takes_the_names_of_columns_from_insert() -> None:
    text = b"INSERT IGNORE INTO sip.subscriber (HA1, `username`) VALUES ('aa', 'alice');"
    assert columns(text) == [{"ha1": "aa", "username": "alice"}]


def test_reader_undoes_escapes() -> None:
    text = rb"INSERT INTO subscriber (a, b, c, d) VALUES ('it\'s; (a) \\ \n\0\Z', 'two''s', _binary 'x', " + b'"q""q");'
    assert columns(text) == [{"a": "it's; (a) \\ \n\0\x1a", "b": "two's", "c": "x", "d": 'q"q'}]


def test_reader_takes_numbers_and_hexadecimal_texts() -> None:
    text = b"REPLACE INTO subscriber (a, b, c, d, e) VALUES (-1, 1.00, 1e3, 0x616C, X'6963');"
    assert columns(text) == [{"a": "-1", "b": "1.00", "c": "1e3", "d": "al", "e": "ic"}]


def test_reader_says_in_which_line_each_row_stands() -> None:
    text = TABLE + b"INSERT INTO `subscriber` VALUES\n(1,'a\nb','x'),\n(2,'c','x');\n"
    assert [row.place for row in rows(text)] == [14, 16]


def test_reader_passes_over_other_tables() -> None:
    text = b"INSERT INTO acc VALUES (1, 'INSERT INTO subscriber', ';');\nINSERT INTO subscriber (a) VALUES (1);"
    assert columns(text) == [{"a": "1"}]
    assert [row.table for row in rows(b"INSERT INTO users (a) VALUES (1);", "users")] == ["users"]


def test_a_row_that_cannot_be_read_costs_only_itself() -> None:
    text = TABLE + b"INSERT INTO `subscriber` VALUES (1,'a'),(2,now(),'x'),(3,1+1,'x'),(4,'d','x');\n"
    found = rows(text)
    assert [bool(row.flaw) for row in found] == [True, True, True, False]
    assert found[0].flaw == "it has 2 values, and the table 3 columns"
    assert found[3].columns["username"] == "d"


def test_reader_says_what_an_insert_without_names_lacks() -> None:
    with pytest.raises(MigrationError, match="line 1: an INSERT into subscriber doesn't name its columns"):
        rows(b"INSERT INTO subscriber VALUES (1);")


@pytest.mark.parametrize("end", [b"(1,'al", b"(1,'alice\\", b"(1", b"(1,'a','b'),", b"", b"(1,`a"])
def test_reader_ends_where_a_dump_was_cut_off(end: bytes) -> None:
    assert all(row.flaw for row in rows(TABLE + b"INSERT INTO `subscriber` VALUES " + end)) or end.endswith(b"),")


texts = st.text(st.sampled_from("ab'\\\"`;,()\n-#/* é0NULL"), max_size=12)


@given(st.lists(st.tuples(texts, st.none() | texts), max_size=5), st.integers(1, 64))
def test_reader_reads_what_is_written_however_small_the_pieces(
    values: list[tuple[str, str | None]], piece: int
) -> None:
    def written(value: str | None) -> str:
        return "NULL" if value is None else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

    text = "INSERT INTO subscriber (a, b) VALUES " + ",\n".join(f"({written(a)},{written(b)})" for a, b in values) + ";"
    before, dump.PIECE = dump.PIECE, piece
    try:
        assert columns(text.encode()) == [{"a": a, "b": b} for a, b in values]
    finally:
        dump.PIECE = before


@given(st.binary(max_size=200))
def test_reader_survives_anything(text: bytes) -> None:
    rows(b"CREATE TABLE subscriber (a int, b int); INSERT INTO subscriber VALUES (1,2)," + text)
