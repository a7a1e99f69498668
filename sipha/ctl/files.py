"""Files that are whole or aren't there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from sipha.ctl.session import leave


def check(file: Path, *, force: bool) -> None:
    """Leave if the file is there, unless it may be overwritten."""
    if os.path.lexists(file) and not force:
        leave(f"{file} exists, and is not overwritten without --force")


@contextmanager
def whole(file: Path, *, force: bool) -> Iterator[Any]:
    """A file to be written, which has its name, durably, once this ends without an error; leaves if it can't be."""
    try:
        with NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
            try:
                yield part
                part.flush()
                os.fsync(part.fileno())
                if force:
                    os.replace(part.name, file)  # noqa: PTH105  as link
                else:
                    os.link(part.name, file)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part.name)  # noqa: PTH108
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        check(file, force=False)
    except OSError as error:
        leave(f"{file} can't be written: {error.strerror}")
