"""`siphactl node`, `transfer`, `standby`, `online`, `prefer`: who the members of the cluster are, and which leads."""

from __future__ import annotations

import click
from rich.console import Console
from twisted.internet.task import deferLater

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.admin.views import NewNode, NodeView
from sipha.ctl.session import Session, leave, options

LOOK = 0.5
"""Seconds between two looks at a node that is catching up."""


@click.group()
@options
def node() -> None:
    """Add, list and remove the members of the cluster."""


@node.command("list")
@options
@click.pass_obj
def node_list(session: Session) -> None:
    """List the members, as the node that is asked knows them."""

    async def command(client: AdminClient) -> None:
        found = await client.nodes()
        if session.json:
            display.json(found)
        else:
            display.members(found.nodes)

    session.ask(command)


@node.command("add")
@click.argument("name")
@click.argument("address", metavar="HOST:PORT")
@click.option("--no-wait", is_flag=True, help="Don't wait until it has caught up and votes.")
@options
@click.pass_obj
def node_add(session: Session, name: str, address: str, no_wait: bool) -> None:
    """Make a node a member: NAME and HOST:PORT are its node.name and cluster.listen.

    Its data directory must be empty. It stores the log first, and votes when it has all that is committed.
    """
    add(session, NewNode(name, address), no_wait=no_wait)


def add(session: Session, new: NewNode, *, no_wait: bool) -> None:
    """Make a node a member, and wait until it votes."""

    async def command(client: AdminClient) -> None:
        leader = await leader_of(client)
        added = await leader.add_node(new)
        if no_wait:
            session.answer(added, f"{added.name} is a member, and will vote when it has caught up")
        else:
            voter = await _until_it_votes(leader, added.name)
            session.answer(voter, f"{voter.name} is a {voter.role}")

    session.ask(command)


@node.command("rm")
@click.argument("name")
@options
@click.pass_obj
def node_rm(session: Session, name: str) -> None:
    """Make a node no member any more; it is refused from then on, with the data that it has."""

    async def command(client: AdminClient) -> None:
        removed = await client.remove_node(name)
        session.answer(removed, f"{name} is no member any more; stop it, and empty its data directory")

    session.ask(command)


@click.command()
@click.argument("name", metavar="[NODE]", required=False)
@options
@click.pass_obj
def transfer(session: Session, name: str | None) -> None:
    """Hand leadership to NODE, or to any voter that is up to date; no phone's request is lost."""

    async def command(client: AdminClient) -> None:
        leader = await client.transfer(name)
        session.answer(leader, f"{leader.leader} leads")

    session.ask(command)


@click.command()
@click.argument("name", metavar="NODE")
@click.option("--force", is_flag=True, help="Even if no other node could lead.")
@options
@click.pass_obj
def standby(session: Session, name: str, force: bool) -> None:
    """Let NODE lead no more until it is brought online again; if it leads, it hands leadership on first.

    It still votes and stores the log. This outlives restarts.
    """

    async def command(client: AdminClient) -> None:
        duty = await client.put_in_standby(name, force=force)
        if duty.leader == name:
            leads = "nobody takes over from it now"
        else:
            leads = f"{duty.leader} leads" if duty.leader else "no node leads"
        session.answer(duty, f"{name} is in standby; {leads}")

    session.ask(command)


@click.command()
@click.argument("name", metavar="NODE")
@options
@click.pass_obj
def online(session: Session, name: str) -> None:
    """Let NODE lead again; leadership stays where it is."""

    async def command(client: AdminClient) -> None:
        duty = await client.bring_online(name)
        session.answer(duty, f"{name} is online")

    session.ask(command)


@click.command()
@click.argument("name", metavar="[NODE]", required=False)
@click.option("--nobody", is_flag=True, help="Prefer none: leadership stays where it is.")
@options
@click.pass_obj
def prefer(session: Session, name: str | None, nobody: bool) -> None:
    """Let NODE lead whenever it can: it is given leadership once it has been up to date for 30 s."""
    if nobody == bool(name):
        raise click.UsageError("name a node, or write --nobody")

    async def command(client: AdminClient) -> None:
        preferred = await client.prefer(name)
        session.answer(preferred, f"{name} is preferred" if name else "no node is preferred")

    session.ask(command)


async def leader_of(client: AdminClient) -> AdminClient:
    """The leader, who alone knows how far the others are, if it is known where its admin is."""
    own = await client.status()
    return next((client.at(peer.admin) for peer in own.peers if peer.name == own.leader and peer.admin), client)


async def _until_it_votes(client: AdminClient, name: str) -> NodeView:
    """Look again and again, and tell a terminal how far it is."""
    with Console(stderr=True).status("") as line:
        while True:
            found = next((one for one in (await client.nodes()).nodes if one.name == name), None)
            if found is None:
                leave(f"{name} has been removed meanwhile")
            if found.role != "learner":
                return found
            line.update(_progress(found))
            await deferLater(client.clock, LOOK)


def _progress(learner: NodeView) -> str:
    if not learner.connected:
        return f"{learner.name} isn't connected: does it run, with members in its [[cluster.peers]]?"
    if learner.behind is None:
        return f"{learner.name} is catching up"
    return f"{learner.name} is catching up: {learner.behind} entries behind"
