"""The table in docs/configuration.md is made of the types."""

from __future__ import annotations

from pathlib import Path

from sipha.config.changes import keys

_DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def table() -> str:
    rows: dict[str, tuple[list[str], list[str]]] = {}
    for key in keys():
        section, _, name = key.path.rpartition(".")
        heading, shown = (f"[{section}]", f"`{name}`") if section else (f"[{name}]", "all")
        rows.setdefault(heading, ([], []))[not key.live].append(shown)
    return "".join(
        f"| `{heading}` | {', '.join(live)} | {', '.join(fixed)} |\n" for heading, (live, fixed) in rows.items()
    )


def test_document_says_of_each_key_whether_it_takes_a_restart() -> None:
    assert table() in _DOCUMENT.read_text(), f"put this table into {_DOCUMENT.name}:\n{table()}"
