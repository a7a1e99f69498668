"""`siphactl backup`: the whole table in a file, which is whole or isn't there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import click

from sipha.admin.client import AdminClient
from sipha.ctl.session import Session, leave, options
from sipha.state.snapshot import DamagedSnapshot, Loaded, Loader

_PIECE = 1 << 20


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite the file.")
@options
@click.pass_obj
def backup(session: Session, file: Path, force: bool) -> None:
    """Write all bindings, accounts, keys and settings to FILE, as they were at one moment.

    Any node will do. The file has the keys and the hashes of all passwords: keep it secret.
    """
    if os.path.lexists(file) and not force:
        leave(f"{file} exists, and is not overwritten without --force")

    async def command(client: AdminClient) -> None:
        try:
            loaded = await _fetch(client, file, force=force)
        except DamagedSnapshot as error:
            leave(f"what {client.url} has sent is no whole backup: {error}")
        except FileExistsError:
            leave(f"{file} exists, and is not overwritten without --force")
        except OSError as error:
            leave(f"{file} can't be written: {error.strerror}")
        header, tables = loaded
        result = {
            "file": str(file),
            "index": header.index,
            "cluster_id": header.cluster_id,
            "hash": header.hash.hex(),
            "bindings": tables.location.count,
            "accounts": len(tables.accounts),
        }
        session.answer(
            result,
            f"wrote {tables.location.count} bindings and {len(tables.accounts)} accounts, as of entry {header.index}, "
            f"to {file}",
        )

    session.ask(command)


async def _fetch(client: AdminClient, file: Path, *, force: bool) -> Loaded:
    """Have the backup under its name once it is on the disk and was read from there; raises OSError."""
    with NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
        try:
            await client.backup(part.write)
            part.flush()
            os.fsync(part.fileno())
            loaded = _read(part)
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
    return loaded


def _read(file: Any) -> Loaded:
    """What is in the file; raises DamagedSnapshot."""
    loader = Loader()
    file.seek(0)
    while piece := file.read(_PIECE):
        loader.feed(piece)
    return loader.finish()
