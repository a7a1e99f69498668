"""`siphactl show` and `rm`: the bindings."""

from __future__ import annotations

import click

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.ctl.pages import pages
from sipha.ctl.session import Session, options


@click.command()
@click.argument("aor", required=False)
@options
@click.pass_obj
def show(session: Session, aor: str | None) -> None:
    """Show all bindings, or all that is known of those of one AOR (alice@sipha.test)."""

    async def all_of_them(client: AdminClient) -> None:
        found = (page.bindings async for page in pages(client.page_of_bindings))
        await display.pages("bindings", found, display.bindings, json=session.json)

    async def of_one(client: AdminClient) -> None:
        found = await client.bindings(aor or "")
        if session.json:
            display.json(found)
        else:
            display.details(found.bindings)

    session.ask(of_one if aor else all_of_them)


@click.command()
@click.argument("aor")
@click.option("--contact", metavar="URI", default="", help="Only the binding to this contact.")
@options
@click.pass_obj
def rm(session: Session, aor: str, contact: str) -> None:
    """Remove the bindings of an AOR; its phones stay unreachable until they register again."""

    async def command(client: AdminClient) -> None:
        removed = (await client.remove_bindings(aor, contact)).removed
        session.answer({"removed": removed}, f"removed {removed} {'binding' if removed == 1 else 'bindings'} of {aor}")

    session.ask(command)
