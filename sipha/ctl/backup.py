"""`siphactl backup`: the whole table in a file, which is whole or isn't there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sipha.admin.client import AdminClient
from sipha.ctl import files
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
    files.check(file, force=force)

    async def command(client: AdminClient) -> None:
        with files.whole(file, force=force) as part:
            try:
                await client.backup(part.write)
                part.flush()
                loaded = _read(part)
            except DamagedSnapshot as error:
                leave(f"what {client.url} has sent is no whole backup: {error}")
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


def _read(file: Any) -> Loaded:
    """What is in the file; raises DamagedSnapshot."""
    loader = Loader()
    file.seek(0)
    while piece := file.read(_PIECE):
        loader.feed(piece)
    return loader.finish()
