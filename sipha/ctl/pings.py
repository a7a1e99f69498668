"""`siphactl pings`: whether phones behind NAT are kept reachable."""

from __future__ import annotations

import click

from sipha.admin.client import AdminClient
from sipha.ctl.session import Session, options


@click.command()
@click.argument("switch", metavar="on|off", type=click.Choice(["on", "off"]))
@options
@click.pass_obj
def pings(session: Session, switch: str) -> None:
    """Let the cluster ping phones, as [nat] in its configuration says, or let it not; this survives restarts."""

    async def command(client: AdminClient) -> None:
        session.answer(await client.pings(on=switch == "on"), f"pings are {switch}")

    session.ask(command)
