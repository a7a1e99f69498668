"""`siphactl token`: make a token for the admin. It talks to no node."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import get_args

import click

from sipha import config
from sipha.admin import display
from sipha.config.texts import PeerName
from sipha.ctl.session import Session, json_option

PREFIX = "sipha_"
"""By which those who look for leaked secrets know one."""

BYTES = 32
"""So many that nobody finds one by its hash."""


@click.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(get_args(config.Role)),
    required=True,
    help="What who has it may do: look; operate, too; or everything.",
)
@json_option
@click.pass_obj
def token(session: Session, name: str, role: str) -> None:
    """Make a token for NAME, and show what to add to the configuration of all nodes; only its hash is stored there."""
    try:
        PeerName.parse(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    made = PREFIX + secrets.token_urlsafe(BYTES)
    digest = sha256(made.encode("ascii")).hexdigest()
    if session.json:
        display.json({"name": name, "role": role, "token": made, "sha256": digest})
        return
    click.echo(f"{made}\n")
    click.echo("# Add this to /etc/sipha/sipha.toml on all nodes, and reload them. The token isn't shown again.")
    click.echo(f'[[admin.tokens]]\nname = "{name}"\nrole = "{role}"\nsha256 = "{digest}"')
