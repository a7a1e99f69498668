from __future__ import annotations

import re

from man import reference, tables
from sipha.config.changes import keys
from tests.handbook import ROOT

PAGE = ROOT / "docs" / "reference.md"


def test_committed_page_is_what_the_types_and_the_file_make() -> None:
    assert PAGE.read_text("utf-8") == reference.page(), "make reference writes it anew"


def test_page_has_each_key_of_the_configuration_and_whether_a_reload_takes_it() -> None:
    shown: dict[str, set[bool]] = {}
    for table in tables.tables():
        path = table.heading.strip("[]")
        for entry in table.entries:
            assert entry.meaning, f"etc/sipha.toml doesn't say what {path}.{entry.name} is for"
            shown.setdefault(f"{path}.{entry.name}", set()).add(entry.live)
            shown.setdefault(path, set()).add(entry.live)
    for key in keys():
        assert shown[key.path] == {key.live}, key.path


def test_page_has_bounds_units_choices_and_defaults() -> None:
    page = PAGE.read_text("utf-8")
    for name, kind, default in (
        ("timer_c", "number, more than 180, at most 3600 s", "`185.0`"),
        ("max_message", "integer, 4096 to 1048576 bytes", "`65536`"),
        ("full", '"refuse" or "replace"', '`"replace"`'),
        ("networks", "array; each an IP network in CIDR notation, or a single address", "required"),
    ):
        assert re.search(rf"^\| `{name}` \| {re.escape(kind)} \| {re.escape(default)} \|", page, re.MULTILINE), name
