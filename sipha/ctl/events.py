"""`siphactl events` and `history`: what happens, and what has become of an AOR."""

from __future__ import annotations

from itertools import cycle

import click
from twisted.internet.task import deferLater

from sipha.admin import display
from sipha.admin.client import AdminClient, AdminError, Refused, Told
from sipha.admin.events import Dropped, Start
from sipha.admin.lines import line, line_of_stream
from sipha.ctl.session import Session, leave, options
from sipha.events.event import KINDS, AnyEvent

PAUSE = 1.0
"""Seconds before another node is asked, when one tells no more."""

PAGE = 1000
"""Events of a history that are asked for at a time."""


@click.command()
@click.option("--since", metavar="ID", default="", help="Go on after this event, or after this index of the log.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only this kind; several, repeated.")
@click.option("--aor", metavar="AOR", default="", help="Only what concerns this AOR, or no AOR.")
@options
@click.pass_obj
def events(session: Session, since: str, kinds: tuple[str, ...], aor: str) -> None:
    """Follow what happens, until Ctrl-C: bindings, accounts, settings, members, leaders, virtual addresses, alarms.

    If the node that tells is gone, another one goes on where it was. Plain refreshes are told if --kind
    binding-refreshed asks for them. With --json each event is a line.
    """

    async def command(client: AdminClient) -> None:
        last = since

        def take(told: Told) -> None:
            nonlocal last
            last = told.id or last
            if session.json:
                click.echo(display.json_line(told.event))
            elif isinstance(told.event, Start | Dropped):
                click.echo(line_of_stream(told.event), err=True)
            else:
                click.echo(line(told.event))

        peers = [client.at(peer.admin) for peer in (await client.status()).peers if peer.admin]
        for one in cycle((client, *peers)):
            try:
                await one.events(take, since=last, kinds=kinds, aor=aor)
                problem = f"{one.url} tells no more"
            except Refused as error:
                if error.status < 500:
                    raise
                problem = str(error)
            except AdminError as error:
                problem = str(error)
            click.echo(f"# {problem}; going on elsewhere", err=True)
            await deferLater(one.clock, PAUSE)

    session.ask(command)


@click.command()
@click.argument("aor")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The latest so many.")
@options
@click.pass_obj
def history(session: Session, aor: str, limit: int) -> None:
    """Show what has become of AOR, as the node that is asked knows it: who bound and removed it, when, and why."""

    async def command(client: AdminClient) -> None:
        found: list[AnyEvent] = []
        cursor: str | None = ""
        begins: str | None = None
        while cursor is not None and len(found) < limit:
            page = await client.history(aor, cursor, min(limit - len(found), PAGE))
            found += page.events
            cursor, begins = page.cursor, page.begins
        found.reverse()
        if session.json:
            display.json({"events": found, "begins": begins})
            return
        for event in found:
            click.echo(line(event))
        if not found:
            leave(f"nothing is known of {aor}" + (f"; the history begins at {begins}" if begins else ""))

    session.ask(command)
