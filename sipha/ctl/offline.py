"""`siphactl cluster init`, `restore`, `recover` and `disk`: what is done to a node whose daemon is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from sipha import config
from sipha.admin import display
from sipha.cluster import founding
from sipha.cluster.disk import Disk
from sipha.cluster.founding import Contents
from sipha.ctl.progress import progress
from sipha.ctl.session import Session, json_option, leave
from sipha.errors import SiphaError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_OTHERS = """\
recover lets this node decide alone from now on, in a new cluster that begins with all that this node has. That is for \
the day on which a majority of the nodes is lost for good. If the others are only unreachable, they may go on serving \
phones, and what they acknowledge will be lost; and what they have acknowledged lately, and this node never got, is \
lost in any case. So switch the others off, make sure that they stay off, and repeat this with --others-are-off. They \
are refused afterwards; empty their data directories before you add them again."""


def _options(command: CommandT) -> CommandT:
    """Let a command take --config and --json."""
    option = click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path),
        default="/etc/sipha/sipha.toml",
        show_default=True,
        help="The node's configuration, which says where its data are.",
    )
    return option(json_option(command))


@click.group()
def cluster() -> None:
    """Found a cluster."""


@cluster.command()
@_options
@click.pass_obj
def init(session: Session, path: Path) -> None:
    """Found a cluster of this one node, whose data directory is empty; `siphactl node add` adds others."""
    with _alone(path, create=True) as (node, address, disk):
        cluster_id = founding.found(disk, node, {node: address})
    session.answer({"cluster_id": cluster_id}, f"founded cluster {cluster_id}, of which {node} is the only node yet")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_options
@click.pass_obj
def restore(session: Session, path: Path, file: Path) -> None:
    """Found a new cluster of this one node, whose data directory is empty, that has what a backup has."""
    size = file.stat().st_size if file.exists() else 0
    with _alone(path, create=True) as (node, address, disk), progress(str(file), size) as show:
        cluster_id = founding.restore(disk, node, address, file, show)
    session.answer(
        {"cluster_id": cluster_id}, f"restored {file} into cluster {cluster_id}, of which {node} is the only node yet"
    )


@click.command()
@click.option("--others-are-off", is_flag=True, help="Yes, no other node of the cluster runs, nor ever will.")
@click.option("--force", is_flag=True, help="Even if this node has lost data that it had acknowledged.")
@_options
@click.pass_obj
def recover(session: Session, path: Path, others_are_off: bool, force: bool) -> None:
    """Let this node go on alone, because the other nodes are lost for good."""
    if not others_are_off:
        raise click.UsageError(_OTHERS)
    with _alone(path) as (node, address, disk):
        cluster_id = founding.recover(disk, node, address, force=force)
    session.answer(
        {"cluster_id": cluster_id},
        f"{node} is the only node of the new cluster {cluster_id}; nodes of the old one are refused until their data "
        "directories are emptied",
    )


@click.command()
@_options
@click.pass_obj
def disk(session: Session, path: Path) -> None:
    """Show what the disk of this node holds, without changing it; the daemon must be stopped."""
    with _stopped(path) as (settings, data):
        contents = founding.status(data, str(settings.node.name))
    if session.json:
        display.json(contents)
    else:
        _show(contents)


def _show(contents: Contents) -> None:
    """Print it for people, what needs them first."""
    for alarm in contents.alarms:
        click.echo(f"ALARM {contents.node}: {alarm}")
    for field in contents.__struct_fields__:
        if field not in {"alarms", "members"}:
            click.echo(f"{field.replace('_', ' ')}: {getattr(contents, field)}")
    for member in contents.members:
        click.echo(f"member: {member.name} {member.address} {member.role}")


@contextmanager
def _alone(path: Path, *, create: bool = False) -> Iterator[tuple[str, str, Disk]]:
    """As `_stopped`, for a node that is to be the only one of its cluster."""
    with _stopped(path, create=create) as (settings, disk):
        node = settings.node.name
        if not settings.cluster.wish_to_lead:
            leave(
                f"{node} is a witness, which never serves phones: another node must be the first; or change "
                "cluster.witness and cluster.priority in its configuration"
            )
        yield str(node), str(settings.cluster.listen), disk


@contextmanager
def _stopped(path: Path, *, create: bool = False) -> Iterator[tuple[config.Config, Disk]]:
    """A configuration and the data of its node, whose daemon mustn't run; leaves with status 1 if it can't be."""
    try:
        settings = config.load(path)
        with founding.taken(settings.node.data_dir.path, create=create) as data:
            yield settings, data
    except SiphaError as error:
        leave(str(error))
