"""`siphactl bindings`, `show`, `export` and `rm`: the bindings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.admin.queries import Filter, Search
from sipha.ctl import files
from sipha.ctl.pages import pages
from sipha.ctl.session import Session, options

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_FILTERS = (
    click.option("--prefix", metavar="TEXT", default="", help="The AOR begins so."),
    click.option("--domain", metavar="DOMAIN", default="", help="The AOR is of this domain."),
    click.option("--contact", metavar="TEXT", default="", help="The contact URI has this in it."),
    click.option("--address", metavar="IP", default="", help="The phone is at this address, or in this network."),
    click.option(
        "--transport",
        type=click.Choice(["udp", "tcp", "tls", "ws", "wss"]),
        help="The phone has registered over this.",
    ),
    click.option("--nat/--no-nat", "behind_nat", default=None, help="The phone was found behind NAT, or not."),
    click.option("--user-agent", metavar="TEXT", default="", help="The User-Agent has this in it."),
    click.option("--call-id", metavar="ID", default="", help="The REGISTERs have this Call-ID."),
    click.option("--instance", metavar="TEXT", default="", help="The +sip.instance has this in it."),
    click.option(
        "--fresh", is_flag=True, help="With all that was acknowledged before: the node asks the leader how far that is."
    ),
)


def _filters(command: CommandT) -> CommandT:
    """Let a command take the options that make its `wanted`."""

    @wraps(command)
    def filtered(*args: Any, fresh: bool, **given: Any) -> Any:
        chosen = {name: given.pop(name) for name in Filter.__struct_fields__ if name in given}
        said = {name: value for name, value in chosen.items() if value is not None}
        wanted = msgspec.convert({**said, "consistency": "linearizable" if fresh else "local"}, Filter)
        return command(*args, wanted=wanted, **given)

    for option in reversed(_FILTERS):
        filtered = option(filtered)
    return filtered  # type: ignore[return-value]


@click.command("bindings")
@_filters
@options
@click.pass_obj
def bindings(session: Session, wanted: Filter) -> None:
    """List the bindings that match all that is given, by their AORs."""
    _list(session, wanted)


@click.command()
@click.argument("aor", required=False)
@options
@click.pass_obj
def show(session: Session, aor: str | None) -> None:
    """Show all bindings, or all that is known of those of one AOR (alice@sipha.test)."""

    async def of_one(client: AdminClient) -> None:
        found = await client.bindings(aor or "")
        if session.json:
            display.json(found)
        else:
            display.details(found.bindings)

    if aor:
        session.ask(of_one)
    else:
        _list(session, Filter())


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="By the name of the file, else jsonl.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@_filters
@options
@click.pass_obj
def export(session: Session, file: Path, form: Literal["jsonl", "csv"] | None, force: bool, wanted: Filter) -> None:
    """Write the bindings that match to FILE, as they were at one moment: all of them, or there is no file.

    Any node will do. With - they go to standard output as they come.
    """
    if str(file) != "-":
        files.check(file, force=force)
    kind = form or ("csv" if file.suffix == ".csv" else "jsonl")

    async def command(client: AdminClient) -> None:
        if str(file) == "-":
            await client.export(kind, wanted, sys.stdout.buffer.write)
            sys.stdout.buffer.flush()
            return
        with files.whole(file, force=force) as part:
            index = await client.export(kind, wanted, part.write)
        session.answer({"file": str(file), "index": index}, f"wrote the bindings as of entry {index} to {file}")

    session.ask(command)


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


def _list(session: Session, wanted: Filter) -> None:
    search = Search(**msgspec.structs.asdict(wanted))

    async def command(client: AdminClient) -> None:
        found = (page.bindings async for page in pages(client.page_of_bindings, search))
        await display.pages("bindings", found, display.bindings, json=session.json)

    session.ask(command)
