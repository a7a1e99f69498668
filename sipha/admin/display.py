"""How siphactl shows what the API sends: tables for people, whole and without colour when piped, or JSON."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from sipha.admin.log import EntryView, LogView
from sipha.admin.views import AccountView, BindingView, NodeView, Setting, Status

ItemT = TypeVar("ItemT", BindingView, AccountView)

_UNBOUNDED = 100_000
_NOTHING: Sequence[Any] = ("", 0, None, False, [], {})


def json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)))


def json_line(value: Any) -> str:
    """A JSON document of one line."""
    return msgspec.json.encode(value).decode()


def alarms(nodes: Iterable[Status]) -> None:
    """Print what an operator must know, a line for each."""
    for node in nodes:
        for alarm in node.alarms:
            click.secho(f"ALARM {node.node}: {printable(alarm)}", fg="red")


def workers(nodes: Iterable[Status]) -> None:
    """Print how many workers read, a line for each node that has any."""
    for node in nodes:
        if node.workers is not None:
            click.echo(f"{node.node}: {node.workers.reading} of {node.workers.wanted} workers read UDP")


def nodes(found: Iterable[tuple[str, Status | str]]) -> None:
    """Print a table of nodes; for one that didn't answer, why."""
    heads = ("node", "role", "term", "applied", "hash", "lease", "holds", "pings", "bindings", "accounts", "up")
    table(heads, (_node(name, status) for name, status in found))


def members(found: Iterable[NodeView]) -> None:
    """Print a table of the members of a cluster; how far behind they are, only the leader knows."""
    heads = ("node", "address", "role", "leads", "connected", "behind", "standby", "preferred")
    rows = (
        (
            one.name,
            one.address,
            one.role,
            "yes" if one.leads else "",
            "yes" if one.connected else "no",
            "" if one.behind is None else str(one.behind),
            "yes" if one.standby else "",
            "yes" if one.preferred else "",
        )
        for one in found
    )
    table(heads, rows)


def bindings(page: Iterable[BindingView], *, header: bool = True) -> None:
    """Print a table of bindings: where each is, for how long, and when it last answered a ping, as the leader knows."""
    heads = ("AOR", "contact", "expires", "q", "received", "NAT", "answered", "socket", "user agent")
    rows = (
        (
            one.aor,
            one.contact,
            str(one.expires),
            _q(one),
            one.received,
            "yes" if one.behind_nat else "",
            _answered(one),
            one.socket,
            one.user_agent,
        )
        for one in page
    )
    table(heads, rows, header=header)


def accounts(page: Iterable[AccountView], *, header: bool = True) -> None:
    """Print a table of accounts."""
    heads = ("account", "authenticates as", "realm", "algorithms")
    table(heads, ((one.identity, one.auth_name, one.realm, ",".join(one.algorithms)) for one in page), header=header)


def log(where: LogView) -> None:
    """Print where a log is."""
    snapshot = where.snapshot
    click.echo(
        f"term {where.term}, entries {where.first_index} to {where.last_index} in {where.bytes} bytes; durable up to "
        f"{where.durable_index}, committed up to {where.commit_index}, applied up to {where.applied_index}; "
        + (f"snapshot of entry {snapshot.index} in {snapshot.bytes} bytes" if snapshot else "no snapshot yet")
    )


def entries(found: Iterable[EntryView]) -> None:
    """Print a table of entries of the log, a line for each record."""
    heads = ("index", "term", "time", "record", "about", "more")
    table(heads, (row for entry in found for row in _entry(entry)))


def settings(found: Iterable[Setting]) -> None:
    """Print a table of settings."""
    table(("setting", "value", "default", "about"), ((one.name, one.value, one.default, one.about) for one in found))


def details(found: Sequence[BindingView]) -> None:
    """Print all that is known of the bindings of one AOR."""
    click.echo(f"AOR: {found[0].aor}")
    for one in found:
        click.echo(f"  Contact: {printable(one.contact)}")
        for name, value in (
            ("Expires", f"{one.expires} s"),
            ("Q", _q(one)),
            ("Call-ID", one.call_id),
            ("CSeq", str(one.cseq)),
            ("User-Agent", one.user_agent),
            ("Received", f"{one.received}, behind NAT" if one.behind_nat else one.received),
            ("Answered", f"a ping of {_answered(one)}" if _answered(one) else ""),
            ("Socket", one.socket),
            ("Flow", one.flow),
            ("Path", ", ".join(one.path)),
            ("Methods", one.methods),
            ("Instance", one.instance),
            ("Reg-ID", str(one.reg_id or "")),
            ("Params", one.params),
            ("Flags", f"{one.flags}, branch flags {one.cflags}" if one.flags or one.cflags else ""),
            ("Attr", one.attr),
            ("KV-Store", one.kv_store),
            ("Contact-ID", one.contact_id),
        ):
            if value:
                click.echo(f"    {name}: {printable(value)}")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, header: bool = True) -> None:
    """Print a table of texts, whole and without what could move the cursor of who reads it."""
    # As wide as it needs to be: what is cut off or folded into a cell can't be copied.
    console = Console(width=_UNBOUNDED, markup=False, highlight=False, emoji=False)
    drawn = Table(*heads, box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        drawn.add_row(*map(printable, row))
    with console.capture() as lines:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in lines.get().splitlines()))


async def pages(name: str, source: AsyncIterable[Sequence[ItemT]], show: Callable[..., None], *, json: bool) -> None:
    """Print pages as they come: as tables, by `show`, or as one JSON object with an array called `name`."""
    first = True
    if json:
        click.echo(f'{{"{name}": [', nl=False)
    async for page in source:
        if json:
            for one in page:
                click.echo(("\n  " if first else ",\n  ") + msgspec.json.encode(one).decode(), nl=False)
                first = False
        elif first or page:
            show(page, header=first)
            first = False
    if json:
        click.echo("\n]}")


def _node(name: str, status: Status | str) -> Sequence[str]:
    if isinstance(status, str):
        return (name, status, *("" for _ in range(9)))
    return (
        name,
        _role(status),
        str(status.term),
        str(status.applied_index),
        status.hash[:12],
        _lease(status),
        ", ".join(status.virtual_addresses) if status.holds_virtual_addresses else "",
        status.pings if status.leading else "",
        str(status.bindings),
        str(status.accounts),
        str(timedelta(seconds=int(status.uptime))),
    )


def _entry(entry: EntryView) -> Iterator[Sequence[str]]:
    place = (str(entry.index), str(entry.term), "" if entry.time is None else f"{entry.time:.3f}")
    note = "" if entry.committed else "not committed"
    if not entry.records:
        yield (*place, entry.kind, "", note)
    for record in entry.records:
        more = ", ".join(f"{name}={_said(value)}" for name, value in _pruned(record.fields).items())
        yield (*place, record.kind, record.subject, ", ".join(filter(None, (note, more))))
        place, note = ("", "", ""), ""
    if entry.count > len(entry.records):
        yield (*place, f"{entry.count - len(entry.records)} more", "", "")


def _pruned(value: Any) -> Any:
    """A value without what says nothing in it."""
    match value:
        case dict():
            return {name: _pruned(item) for name, item in value.items() if item not in _NOTHING}
        case list():
            return [_pruned(item) for item in value]
        case _:
            return value


def _said(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _role(status: Status) -> str:
    return ", ".join(
        (
            status.role,
            *((status.memory,) if status.memory != "whole" else ()),
            *(("standby",) if status.standby else ()),
        )
    )


def _lease(status: Status) -> str:
    if not status.leading:
        return ""
    return "no end" if status.lease is None else f"{status.lease:.2f} s"


def _q(binding: BindingView) -> str:
    return "" if binding.q is None else f"{binding.q:g}"


def _answered(binding: BindingView) -> str:
    return "" if binding.answered is None else f"{binding.answered} s ago"


def printable(text: str) -> str:
    """Text from a phone that can't move the cursor of who reads it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
