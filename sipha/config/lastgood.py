"""The last good copy: a configuration that has passed its probation, kept in the data directory for a bad day.

It bears the name of the file that it is a copy of, and is taken for none but that. Where it lies says that file, as far
as can be made out in a broken one; else where a data directory is by default.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sipha.config import DATA_DIR, Source, load_source
from sipha.errors import ConfigError

NAME = "last-good.toml"
"""The name of the copy in the data directory."""

_ORIGIN = "# The last good copy of "
_DATA_DIR = re.compile(r"""^\s*(?:node\.)?data_dir\s*=\s*(["'])(/[^"'\n]*)\1""", re.MULTILINE)


def copy_of(path: Path, text: str) -> bytes:
    """What the copy of a file with this text holds."""
    return f"{_ORIGIN}{json.dumps(str(path))}\n{text}".encode()


def find(path: Path) -> Source | None:
    """The last good copy of a configuration file; None if there is none that can be used."""
    for directory in _directories(path):
        copy = directory / NAME
        try:
            found = load_source(copy)
        except ConfigError:
            continue
        origin, _, text = found.text.partition("\n")
        if origin == f"{_ORIGIN}{json.dumps(str(path))}" and found.config.node.data_dir.path == directory:
            return Source(text, found.config)
    return None


def _directories(path: Path) -> Iterator[Path]:
    """Where the copy may be: where the file says, where systemd says, and where it is by default."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        text = ""
    yield from (Path(directory) for _, directory in _DATA_DIR.findall(text))
    if named := os.environ.get("STATE_DIRECTORY"):
        yield Path(named)
    yield DATA_DIR.path
