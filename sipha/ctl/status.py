"""`siphactl status`: every node beside the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import click
from twisted.internet.defer import Deferred, gatherResults

from sipha.admin import display
from sipha.admin.client import AdminClient, AdminError
from sipha.admin.views import Status
from sipha.ctl.session import PROBE_DEADLINE, Session, leave, options


@click.command()
@options
@click.pass_obj
def status(session: Session) -> None:
    """Show every node, what needs an operator first. Exit status 1 if none leads, or if tables differ."""

    async def command(client: AdminClient) -> None:
        own = await client.status()
        peers = [client.at(peer.admin, deadline=PROBE_DEADLINE) for peer in own.peers if peer.admin]
        others = await gatherResults([Deferred.fromCoroutine(_status_or_none(peer)) for peer in peers])
        found = {node.node: node for node in (own, *others) if node is not None}
        absent = {peer.name: "unreachable" if peer.admin else "not asked" for peer in own.peers}
        names = sorted({own.node, *absent})
        if session.json:
            display.json({"nodes": [found.get(name, {"node": name, "role": absent.get(name)}) for name in names]})
        else:
            display.alarms(found[name] for name in names if name in found)
            display.nodes((name, found.get(name, absent.get(name, ""))) for name in names)
        _judge(found.values(), {name for name, why in absent.items() if why == "not asked"})

    session.ask(command)


async def _status_or_none(client: AdminClient) -> Status | None:
    try:
        return await client.status()
    except AdminError:
        return None


def _judge(nodes: Iterable[Status], not_asked: Collection[str]) -> None:
    """Leave with status 1 if no node leads, or if two have applied the same and have it differently."""
    tables: dict[int, str] = {}
    leading = False
    for node in nodes:
        leading = leading or node.leading or node.leader in not_asked
        if tables.setdefault(node.applied_index, node.hash) != node.hash:
            leave(
                f"the tables of two nodes differ at index {node.applied_index}: this must not be; keep their data_dir"
            )
    if not leading:
        leave("no node leads: a majority must run and reach each other")
