from __future__ import annotations

from pathlib import Path

import pytest

from sipha.migration.rows import MigrationError, Row
from sipha.migration.sheet import Sheet

TABLES = "subscriber", "location"


def rows(path: Path, text: str) -> list[Row]:
    path.write_text(text, encoding="utf-8")
    sheet = Sheet.open(path, TABLES)
    try:
        return list(sheet.rows())
    finally:
        sheet.close()


def test_sheet_tells_accounts_and_bindings_by_their_columns(tmp_path: Path) -> None:
    [account] = rows(tmp_path / "a.csv", "\ufeffUsername,domain,ha1\r\nalice,sipha.test,\\N\r\n")
    assert (account.table, account.place) == ("subscriber", 2)
    assert account.columns == {"username": "alice", "domain": "sipha.test", "ha1": None}
    [binding] = rows(tmp_path / "b.csv", 'username,contact\nalice,"sip:a@h, ""x"""\n')
    assert (binding.table, binding.columns["contact"]) == ("location", 'sip:a@h, "x"')


def test_a_line_of_another_length_costs_only_itself(tmp_path: Path) -> None:
    first, second = rows(tmp_path / "a.csv", "username,ha1\nalice\nbob,x\n")
    assert first.flaw == "it has 1 values, and the first line 2 columns"
    assert second.columns["username"] == "bob"


@pytest.mark.parametrize("text", ["", "alice,secret\n", 'username\n"alice\n'])
def test_sheet_refuses_what_is_no_table(tmp_path: Path, text: str) -> None:
    with pytest.raises(MigrationError, match=r"a\.csv"):
        rows(tmp_path / "a.csv", text)
