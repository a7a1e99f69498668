"""`siphactl drill`: a planned failover, measured from here, or what it would cost."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec
from twisted.internet.defer import gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.admin.views import NodeView, Status
from sipha.ctl.nodes import leader_of
from sipha.ctl.outage import Outage
from sipha.ctl.progress import progress
from sipha.ctl.session import Session, leave, options

BEFORE = 2.0
"""Seconds of measuring before leadership is handed on."""

AFTER = 5.0
"""Seconds of measuring after that was asked for."""

LOOK = 0.5
"""Seconds in which a dry run sees whether the virtual addresses answer."""


class Seen(msgspec.Struct, frozen=True):
    """What was seen of a virtual address: requests sent and lost, and the longest time without an answer in seconds."""

    address: str
    sent: int
    lost: int
    gap: float


class Drill(msgspec.Struct, frozen=True):
    """A failover from one leader to another; `leads` leads in the end."""

    led: str
    leads: str | None
    moved: bool
    limit: float
    addresses: tuple[Seen, ...]


class Plan(msgspec.Struct, frozen=True):
    """What a failover would do: who leads and would lead, why that can't be, and what would be lost.

    `behind` are the nodes that lack committed entries, and how many each.
    """

    leads: str | None
    would_lead: str | None
    obstacle: str
    connections: int
    stream_calls: int
    behind: dict[str, int]
    unreachable: tuple[str, ...]


@click.command()
@click.option("--to", metavar="NODE", help="Who is to lead; any that is up to date if it isn't said.")
@click.option("--dry-run", is_flag=True, help="Say who would lead, and what would be lost; change nothing.")
@click.option("--limit", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds a gap may have.")
@click.option("--port", type=click.IntRange(1, 65535), default=5060, show_default=True, help="SIP's port.")
@options
@click.pass_obj
def drill(session: Session, to: str | None, dry_run: bool, limit: float, port: int) -> None:
    """Hand leadership on, and measure from here for how long no request is answered.

    An OPTIONS goes over UDP to each virtual address every 20 ms. Exit status 1 if a gap exceeds the limit, or if
    leadership has not moved.
    """

    async def carry_out(client: AdminClient) -> None:
        before = await client.status()
        outages = _outages(client, before, port)
        try:
            await _measure(client, "before", BEFORE)
            deaf = [str(address) for address, outage in outages.items() if outage.lost == outage.sent]
            if deaf:
                leave(f"{', '.join(deaf)} can't be reached from here over UDP, port {port}: nothing was done")
            await client.transfer(to)
            await _measure(client, "after", AFTER)
        finally:
            await _stop(outages)
        result = _result(before, await client.status(), outages, limit)
        if session.json:
            display.json(result)
        else:
            _show(result)
        _judge(result)

    async def rehearse(client: AdminClient) -> None:
        leader = await leader_of(client)
        status, nodes = await leader.status(), await leader.nodes()
        outages = _outages(client, status, port)
        await deferLater(client.clock, LOOK)
        await _stop(outages)
        unreachable = tuple(address for address, outage in outages.items() if outage.lost == outage.sent)
        plan = _plan(status, nodes.nodes, to or nodes.successor, unreachable)
        if session.json:
            display.json(plan)
        else:
            _show_plan(plan)
        if plan.obstacle:
            leave(plan.obstacle)
        if unreachable:
            leave(f"{', '.join(unreachable)} can't be reached from here over UDP, port {port}")

    session.ask(rehearse if dry_run else carry_out)


async def _measure(client: AdminClient, what: str, seconds: float) -> None:
    """Let the time pass, and show how much has."""
    with progress(what, seconds) as show:
        steps = round(seconds / LOOK)
        for step in range(1, steps + 1):
            await deferLater(client.clock, seconds / steps)
            show(step * seconds / steps)


def _outages(client: AdminClient, status: Status, port: int) -> dict[str, Outage]:
    """Begin to ask each virtual address."""
    outages = {address: Outage(client.clock, (address, port)) for address in status.virtual_addresses}
    for address, outage in outages.items():
        try:
            outage.start()
        except CannotListenError as error:
            leave(f"{address} can't be reached from here: {error.socketError}")
    return outages


async def _stop(outages: dict[str, Outage]) -> None:
    await gatherResults([outage.stop() for outage in outages.values()])


def _result(before: Status, after: Status, outages: dict[str, Outage], limit: float) -> Drill:
    seen = tuple(Seen(address, one.sent, one.lost, round(one.gap, 3)) for address, one in outages.items())
    moved = after.leader not in {None, before.leader}
    return Drill(before.leader or "", after.leader, moved, limit, seen)


def _show(result: Drill) -> None:
    rows = ((one.address, str(one.sent), str(one.lost), f"{one.gap:.3f} s") for one in result.addresses)
    display.table(("address", "requests", "lost", "longest gap"), rows)
    click.echo(f"{result.led} led, {result.leads or 'nobody'} leads")


def _judge(result: Drill) -> None:
    if not result.moved:
        leave("leadership has not moved")
    late = [one.address for one in result.addresses if one.gap > result.limit]
    if late:
        leave(f"the gap of {', '.join(late)} exceeds {result.limit:g} s")


def _plan(status: Status, nodes: Sequence[NodeView], to: str | None, unreachable: tuple[str, ...]) -> Plan:
    members = {node.name: node for node in nodes}
    if not any(node.leads for node in nodes):
        obstacle = "no node leads"
    elif to is None:
        obstacle = "no other node could lead: " + "; ".join(
            f"{node.name} {node.obstacle}" for node in nodes if node.obstacle and not node.leads
        )
    elif to not in members:
        obstacle = f"{to} is no member"
    elif members[to].leads:
        obstacle = f"{to} leads already"
    else:
        why = members[to].obstacle
        obstacle = f"{to} {why}" if why else ""
    return Plan(
        status.leader,
        to,
        obstacle,
        status.connections,
        status.stream_calls,
        {node.name: node.behind for node in nodes if node.behind},
        unreachable,
    )


def _show_plan(plan: Plan) -> None:
    click.echo(f"leads: {plan.leads or 'nobody'}")
    click.echo(f"would lead: {plan.would_lead or 'nobody'}")
    click.echo(f"connections of phones that would be closed: {plan.connections}")
    click.echo(f"calls being set up over them, which would fail: {plan.stream_calls}")
    for name, entries in plan.behind.items():
        click.echo(f"behind: {name}, by {entries} entries")
    for address in plan.unreachable:
        click.echo(f"not reachable from here: {address}")
