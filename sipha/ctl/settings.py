"""`siphactl settings`: what holds for the whole cluster, and survives restarts."""

from __future__ import annotations

import click

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.ctl.session import Session, options


@click.command()
@click.argument("name", required=False)
@click.argument("value", required=False)
@options
@click.pass_obj
def settings(session: Session, name: str | None, value: str | None) -> None:
    """Show the settings of the cluster, or one of them, or give one another value."""

    async def show(client: AdminClient) -> None:
        found = await client.settings()
        if session.json:
            display.json(found)
        else:
            display.settings(found.settings)

    async def show_one(client: AdminClient) -> None:
        setting = await client.setting(name or "")
        session.answer(setting, setting.value)

    async def change(client: AdminClient) -> None:
        setting = await client.put_setting(name or "", value or "")
        session.answer(setting, f"{setting.name} is {setting.value or 'empty'}")

    session.ask(show if name is None else show_one if value is None else change)
