"""`siphactl log`: the latest entries of a node's log."""

from __future__ import annotations

import click

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.admin.queries import MAX_ENTRIES, Span
from sipha.ctl.session import Session, options


@click.command()
@click.option(
    "-n", "--limit", type=click.IntRange(1, MAX_ENTRIES), default=20, show_default=True, help="How many entries."
)
@click.option("--before", metavar="INDEX", type=click.IntRange(0, (1 << 62) - 1), help="Entries before this one.")
@options
@click.pass_obj
def log(session: Session, limit: int, before: int | None) -> None:
    """Show where a node's log is, and its latest entries, the newest first, without what is secret."""
    span = Span(limit=limit) if before is None else Span(limit=limit, cursor=before)

    async def command(client: AdminClient) -> None:
        where, found = await client.log(), await client.log_entries(span)
        if session.json:
            display.json({"log": where, "entries": found.entries, "cursor": found.cursor})
        else:
            display.log(where)
            display.entries(found.entries)

    session.ask(command)
