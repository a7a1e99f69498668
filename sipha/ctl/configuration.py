"""`siphactl check`, `reload` and `log-level`: what is wrong with a configuration file, and how a node is to run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click

from sipha import toml
from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.cluster import tls
from sipha.cluster.authority import host_name
from sipha.cluster.tls import Credentials
from sipha.config import Config
from sipha.config.oddities import oddities
from sipha.ctl.session import Session, json_option, options
from sipha.errors import ConfigError
from sipha.journal import Level


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default="/etc/sipha/sipha.toml")
@json_option
@click.pass_obj
def check(session: Session, file: Path) -> None:
    """Say all that is wrong with the configuration FILE, and what in it is odd. It asks no node.

    Of a file that isn't TOML the first line that isn't is named. The certificates are looked at, too: run it as the
    user that the daemon runs as. Exit status 1 if a node could not run under the file.
    """
    faults, warnings = _look_at(file)
    if session.json:
        display.json({"file": str(file), "faults": faults, "warnings": warnings})
    else:
        for fault in faults:
            click.echo(f"{file}: {fault}", err=True)
        for warning in warnings:
            click.echo(f"{file}: warning: {warning}", err=True)
        if not faults:
            click.echo(f"{file} can be used")
    if faults:
        raise SystemExit(1)


@click.command()
@options
@click.pass_obj
def reload(session: Session) -> None:
    """Have a node run under what its configuration file says now: all of it, or nothing if something can't be.

    No call ends. It takes effect at once, and is taken back if the node finds within 10 s that it doesn't serve phones.
    """

    async def command(client: AdminClient) -> None:
        done = await client.reload()
        changed = f"changed {', '.join(done.changed)}" if done.changed else "nothing has changed"
        session.answer(done, f"loaded {done.file}: {changed}")

    session.ask(command)


@click.command("log-level")
@click.argument("level", type=click.Choice(get_args(Level)), required=False)
@options
@click.pass_obj
def log_level(session: Session, level: Level | None) -> None:
    """Say what the log of a node shows, or have it show more or less until its configuration is loaded again."""

    async def command(client: AdminClient) -> None:
        found = await (client.log_level() if level is None else client.set_log_level(level))
        session.answer(found, f"the log shows {found.level} and above")

    session.ask(command)


def _look_at(file: Path) -> tuple[list[str], list[str]]:
    """What is wrong with a file, and what is odd."""
    try:
        document = toml.parse(toml.read(file))
    except ConfigError as error:
        return [str(error).removeprefix(f"{file}: ")], []
    except ValueError as error:
        return [str(error)], []
    if faults := toml.faults(document, Config):
        return faults, []
    config = toml.convert(document, Config)
    return list(_faults_of_files(config)), list(oddities(config))


def _faults_of_files(config: Config) -> Iterator[str]:
    """What is wrong with the files that a configuration names."""
    cluster, hook = config.cluster, str(config.virtual_address.hook)
    if cluster.encrypted:
        credentials = Credentials(cluster.ca.path, cluster.certificate.path, cluster.key.path)
        try:
            tls.load(credentials, host_name(str(config.node.name), str(cluster.name)))
        except ConfigError as error:
            yield f"cluster.certificate: {error}"
    if hook and not os.access(hook, os.X_OK):
        yield f"virtual_address.hook: {hook} can't be executed"
