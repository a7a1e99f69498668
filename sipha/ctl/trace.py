"""`siphactl trace`: the messages of an AOR as they pass."""

from __future__ import annotations

import click
from twisted.internet.task import deferLater

from sipha.admin import display
from sipha.admin.client import AdminClient, Unreachable
from sipha.admin.display import printable
from sipha.admin.trace import Traced, TraceEnded
from sipha.ctl.session import Session, options

PAUSE = 0.2
"""Seconds after which a connection that has ended is no consequence of Ctrl-C."""


@click.command()
@click.argument("aor")
@options
@click.pass_obj
def trace(session: Session, aor: str) -> None:
    """Show the SIP messages of AOR as they pass, until Ctrl-C: for ten minutes, or 10,000 of them.

    Digests of passwords are left out. With --json each message is a line.
    """

    def take(told: Traced | TraceEnded) -> None:
        if isinstance(told, TraceEnded):
            click.echo(f"# ended {told.ended}", err=True)
        elif session.json:
            click.echo(display.json_line(told))
        else:
            way = f"{told.local} → {told.remote}" if told.sent else f"{told.remote} → {told.local}"
            text = "\n".join(map(printable, told.message.splitlines()))
            click.echo(f"{told.at} {told.transport} {way}\n{text}\n")

    async def command(client: AdminClient) -> None:
        status = await client.status()
        leader = next((peer.admin for peer in status.peers if peer.name == status.leader and peer.admin), None)
        try:
            await (client if leader is None else client.at(leader)).trace(aor, take)
        except Unreachable:
            await deferLater(client.clock, PAUSE)
            raise

    session.ask(command)
