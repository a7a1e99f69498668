"""docs/reference.md, as `python -m man.reference` prints it: each key of the configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from man import tables

_HEAD = """\
# Reference of the configuration

Each table and each key of `/etc/sipha/sipha.toml`. This page is made of etc/sipha.toml and of the types that check the
file (`make reference`). [configuration.md](configuration.md) explains how they work together, and what a reload does.
"""


def page() -> str:
    """The page."""
    return "\n".join([_HEAD, *(line for table in tables.tables() for line in _table(table))])


def _table(table: tables.Table) -> Iterator[str]:
    yield f"## `{table.heading}`\n"
    if table.meaning:
        yield f"{table.meaning}\n"
    yield "| key | takes | default | taken by | |\n| --- | --- | --- | --- | --- |"
    for entry in table.entries:
        default = "required" if entry.default is None else f"`{entry.default}`"
        cells = (f"`{entry.name}`", entry.kind, default, entry.taken_by, entry.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
