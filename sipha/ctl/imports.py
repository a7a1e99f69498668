"""`siphactl import`: accounts and bindings from OpenSIPS and Kamailio."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from sipha.admin.client import AdminClient, Refused
from sipha.admin.imports import Brought, NewBinding
from sipha.admin.queries import Page
from sipha.admin.views import NewAccount, Result
from sipha.ctl.pages import pages
from sipha.ctl.progress import progress
from sipha.ctl.session import Session, leave, options
from sipha.migration import database
from sipha.migration.database import Database
from sipha.migration.dump import Dump
from sipha.migration.location import Expired, Locations
from sipha.migration.rows import MigrationError, Row, Source, Unusable
from sipha.migration.sheet import Sheet
from sipha.migration.subscriber import Subscribers, by_name

AT_ONCE = 256
"""How many accounts or bindings go into one request: as many as a node proposes at a time."""

ATTEMPTS = 10
RESPITE = 1.0
"""How often a request is sent that the cluster puts off, and the seconds between two attempts."""

Origin = Literal["opensips", "kamailio"]
NewT = TypeVar("NewT", NewAccount, NewBinding)
_Rows = list[tuple[Row, NewT]]


@click.command("import")
@click.argument("origin", metavar="opensips|kamailio", type=click.Choice(["opensips", "kamailio"]))
@click.argument("source")
@click.option("--domain", metavar="DOMAIN", default="", help="The domain of rows that name none.")
@click.option(
    "--auth-name",
    type=click.Choice(["user", "user@domain"]),
    default="user",
    show_default=True,
    help="As whom phones authenticate: so that ha1 counts, or so that ha1b does.",
)
@click.option("--realm", default="", help="The realm of the hashes, if it isn't the domain of the row.")
@click.option("--time-zone", metavar="ZONE", help="That of Kamailio's dates, if it isn't this machine's.")
@click.option("--subscriber", metavar="TABLE", default="subscriber", show_default=True, help="The accounts.")
@click.option("--location", metavar="TABLE", default="location", show_default=True, help="The bindings.")
@click.option("--dry-run", is_flag=True, help="Check all rows, and change nothing.")
@options
@click.pass_obj
def import_(  # noqa: PLR0917  one for each option
    session: Session,
    origin: Origin,
    source: str,
    domain: str,
    auth_name: Literal["user", "user@domain"],
    realm: str,
    time_zone: str | None,
    subscriber: str,
    location: str,
    dry_run: bool,
) -> None:
    """Take over the accounts and bindings of OpenSIPS or Kamailio from SOURCE.

    SOURCE is a dump of MySQL or MariaDB, a .csv file, - for a dump on standard input, or the URL of a database:
    sqlite:///FILE, mysql://USER@HOST/DATABASE, postgresql://USER@HOST/DATABASE. What is here already stays as it is, so
    that an import may be repeated. Each row that can't be taken is named, with the reason, and the others are taken.
    Exit status 1 if there was one.
    """
    tables = subscriber, location
    zone = _zone(time_zone)

    async def command(client: AdminClient) -> None:
        domains = by_name((await client.domains()).domains)
        subscribers = Subscribers(domains, domain, auth_name, realm)
        locations = Locations(origin, domains, time.time(), zone, domain)
        try:
            with closing(_open(source, tables)) as opened:
                taking = Taking(client, opened, subscribers, locations, dry_run=dry_run)
                await taking.take(subscriber)
        except MigrationError as error:
            leave(str(error))
        _tell(session, taking, dry_run=dry_run)

    session.ask(command)


class Tally(msgspec.Struct):
    """How many rows became what: made, here before, run out, or refused."""

    made: int = 0
    here: int = 0
    expired: int = 0
    refused: int = 0


@dataclass
class _Kind(Generic[NewT]):
    """Accounts or bindings: what makes them of rows, what takes them, and those that wait to be taken."""

    make: Callable[[Mapping[str, str | None]], NewT]
    take: Callable[[Sequence[NewT]], Coroutine[Deferred[Any], Any, Sequence[Result | Brought]]]
    tally: Tally = field(default_factory=Tally)
    waiting: _Rows[NewT] = field(default_factory=list)


class Taking:
    """One import, row by row."""

    def __init__(
        self, client: AdminClient, source: Source, subscribers: Subscribers, locations: Locations, *, dry_run: bool
    ) -> None:
        self._client = client
        self._source = source
        self._dry_run = dry_run
        self._present: set[str] = set()
        self._uncertain: set[str] = set()
        self._accounts = _Kind(subscribers.account, self._take_accounts)
        self._bindings = _Kind(locations.binding, self._take_bindings)

    @property
    def accounts(self) -> Tally:
        """What became of the accounts."""
        return self._accounts.tally

    @property
    def bindings(self) -> Tally:
        """What became of the bindings."""
        return self._bindings.tally

    async def take(self, subscriber: str) -> None:
        """Take all rows, those of the table `subscriber` as accounts; raises MigrationError and AdminError."""
        async for page in pages(self._client.page_of_accounts, Page()):
            self._present.update(account.identity for account in page.accounts)
        with progress(self._source.name, self._source.size) as show:
            for row in self._source.rows():
                show(row.done)
                if row.table == subscriber:
                    await self._add(row, self._accounts)
                else:
                    await self._add(row, self._bindings)
            await self._send(self._accounts)
            await self._send(self._bindings)

    async def _add(self, row: Row, kind: _Kind[NewT]) -> None:
        """Make what the row says, and send it with others."""
        if row.flaw:
            self._refuse(row, kind, row.flaw)
            return
        try:
            kind.waiting.append((row, kind.make(row.columns)))
        except Expired:
            kind.tally.expired += 1
        except Unusable as error:
            self._refuse(row, kind, str(error))
        if len(kind.waiting) >= AT_ONCE:
            await self._send(kind)

    async def _send(self, kind: _Kind[NewT]) -> None:
        """Have those that wait taken; who is put off, as while no node leads, is sent again."""
        waiting, kind.waiting = kind.waiting, []
        if self._dry_run:
            kind.tally.made += len(waiting)
            return
        for attempt in range(ATTEMPTS):
            if not waiting:
                return
            if attempt:
                await deferLater(self._client.clock, RESPITE)
            waiting = await self._send_some(waiting, kind)
        for row, _ in waiting:
            self._refuse(row, kind, "the cluster took nothing more: import it again")

    async def _send_some(self, some: _Rows[NewT], kind: _Kind[NewT]) -> _Rows[NewT]:
        """Have them taken, in halves if one among them is refused for what it is, and return those put off."""
        try:
            results = await kind.take([new for _, new in some])
        except Refused as error:
            if error.status == 503:
                return some
            if error.status != 422:
                raise
            if len(some) > 1:
                half = len(some) // 2
                put_off = await self._send_some(some[:half], kind)
                return put_off + await self._send_some(some[half:], kind)
            self._refuse(some[0][0], kind, str(error))
            return []
        put_off = []
        for (row, new), result in zip(some, results, strict=True):
            if result.status == 201:
                kind.tally.made += 1
            elif result.status == 200:
                kind.tally.here += 1
            elif result.status == 503:
                put_off.append((row, new))
            else:
                self._refuse(row, kind, result.detail)
        return put_off

    def _refuse(self, row: Row, kind: _Kind[NewT], why: str) -> None:
        kind.tally.refused += 1
        who = "@".join(filter(None, (row.columns.get("username"), row.columns.get("domain"))))
        place = f"{self._source.name}: {self._source.unit} {row.place}: {row.table}"
        click.echo(f"{place} {who}: {why}" if who else f"{place}: {why}", err=True)

    async def _take_accounts(self, accounts: Sequence[NewAccount]) -> Sequence[Result | Brought]:
        """Create those that aren't here, and say of the others that they are."""
        return [self._seen(result) for result in (await self._client.create_accounts(accounts)).results]

    def _seen(self, result: Result) -> Result:
        """What became of an account in the light of what is known of it."""
        if result.status == 503:
            self._uncertain.add(result.account)
        elif result.status == 409 and result.account in self._present:
            return Result(result.account, 200)
        elif result.status == 409 and result.account in self._uncertain:
            return Result(result.account, 201)  # it was made, although no answer came
        return result

    async def _take_bindings(self, bindings: Sequence[NewBinding]) -> Sequence[Result | Brought]:
        return (await self._client.bring_bindings(bindings)).results


def _open(source: str, tables: tuple[str, str]) -> Source:
    """Where the rows are; raises MigrationError."""
    if source.partition("://")[0] in database.SCHEMES and "://" in source:
        return Database(source, tables)
    if source == "-":
        return Dump(sys.stdin.buffer, "standard input", 0, tables)
    path = Path(source)
    try:
        if path.suffix.lower() == ".csv":
            return Sheet.open(path, tables)
        return Dump(path.open("rb"), source, path.stat().st_size, tables)
    except OSError as error:
        raise MigrationError(f"{source} can't be read: {error.strerror}") from error


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise click.UsageError(f"{name!r} is not a time zone; write one such as Europe/Prague or UTC") from error


def _tell(session: Session, taking: Taking, *, dry_run: bool) -> None:
    """Say what became of the rows, and leave with status 1 if some were refused."""
    result = {"dry_run": dry_run, "accounts": taking.accounts, "bindings": taking.bindings}
    made = "would be made" if dry_run else "made"
    sentence = "\n".join(
        f"{what}: {tally.made} {made}, {tally.here} here before, {tally.expired} run out, {tally.refused} refused"
        for what, tally in (("accounts", taking.accounts), ("bindings", taking.bindings))
    )
    session.answer(result, sentence)
    if taking.accounts.refused + taking.bindings.refused:
        raise SystemExit(1)
