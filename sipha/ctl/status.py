"""`siphactl status` and `watch`: every node beside the others."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import click
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from sipha.admin import display
from sipha.admin.client import AdminClient, AdminError, Refused
from sipha.admin.views import Status
from sipha.ctl.session import PROBE_DEADLINE, Session, leave, options


@dataclass(frozen=True, slots=True)
class Survey:
    """What the nodes that answer say of themselves, by name, and of the others why they don't."""

    found: dict[str, Status]
    absent: dict[str, str]
    peers: Sequence[AdminClient]

    @property
    def names(self) -> Sequence[str]:
        """All nodes."""
        return sorted({*self.found, *self.absent})

    def rows(self) -> Iterable[tuple[str, Status | str]]:
        """Each node, and its status or why there is none."""
        return ((name, self.found.get(name, self.absent.get(name, ""))) for name in self.names)

    def plain(self) -> dict[str, object]:
        """The same for programs."""
        return {"nodes": [self.found.get(name, {"node": name, "role": self.absent.get(name)}) for name in self.names]}

    def show(self) -> None:
        """Show what needs an operator, the table of nodes, and the workers."""
        display.alarms(self.found[name] for name in self.names if name in self.found)
        display.nodes(self.rows())
        display.workers(self.found[name] for name in self.names if name in self.found)


async def survey(client: AdminClient) -> Survey:
    """Ask a node, and those that it knows of; raises AdminError if it doesn't answer."""
    own = await client.status()
    peers = [client.at(peer.admin, deadline=PROBE_DEADLINE) for peer in own.peers if peer.admin]
    own_way = client.at(client.url, deadline=PROBE_DEADLINE)
    asked = [
        client.at(peer.admin, deadline=PROBE_DEADLINE).status() if peer.admin else own_way.status(peer.name)
        for peer in own.peers
    ]
    answers = await gatherResults([Deferred.fromCoroutine(_answer(one)) for one in asked])
    found = {node.node: node for node in (own, *answers) if isinstance(node, Status)}
    absent = {peer.name: answer for peer, answer in zip(own.peers, answers, strict=True) if isinstance(answer, str)}
    return Survey(found, absent, peers)


@click.command()
@options
@click.pass_obj
def status(session: Session) -> None:
    """Show every node, what needs an operator first. Exit status 1 if none leads, or if tables differ."""

    async def command(client: AdminClient) -> None:
        seen = await survey(client)
        if session.json:
            display.json(seen.plain())
        else:
            seen.show()
        _judge(seen)

    session.ask(command)


@click.command()
@click.option(
    "--every", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--times", type=click.IntRange(min=1), help="How many looks; until Ctrl-C without.")
@options
@click.pass_obj
def watch(session: Session, every: float, times: int | None) -> None:
    """Show every node, again and again. If the node that is asked is gone, another one is. With --json a line each."""

    async def command(client: AdminClient) -> None:
        nodes, looks = [client], 0
        while True:
            seen = await _first(nodes)
            if session.json:
                click.echo(display.json_line({"nodes": []} if seen is None else seen.plain()))
            else:
                click.clear()
                click.echo(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
                click.echo("no node answers") if seen is None else seen.show()
            if seen is not None:
                nodes = [client, *seen.peers]
            looks += 1
            if looks == times:
                return
            await deferLater(client.clock, every)

    session.ask(command)


async def _first(nodes: Iterable[AdminClient]) -> Survey | None:
    """What the first node that answers knows."""
    for node in nodes:
        try:
            return await survey(node)
        except AdminError:
            continue
    return None


async def _answer(status: Coroutine[Any, Any, Status]) -> Status | str:
    """The status of a node, or why there is none."""
    try:
        return await status
    except Refused as error:
        return "not asked" if error.status == HTTPStatus.CONFLICT else "unreachable"
    except AdminError:
        return "unreachable"


def _judge(seen: Survey) -> None:
    """Leave with status 1 if no node leads, or if two have applied the same and have it differently."""
    tables: dict[int, str] = {}
    leading = False
    for node in seen.found.values():
        leading = leading or node.leading or seen.absent.get(node.leader or "") == "not asked"
        if tables.setdefault(node.applied_index, node.hash) != node.hash:
            leave(
                f"the tables of two nodes differ at index {node.applied_index}: this must not be; keep their data_dir"
            )
    if not leading:
        leave("no node leads: a majority must run and reach each other")
